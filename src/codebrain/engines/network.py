"""A model's imputation as one plain function of tensors, and that function as an ONNX graph."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from codebrain.engines._cache import cached
from codebrain.errors import CodeBrainError, refusal
from codebrain.models._contract import Graded, ImputationModel

SIZE = (256, 256)
"""Rows and columns of the slices with which a network is traced; the only ones where the trace depends on them."""

_STEP = 8
"""Rows and columns are multiples of it."""

_NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


class Network(nn.Module):
    """Images and pattern to completed images and, for a model that grades its code, one tensor for each code channel.

    Attributes:
        model: whose imputation it is.
    """

    def __init__(self, model: ImputationModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b ..."], ...]:
        """As :meth:`codebrain.engines._contract.Engine.__call__`, flat."""
        if isinstance(self.model, Graded):
            completed, grades = self.model.complete(images, present)
            return completed, *grades
        return (self.model(images, present),)


def example(contrasts: int, size: tuple[int, int] = SIZE, given: Sequence[int] = (0,)) -> tuple[Tensor, Tensor]:
    """Smooth images ``(1, m, h, w)`` in [0, 1], the same on every machine, and a pattern ``(1, m)``."""
    rows, columns = (torch.linspace(0, 1, n) for n in size)
    waves = [
        torch.sin(9 * (k + 1) * rows[:, None] + k) * torch.cos(7 * columns[None] * (k + 2)) for k in range(contrasts)
    ]
    present = torch.zeros(1, contrasts, dtype=torch.bool)
    present[0, list(given)] = True
    return 0.5 + 0.45 * torch.stack(waves)[None], present


def output_names(model: ImputationModel) -> list[str]:
    """``completed``, then ``grades_0`` and so on."""
    with torch.inference_mode():
        outputs = Network(model)(*example(len(model.modalities), (64, 64)))
    return ["completed", *(f"grades_{n}" for n in range(len(outputs) - 1))]


def onnx_network(model: ImputationModel) -> bytes:
    """The network as an ONNX model, from the user's cache where it was converted before.

    The batch is one slice: engines on a CPU gain nothing from more, and memory stays flat.

    Raises:
        ModelRefused: ``CKPT_EXPORT`` for a model that cannot be traced or uses what ONNX lacks.
    """
    return cached(model, _onnx_program)


def takes_any_size(network: bytes) -> bool:
    """Whether an ONNX model takes slices of any size, or only those with which it was traced."""
    import onnx

    rows = onnx.load_from_string(network).graph.input[0].type.tensor_type.shape.dim[2]
    return bool(rows.dim_param)


def _onnx_program(model: ImputationModel) -> bytes:
    """For slices of any size; where the model does not allow that, for those of :data:`SIZE`."""
    network, names = Network(model).eval(), output_names(model)
    with contextlib.suppress(CodeBrainError), converted_quietly(model):
        return _converted(network, names, any_size=True)
    with converted_quietly(model):
        return _converted(network, names, any_size=False)


def _converted(network: Network, names: list[str], *, any_size: bool) -> bytes:
    rows, columns = (_STEP * torch.export.Dim(name, min=2, max=512) for name in ("h8", "w8"))
    shapes = ({2: rows, 3: columns}, None) if any_size else None
    with torch.no_grad():
        inputs = example(len(network.model.modalities))
        program = torch.export.export(network, inputs, dynamic_shapes=shapes, strict=False)
        made: Any = torch.onnx.export(program, dynamo=True, output_names=names, verbose=False)
    content: bytes = made.model_proto.SerializeToString()
    return content


@contextmanager
def converted_quietly(model: ImputationModel | None) -> Iterator[None]:
    """Around torch's exporters, which warn about their own deprecated parts; what they raise is one sentence.

    Raises:
        ModelRefused: ``CKPT_EXPORT``, for whatever the body raised.
    """
    try:
        with _quiet():
            yield
    except Exception as error:  # torch has no common class for what it cannot trace or convert
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        name = "the network" if model is None else f"the model {model.architecture}"
        raise refusal(
            "CKPT_EXPORT", f"{name} cannot be converted: {first[:200]}",
            file=None if model is None else model.name, hint="Use it with --engine torch.",
        ) from error  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters warn about their own deprecated parts and log about packages that are not needed here."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        nowhere = io.StringIO()  # torch.export prints the graph that it could not trace
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
