"""``codebrain phantom``: what it writes, what it answers, and that the other commands take it."""

import json

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("nilearn", reason="the phantom needs the extra 'phantom'")

CONTRASTS = {"T1.nii.gz", "T2.nii.gz", "PD.nii.gz", "FLAIR.nii.gz", "T1Gd.nii.gz"}


def test_a_phantom_with_a_tumour(tmp_path, typed):
    out = tmp_path / "out"
    answer = typed("phantom", "-o", out, "--seed", 11, "--lesion", "tumour", "--spacing", 5, "--json")
    assert answer.status == 0, answer.err
    assert answer.json["synthetic"] is True
    assert set(answer.json["studies"]["phantom-0001"]) == CONTRASTS | {
        "tissues.nii.gz", "lesion.nii.gz", "truth.json"
    }  # fmt: skip
    labels = nib.load(out / "phantom-0001" / "lesion.nii.gz")
    assert np.asanyarray(labels.dataobj).max() == 3
    assert json.loads((out / "phantom-0001" / "truth.json").read_text())["synthetic"] is True


def test_the_command_is_reproducible(tmp_path, typed):
    for run in "ab":
        answer = typed("phantom", "-o", tmp_path / run, "--subjects", 2, "--spacing", 6, "--head")
        assert answer.status == 0, answer.err
    for file in sorted((tmp_path / "a").rglob("*.nii.gz")):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
    assert len(list((tmp_path / "a").rglob("*.nii.gz"))) == 2 * 6


def test_the_answer_in_words(tmp_path, typed):
    answer = typed("phantom", "-o", tmp_path / "out", "--spacing", 6)
    assert answer.status == 0
    assert "SYNTHETIC" in answer.out


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("--lesion", "stroke"), 2, "CONFIG"),
        (("--spacing", "0.1"), 2, "CONFIG"),
        (("--subjects", "0"), 2, "CONFIG"),
        (("--seed", "-3"), 2, "CONFIG"),
    ],
)
def test_settings_that_cannot_be(words, status, code, tmp_path, typed):
    answer = typed("phantom", "-o", tmp_path / "out", *words)
    assert (answer.status, answer.code) == (status, code)
    assert not (tmp_path / "out").exists()


def test_an_earlier_phantom_is_kept(tmp_path, typed):
    words = ("phantom", "-o", tmp_path / "out", "--spacing", 6)
    assert typed(*words).status == 0
    again = typed(*words)
    assert (again.status, again.code) == (4, "OUT_EXISTS")
    assert typed(*words, "--overwrite").status == 0


def test_a_place_that_cannot_be_written(tmp_path, typed):
    answer = typed("phantom", "-o", tmp_path / "no" / "such" / "parent", "--spacing", 6)
    assert (answer.status, answer.code) == (4, "OUT_PERMISSION")
    taken = tmp_path / "file"
    taken.write_text("mine")
    answer = typed("phantom", "-o", taken, "--spacing", 6)
    assert (answer.status, answer.code) == (4, "OUT_PERMISSION")
    assert taken.read_text() == "mine"


def test_a_phantom_can_be_imputed(tmp_path, typed, impute):
    assert typed("phantom", "-o", tmp_path / "p", "--spacing", 4).status == 0
    study = tmp_path / "p" / "phantom-0001"
    answer = impute("--t1", study / "T1.nii.gz", "--flair", study / "FLAIR.nii.gz", "-o", tmp_path / "out")
    assert answer.status == 0, answer.err
    assert nib.load(next((tmp_path / "out").glob("*_T2_imputed.nii.gz"))).shape == nib.load(study / "T1.nii.gz").shape
