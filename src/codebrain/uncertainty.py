"""How sure a model is of the code it predicts.

A model that grades its code (CodeBrain's stage II) gives, for every place of the code and every code
channel, the probabilities of ordered bits, P(level > j). They make a distribution over the levels; its
entropy, divided by the logarithm of the number of levels and averaged over the channels, is the doubt.

The doubt is 0 where one level is certain in every channel and 1 where all levels are equally likely. It is
not calibrated, says nothing about errors of the decoder, and is one map per study: all contrasts that are
imputed together come from the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.nn.ordinal import level_distribution


@runtime_checkable
class Graded(Protocol):
    """A model that predicts its code as ordered bits and can hand them out with the images."""

    def complete(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m h w"], list[Float[Tensor, "b _ hc wc"]]]:
        """The completed images, and per code channel the probability that the level exceeds j, ``n = L - 1``.

        An empty list from a model that its settings leave without a code.
        """
        ...


def code_entropy(grades: Sequence[Float[Tensor, "b _ hc wc"]]) -> Float[Tensor, "b hc wc"]:
    """Normalised entropy of the predicted levels, averaged over the code channels, in [0, 1].

    Args:
        grades: per code channel the probabilities P(level > j), j = 0 .. L-2.
    """
    return torch.stack([_normalised_entropy(channel) for channel in grades]).mean(0)


def _normalised_entropy(bits: Float[Tensor, "b n hc wc"]) -> Float[Tensor, "b hc wc"]:
    levels = level_distribution(rearrange(bits.float(), "b n h w -> b h w n"))
    entropy: Tensor = torch.special.entr(levels).sum(-1)
    return entropy / log(levels.shape[-1])


def code_doubt(grades: Sequence[Float[Tensor, "b _ hc wc"]], size: tuple[int, int]) -> Float[Tensor, "b h w"]:
    """:func:`code_entropy` brought to slices of ``size`` (h, w) by bilinear interpolation."""
    coarse = rearrange(code_entropy(grades), "b h w -> b 1 h w")
    fine = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return rearrange(fine, "b 1 h w -> b h w").clamp(0, 1)
