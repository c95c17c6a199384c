"""OpenVINO on the CPU, in float32 or, where the CPU has it, bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.engines.network import onnx_network
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import Precision

_HINT = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """The converted network, one slice at a time.

    It is read from ONNX by OpenVINO's own reader. The converter in its Python package is not used: it would send
    telemetry.
    """

    name = "openvino"
    at_once = 1

    def __init__(self, model: ImputationModel, *, precision: Precision) -> None:
        self.request = request(onnx_network(model), precision=precision)

    def __call__(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m h w"], list[Float[Tensor, "b _ hc wc"]]]:
        """See :class:`codebrain.engines._contract.Engine`."""
        slices = [
            run(self.request, image[None].numpy(), pattern[None].numpy())
            for image, pattern in zip(images, present, strict=True)
        ]
        completed, *grades = (
            torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*slices, strict=True)
        )
        return completed, grades


def request(network: bytes | str, *, precision: Precision) -> Any:
    """An inference request with torch's number of threads.

    Args:
        network: an ONNX model, or the path of one or of an OpenVINO network.
        precision: of the arithmetic; a CPU without bfloat16 computes in float32 all the same.
    """
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": _HINT[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core.compile_model(core.read_model(network), "CPU", settings).create_infer_request()


def run(request: Any, images: np.ndarray[Any, Any], present: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Every output, copied: the request's own memory is used again for the next slice."""
    request.infer({"images": images, "present": present})
    return [np.array(tensor.data) for tensor in request.output_tensors]
