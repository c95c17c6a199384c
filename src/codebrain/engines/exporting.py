"""A model as a file that runs without codebrain: ONNX, OpenVINO or TorchScript, and what one must know beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import codebrain
from codebrain import marks
from codebrain.engines import engine_name
from codebrain.engines.network import (
    SIZE,
    Network,
    converted_quietly,
    example,
    onnx_network,
    output_names,
    takes_any_size,
)
from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging import safe_files
from codebrain.metrics import psnr
from codebrain.models._contract import ImputationModel

Format = Literal["onnx", "openvino", "torchscript"]
FORMATS: tuple[Format, ...] = ("onnx", "openvino", "torchscript")

FACTS = "network.json"
"""Beside the network, and written last: without it an export is not complete."""

LEAST_PSNR = {"fp32": 80.0, "fp16": 40.0}
"""Decibels between the exported network and torch in float32 below which nothing is published. A rounding that moves a
grade across its threshold costs more than all the others together, hence not higher."""

_OTHER_SIZE = (96, 128)

Runner = Callable[[NDArray[np.float32], NDArray[np.bool_]], list[NDArray[Any]]]


@dataclass(frozen=True)
class Parity:
    """An exported network against the model it was made from.

    Attributes:
        given: the contrasts that were given.
        size: rows and columns.
        psnr: over the absent contrasts, in decibels, data range 1.
        largest: error of any output, the grades included.
    """

    given: tuple[str, ...]
    size: tuple[int, int]
    psnr: float
    largest: float

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"given": list(self.given), "size": list(self.size), "psnr_db": round(self.psnr, 1),
                "largest_error": float(f"{self.largest:.3g}")}  # fmt: skip


def export_model(
    model: ImputationModel,
    folder: Path,
    *,
    kind: Format,
    precision: Literal["fp32", "fp16"] = "fp32",
) -> dict[str, Any]:
    """Write the network and its facts into an existing folder, all or nothing, when it computes what the model does.

    Args:
        model: in evaluation mode, on the CPU.
        folder: where to.
        kind: ``onnx``, ``openvino`` or ``torchscript``.
        precision: in which the weights are stored; ``fp16`` halves the file, for OpenVINO only.

    Returns:
        What ``network.json`` says.

    Raises:
        UsageError: ``CONFIG`` for a format or a precision that does not exist.
        EnvironmentRefused: ``ENV_EXTRA`` for a format whose packages are missing; ``OUT_SPACE``, ``OUT_PERMISSION``.
        ModelRefused: ``CKPT_EXPORT`` for a model that cannot be converted or whose export computes something else.
    """
    _judge(kind, precision)
    with safe_files.staged(folder, last=FACTS) as stage:
        files, any_size = _WRITERS[kind](model, stage, precision)
        parity = _compared(model, _RUNNERS[kind](stage), any_size=any_size)
        _refuse_unlike(model, parity, LEAST_PSNR[precision])
        facts = _facts(model, kind, precision, any_size, parity)
        facts["files"] = {name: safe_files.sha256_file(stage / name) for name in files}
        safe_files.write_json(stage / FACTS, facts)
    return facts


def _judge(kind: str, precision: str) -> None:
    if kind not in FORMATS:
        raise refusal("CONFIG", "no such format", field="format", found=kind, expected=", ".join(FORMATS))
    if precision not in LEAST_PSNR or (precision == "fp16" and kind != "openvino"):
        expected = "fp32 or fp16" if kind == "openvino" else "fp32"
        raise refusal("CONFIG", f"no such precision for {kind}", field="precision", found=precision,
                      expected=expected)  # fmt: skip
    engine_name({"onnx": "onnx", "openvino": "openvino"}.get(kind, "torch"))


# --- three formats ---


def _write_onnx(model: ImputationModel, stage: Path, precision: str) -> tuple[list[str], bool]:
    network = onnx_network(model)
    safe_files.write_bytes(stage / "network.onnx", network)
    return ["network.onnx"], takes_any_size(network)


def _write_openvino(model: ImputationModel, stage: Path, precision: str) -> tuple[list[str], bool]:
    import openvino

    network = onnx_network(model)
    read = openvino.Core().read_model(network)
    openvino.save_model(read, stage / "network.xml", compress_to_fp16=precision == "fp16")
    return ["network.xml", "network.bin"], takes_any_size(network)


def _write_torchscript(model: ImputationModel, stage: Path, precision: str) -> tuple[list[str], bool]:
    network, content = Network(model).eval(), io.BytesIO()
    with converted_quietly(model), torch.no_grad():
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            network, example(len(model.modalities)), check_trace=False
        )
        torch.jit.save(traced, content)
    safe_files.write_bytes(stage / "network.pt", content.getvalue())
    return ["network.pt"], _same_elsewhere(_run_torchscript(stage), model)


def _same_elsewhere(run: Runner, model: ImputationModel) -> bool:
    """Whether a trace does at another size what the model does there."""
    try:
        return _parity(model, run, (0,), _OTHER_SIZE).psnr >= LEAST_PSNR["fp32"]
    except CodeBrainError:
        return False


def _run_onnx(stage: Path) -> Runner:
    from codebrain.engines.onnx_engine import session

    made = session(str(stage / "network.onnx"))
    return lambda images, present: list(made.run(None, {"images": images, "present": present}))


def _run_openvino(stage: Path) -> Runner:
    from codebrain.engines.openvino_engine import request, run

    made = request(str(stage / "network.xml"), precision="fp32")
    return lambda images, present: run(made, images, present)


def _run_torchscript(stage: Path) -> Runner:
    with converted_quietly(None):
        content = io.BytesIO((stage / "network.pt").read_bytes())
        made = torch.jit.load(content)  # type: ignore[no-untyped-call]

    def run(images: NDArray[np.float32], present: NDArray[np.bool_]) -> list[NDArray[Any]]:
        # Optimised, the first slice would take a minute.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return [output.numpy() for output in made(torch.from_numpy(images), torch.from_numpy(present))]

    return run


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torchscript": _write_torchscript}
_RUNNERS = {"onnx": _run_onnx, "openvino": _run_openvino, "torchscript": _run_torchscript}


# --- parity ---


def _compared(model: ImputationModel, run: Runner, *, any_size: bool) -> list[Parity]:
    """Every contrast alone, and all but the last; the first at the traced size, the others elsewhere if it can."""
    count = len(model.modalities)
    patterns = dict.fromkeys([*((k,) for k in range(count)), tuple(range(count - 1))])
    sizes = [SIZE, *[_OTHER_SIZE if any_size else SIZE] * (len(patterns) - 1)]
    return [_parity(model, run, given, size) for given, size in zip(patterns, sizes, strict=True)]


@torch.inference_mode()
def _parity(model: ImputationModel, run: Runner, given: Sequence[int], size: tuple[int, int]) -> Parity:
    images, present = example(len(model.modalities), size, given)
    wanted = Network(model)(images, present)
    with converted_quietly(model):
        got = [torch.from_numpy(np.asarray(part)) for part in run(images.numpy(), present.numpy())]
    largest = max(float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True))
    absent = ~present[0]
    decibels = float(_psnr(got[0][:, absent], wanted[0][:, absent]))
    return Parity(tuple(str(model.modalities.members[k]) for k in given), size, decibels, largest)


def _psnr(got: Tensor, wanted: Tensor) -> float:
    """At most 100 dB, as the metric gives it for images that are the same but for rounding."""
    return float(psnr(got, wanted).mean()) if got.numel() else 100.0


def _refuse_unlike(model: ImputationModel, parity: Sequence[Parity], least: float) -> None:
    worst = min(parity, key=lambda row: row.psnr)
    if not worst.psnr >= least:
        raise refusal(
            "CKPT_EXPORT", "the exported network does not compute what the model does", file=model.name,
            found=f"{worst.psnr:.1f} dB from {', '.join(worst.given)}", expected=f"at least {least:.0f} dB",
            hint="One that draws at random, or goes another way for every pattern, is not one plain network.",
        )  # fmt: skip


# --- what stands beside it ---


def _facts(
    model: ImputationModel,
    kind: Format,
    precision: str,
    any_size: bool,
    parity: Sequence[Parity],
) -> dict[str, Any]:
    names, count = output_names(model), len(model.modalities)
    rows, columns = ("h", "w") if any_size else SIZE
    grades = [{"name": name, "shape": [1, "levels - 1", "h / 8", "w / 8"], "type": "float32"} for name in names[1:]]
    return {
        "format": 1,
        "notice": marks.RESEARCH_USE_ONLY,
        "synthetic": "What this network computes is synthetic: mark every image made with it as such.",
        "enhancement": marks.ENHANCEMENT_UNKNOWN if "T1Gd" in map(str, model.modalities) else None,
        "codebrain": codebrain.__version__,
        "torch": torch.__version__,
        "kind": kind,
        "precision": precision,
        "model": {"name": model.name, "architecture": model.architecture, "weights_sha256": model.sha256},
        "license": _license(model),
        "contrasts": [str(m) for m in model.modalities],
        "inputs": [
            {"name": "images", "shape": [1, count, rows, columns], "type": "float32",
             "meaning": "axial slice in [0, 1], one channel per contrast in this order; absent contrasts are ignored"},
            {"name": "present", "shape": [1, count], "type": "bool", "meaning": "which contrasts are given"},
        ],
        "outputs": [
            {"name": names[0], "shape": [1, count, rows, columns], "type": "float32",
             "meaning": "every contrast in [0, 1]; given ones are the input"},
            *(grade | {"meaning": "P(level > j) of a code channel, for the doubt"} for grade in grades),
        ],
        "size": "h and w are any multiples of 8" if any_size else f"slices of {rows} x {columns} only",
        "axes": "rows from anterior to posterior, columns from the patient's left to the right",
        "preparation": _preparation(model),
        "parity": [row.as_dict() for row in parity],
        "least_psnr_db": LEAST_PSNR[precision],
    }  # fmt: skip


def _preparation(model: ImputationModel) -> Any:
    from codebrain.parsing import parse_json_object

    return parse_json_object(model.preparation.to_json().encode())


def _license(model: ImputationModel) -> str:
    from codebrain.models import bundled_models

    if bundled_models().get(model.name) is not None:
        return "Apache-2.0, as codebrain; see MODEL_CARD.md"
    return "that of the weights; see the model's MODEL_CARD.md"
