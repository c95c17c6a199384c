"""Named points at which a test can make the machine fail.

``CODEBRAIN_FAULT=point[:nth]:action`` makes the nth visit (default the first) of ``point`` fail. Unset, a
visit costs one look at the environment. Actions: ``kill9``, ``term``, ``int`` (that signal to ourselves),
``enospc``, ``eio`` (that error of the operating system), ``torn:N`` (the file at hand loses its last N bytes
and we are killed: a power failure), ``nan`` (the caller spoils its numbers), ``oom``, ``hang``.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

from codebrain.errors import refusal

TRAINING_POINTS = (
    "ckpt.begin",
    "ckpt.model.half",
    "ckpt.model.done",
    "ckpt.optim.half",
    "ckpt.state.done",
    "ckpt.manifest.done",
    "ckpt.before_rename",
    "ckpt.after_rename",
    "ckpt.verify",
    "ckpt.prune.first",
    "step.fetch",
    "step.after_fetch",
    "step.gradient",
    "step.between_players",
    "step.after_players",
    "step.before_counter",
    "epoch.end",
    "val.mid",
    "best.update",
    "log.append.half",
    "stage.export",
    "stage.start",
    "lock.acquire",
    "lock.release",
)
BATCH_POINTS = (
    "batch.begin",
    "batch.staged",
    "batch.ready",
    "batch.publish.half",
    "batch.recorded",
    "batch.table",
)
POINTS = (*TRAINING_POINTS, *BATCH_POINTS)
_SIGNALS = {"kill9": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO}
_visits: Counter[str] = Counter()


def fault(point: str, *, file: Path | None = None) -> bool:
    """Visit ``point``; fail there if the environment says so.

    Args:
        point: one of :data:`POINTS`.
        file: what is being written there, for ``torn``.

    Returns:
        Whether the caller should spoil its numbers (action ``nan``).

    Raises:
        UsageError: ``CONFIG`` when the environment names no known point or action.
    """
    if not armed(point):
        return False
    _visits[point] += 1
    _, *words = os.environ["CODEBRAIN_FAULT"].split(":")
    nth = int(words.pop(0)) if words and words[0].isdigit() else 1
    if _visits[point] != nth:
        return False
    return _act(words, file)


def armed(point: str) -> bool:
    """Whether a fault waits at ``point``, so that a writer can stop half-way."""
    plan = os.environ.get("CODEBRAIN_FAULT")
    if not plan:
        return False
    named = plan.partition(":")[0]
    if named not in POINTS:
        raise refusal("CONFIG", "unknown fault point", field="CODEBRAIN_FAULT", found=named,
                      expected=", ".join(POINTS))  # fmt: skip
    return named == point


def _act(words: list[str], file: Path | None) -> bool:
    action = words[0] if words else ""
    if action == "torn" and file is not None:
        os.truncate(file, max(0, file.stat().st_size - int(words[1])))
        os.kill(os.getpid(), signal.SIGKILL)
    elif action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[action])
    elif action in _ERRORS:
        raise OSError(_ERRORS[action], os.strerror(_ERRORS[action]))
    elif action == "oom":
        raise MemoryError
    elif action == "hang":
        time.sleep(3600)
    elif action != "nan":
        raise refusal("CONFIG", "unknown fault action", field="CODEBRAIN_FAULT", found=action)
    return action == "nan"
