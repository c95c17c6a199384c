from __future__ import annotations

import pytest
import torch

from codebrain.nn.ordinal import (
    expected_level,
    level_distribution,
    level_to_bits,
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
