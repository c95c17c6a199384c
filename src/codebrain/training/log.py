"""The log of a run: every step once, as JSON lines and in TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from codebrain.errors import missing_extra
from codebrain.faults import armed, fault
from codebrain.imaging import safe_files

_log = logging.getLogger(__name__)


class RunLog:
    """``metrics.jsonl`` and ``tensorboard/`` of a run.

    The JSON lines are the record: their length stands in every checkpoint, and resuming cuts what was written
    after it, so that no step is missing and none is there twice. TensorBoard is for looking.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("tensorboard", "train", "Logging a training run") from error
        self.path = run / "metrics.jsonl"
        self._board: Any = None
        self._make: Callable[..., Any] | None = SummaryWriter
        self._boards = str(run / "tensorboard")
        self._begun = time.monotonic()
        self._purge: int | None = None

    def start(self) -> None:
        """The seconds of this session count from here."""
        self._begun = time.monotonic()

    def write(self, record: Mapping[str, Any], *, total: int) -> None:
        """Append one record; ``total`` is the step over all stages."""
        line = json.dumps({**record, "seconds": round(time.monotonic() - self._begun, 3)})
        if armed("log.append.half"):  # what a kill inside the write leaves; the next append cuts it away
            safe_files.append_line(self.path, line)
            os.truncate(self.path, self.bytes() - len(line) // 2)
            fault("log.append.half", file=self.path)
        safe_files.append_line(self.path, line)
        try:
            self._show(record, total)
        except OSError as error:
            _log.warning("TensorBoard cannot be written (%s); training goes on without it", error.strerror)
            self.close()
            self._make = None

    def _show(self, record: Mapping[str, Any], total: int) -> None:
        if self._make is None:
            return
        self._board = self._board or self._make(self._boards, purge_step=self._purge)
        for name, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{record['stage']}/{name}", value, total)

    def bytes(self) -> int:
        """Length so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def commit(self) -> int:
        """Force the lines so far to disk, before a checkpoint refers to their length, and return it.

        Raises:
            EnvironmentRefused: ``OUT_SPACE``.
        """
        if self.path.is_file():
            try:
                safe_files.fsync_path(self.path)
            except OSError as error:
                raise safe_files.output_refusal(error, self.path) from error
        return self.bytes()

    def cut(self, length: int, *, total: int) -> None:
        """Forget what was written after ``length``; TensorBoard hides what it was shown after step ``total``."""
        self._purge = total + 1
        if self.path.is_file():
            os.truncate(self.path, min(length, self.bytes()))

    def close(self) -> None:
        """Hand TensorBoard what it has not seen yet, if it can still be written."""
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
            self._board = None


def seconds_of(run: Path) -> float:
    """How long a run has trained, over all its sessions; validation and checkpoints are counted."""
    total = last = 0.0
    with (run / "metrics.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            now = float(json.loads(line)["seconds"])
            total += now - last if now >= last else now  # a session counts from its own start
            last = now
    return total
