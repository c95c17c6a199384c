"""Slices padded with background to the multiple that a network halves them by, and cut back."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pad_to_multiple(images: Float[Tensor, "b m h w"], multiple: int, value: float = 0.0) -> Float[Tensor, "b m hp wp"]:
    """Pad below and to the right with ``value`` until both sides are multiples of ``multiple``."""
    down, right = -images.shape[-2] % multiple, -images.shape[-1] % multiple
    return F.pad(images, (0, right, 0, down), value=value) if down or right else images


def cut_to(images: Float[Tensor, "b m hp wp"], like: Float[Tensor, "b _m h w"]) -> Float[Tensor, "b m h w"]:
    """Undo :func:`pad_to_multiple`: the upper left part, as large as ``like``."""
    return images[..., : like.shape[-2], : like.shape[-1]]
