"""Whether a process and its children do anything: computing, reading, writing. As Linux tells it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_STATE, _FAULTS, _TIMES = 0, 9, slice(11, 15)
"""Where the state, the page faults that read a disk, and four times lie behind a process's name in its ``stat``: its
own in user and kernel mode, and those of its children that have ended. Source: proc(5)."""

_MOVED = ("rchar", "wchar", "read_bytes", "write_bytes")


@dataclass(frozen=True)
class Pulse:
    """What a process and its children had done when they were looked at.

    Attributes:
        ticks: computing time, in clock ticks (a hundredth of a second).
        moved: bytes read and written and pages fetched, by process.
        runs: whether a thread runs, or would if a core were free; on a crowded machine that is not idleness.
    """

    ticks: int
    moved: tuple[tuple[int, ...], ...]
    runs: bool


def pulse(pid: int) -> Pulse | None:
    """Look at a process and its children; ``None`` where they are gone or the system does not tell."""
    seen = [facts for process in _family(pid) if (facts := _look(process)) is not None]
    if not seen:
        return None
    return Pulse(sum(one.ticks for one in seen), tuple(m for one in seen for m in one.moved), any(s.runs for s in seen))


def _family(pid: int) -> Iterator[int]:
    """A process, its children and theirs."""
    yield pid
    for thread in _threads(pid):
        for child in _words(thread / "children"):
            yield from _family(int(child))


def _look(pid: int) -> Pulse | None:
    fields = _fields(_PROC / str(pid))
    if len(fields) < _TIMES.stop:
        return None
    words = _words(_PROC / str(pid) / "io")
    amounts = dict(zip(words[::2], words[1::2], strict=False))
    moved = (pid, int(fields[_FAULTS]), *(int(amounts.get(f"{name}:", 0)) for name in _MOVED))
    runs = any(_fields(thread)[_STATE : _STATE + 1] == ["R"] for thread in _threads(pid))
    return Pulse(sum(map(int, fields[_TIMES])), (moved,), runs)


def _threads(pid: int) -> list[Path]:
    try:
        return list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return []


def _fields(process: Path) -> list[str]:
    """What follows the name, which may hold blanks and brackets, in ``stat``."""
    return " ".join(_words(process / "stat")).rpartition(")")[2].split()


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").split()
    except OSError:  # it has ended, or is not ours to look at
        return []
