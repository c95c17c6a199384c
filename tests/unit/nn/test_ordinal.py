from __future__ import annotations

import pytest
import torch

from codebrain.nn.ordinal import (
    classification_loss,
    exceedances,
    expected_level,
    grade_outputs,
    level_distribution,
    level_to_bits,
    likeliest_level,
    ordinal_loss,
    threshold_level,
)


def test_bit_j_says_that_the_level_is_above_j() -> None:
    assert level_to_bits(torch.tensor([0, 2, 4]), 5).tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("count", [2, 5, 8, 13])
def test_bits_decode_to_the_level_they_came_from(count: int) -> None:
    level = torch.arange(count)
    bits = level_to_bits(level, count)
    assert torch.equal(threshold_level(bits), level)
    assert torch.equal(expected_level(bits), level.float())
    assert torch.equal(level_distribution(bits).argmax(-1), level)


def test_distribution_is_a_distribution_even_for_bits_out_of_order() -> None:
    probability = torch.rand(100, 7, generator=torch.Generator().manual_seed(0))
    distribution = level_distribution(probability)
    assert (distribution >= 0).all()
    assert torch.allclose(distribution.sum(-1), torch.ones(100))


def test_loss_is_the_mean_over_channels_of_the_mean_over_bits() -> None:
    level = torch.tensor([1, 3]).reshape(1, 1, 1, 2)
    logits = torch.tensor([2.0, -1.0, 0.5, 0.5, 0.5, -3.0]).reshape(1, 1, 1, 6)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    first = bce(logits[0, 0, 0, :2], torch.tensor([1.0, 0.0]))
    second = bce(logits[0, 0, 0, 2:], torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert torch.allclose(ordinal_loss(logits, level, (3, 5)), (first + second) / 2)


def test_classes_and_bits_need_their_own_number_of_outputs() -> None:
    assert grade_outputs((8, 5), "ordinal") == [7, 4] and grade_outputs((8, 5), "classification") == [8, 5]


def test_probabilities_of_classes_survive_the_way_through_exceedances() -> None:
    logits = 5 * torch.randn(2, 3, 4, 8 + 5, generator=torch.Generator().manual_seed(0))
    parts = exceedances(logits, (8, 5), "classification")
    for part, classes in zip(parts, logits.split([8, 5], dim=-1), strict=True):
        assert (part >= 0).all() and (part <= 1).all() and (part.diff(dim=-1) <= 0).all()
        assert torch.allclose(level_distribution(part), classes.softmax(-1), atol=1e-6)
        assert torch.equal(likeliest_level(part), classes.argmax(-1))


def test_the_likeliest_level_need_not_be_the_median() -> None:
    bits = torch.tensor([0.6, 0.35])  # levels 0, 1, 2 with probabilities 0.4, 0.25, 0.35
    assert likeliest_level(bits) == 0 and threshold_level(bits) == 1


def test_classification_loss_is_the_mean_over_channels_of_the_cross_entropy() -> None:
    level = torch.tensor([1, 3]).reshape(1, 1, 1, 2)
    logits = torch.randn(1, 1, 1, 3 + 5, generator=torch.Generator().manual_seed(0))
    first, second = (part.log_softmax(-1) for part in logits[0, 0, 0].split([3, 5]))
    assert torch.allclose(classification_loss(logits, level, (3, 5)), -(first[1] + second[3]) / 2)
