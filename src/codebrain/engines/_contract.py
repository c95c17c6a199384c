"""What every engine promises."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor


class Engine(Protocol):
    """Computes the slices of one model.

    Attributes:
        name: ``torch``, ``openvino`` or ``onnx``.
        at_once: slices that a call is best given.
    """

    name: str
    at_once: int

    def __call__(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m h w"], list[Float[Tensor, "b _ hc wc"]]]:
        """Completed images and grades, as :meth:`codebrain.uncertainty.Graded.complete`; without grades an empty list.

        Args:
            images: contrasts in [0, 1]; what absent ones hold has no influence.
            present: which contrasts are given.
        """
        ...
