"""The model as it is, in torch, on any device."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.engines.network import Network
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import Precision


class TorchEngine:
    """Computes in float32, or under autocast in bfloat16."""

    name = "torch"
    at_once = 1

    def __init__(self, model: ImputationModel, *, device: torch.device, precision: Precision) -> None:
        self.network = Network(model.to(device))
        self.device = device
        self.reduced = precision == "bf16"

    @torch.inference_mode()
    def __call__(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m h w"], list[Float[Tensor, "b _ hc wc"]]]:
        """See :class:`codebrain.engines._contract.Engine`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced):
            completed, *grades = self.network(images.to(self.device), present.to(self.device))
        return completed, grades
