"""``codebrain brasyn``: the challenge's input folder to the challenge's output folder, and nothing else in it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

import scans
from codebrain.imaging.volume import read_volume

WORDS = {"t1n": "T1", "t1c": "T1Gd", "t2w": "T2", "t2f": "FLAIR"}


def add_case(folder, case, words, *, flat=False, shape=scans.SHAPE):
    home = folder if flat else folder / case
    home.mkdir(parents=True, exist_ok=True)
    for word in words:
        data = scans.head(WORDS[word], shape)
        scans.write_scan(home / f"{case}-{word}.nii.gz", data, scans.affine_of(shape=shape), dtype=np.int16)
    return home


@pytest.fixture
def brasyn(typed, tiny_model, tmp_path):
    return lambda *words: typed(
        "brasyn", tmp_path / "input", tmp_path / "output", "--model", tiny_model, "--jobs", 0, *words
    )


def answers(tmp_path):
    return sorted(path.name for path in (tmp_path / "output").iterdir())


def test_each_case_gets_the_contrast_that_it_lacks(brasyn, tmp_path):
    add_case(tmp_path / "input", "BraTS-GLI-00001-000", ("t1n", "t2f", "t2w"))
    (add_case(tmp_path / "input", "BraTS-MEN-00002-000", ("t1c", "t2f", "t2w"), shape=(30, 36, 28))
     / "BraTS-MEN-00002-000-seg.nii.gz").write_bytes(b"")  # fmt: skip
    add_case(tmp_path / "input", "BraTS-MET-00003-000", ("t1c", "t1n", "t2f"), flat=True)
    answer = brasyn()
    assert answer.status == 0, answer.err
    assert answers(tmp_path) == [
        "BraTS-GLI-00001-000-t1c.nii.gz", "BraTS-MEN-00002-000-t1n.nii.gz", "BraTS-MET-00003-000-t2w.nii.gz",
    ]  # fmt: skip
    made = nib.load(tmp_path / "output" / "BraTS-MEN-00002-000-t1n.nii.gz")
    given = nib.load(tmp_path / "input" / "BraTS-MEN-00002-000" / "BraTS-MEN-00002-000-t2w.nii.gz")
    assert made.shape == given.shape and made.get_data_dtype() == np.float32
    np.testing.assert_array_equal(made.affine, given.affine)
    assert made.header["descrip"].item().startswith(b"SYNTHETIC T1")
    assert made.get_fdata().min() >= 0 and made.get_fdata()[given.get_fdata() == 0].max() == 0
    answered = read_volume(tmp_path / "output" / "BraTS-GLI-00001-000-t1c.nii.gz", accept_synthetic=True)
    assert answered.data.max() > 0
    assert "Enhancement cannot be known" in answer.out  # a T1Gd is among them
    again = brasyn()
    assert (again.status, again.code) == (4, "OUT_EXISTS")
    assert brasyn("--overwrite").status == 0


def test_odd_cases_get_their_sentence_and_the_others_are_done_once(brasyn, tmp_path):
    source = tmp_path / "input"
    add_case(source, "BraTS-GLI-00001-000", ("t1n", "t2f", "t2w"))
    add_case(source, "BraTS-GLI-00002-000", ("t1n", "t2f"))
    add_case(source, "BraTS-GLI-00003-000", tuple(WORDS))
    add_case(source, "BraTS-GLI-00004-000", ())
    add_case(source, "BraTS-GLI-00005-000", ("t1n", "t2f", "t2w"))
    add_case(source, "BraTS-GLI-00005-000", ("t1n",), flat=True)
    add_case(source, "not a case", ())
    answer = brasyn("--json")
    assert (answer.status, answer.code) == (6, "BATCH")
    said = {row["study"][12:15]: (row["status"], row["code"]) for row in json.loads(
        answer.out.splitlines()[0])["studies"]}  # fmt: skip
    assert said == {"001": ("done", ""), "002": ("refused", "MOD_COUNT"), "003": ("refused", "MOD_COUNT"),
                    "004": ("refused", "MOD_COUNT"), "005": ("refused", "MOD_DUPLICATE")}  # fmt: skip
    assert "t1c, t2w are missing" in answer.out and "no contrast is missing" in answer.out
    first = tmp_path / "output" / "BraTS-GLI-00001-000-t1c.nii.gz"
    before = first.stat().st_mtime_ns
    add_case(source, "BraTS-GLI-00002-000", ("t2w",))
    for name in ("003", "004", "005"):
        for path in source.rglob(f"BraTS-GLI-00{name}-000-*"):
            path.unlink()
        if (source / f"BraTS-GLI-00{name}-000").exists():
            (source / f"BraTS-GLI-00{name}-000").rmdir()
    again = brasyn("--keep-records")
    assert again.status == 0 and "1 kept" in again.out and first.stat().st_mtime_ns == before
    assert answers(tmp_path) == [".codebrain", "BraTS-GLI-00001-000-t1c.nii.gz", "BraTS-GLI-00002-000-t1c.nii.gz"]


@pytest.mark.parametrize(("make", "code"), [(lambda p: None, "IN_NOT_A_FILE"), (lambda p: p.mkdir(), "DATA_EMPTY")])
def test_what_is_no_input(brasyn, tmp_path, make, code):
    make(tmp_path / "input")
    answer = brasyn()
    assert (answer.status, answer.code) == (3, code) and not (tmp_path / "output").exists()


def test_answers_never_lie_among_the_cases(typed, tiny_model, tmp_path):
    home = add_case(tmp_path / "input", "BraTS-GLI-00001-000", ("t1n", "t2f", "t2w"))
    answer = typed("brasyn", tmp_path / "input", home, "--model", tiny_model)
    assert (answer.status, answer.code) == (4, "OUT_CLOBBER") and len(list(home.iterdir())) == 3
