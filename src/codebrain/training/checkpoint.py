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

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from codebrain.errors import CodeBrainError, refusal
from codebrain.faults import armed, fault
from codebrain.imaging import safe_files

FORMAT = 1
_MANIFEST = "MANIFEST.json"
_CONTENT = ("model.safetensors", "optim.safetensors", "state.json")
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
        owner: whether this process holds the run's lock, so that it may write and tidy up.
    """

    def __init__(self, folder: Path, *, keep: int = 2, owner: bool = True) -> None:
        self.folder = folder
        self.keep = keep
        self.owner = owner
        if not owner:
            return
        safe_files.ensure_folder(folder, parents=True)
        # All of them, also those whose process number lives: the lock says that their writer does not, and in a
        # container the next run often gets the very same number.
        for path in folder.glob(".*.tmp-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
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
        self._verify(target)
        fault("ckpt.verify")
        if name.startswith("step-"):
            self._prune()
        return target

    def read(self, path: Path) -> Checkpoint:
        """Read a checkpoint and check every byte of it.

        Raises:
            ModelRefused: ``CKPT_CORRUPT``; ``CKPT_FORMAT`` for one of a newer codebrain.
        """
        try:
            manifest = json.loads((path / _MANIFEST).read_bytes())
            content = {name: (path / name).read_bytes() for name in _CONTENT}
            for name in _CONTENT:
                if hashlib.sha256(content[name]).hexdigest() != manifest[name]["sha256"]:
                    raise ValueError(f"{name} has another SHA-256 than its manifest says")
            state = json.loads(content["state.json"])
            if state["format"] > FORMAT:
                raise refusal("CKPT_FORMAT", "written by a newer codebrain", file=path, found=state["format"],
                              expected=FORMAT, hint="Update codebrain.")  # fmt: skip
            model, optim = (tensors_from_bytes(content[name]) for name in _CONTENT[:2])
            return Checkpoint(path, model, optim, state)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise refusal("CKPT_CORRUPT", f"the checkpoint is damaged: {error}", file=path) from error

    def position(self, path: Path) -> dict[str, Any] | None:
        """Where a checkpoint stands, without reading its tensors; ``None`` when that cannot be read."""
        try:
            position: dict[str, Any] = json.loads((path / "state.json").read_bytes())["position"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return position

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies.

        Damaged ones are passed over, with a warning that says so, and set aside as ``damaged-step-<count>``
        until the next checkpoint is written, so that they are not counted among those to keep.

        Raises:
            ModelRefused: ``CKPT_FORMAT``.
        """
        for path in reversed(self.paths()):
            try:
                return self.read(path)
            except CodeBrainError as error:
                if error.code != "CKPT_CORRUPT":
                    raise
                _log.warning("%s; falling back to the one before", error)
            if self.owner:
                path.rename(self.folder / f"damaged-{path.name}")
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
            fault(half, file=folder / name)
        safe_files.write_bytes(folder / name, content)

    def _verify(self, path: Path) -> None:
        """Read back what was just written; a folder that is not what it should be does not stay."""
        try:
            self.read(path)
        except CodeBrainError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise refusal(
                "OUT_SPACE", "the checkpoint read back is not what was written", file=path,
                hint="The disk may be failing; older checkpoints are unchanged.",
            ) from error  # fmt: skip

    def _prune(self) -> None:
        for path in self.folder.glob("damaged-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.paths()[: -self.keep]:
            fault("ckpt.prune.first")
            (path / _MANIFEST).unlink(missing_ok=True)  # first, so that half a removal can never verify
            shutil.rmtree(path)


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    content: bytes = tensors_to_bytes({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    return content
