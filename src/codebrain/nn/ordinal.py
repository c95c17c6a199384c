"""Levels as ordered bits: level y of L becomes L - 1 bits, bit j = (j < y).

Source: Wu et al., CodeBrain, arXiv 2501.18328, section 3.3 (grading); the bits are those of extended binary
classification for ordinal regression. Classification, the paper's alternative (table 3), predicts the L levels
of a channel as unordered classes; :func:`exceedances` brings both to the same form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

Grading = Literal["ordinal", "classification"]


def grade_outputs(levels: Sequence[int], grading: Grading) -> list[int]:
    """Numbers to predict for each code channel: L - 1 ordered bits, or L classes."""
    return [count - 1 if grading == "ordinal" else count for count in levels]


def exceedances(
    logits: Float[Tensor, "b h w n"], levels: Sequence[int], grading: Grading
) -> list[Float[Tensor, "b h w _"]]:
    """For each code channel P(level > j), j = 0 .. L - 2, in float32, from bits or from classes."""
    if grading == "ordinal":
        return [channel.float().sigmoid() for channel in split_channels(logits, levels)]
    classes = [channel.float().softmax(-1) for channel in torch.split(logits, list(levels), dim=-1)]
    # clamped, because a sum of probabilities may round to a little above one.
    return [channel.flip(-1).cumsum(-1).flip(-1)[..., 1:].clamp(max=1) for channel in classes]


def split_channels(bits: Float[Tensor, "b h w n"], levels: Sequence[int]) -> list[Float[Tensor, "b h w _"]]:
    """The bits of each code channel, ``n = sum(L - 1)``."""
    return list(torch.split(bits, [count - 1 for count in levels], dim=-1))


def level_to_bits(level: Int[Tensor, "*b"], count: int) -> Float[Tensor, "*b n"]:
    """Level 0 .. count-1 to count-1 bits."""
    return (torch.arange(count - 1, device=level.device) < level[..., None]).float()


def threshold_level(probability: Float[Tensor, "*b n"]) -> Int[Tensor, "*b"]:
    """The paper's decoding: how many bits are more likely set than not."""
    return (probability > 0.5).sum(-1)


def expected_level(probability: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """The mean of the level under the predicted bits, a number between the levels."""
    return probability.sum(-1)


def likeliest_level(probability: Float[Tensor, "*b n"]) -> Int[Tensor, "*b"]:
    """The level with the highest probability of its own."""
    return level_distribution(probability).argmax(-1)


def level_distribution(probability: Float[Tensor, "*b n"]) -> Float[Tensor, "*b l"]:
    """Probability of each level from P(level > j), made monotone and normalised; ``l = n + 1``."""
    falling = torch.cummin(probability, dim=-1).values
    ones, zeros = torch.ones_like(falling[..., :1]), torch.zeros_like(falling[..., :1])
    steps = torch.cat([ones, falling], -1) - torch.cat([falling, zeros], -1)
    return steps / steps.sum(-1, keepdim=True)


def ordinal_loss(
    logits: Float[Tensor, "b h w n"], level: Int[Tensor, "b h w c"], levels: Sequence[int]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the bits, averaged within each code channel, then over channels."""
    losses = [
        F.binary_cross_entropy_with_logits(channel.float(), level_to_bits(target, count))
        for channel, target, count in zip(
            split_channels(logits, levels), rearrange(level, "b h w c -> c b h w"), levels, strict=True
        )
    ]
    return torch.stack(losses).mean()


def classification_loss(
    logits: Float[Tensor, "b h w n"], level: Int[Tensor, "b h w c"], levels: Sequence[int]
) -> Float[Tensor, ""]:
    """Cross-entropy of the classes, averaged within each code channel, then over channels."""
    losses = [
        F.cross_entropy(rearrange(channel.float(), "b h w l -> b l h w"), target)
        for channel, target in zip(
            torch.split(logits, list(levels), dim=-1), rearrange(level, "b h w c -> c b h w"), strict=True
        )
    ]
    return torch.stack(losses).mean()
