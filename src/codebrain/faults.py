"""Named points at which a test can make the machine fail.

``CODEBRAIN_FAULT=point[:nth]:action`` makes the nth visit (default the first) of ``point`` fail. Unset, a
visit costs one comparison. Actions: ``kill9``, ``term``, ``int`` (that signal to ourselves), ``enospc``,
``eio`` (that error of the operating system), ``nan`` (the caller spoils its numbers), ``oom``, ``hang``.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter

from codebrain.errors import refusal

POINTS = (
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
    "step.after_fetch",
    "step.gradient",
    "step.between_players",
    "step.after_players",
    "step.before_counter",
    "epoch.end",
    "val.mid",
    "best.update",
    "log.append",
    "stage.export",
    "stage.start",
    "lock.acquire",
    "lock.release",
)
_SIGNALS = {"kill9": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO}
_visits: Counter[str] = Counter()


def fault(point: str) -> bool:
    """Visit ``point``; fail there if the environment says so.

    Returns:
        Whether the caller should spoil its numbers (action ``nan``).
    """
    armed = os.environ.get("CODEBRAIN_FAULT")
    if not armed or armed.partition(":")[0] != point:
        return False
    _visits[point] += 1
    _, *middle, action = armed.split(":")
    if _visits[point] != (int(middle[0]) if middle else 1):
        return False
    return _act(action)


def armed(point: str) -> bool:
    """Whether a fault waits at ``point``, so that a writer can stop half-way."""
    return os.environ.get("CODEBRAIN_FAULT", "").partition(":")[0] == point


def _act(action: str) -> bool:
    if action in _SIGNALS:
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
