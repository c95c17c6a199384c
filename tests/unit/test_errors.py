"""Every code has one class and one exit; the sentence holds every fact."""

from __future__ import annotations

import pytest

from codebrain import errors
from codebrain.errors import Notice, error_class, missing_extra, refusal


@pytest.mark.parametrize(
    ("code", "name", "status"),
    [
        ("CONFIG", "UsageError", 2),
        ("MOD_UNKNOWN", "UsageError", 2),
        ("MOD_DUPLICATE", "UsageError", 2),
        ("MOD_NONE", "UsageError", 2),
        ("MOD_SAME_FILE", "InputRefused", 3),
        ("IN_CHECKSUM", "InputRefused", 3),
        ("GEO_FOV", "InputRefused", 3),
        ("DATA_SPLIT", "InputRefused", 3),
        ("OOD", "InputRefused", 3),
        ("MODEL_DOMAIN", "InputRefused", 3),
        ("OUT_SPACE", "EnvironmentRefused", 4),
        ("ENV_EXTRA", "EnvironmentRefused", 4),
        ("LOCKED", "EnvironmentRefused", 4),
        ("CKPT_UNSAFE", "ModelRefused", 5),
        ("BATCH", "BatchIncomplete", 6),
        ("DIVERGED", "TrainingDiverged", 7),
    ],
)
def test_code_class_exit(code, name, status):
    cls = error_class(code)
    assert (cls.__name__, cls.exit_code) == (name, status)
    assert isinstance(refusal(code, "wrong"), cls)
    assert issubclass(cls, errors.CodeBrainError)


def test_an_unpublished_code_is_our_own_bug():
    with pytest.raises(KeyError):
        refusal("WHATEVER", "wrong")


def test_the_sentence_is_one_line_with_every_fact():
    error = refusal(
        "IN_HEADER", "the number of axes\nis impossible", file="a b.nii", field="dim[0]", found=0,
        expected="1 to 7", hint="Export it again.",
    )  # fmt: skip
    assert str(error) == (
        "a b.nii: dim[0]: the number of axes is impossible (found 0, expected 1 to 7). Export it again."
    )
    facts = error.as_dict()
    assert facts["code"] == "IN_HEADER" and facts["exit"] == 3 and facts["found"] == "0"
    assert facts["message"] == str(error)


def test_the_shortest_sentence():
    assert str(refusal("IN_EMPTY", "nothing here.")) == "nothing here."


def test_a_missing_extra_says_how_to_install_it():
    assert "pip install 'codebrain-mri[align]'" in str(missing_extra("SimpleITK", "align", "alignment"))


def test_a_notice_is_json():
    assert Notice("IN_NAN", "3 voxels", "t1.nii").as_dict() == {
        "code": "IN_NAN", "message": "3 voxels", "file": "t1.nii",
    }  # fmt: skip


def test_an_error_crosses_between_processes_whole() -> None:
    import pickle

    error = refusal(
        "CKPT_MISMATCH", "no", file="/home/jane.doe/model", field="width", found=3, expected=4, hint="Mend it."
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and copy.as_dict() == error.as_dict()
    assert "jane" in str(copy) and "jane" not in copy.brief and copy.brief in str(copy)
