"""Imputation models: one file, one model; the file's name is the model's name.

Files outside the package join these when the environment variable ``CODEBRAIN_MODELS`` names their folders (several
are separated as in ``PATH``); see docs/how-to/add-a-model.md. They are Python and run with your rights.

Nothing here imports torch before a model is built or loaded.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from codebrain.errors import refusal

if TYPE_CHECKING:
    from codebrain.models._contract import ImputationModel
    from codebrain.vocabulary import ModalitySet, Preparation

__all__ = [
    "build_model",
    "bundled_models",
    "load_model",
    "model_class",
    "model_facts",
    "model_names",
    "model_summaries",
    "save_model",
    "with_settings",
]


OWN = "CODEBRAIN_MODELS"
"""The environment variable, which worker processes inherit."""

_PACKAGE = list(__path__)


def _find_own() -> None:
    """Look for modules of this package in the folders of ``CODEBRAIN_MODELS`` too."""
    named = [name for name in os.environ.get(OWN, "").split(os.pathsep) if name]
    __path__[:] = [*_PACKAGE, *dict.fromkeys(str(Path(name).resolve()) for name in named)]


_find_own()


def model_names() -> list[str]:
    """The models that can be trained: the files here and in your own folders that do not start with an underscore.

    Raises:
        UsageError: ``CONFIG`` when ``CODEBRAIN_MODELS`` names no folder, or one with a file whose name is taken.
    """
    return sorted(_files())


def model_summaries() -> dict[str, str]:
    """The first sentence of each model's file, read without running it."""
    return {name: _first_sentence(file) for name, file in sorted(_files().items())}


def _first_sentence(file: Path) -> str:
    try:
        text = ast.get_docstring(ast.parse(file.read_bytes())) or ""
    except (SyntaxError, ValueError) as error:
        return f"cannot be read: {error}"
    return " ".join(text.split("\n\n")[0].split())


def _files() -> dict[str, Path]:
    """The file of every model by its name."""
    _find_own()
    found: dict[str, Path] = {}
    for folder in map(Path, __path__):
        if not folder.is_dir():
            raise refusal("CONFIG", "there is no such folder of models", file=folder, field=OWN)
        for module in pkgutil.iter_modules([str(folder)]):
            file = folder / f"{module.name}.py"
            if module.name in found:
                raise refusal("CONFIG", f"{module.name!r} is the name of another model file", file=file, field=OWN,
                              found=found[module.name], hint="Rename yours.")  # fmt: skip
            if not module.ispkg:
                found[module.name] = file
    return {name: file for name, file in found.items() if not name.startswith("_")}


def bundled_models() -> dict[str, Path]:
    """The trained models inside the package, by name."""
    weights = Path(__file__).parents[1] / "weights"
    return {path.parent.name: path.parent for path in sorted(weights.glob("*/config.json"))}


def model_class(name: str) -> type[ImputationModel]:
    """The class in ``codebrain/models/<name>.py``, or in a file of your own.

    Raises:
        UsageError: ``CONFIG`` for a name that is no model, with the nearest one, and for a file of your own that
            cannot be imported or lacks what a model needs.
    """
    from codebrain.models._contract import ImputationModel

    files = _files()
    if name not in files:
        near = difflib.get_close_matches(name, files, n=1)
        guess = f"Did you mean {near[0]}? " if near else ""
        raise refusal("CONFIG", f"no model is called {name!r}", field="model", expected=", ".join(sorted(files)),
                      hint=f"{guess}A model of your own is found when {OWN} names its folder.")  # fmt: skip
    module = _imported(name, files[name])
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, ImputationModel) and value.__module__ == module.__name__:
            return _complete(value, files[name])
    raise refusal("CONFIG", "this file defines no ImputationModel", file=files[name], field="model")


def _imported(name: str, file: Path) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except Exception as error:
        if str(file.parent) in _PACKAGE:
            raise
        message = f"this model cannot be imported: {type(error).__name__}: {error}"
        raise refusal("CONFIG", message, file=file, field="model", hint="Mend the file.") from error


def _complete(cls: type[ImputationModel], file: Path) -> type[ImputationModel]:
    """The class, if it has all that the contract asks for."""
    lacking = sorted(cls.__abstractmethods__)
    lacking += [] if hasattr(cls, "stages") else ["stages"]
    lacking += [] if is_dataclass(getattr(cls, "Settings", None)) else ["Settings (a dataclass)"]
    if lacking:
        raise refusal("CONFIG", f"{cls.__name__} lacks {', '.join(lacking)}", file=file, field="model",
                      hint="docs/how-to/add-a-model.md shows a complete one.")  # fmt: skip
    return cls


def build_model(name: str, modalities: ModalitySet, settings: Mapping[str, Any] | None = None) -> ImputationModel:
    """A new, untrained model; initial weights come from torch's global generator.

    Args:
        name: one of :func:`model_names`.
        modalities: the contrasts, in channel order.
        settings: what differs from the model's defaults.

    Raises:
        UsageError: ``CONFIG`` for an unknown name, setting or a value of the wrong type.
    """
    from codebrain.settings import parse_settings

    cls = model_class(name)
    return cls(modalities, parse_settings(cls.Settings, settings or {}, where=f"settings of {name}"))


def with_settings(model: ImputationModel, settings: Mapping[str, Any]) -> ImputationModel:
    """The same weights under other settings: sampling steps, temperature, decoding.

    Raises:
        UsageError: ``CONFIG`` for an unknown setting.
        ModelRefused: ``CKPT_MISMATCH`` for a setting that needs other weights.
    """
    if not settings:
        return model
    from dataclasses import asdict

    changed = build_model(model.architecture, model.modalities, {**asdict(model.settings), **settings})
    theirs = {name: value.shape for name, value in changed.state_dict().items()}
    if theirs != {name: value.shape for name, value in model.state_dict().items()}:
        raise refusal("CKPT_MISMATCH", "these settings need other weights", field=", ".join(settings),
                      hint="Train a method of its own with them.")  # fmt: skip
    changed.load_state_dict(model.state_dict())
    changed.preparation, changed.sha256, changed.name = model.preparation, model.sha256, model.name
    return changed.eval().requires_grad_(False)


def save_model(
    model: ImputationModel,
    folder: Path,
    *,
    preparation: Preparation,
    metrics: Mapping[str, Any] | None = None,
    card: str | None = None,
    half: bool = False,
) -> str:
    """Write a model folder; see :func:`codebrain.models._folder.save_model`. Returns the weights' SHA-256."""
    from codebrain.models import _folder

    return _folder.save_model(model, folder, preparation=preparation, metrics=metrics, card=card, half=half)


def model_facts(source: Path | str) -> tuple[str, str, ModalitySet]:
    """Name, SHA-256 of the weights and contrasts that a model folder states, without reading its weights."""
    from codebrain.models import _config

    return _config.model_facts(source)


def load_model(folder: Path | str) -> ImputationModel:
    """Read a model folder, or a bundled model by name; see :func:`codebrain.models._folder.load_model`."""
    from codebrain.models import _folder

    return _folder.load_model(folder)
