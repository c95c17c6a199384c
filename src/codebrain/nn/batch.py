"""What a training step sees, and means over what counts of it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.nn.pooling import pooled_ratio


def counted_mean(values: Float[Tensor, "*b"], counted: Bool[Tensor, "*b"]) -> Float[Tensor, ""]:
    """Mean of the values that count over all processes, zero when none does."""
    return pooled_ratio((values * counted).sum(), counted.sum())[0]


@dataclass(frozen=True)
class Batch:
    """Slices with the three questions asked of every contrast: is there truth, was it given, whose is it.

    Attributes:
        images: slices in [0, 1]; a contrast without ground truth is zero.
        available: where ground truth exists (cohorts with gaps train too).
        present: where the contrast is given to the model; always a subset of ``available``.
        ids: one ``subject/slice`` per sample, for messages.
    """

    images: Float[Tensor, "b m h w"]
    available: Bool[Tensor, "b m"]
    present: Bool[Tensor, "b m"]
    ids: tuple[str, ...] = ()

    @property
    def incomplete(self) -> Float[Tensor, "b m h w"]:
        """The images with everything that is not given set to zero."""
        return self.images * self.present[:, :, None, None].to(self.images.dtype)

    @property
    def absent(self) -> Bool[Tensor, "b m"]:
        """Where truth exists but was withheld: the contrasts to impute."""
        return self.available & ~self.present
