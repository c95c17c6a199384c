"""NAFNet models on a CPU in bfloat16 or 8-bit integers, without work on background."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.engines.network import Network
from codebrain.machine import integer_products, short_floats
from codebrain.models._contract import ImputationModel, withheld
from codebrain.nn.fast import SMALLEST, Pooling, Reduced, accelerate
from codebrain.nn.naf import NafBlock
from codebrain.nn.window import CELL, Window


def is_nafnet(model: ImputationModel) -> bool:
    """Whether a model is built of NAFNet blocks."""
    return any(isinstance(part, NafBlock) for part in model.modules())


def reductions(model: ImputationModel) -> tuple[Reduced, ...]:
    """The precisions below float32 in which this processor is faster with this model, fastest first.

    None for a network so small that products are not what takes the time.
    """
    widths = [part.expand1.in_features for part in model.modules() if isinstance(part, NafBlock)]
    if max(widths, default=0) < SMALLEST or not short_floats():
        return ()
    return ("int8", "bf16") if integer_products() else ("bf16",)


class ReducedEngine:
    """Completes one slice at a time, in its :class:`~codebrain.nn.window.Window`; zero where nothing was computed.

    Args:
        model: on the CPU; its weights are packed anew, the model itself stays as it is.
        precision: ``int8`` or ``bf16``.
    """

    name = "torch"
    at_once = 1

    def __init__(self, model: ImputationModel, precision: Reduced) -> None:
        self.pooling = Pooling()
        self.network = Network(accelerate(model, precision, self.pooling))

    @torch.inference_mode()
    def __call__(
        self, images: Float[Tensor, "1 m h w"], present: Bool[Tensor, "1 m"]
    ) -> tuple[Float[Tensor, "1 m h w"], list[Float[Tensor, "1 _ hc wc"]]]:
        """A completed slice and its grades; an empty slice has none."""
        given, height, width = withheld(images, present), images.shape[-2], images.shape[-1]
        window = Window.around(given[0])
        if window is None:
            return given, []
        self.pooling.rows, self.pooling.columns = window.row_counts, window.column_counts
        completed, *grades = self.network(window.cut(given), present)
        coarse = [window.put_back(channel, (height // CELL, width // CELL), cell=CELL) for channel in grades]
        return window.put_back(completed, (height, width)), coarse
