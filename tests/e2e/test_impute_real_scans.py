"""Real scans: native grids, thick slices, other frames, all 48 axis orders; the images come back on their grids."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from codebrain.imaging.study import find_files
from codebrain.impute import Imputer
from codebrain.models import build_model
from codebrain.vocabulary import ModalitySet, Preparation

STUDIES = {
    "raw/mslong-01-1": (["T1", "FLAIR"], ["T2"]),
    "raw/glioma-fg6692-native": (["T1", "T2", "FLAIR", "T1Gd"], ["FLAIR"]),
    "raw/ixi-002": (["T1", "T2", "PD"], ["T1"]),
    "studies/ms-19": (["T1", "FLAIR"],),
}
"""Together, where registration is needed, and alone; the subsets between are made of the same steps."""


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_subsets_of_a_study(name, real_data, tmp_path, impute):
    files, subsets = find_files(real_data / name), STUDIES[name]
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
@pytest.mark.parametrize(("architecture", "every"), [("mean", 1), ("codebrain", 8)])
def test_all_48_orientations_give_one_answer(architecture, every, real_data):
    """All of them with a model that costs nothing, six with a network."""
    modalities = ModalitySet.parse("T1,T2")
    settings = {"width": 2, "depth": 1} if architecture == "codebrain" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(architecture, modalities, settings).eval()
    model.preparation = Preparation(modalities, pixel_spacing_mm=None)
    imputer = Imputer(model)
    answers = {}
    for path in sorted((real_data / "odd" / "orientations").glob("*.nii.gz"))[::every]:
        image = imputer({"T1": path}, want=["T2"])["T2"].image
        np.testing.assert_array_equal(image.affine, nib.load(path).affine)
        answers[path.name] = nib.as_closest_canonical(image)
    first = next(iter(answers.values()))
    assert len(answers) == 48 // every
    for name, answer in answers.items():
        np.testing.assert_allclose(answer.affine, first.affine, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(answer.get_fdata(), first.get_fdata(), atol=1e-4, err_msg=name)
