"""Imputation models: one file, one model; the file's name is the model's name.

Nothing here imports torch before a model is built or loaded.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
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
    "model_names",
    "save_model",
    "with_settings",
]


def model_names() -> list[str]:
    """The models that can be trained: the files of this folder that do not start with an underscore."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def bundled_models() -> dict[str, Path]:
    """The trained models inside the package, by name."""
    weights = Path(__file__).parents[1] / "weights"
    return {path.parent.name: path.parent for path in sorted(weights.glob("*/config.json"))}


def model_class(name: str) -> type[ImputationModel]:
    """The class in ``codebrain/models/<name>.py``.

    Raises:
        UsageError: ``CONFIG`` for a name that is no model, with the nearest one.
    """
    from codebrain.models._contract import ImputationModel

    if name not in model_names():
        near = difflib.get_close_matches(name, model_names(), n=1)
        raise refusal(
            "CONFIG",
            f"no model is called {name!r}",
            field="model",
            expected=", ".join(model_names()),
            hint=f"Did you mean {near[0]}?" if near else None,
        )
    module = importlib.import_module(f"{__name__}.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, ImputationModel) and value.__module__ == module.__name__:
            return value
    raise refusal("CONFIG", f"codebrain/models/{name}.py defines no ImputationModel", field="model")


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


def load_model(folder: Path | str) -> ImputationModel:
    """Read a model folder, or a bundled model by name; see :func:`codebrain.models._folder.load_model`."""
    from codebrain.models import _folder

    return _folder.load_model(folder)
