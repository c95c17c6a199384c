"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a lie.

A checkpoint is a folder ``step-<count>``::

    model.safetensors   every weight, critics too
    optim.safetensors   optimiser state, ``player/parameter/quantity``
    state.json          stage, step, best score, hashes of configuration and data, length of the log
    MANIFEST.json       size and SHA-256 of the others; written last

It is written under a temporary name, forced to disk, renamed, forced again, read back, and only then are
older ones removed. The latest is the one with the highest count whose manifest holds; clocks are not asked.
Nothing is pickled. All chance of a step comes from (seed, stage, step, rank), so the step count is the whole
state of chance.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from codebrain.errors import CodeBrainError, refusal
from codebrain.faults import armed, fault
from codebrain.imaging import safe_files

FORMAT = 1
_MANIFEST = "MANIFEST.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What was read back from a verified checkpoint."""

    path: Path
    model: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie; made when absent.
        keep: how many verified ones stay.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        for path in safe_files.sweep_temporaries(folder):
            _log.info("removed %s, left by a run that was killed", path.name)

    def commit(
        self, name: str, model: Mapping[str, Tensor], optim: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> Path:
        """Write, verify, then prune.

        Raises:
            EnvironmentRefused: ``OUT_SPACE`` and the like; older checkpoints are untouched.
        """
        fault("ckpt.begin")
        target = self.folder / name
        temporary = self.folder / safe_files.temporary_name(name)
        try:
            self._write(temporary, model, optim, {"format": FORMAT, **state})
            fault("ckpt.before_rename")
            if target.exists():  # a checkpoint of the same count that did not verify, or an older best
                shutil.rmtree(target)
            temporary.rename(target)
            safe_files.fsync_path(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise safe_files.output_refusal(error, target) from error
        except CodeBrainError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fault("ckpt.after_rename")
        self.read(target)
        fault("ckpt.verify")
        if name.startswith("step-"):
            self._prune()
        return target

    def read(self, path: Path) -> Checkpoint:
        """Read a checkpoint and check every byte of it.

        Raises:
            ModelRefused: ``CKPT_CORRUPT``.
        """
        try:
            manifest = json.loads((path / _MANIFEST).read_bytes())
            content = {name: (path / name).read_bytes() for name in manifest}
            if any(hashlib.sha256(content[name]).hexdigest() != facts["sha256"] for name, facts in manifest.items()):
                raise ValueError("a SHA-256 differs")
            return Checkpoint(
                path,
                tensors_from_bytes(content["model.safetensors"]),
                tensors_from_bytes(content["optim.safetensors"]),
                json.loads(content["state.json"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise refusal("CKPT_CORRUPT", f"the checkpoint is damaged: {error}", file=path) from error

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged ones are passed over, with a warning that says so."""
        for path in reversed(self.paths()):
            try:
                return self.read(path)
            except CodeBrainError as error:
                _log.warning("%s; falling back to the one before", error)
        return None

    def paths(self) -> list[Path]:
        """The step checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def _write(
        self, folder: Path, model: Mapping[str, Tensor], optim: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        folder.mkdir()
        content = {"model.safetensors": _bytes(model)}
        self._file(folder, "model.safetensors", content["model.safetensors"], "ckpt.model.half")
        fault("ckpt.model.done")
        content["optim.safetensors"] = _bytes(optim)
        self._file(folder, "optim.safetensors", content["optim.safetensors"], "ckpt.optim.half")
        content["state.json"] = json.dumps(state, indent=2).encode()
        self._file(folder, "state.json", content["state.json"])
        fault("ckpt.state.done")
        manifest = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in content.items()}
        self._file(folder, _MANIFEST, json.dumps(manifest, indent=2).encode())
        fault("ckpt.manifest.done")
        safe_files.fsync_path(folder)

    def _file(self, folder: Path, name: str, content: bytes, half: str | None = None) -> None:
        if half is not None and armed(half):
            safe_files.write_bytes(folder / name, content[: len(content) // 2])
            fault(half)
        safe_files.write_bytes(folder / name, content)

    def _prune(self) -> None:
        for path in self.paths()[: -self.keep]:
            fault("ckpt.prune.first")
            (path / _MANIFEST).unlink(missing_ok=True)  # first, so that half a removal can never verify
            shutil.rmtree(path)


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    content: bytes = tensors_to_bytes({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    return content
