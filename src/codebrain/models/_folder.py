"""A model is a folder: the only place where weights are written or read, and nothing in it is pickled.

::

    config.json         format, architecture, settings, contrasts in channel order, SHA-256 of the weights
    model.safetensors   weights; the same facts again in its header, so that files cannot be mixed up
    preparation.json    how images must be prepared (codebrain.vocabulary.Preparation)
    MODEL_CARD.md       what it was trained on and what it is not for
    metrics.json        scores on patients that training never saw
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from codebrain.errors import refusal
from codebrain.imaging import safe_files
from codebrain.models import build_model, bundled_models
from codebrain.vocabulary import ModalitySet, Preparation

if TYPE_CHECKING:
    from codebrain.models._contract import ImputationModel

FORMAT = 1
_PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npz", ".bin")
_HEADER_LIMIT = 4 * 2**20
"""A thousand tensors take about 100 kB; a header of a million takes half a minute to read, for nothing."""


def save_model(
    model: ImputationModel,
    folder: Path,
    *,
    preparation: Preparation,
    metrics: Mapping[str, Any] | None = None,
    card: str | None = None,
    half: bool = False,
) -> str:
    """Write ``model`` as a folder that :func:`load_model` accepts.

    Args:
        model: what to save; its ``training_only`` parts are left out.
        folder: created if absent; files of an earlier model in it are replaced.
        preparation: how images must be prepared for the model.
        metrics: scores, written to ``metrics.json``.
        card: text of ``MODEL_CARD.md``; a short factual one is written when absent.
        half: store floating-point weights as float16 (they are float32 again when loaded).

    Returns:
        SHA-256 of the weights file.
    """
    tensors = {name: _stored(value, half) for name, value in _lasting_state(model).items()}
    weights = _ordered(tensors_to_bytes(tensors, metadata=_identity(model, preparation)))
    digest = hashlib.sha256(weights).hexdigest()
    config = {
        "format": FORMAT,
        "architecture": model.architecture,
        "settings": asdict(model.settings),
        "modalities": list(model.modalities),
        "weights_sha256": digest,
    }
    folder.mkdir(parents=True, exist_ok=True)
    safe_files.write_bytes(folder / "model.safetensors", weights)
    safe_files.write_text(folder / "preparation.json", preparation.to_json() + "\n")
    safe_files.write_json(folder / "metrics.json", dict(metrics or {}))
    safe_files.write_text(folder / "MODEL_CARD.md", card or _plain_card(model))
    safe_files.write_json(folder / "config.json", config)
    return digest


def load_model(source: Path | str) -> ImputationModel:
    """A model in evaluation mode, on the CPU, from a model folder or the name of a bundled model.

    Raises:
        ModelRefused: ``CKPT_NONE`` (nothing there), ``CKPT_UNSAFE`` (a pickle, whatever its name),
            ``CKPT_CORRUPT`` (damaged or not a model folder), ``CKPT_FORMAT`` (written by a newer codebrain),
            ``CKPT_MISMATCH`` (the files of the folder do not belong together, field by field),
            ``CKPT_NONFINITE`` (weights that are not numbers).
    """
    folder = _model_folder(source)
    config = _read_config(folder)
    preparation = Preparation.from_json(_read(folder / "preparation.json").decode("utf-8", "replace"))
    weights = _read_weights(folder / "model.safetensors", str(config["weights_sha256"]))
    with torch.random.fork_rng(devices=[]):
        model = build_model(config["architecture"], ModalitySet.parse(config["modalities"]), config["settings"])
    _check_identity(folder, weights, model, preparation)
    _fill(model, _tensors(weights, folder), folder)
    model.preparation, model.sha256, model.name = preparation, config["weights_sha256"], folder.name
    return model.eval().requires_grad_(False)


def model_facts(source: Path | str) -> tuple[str, str, ModalitySet]:
    """Name, SHA-256 of the weights and contrasts that a model folder states, without reading its weights.

    Raises:
        ModelRefused: as :func:`load_model`, as far as ``config.json`` shows it.
    """
    folder = _model_folder(source)
    config = _read_config(folder)
    return folder.name, str(config["weights_sha256"]), ModalitySet.parse(config["modalities"])


def _model_folder(source: Path | str) -> Path:
    bundled = bundled_models()
    if isinstance(source, str) and source in bundled:
        return bundled[source]
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() in _PICKLES or _looks_pickled(_head(path)):
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


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(_read(path))
        number = config["format"]
        _ = config["architecture"], config["settings"], config["modalities"], config["weights_sha256"]
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise refusal(
            "CKPT_CORRUPT", f"the model folder's {path.name} cannot be read: {error.strerror}", file=path
        ) from error


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(16)


def _ordered(weights: bytes) -> bytes:
    # safetensors writes its metadata in an order that changes from process to process; equal models shall be
    # equal files. Offsets count from the end of the header, so the header can be written again.
    size = int.from_bytes(weights[:8], "little")
    header = json.dumps(json.loads(weights[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + weights[8 + size :]


def _looks_pickled(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def _read_weights(path: Path, expected: str) -> bytes:
    weights = _read(path)
    if _looks_pickled(weights[:16]):
        raise refusal("CKPT_UNSAFE", "this is a pickle under another name", file=path, expected="safetensors")
    header = int.from_bytes(weights[:8], "little")
    if len(weights) < 8 or header > min(_HEADER_LIMIT, len(weights) - 8):
        raise refusal(
            "CKPT_CORRUPT",
            "this is not a safetensors file, or not all of it",
            file=path,
            found=f"{len(weights)} bytes",
        )
    found = hashlib.sha256(weights).hexdigest()
    if found != expected:
        raise refusal(
            "CKPT_CORRUPT",
            "the weights are not the ones that config.json describes",
            file=path,
            field="SHA-256",
            found=found[:12],
            expected=expected[:12],
            hint="Copy the model again.",
        )
    return weights


def _identity(model: ImputationModel, preparation: Preparation) -> dict[str, str]:
    return {
        "format": str(FORMAT),
        "architecture": model.architecture,
        "modalities": str(model.modalities),
        "settings": json.dumps(asdict(model.settings), sort_keys=True),
        "preparation modalities": str(preparation.modalities),
        "normalisation": preparation.normalisation,
        "percentiles": json.dumps(preparation.percentiles),
        "pixel spacing": json.dumps(preparation.pixel_spacing_mm),
    }


def _check_identity(folder: Path, weights: bytes, model: ImputationModel, preparation: Preparation) -> None:
    stored = _completed(_metadata(weights, folder), model)
    declared = _identity(model, preparation)
    different = [name for name, value in declared.items() if stored.get(name) != value]
    if different:
        raise refusal(
            "CKPT_MISMATCH",
            "the files of this model folder do not belong together",
            file=folder,
            field=", ".join(different),
            found="; ".join(f"{name} {declared[name]}" for name in different),
            expected="; ".join(f"{name} {stored.get(name, 'not recorded')}" for name in different),
        )


def _metadata(weights: bytes, folder: Path) -> dict[str, str]:
    """What a weights file declares in its header; empty where it declares nothing."""
    try:
        header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
        return dict(header.get("__metadata__") or {})
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(error, folder) from error


def _tensors(weights: bytes, folder: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = tensors_from_bytes(weights)
        return tensors
    except (SafetensorError, ValueError, KeyError) as error:  # a header that describes other bytes than there are
        raise _unreadable(error, folder) from error


def _unreadable(error: Exception, folder: Path) -> Exception:
    message = f"the weights file contradicts itself: {error}"
    return refusal("CKPT_CORRUPT", message, file=folder, hint="Copy the model again.")


def _completed(stored: Mapping[str, str], model: ImputationModel) -> dict[str, str]:
    """What a weights file declares; settings that did not exist when it was written have their defaults.

    ``config.json`` is completed in the same way when the model is built from it.
    """
    try:
        settings = json.loads(stored["settings"])
        defaults = json.loads(json.dumps(asdict(type(model.settings)())))
        return {**stored, "settings": json.dumps(defaults | settings, sort_keys=True)}
    except (KeyError, TypeError, ValueError):
        return dict(stored)  # not the settings of a model, which is then a difference


def _fill(model: ImputationModel, tensors: dict[str, Tensor], folder: Path) -> None:
    wanted = _lasting_state(model)
    names = sorted(wanted.keys() ^ tensors.keys())
    names += [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    if names:
        raise refusal(
            "CKPT_MISMATCH",
            f"{len(names)} tensors do not fit the architecture",
            file=folder,
            field=names[0],
            found=_shape(tensors, names[0]),
            expected=_shape(wanted, names[0]),
        )
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise refusal("CKPT_NONFINITE", "the weights hold values that are not finite", file=folder, field=name)
    try:
        model.load_state_dict({name: value.to(wanted[name].dtype) for name, value in tensors.items()}, strict=False)
    except (RuntimeError, SafetensorError) as error:
        raise refusal("CKPT_CORRUPT", f"the weights cannot be used: {error}", file=folder) from error


def _lasting_state(model: ImputationModel) -> dict[str, Tensor]:
    left_out = tuple(f"{part}." for part in model.training_only)
    return {name: value for name, value in model.state_dict().items() if not name.startswith(left_out)}


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if half and value.is_floating_point() else value


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "nothing"


def _plain_card(model: ImputationModel) -> str:
    return (
        f"# {model.architecture}\n\nContrasts: {model.modalities}.\n\n"
        "Research use only; not a medical device. Output images are SYNTHETIC.\n"
    )
