"""Real scans: native grids, thick slices, other frames, all 48 axis orders; the images come back on their grids."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from codebrain.imaging.study import find_files

STUDIES = ("raw/mslong-01-1", "raw/glioma-fg6692-native", "raw/ixi-002", "studies/ms-19")


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_each_contrast_alone_and_all_together(name, real_data, tmp_path, impute):
    """One contrast needs no registration, all together need it; the subsets between are made of the same steps."""
    files = find_files(real_data / name)
    subsets = [[contrast] for contrast in files] + [list(files)]
    for number, subset in enumerate(subsets):
        words = [word for contrast in subset for word in ("--input", f"{contrast}={files[contrast]}")]
        out = tmp_path / str(number)
        answer = impute(*words, "-o", out, "--quiet")
        assert answer.status == 0, answer.err
        run = json.loads((out / "run.json").read_text())
        assert run["imputed"] == [c for c in ("T1", "T2", "PD", "FLAIR", "T1Gd") if c not in subset]
        reference = nib.load(next(path for c, path in files.items() if c == run["reference"]))
        for contrast in run["imputed"]:
            image = nib.load(out / f"study_{contrast}_imputed.nii.gz")
            assert image.shape == reference.shape
            np.testing.assert_array_equal(image.affine, reference.affine)
            assert np.isfinite(image.get_fdata()).all()


@pytest.mark.data
@pytest.mark.slow
def test_all_48_orientations_give_one_answer(real_data, tiny_model):
    from codebrain.impute import Imputer

    imputer = Imputer.from_pretrained(tiny_model, device="cpu")
    answers = {}
    for path in sorted((real_data / "odd" / "orientations").glob("*.nii*")):
        image = imputer({"T1": path}, want=["T2"])["T2"].image
        np.testing.assert_array_equal(image.affine, nib.load(path).affine)
        answers[path.name] = nib.as_closest_canonical(image)
    first = next(iter(answers.values()))
    assert len(answers) == 48
    for name, answer in answers.items():
        np.testing.assert_allclose(answer.affine, first.affine, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(answer.get_fdata(), first.get_fdata(), atol=1e-2, err_msg=name)
