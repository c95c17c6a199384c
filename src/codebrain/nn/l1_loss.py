"""The absolute error, per sample and per contrast."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.nn.pooling import pooled_ratio


def absolute_error(candidate: Float[Tensor, "b m h w"], truth: Float[Tensor, "b m h w"]) -> Float[Tensor, "b m"]:
    """Mean absolute error of each contrast of each sample, float32."""
    return (candidate.float() - truth.float()).abs().mean((2, 3))


def l1_loss(
    candidate: Float[Tensor, "b m h w"], truth: Float[Tensor, "b m h w"], counted: Bool[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """Mean absolute error of each contrast over the samples in which it counts, averaged over contrasts.

    Pooled as :func:`codebrain.nn.psnr_loss.psnr_loss` is. Zero when nothing counts.
    """
    error = absolute_error(candidate, truth)
    pooled, samples = pooled_ratio((error * counted).sum(0), counted.sum(0))
    return pooled.sum() / (samples > 0).sum().clamp(min=1)
