"""A model is a folder: the only place where weights are written or read, and nothing in it is pickled.

::

    config.json         format, architecture, settings, contrasts in channel order, SHA-256 of the weights
    model.safetensors   weights; the same facts again in its header, so that files cannot be mixed up
    preparation.json    how images must be prepared (codebrain.vocabulary.Preparation)
    MODEL_CARD.md       what it was trained on and what it is not for
    metrics.json        scores on patients that training never saw; the doubt above which results are not to be trusted
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging import safe_files
from codebrain.models import build_model
from codebrain.models._config import (
    FORMAT,
    looks_pickled,
    model_folder,
    read,
    read_config,
    read_doubt_limits,
    read_preparation,
)
from codebrain.parsing import parse_json_object
from codebrain.vocabulary import YOUNGER_FIELDS, ModalitySet, Preparation

if TYPE_CHECKING:
    from codebrain.models._contract import ImputationModel

_HEADER_LIMIT = 4 * 2**20
"""A thousand tensors take about 100 kB; a header of a million takes half a minute to read, for nothing."""

_ROOM = 2**26
"""Numbers that a model may hold beyond its weights file: the largest critic here has a fifth of that."""

_MOST_TENSORS = 2**12


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
        folder: created if absent; files of an earlier model in it are replaced, all of them or none.
        preparation: how images must be prepared for the model.
        metrics: scores, written to ``metrics.json``.
        card: text of ``MODEL_CARD.md``; a short factual one is written when absent.
        half: store floating-point weights as float16 (they are float32 again when loaded).

    Returns:
        SHA-256 of the weights file.

    Raises:
        EnvironmentRefused: ``OUT_SPACE``, ``OUT_PERMISSION``; an earlier model is then as it was.
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
    safe_files.ensure_folder(folder, parents=True)
    safe_files.sweep_temporaries(folder)
    with safe_files.staged(folder, last="config.json") as stage:
        safe_files.write_bytes(stage / "model.safetensors", weights)
        safe_files.write_text(stage / "preparation.json", preparation.to_json() + "\n")
        safe_files.write_json(stage / "metrics.json", dict(metrics or {}))
        safe_files.write_text(stage / "MODEL_CARD.md", card or _plain_card(model))
        safe_files.write_json(stage / "config.json", config)
    return digest


def load_model(source: Path | str) -> ImputationModel:
    """A model in evaluation mode, on the CPU, from a model folder or the name of a bundled model.

    Raises:
        ModelRefused: ``CKPT_NONE`` (nothing there), ``CKPT_UNSAFE`` (a pickle, whatever its name),
            ``CKPT_CORRUPT`` (damaged or not a model folder), ``CKPT_FORMAT`` (written by a newer codebrain),
            ``CKPT_MISMATCH`` (the files of the folder do not belong together, field by field),
            ``CKPT_NONFINITE`` (weights that are not numbers).
    """
    folder = model_folder(source)
    config = read_config(folder)
    preparation = read_preparation(folder)
    weights = _read_weights(folder / "model.safetensors", str(config["weights_sha256"]))
    model = _built(config, folder, len(weights))
    _check_identity(folder, weights, model, preparation)
    _fill(model, _tensors(weights, folder), folder)
    model.preparation, model.sha256, model.name = preparation, config["weights_sha256"], folder.name
    model.doubt_limits = read_doubt_limits(folder)
    return model.eval().requires_grad_(False)


def _built(config: Mapping[str, Any], folder: Path, weights_size: int) -> ImputationModel:
    """The untrained model that ``config.json`` describes.

    Raises:
        ModelRefused: ``CKPT_CORRUPT`` for contrasts or settings that no such model has.
        UsageError: ``CONFIG`` for an architecture or a setting that this version does not know.
    """
    try:
        modalities = ModalitySet.parse(config["modalities"])
        with torch.random.fork_rng(devices=[]), _no_larger_than(weights_size):
            return build_model(config["architecture"], modalities, config["settings"])
    except CodeBrainError:
        raise
    except Exception as error:  # whatever a constructor says to a width of -1
        raise refusal("CKPT_CORRUPT", f"no model can be built as config.json says: {error}", file=folder) from error


@contextmanager
def _no_larger_than(weights_size: int) -> Iterator[None]:
    """Stop the building of a model that its weights could never fill, before its memory is touched.

    Critics, which the file leaves out, have room too.

    Args:
        weights_size: bytes of the weights file.
    """
    left, thread = 4 * weights_size + _ROOM, threading.get_ident()

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal left
        if tensor is None or threading.get_ident() != thread:
            return
        left -= tensor.numel() + _ROOM // _MOST_TENSORS
        if left < 0:
            raise ValueError("it would be far larger than its weights")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _ordered(weights: bytes) -> bytes:
    # safetensors writes its metadata in an order that changes from process to process; equal models shall be
    # equal files. Offsets count from the end of the header, so the header can be written again.
    size = int.from_bytes(weights[:8], "little")
    header = json.dumps(json.loads(weights[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + weights[8 + size :]


def _read_weights(path: Path, expected: str) -> bytes:
    weights = read(path)
    if looks_pickled(weights[:16]):
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
        **_younger(asdict(preparation)),
    }


def _younger(fields: Mapping[str, Any]) -> dict[str, str]:
    """What identifies a model of the fields of the preparation that older weights files do not declare."""
    return {name: json.dumps(fields[name]) for name in YOUNGER_FIELDS}


def _check_identity(folder: Path, weights: bytes, model: ImputationModel, preparation: Preparation) -> None:
    try:
        header = parse_json_object(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    except ValueError as error:
        raise refusal("CKPT_CORRUPT", f"the header of the weights is damaged: {error}", file=folder) from error
    stored = _completed(header.get("__metadata__"), model)
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


def _completed(stored: Any, model: ImputationModel) -> dict[str, str]:
    """What a weights file declares; settings that did not exist when it was written have their defaults.

    ``config.json`` is completed in the same way when the model is built from it.
    """
    if not isinstance(stored, dict):
        return {}
    try:
        settings = parse_json_object(stored["settings"])
        defaults = json.loads(json.dumps(asdict(type(model.settings)())))
        return _younger(YOUNGER_FIELDS) | {**stored, "settings": json.dumps(defaults | settings, sort_keys=True)}
    except (KeyError, TypeError, ValueError):
        return dict(stored)  # not the settings of a model, which is then a difference


def _tensors(weights: bytes, folder: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = tensors_from_bytes(weights)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise refusal("CKPT_CORRUPT", f"the weights cannot be read: {error}", file=folder) from error
    return tensors


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
