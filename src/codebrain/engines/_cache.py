"""Converted networks are kept in the user's cache, because converting one takes longer than a study.

A file is named after all that decides its content: weights, settings and the versions that converted it. It begins with
the SHA-256 of the rest, which is compared before use; a damaged file is made again. Files appear whole, so processes
that start at once at worst convert twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from codebrain.errors import CodeBrainError
from codebrain.imaging import safe_files
from codebrain.models._contract import ImputationModel

_log = logging.getLogger(__name__)

_KEPT = 4
"""Networks that stay, the last used first: one of the published size takes 640 MB."""

_DIGEST = 32


def cache_folder() -> Path:
    """Where they are; the variable ``XDG_CACHE_HOME`` moves it on Linux."""
    from platformdirs import user_cache_path

    return user_cache_path("codebrain") / "networks"


def cached(model: ImputationModel, convert: Callable[[ImputationModel], bytes]) -> bytes:
    """The converted network, from the cache or new; a cache that cannot be used is none.

    Args:
        model: without a SHA-256, as one that was never saved, it is always converted.
        convert: makes the bytes.
    """
    if not model.sha256:
        return convert(model)
    file = cache_folder() / f"{_key(model)}.onnx"
    known = _read(file)
    if known is not None:
        return known
    _log.info("converting the network of %s, once for this version; it is kept in the user's cache", model.name)
    network = convert(model)
    _keep(file, network)
    return network


def _key(model: ImputationModel) -> str:
    packages = ("codebrain-mri", "torch", "onnx", "onnxscript")
    facts = [model.sha256, model.architecture, asdict(model.settings), [metadata.version(name) for name in packages]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _read(file: Path) -> bytes | None:
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(memoryview(content)[_DIGEST:]).digest() != content[:_DIGEST]:
        _log.warning("a converted network in the cache is damaged and is made again")
        return None
    with contextlib.suppress(OSError):
        file.touch()
    return content[_DIGEST:]


def _keep(file: Path, network: bytes) -> None:
    try:
        safe_files.ensure_folder(file.parent, parents=True)
        safe_files.sweep_temporaries(file.parent)
        safe_files.write_bytes(file, hashlib.sha256(network).digest() + network)
        by_use = sorted(file.parent.glob("*.onnx"), key=lambda kept: kept.stat().st_mtime, reverse=True)
        for old in by_use[_KEPT:]:
            old.unlink(missing_ok=True)
    except (OSError, CodeBrainError) as error:
        _log.warning("the converted network was not kept: %s", error)
