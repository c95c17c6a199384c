"""What computes a model's slices: torch itself, or the same network converted for another engine.

An engine takes images and a pattern and gives completed images and grades, as the model's own ``complete`` does.
The records of a run say which engine computed it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codebrain.errors import refusal

if TYPE_CHECKING:
    import torch

    from codebrain.engines._contract import Engine
    from codebrain.models._contract import ImputationModel
    from codebrain.nn.fast import Reduced
    from codebrain.vocabulary import Precision

ENGINES = ("torch", "openvino", "onnx")
CHOICES = ("auto", *ENGINES)

AUTO = "torch"
"""What ``auto`` stands for. docs/performance.md has the measurement behind it."""

_EXTRA = {"torch": (), "openvino": ("onnx", "onnxscript", "openvino"), "onnx": ("onnx", "onnxscript", "onnxruntime")}
"""What must be installed for each, of the extra ``engines``."""


def engine_name(choice: str) -> str:
    """The engine that ``auto`` or a name stands for.

    Raises:
        UsageError: ``CONFIG`` for another name.
        EnvironmentRefused: ``ENV_EXTRA`` for an engine that is not installed.
    """
    from importlib.util import find_spec

    from codebrain.errors import missing_extra

    if choice not in CHOICES:
        raise refusal("CONFIG", "no such engine", field="engine", found=choice, expected=", ".join(CHOICES))
    name = AUTO if choice == "auto" else choice
    for package in _EXTRA[name]:
        if find_spec(package) is None:
            raise missing_extra(package, "engines", f"The engine {name}")
    return name


def precisions(model: ImputationModel, name: str, device: torch.device) -> tuple[Reduced, ...]:
    """The precisions below ``fp32`` in which an engine is faster with this model on this machine, fastest first."""
    if engine_name(name) != "torch" or device.type != "cpu":
        return ()
    from codebrain.engines.reduced_engine import reductions

    return reductions(model)


def choose_engine(model: ImputationModel, name: str = "auto", *, device: torch.device, precision: Precision) -> Engine:
    """The engine that computes ``model``.

    Args:
        model: in evaluation mode.
        name: ``auto``, ``torch``, ``openvino`` or ``onnx``.
        device: where it computes; the converted networks compute on the CPU.
        precision: ``fp32``, or ``bf16`` or ``int8`` where the engine has it.

    Raises:
        UsageError: ``CONFIG`` for an unknown name, and for a device or a precision that the engine does not have or
            that is not faster with this model on this machine.
        EnvironmentRefused: ``ENV_EXTRA`` for an engine that is not installed.
        ModelRefused: ``CKPT_EXPORT`` for a model that cannot be converted.
    """
    name = engine_name(name)
    if name != "torch" and device.type != "cpu":
        raise refusal(
            "CONFIG", f"the engine {name} computes on the CPU only", field="engine", found=str(device),
            expected="--device cpu", hint="Use --engine torch on a GPU.",
        )  # fmt: skip
    if name == "onnx" and precision != "fp32":
        raise refusal("CONFIG", "the engine onnx computes in fp32 only", field="precision", found=precision,
                      expected="fp32", hint="Use --precision fp32, or another engine.")  # fmt: skip
    if precision == "int8" and "int8" not in precisions(model, name, device):
        raise refusal(
            "CONFIG", "8-bit integers are not to be had here", field="precision", found=precision,
            expected="the engine torch, a CPU with VNNI and bfloat16, a NAFNet model that is not tiny",
            hint="Use --precision auto.",
        )  # fmt: skip
    if name == "openvino":
        from codebrain.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(model, precision=precision)
    if name == "onnx":
        from codebrain.engines.onnx_engine import OnnxEngine

        return OnnxEngine(model)
    return _in_torch(model, device, precision)


def _in_torch(model: ImputationModel, device: torch.device, precision: Precision) -> Engine:
    import torch

    from codebrain.engines.reduced_engine import ReducedEngine, is_nafnet
    from codebrain.engines.slice_threads import SliceThreads
    from codebrain.engines.torch_engine import TorchEngine

    reduced = next((known for known in precisions(model, "torch", device) if known == precision), None)
    engine: Engine = (
        TorchEngine(model, device=device, precision=precision) if reduced is None else ReducedEngine(model, reduced)
    )
    # Only networks that are known to keep nothing between two slices and to draw nothing are called side by side.
    apart = device.type == "cpu" and is_nafnet(model)
    return SliceThreads(engine, torch.get_num_threads()) if apart else engine
