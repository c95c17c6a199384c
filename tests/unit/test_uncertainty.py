"""The doubt is 0 for a certain code, 1 for an undecided one, and follows the levels' distribution."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch

from codebrain.models import build_model
from codebrain.uncertainty import Graded, StudyDoubt, code_doubt, code_entropy, slice_doubts
from codebrain.vocabulary import ModalitySet


def test_certain_bits_have_no_doubt():
    grades = [torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 4, 1, 1).expand(1, 4, 2, 3)]
    assert torch.equal(code_entropy(grades), torch.zeros(1, 2, 3))


@pytest.mark.parametrize("levels", [2, 5, 8])
def test_equally_likely_levels_have_full_doubt(levels):
    bits = torch.tensor([1 - (j + 1) / levels for j in range(levels - 1)]).reshape(1, -1, 1, 1)
    assert code_entropy([bits]).item() == pytest.approx(1.0, abs=1e-6)


def test_half_a_bit_between_two_of_three_levels_is_log_2_over_log_3():
    bits = torch.tensor([1.0, 0.5]).reshape(1, 2, 1, 1)
    assert code_entropy([bits]).item() == pytest.approx(log(2) / log(3), abs=1e-6)


def test_channels_count_equally_whatever_their_number_of_levels():
    certain, undecided = torch.ones(1, 7, 1, 1), torch.full((1, 1, 1, 1), 0.5)
    assert code_entropy([certain, undecided]).item() == pytest.approx(0.5, abs=1e-6)


def test_doubt_is_brought_to_the_size_of_the_slice():
    bits = torch.full((2, 1, 3, 4), 0.5)
    bits[:, :, :, :2] = 1.0
    doubt = code_doubt([bits], (24, 32))
    assert doubt.shape == (2, 24, 32)
    assert doubt[0, 12, 0] == 0
    assert doubt[0, 12, -1] == pytest.approx(1.0)
    assert (doubt.diff(dim=-1) >= 0).all()


def test_models_without_grades_are_told_apart():
    assert not isinstance(torch.nn.Identity(), Graded)


def test_completed_images_and_grades_are_those_of_the_model_asked_separately():
    modalities = ModalitySet.parse("T1,T2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("codebrain", modalities, {"width": 2, "depth": 1}).eval()
        images, present = torch.rand(2, 2, 16, 24), torch.tensor([[True, False], [False, True]])
    assert isinstance(model, Graded)
    completed, grades = model.complete(images, present)
    assert torch.equal(completed, model(images, present))
    for one, other in zip(grades, model.grades(images, present), strict=True):
        assert torch.equal(one, other)


def test_a_slice_counts_inside_its_head_and_only_with_enough_of_it():
    doubt = np.full((3, 10, 20), 0.9, np.float32)
    head = np.zeros((3, 10, 20), bool)
    head[0, :5, :2], head[1, 0, 0] = True, True
    doubt[0, :5, 0], doubt[0, :5, 1] = 0.25, 0.75
    assert slice_doubts(doubt, head) == (0.5, None, None)


def test_a_study_is_the_mean_of_the_slices_that_count():
    doubt = StudyDoubt.of((None, 0.5, 0.7, None), 3, None)
    assert (doubt.score, doubt.limit, doubt.low_confidence, doubt.notices) == (0.6, None, False, ())
    assert StudyDoubt.of((None,), 0, 0.1).score is None


@pytest.mark.parametrize(("limit", "low"), [(0.59, True), (0.6, False), (0.61, False)])
def test_over_the_limit_is_low_confidence(limit, low):
    doubt = StudyDoubt.of((0.5, 0.7), 3, limit)
    assert doubt.low_confidence is low
    assert [notice.code for notice in doubt.notices] == ["LOW_CONFIDENCE"] * low
    assert doubt.sidecar() == {
        "PerSlice": [0.5, 0.7], "FirstSlice": 3, "Score": 0.6, "Limit": limit, "LowConfidence": low
    }  # fmt: skip
