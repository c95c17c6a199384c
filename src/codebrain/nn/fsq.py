"""Finite scalar quantisation: a bounded feature rounded to one of L values per channel.

Source: Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", ICLR 2024, arXiv 2309.15505,
appendix A.1; Wu et al., CodeBrain, arXiv 2501.18328, equation 1.

CodeBrain's equation 1 read literally, ``round(L/2 * tanh(z))``, takes nine values for L = 8, while the
paper's grading has eight levels. The bound of the FSQ paper, which shifts an even L by half a step, gives
exactly L values; it is what the released code does and what stands here.

Three names for one thing, and the only place where they are converted, in integers:

* code, in [-1, 1]: what the decoder reads; ``code = (level - L // 2) / (L // 2)``;
* level, 0 .. L-1: what the grading predicts, per channel;
* index, 0 .. prod(L)-1: one number for all channels, the first channel changing fastest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from codebrain.errors import refusal

_MARGIN = 1e-3  # widens the bound a little, so that tanh reaches the outermost value (FSQ paper, A.1)


class FiniteScalarQuantiser(nn.Module):
    """Quantise the last axis, one channel per entry of ``levels``.

    Args:
        levels: L of each channel, 2 or more.

    Raises:
        UsageError: ``CONFIG`` when a channel has fewer than two levels.
    """

    half_width: Tensor
    level_count: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise refusal("CONFIG", "every code channel needs at least two levels", field="levels", found=list(levels))
        self.levels = tuple(levels)
        self.register_buffer("level_count", torch.tensor(levels), persistent=False)
        self.register_buffer("half_width", torch.tensor([n // 2 for n in levels]), persistent=False)
        steps = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("basis", torch.tensor(steps), persistent=False)

    def bound(self, features: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Squash to an interval that rounds to exactly L integers, -(L // 2) .. (L - 1) // 2."""
        half = (self.level_count - 1) * (1 + _MARGIN) / 2
        offset = torch.where(self.level_count % 2 == 0, 0.5, 0.0)
        shift = (offset / half).atanh()
        return (features + shift).tanh() * half - offset

    def forward(self, features: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Features to code in [-1, 1], float32; the gradient passes as if nothing was rounded."""
        bounded = self.bound(features.float())
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / self.half_width

    def level(self, code: Float[Tensor, "*b c"]) -> Int[Tensor, "*b c"]:
        """Code to level; rounded, so that no L errs (truncation loses one at L = 12 and 13)."""
        return (code * self.half_width).round().long() + self.half_width

    def code(self, level: Int[Tensor, "*b c"] | Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Level, possibly fractional (an expected level), to code."""
        return (level - self.half_width).float() / self.half_width

    def index(self, level: Int[Tensor, "*b c"]) -> Int[Tensor, "*b"]:
        """Levels of all channels to one index."""
        return (level * self.basis).sum(-1)

    def level_of_index(self, index: Int[Tensor, "*b"]) -> Int[Tensor, "*b c"]:
        """Inverse of :meth:`index`."""
        return (index[..., None] // self.basis) % self.level_count
