"""What a model folder says about itself, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from codebrain.errors import refusal
from codebrain.models import bundled_models
from codebrain.parsing import parse_json_object, read_small
from codebrain.vocabulary import ModalitySet, Preparation

FORMAT = 1
_PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".bin")


def model_facts(source: Path | str) -> tuple[str, str, ModalitySet]:
    """Name, SHA-256 of the weights and contrasts that a model folder states, without reading its weights.

    Raises:
        ModelRefused: as :func:`codebrain.models.load_model`, as far as ``config.json`` shows it.
    """
    folder = model_folder(source)
    config = read_config(folder)
    return folder.name, str(config["weights_sha256"]), ModalitySet.parse(config["modalities"])


def model_folder(source: Path | str) -> Path:
    """The folder of a bundled model, or the folder that ``source`` is.

    Raises:
        ModelRefused: ``CKPT_NONE``, ``CKPT_UNSAFE``, ``CKPT_CORRUPT`` for what is no folder.
    """
    bundled = bundled_models()
    if isinstance(source, str) and source in bundled:
        return bundled[source]
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() in _PICKLES or looks_pickled(_head(path)):
            raise refusal(
                "CKPT_UNSAFE",
                "this file can run code when it is loaded, so codebrain does not load it",
                file=path,
                expected="a model folder",
                hint="A checkpoint of the released CodeBrain code comes in through: codebrain models import.",
            )
        raise refusal("CKPT_CORRUPT", "this is a file", file=path, expected="a model folder with a config.json")
    if not path.is_dir():
        raise refusal(
            "CKPT_NONE",
            "no model is there",
            file=path,
            expected=f"a model folder or one of: {', '.join(bundled)}",
        )
    return path


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder, complete.

    Raises:
        ModelRefused: ``CKPT_CORRUPT``, ``CKPT_FORMAT``.
    """
    path = folder / "config.json"
    try:
        config = parse_json_object(read(path, small=True))
        number = config["format"]
        kinds = {"architecture": str, "settings": dict, "modalities": list, "weights_sha256": str}
        wrong = [name for name, kind in kinds.items() if not isinstance(config[name], kind)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} of another type")
    except (ValueError, KeyError, TypeError) as error:
        raise refusal("CKPT_CORRUPT", f"this is not a model's config.json: {error}", file=path) from error
    if number != FORMAT:
        raise refusal(
            "CKPT_FORMAT",
            "written in another format",
            file=path,
            found=number,
            expected=FORMAT,
            hint="Update codebrain.",
        )
    return dict(config)


def read_preparation(source: Path | str) -> Preparation:
    """How images must be prepared for the model in a folder, or for a bundled one.

    Raises:
        ModelRefused: as :func:`codebrain.models.load_model`, as far as ``preparation.json`` shows it.
    """
    document = read(model_folder(source) / "preparation.json", small=True)
    return Preparation.from_json(document.decode("utf-8", "replace"))


def read_doubt_limits(folder: Path) -> dict[int, float]:
    """The doubt that ``metrics.json`` of a model folder allows, by number of given contrasts; empty where it is silent.

    ::

        {"doubt": {"limits": {"1": 0.79, "2": 0.72, "3": 0.66}, "rule": "how they were measured"}}

    Raises:
        ModelRefused: ``CKPT_CORRUPT`` for limits that are none.
    """
    path = folder / "metrics.json"
    if not path.exists():
        return {}
    try:
        declared = parse_json_object(read(path, small=True)).get("doubt", {})
        limits = declared.get("limits", {})
        if not isinstance(limits, Mapping) or not all(map(_is_limit, limits.values())):
            raise ValueError("a limit of doubt is a number from 0 to 1 by number of given contrasts")
        return {int(number): float(limit) for number, limit in limits.items()}
    except (ValueError, AttributeError) as error:
        raise refusal("CKPT_CORRUPT", f"this is not a model's metrics.json: {error}", file=path) from error


def _is_limit(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and 0 <= value <= 1


def read(path: Path, *, small: bool = False) -> bytes:
    """A file of a model folder, ``small`` for documents; ``CKPT_CORRUPT`` when it cannot be read."""
    try:
        return read_small(path) if small else path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise refusal("CKPT_CORRUPT", f"the model folder's {path.name} cannot be read: {reason}", file=path) from error


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(16)


def looks_pickled(head: bytes) -> bool:
    """Whether a file that begins so is a pickle or an archive of pickles."""
    return head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
