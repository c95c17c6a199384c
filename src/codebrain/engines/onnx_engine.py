"""ONNX Runtime on the CPU, in float32."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.engines.network import onnx_network
from codebrain.models._contract import ImputationModel


class OnnxEngine:
    """The converted network, one slice at a time."""

    name = "onnx"
    at_once = 1

    def __init__(self, model: ImputationModel) -> None:
        self.session = session(onnx_network(model))

    def __call__(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m h w"], list[Float[Tensor, "b _ hc wc"]]]:
        """See :class:`codebrain.engines._contract.Engine`."""
        slices = [
            self.session.run(None, {"images": image[None].numpy(), "present": pattern[None].numpy()})
            for image, pattern in zip(images, present, strict=True)
        ]
        completed, *grades = (
            torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*slices, strict=True)
        )
        return completed, grades


def session(network: bytes | str) -> Any:
    """A session with torch's number of threads, on the CPU.

    Args:
        network: an ONNX model, or the path of one.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
