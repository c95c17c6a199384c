"""A disk that is full at a chosen moment, for everything that Python writes below one folder.

Every operation that can meet a full disk is counted: making a file, each write to it, forcing it or its folder
to disk, making a folder, renaming. The chosen one raises ``ENOSPC``; a write first puts half of its bytes down, as
the kernel does. Readers, other folders and C libraries are left alone (the package writes through Python only,
which ``tests/unit/test_sources_are_safe.py`` holds it to).
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_NEED_ROOM = {"create", "write", "fsync", "mkdir"}
"""What a disk that stays full refuses; a rename inside a folder that had the name before still works."""


class FaultyDisk:
    """Use as a context manager around the work.

    Args:
        root: only what happens below it counts.
        fail_at: the number of the operation that fails, from 1; ``None`` only counts.
        lasting: whether all later ones that need room fail too.
        number: of the error, ``ENOSPC`` by default.

    Attributes:
        visited: the operations so far, kind and file.
        failed: how many of them failed.
    """

    def __init__(
        self, root: Path, *, fail_at: int | None = None, lasting: bool = False, number: int = errno.ENOSPC
    ) -> None:
        self.root = os.path.realpath(root)
        self.fail_at = fail_at
        self.lasting = lasting
        self.number = number
        self.visited: list[str] = []
        self.failed = 0
        self._real: dict[tuple[Any, str], Any] = {}

    def visit(self, kind: str, file: Any) -> None:
        """Count an operation; raise where it is the chosen one."""
        path = self._below(file)
        if path is None:
            return
        self.visited.append(f"{kind} {path}")
        if self.fail_at is None:
            return
        now = len(self.visited)
        if now == self.fail_at or (self.lasting and now > self.fail_at and kind in _NEED_ROOM):
            self.failed += 1
            raise OSError(self.number, os.strerror(self.number), os.path.join(self.root, path))

    def _below(self, file: Any) -> str | None:
        """The name below the root; ``None`` for what lies elsewhere."""
        try:
            name = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fsdecode(file)
        except (OSError, TypeError):
            return None
        path = os.path.realpath(name)
        return os.path.relpath(path, self.root) if path.startswith(self.root + os.sep) or path == self.root else None

    def __enter__(self) -> Self:
        self._replace(io, "open", self._io_open)
        self._replace(builtins, "open", self._io_open)
        self._replace(os, "open", self._os_open)
        self._replace(os, "pwrite", self._os_pwrite)
        self._replace(os, "mkdir", self._os_mkdir)
        self._replace(os, "fsync", self._os_fsync)
        for name in ("rename", "replace"):
            self._replace(os, name, self._second("rename", getattr(os, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for (owner, name), real in self._real.items():
            setattr(owner, name, real)
        self._real.clear()

    def _replace(self, owner: Any, name: str, ours: Any) -> None:
        self._real[owner, name] = getattr(owner, name)
        setattr(owner, name, ours)

    def _os_mkdir(self, folder: Any, *rest: Any, **named: Any) -> None:
        if not os.path.lexists(folder):
            self.visit("mkdir", folder)
        self._real[os, "mkdir"](folder, *rest, **named)

    def _os_fsync(self, handle: int) -> None:
        self.visit("fsync", handle)
        self._real[os, "fsync"](handle)

    def _second(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(source: Any, target: Any, *rest: Any, **named: Any) -> Any:
            self.visit(kind, target)
            return real(source, target, *rest, **named)

        return operation

    def _os_open(self, file: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT and not os.path.lexists(file):
            self.visit("create", file)
        return self._real[os, "open"](file, flags, *rest, **named)

    def _os_pwrite(self, handle: int, content: bytes, place: int) -> int:
        try:
            self.visit("write", handle)
        except OSError:
            self._real[os, "pwrite"](handle, content[: len(content) // 2], place)
            raise
        return self._real[os, "pwrite"](handle, content, place)

    def _io_open(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
        errors: str | None = None, newline: str | None = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or self._below(file) is None:
            return self._real[io, "open"](file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int) and not os.path.lexists(file):
            self.visit("create", file)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd=closefd, opener=opener)
        raw.disk = self
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)


class _Raw(io.FileIO):
    """A file whose writes are counted."""

    disk: FaultyDisk | None = None

    def write(self, content: Any) -> int:
        if self.disk is not None:
            try:
                self.disk.visit("write", self.fileno())
            except OSError:
                view = memoryview(content).cast("B")
                super().write(view[: len(view) // 2])
                raise
        return super().write(content)
