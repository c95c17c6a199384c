"""The absolute error, per contrast."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def l1_loss(
    candidate: Float[Tensor, "b m h w"], truth: Float[Tensor, "b m h w"], counted: Bool[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """Mean absolute error of each contrast over the samples in which it counts, averaged over contrasts.

    Pooled as :func:`codebrain.nn.psnr_loss.psnr_loss` is. Zero when nothing counts.
    """
    error = (candidate.float() - truth.float()).abs().mean((2, 3))
    samples = counted.sum(0)
    pooled = (error * counted).sum(0) / samples.clamp(min=1)
    return pooled.sum() / (samples > 0).sum().clamp(min=1)
