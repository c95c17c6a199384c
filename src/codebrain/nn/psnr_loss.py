"""The PSNR loss: log of the mean squared error, per contrast."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.nn.pooling import pooled_ratio

_DECIBEL = 10 / math.log(10)
_FLOOR = 1e-8  # keeps the logarithm finite; as in the released code


def psnr_loss(
    candidate: Float[Tensor, "b m h w"], truth: Float[Tensor, "b m h w"], counted: Bool[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """Negative PSNR in dB of each contrast over the samples in which it counts, averaged over contrasts.

    With one pattern for the whole batch this is the released loss; with a pattern per sample each contrast's
    error is pooled over its own samples, of all processes. Zero when nothing counts.

    Source: Wu et al., CodeBrain, arXiv 2501.18328, section 3.2; Chen et al., NAFNet, arXiv 2204.04676.
    """
    error = (candidate.float() - truth.float()).square().mean((2, 3))
    pooled, samples = pooled_ratio((error * counted).sum(0), counted.sum(0))
    decibel = _DECIBEL * (pooled + _FLOOR).log()
    seen = samples > 0
    return (decibel * seen).sum() / seen.sum().clamp(min=1)
