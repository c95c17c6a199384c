"""The log of a run: every step once, as JSON lines and in TensorBoard."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from codebrain.errors import missing_extra
from codebrain.faults import fault
from codebrain.imaging import safe_files


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
        self._make: Callable[[str], Any] = SummaryWriter
        self._boards = str(run / "tensorboard")
        self._begun = time.monotonic()

    def write(self, record: Mapping[str, Any], *, total: int) -> None:
        """Append one record; ``total`` is the step over all stages."""
        fault("log.append")
        seconds = round(time.monotonic() - self._begun, 3)
        safe_files.append_line(self.path, json.dumps({**record, "seconds": seconds}))
        self._board = self._board or self._make(self._boards)
        for name, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{record['stage']}/{name}", value, total)

    def bytes(self) -> int:
        """Length of the whole lines so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def cut(self, length: int) -> None:
        """Forget what was written after ``length``."""
        if self.path.is_file():
            os.truncate(self.path, min(length, self.path.stat().st_size))
