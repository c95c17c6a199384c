"""``codebrain info``: versions, machine, extras and models, without importing anything heavy."""

from __future__ import annotations

import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from codebrain.app._common import DebugOption, JsonOption, emit, emit_json, run
from codebrain.marks import RESEARCH_USE_ONLY

_PACKAGES = ("torch", "numpy", "scipy", "nibabel", "safetensors", "pydantic", "typer")
_EXTRAS = {
    "align": ("SimpleITK",),
    "phantom": ("nilearn",),
    "train": ("lightning_fabric", "tensorboard", "kornia"),
    "bench": ("matplotlib",),
    "dicom": ("pydicom", "dcm2niix"),
    "engines": ("openvino", "onnxruntime", "onnx", "onnxscript"),
}


def register(app: typer.Typer) -> None:
    """Add ``codebrain info``."""

    @app.command()
    def info(as_json: JsonOption = False, debug: DebugOption = False) -> None:
        """Show versions, cores, memory, installed extras and bundled models."""
        run(lambda: _info(as_json), as_json=as_json, debug=debug)


def _info(as_json: bool) -> None:
    facts = describe_machine()
    emit_json(facts) if as_json else emit(_as_text(facts))


def describe_machine() -> dict[str, Any]:
    """What ``codebrain info --json`` prints; packages are looked up, never imported."""
    import codebrain
    from codebrain.machine import allotted_cores, memory_limit

    return {
        "codebrain": codebrain.__version__,
        "notice": RESEARCH_USE_ONLY,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "extras": {extra: all(find_spec(part) for part in parts) for extra, parts in _EXTRAS.items()},
        "cores": allotted_cores(),
        "memory_gib": round((memory_limit() or 0) / 2**30, 1) or None,
        "gpus": _gpus(),
        "models": bundled_models(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs as the driver's files give them (asking torch would take a second)."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = [line.partition(":")[2].strip() for line in file.read_text().splitlines() if "Model" in line]
        names.append(model[0] if model else "NVIDIA GPU")
    return names


def bundled_models() -> list[str]:
    """Names of the models inside the package."""
    import codebrain

    folder = Path(codebrain.__file__).parent / "weights"
    return sorted(config.parent.name for config in folder.glob("*/config.json"))


def _as_text(facts: dict[str, Any]) -> str:
    extras = [f"{name} {'installed' if here else 'not installed'}" for name, here in facts["extras"].items()]
    rows = {
        "codebrain": facts["codebrain"],
        "python": facts["python"],
        "platform": facts["platform"],
        "packages": ", ".join(f"{name} {version or 'missing'}" for name, version in facts["packages"].items()),
        "extras": ", ".join(extras),
        "cores": facts["cores"],
        "memory": f"{facts['memory_gib']} GiB" if facts["memory_gib"] else "unknown",
        "GPUs": ", ".join(facts["gpus"]) or "none",
        "models": ", ".join(facts["models"]) or "none bundled",
    }
    return "\n".join([*(f"{key:<10} {value}" for key, value in rows.items()), RESEARCH_USE_ONLY])
