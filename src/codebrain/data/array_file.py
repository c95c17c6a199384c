"""A ``.npy`` file that is read part by part for days, and may be cut, edited or taken away meanwhile.

It is read and not mapped: behind the end of a file that was cut, or on a disk that fails, a mapping ends the process
with SIGBUS, which Python cannot catch, and a file edited in place changes under the hands of its reader.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_magic
from numpy.typing import NDArray


class Stamp(NamedTuple):
    """What changes with a file: it is another one, of another size, or was written to."""

    device: int
    inode: int
    size: int
    written_ns: int


def stamp(path: Path) -> Stamp:
    """The stamp of the file that now has this name.

    Raises:
        OSError: there is none, or it cannot be asked for.
    """
    return _stamp(path.stat())


class ArrayFile:
    """An open ``.npy`` file of format 1.0.

    Args:
        path: the file; it stays open, so that it can be read on after it has lost its name.
        shape, dtype: what it must hold.

    Attributes:
        stamp: of the file when it was opened.

    Raises:
        OSError: it cannot be opened or read.
        ValueError: it holds something else.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        file: BinaryIO = path.open("rb", buffering=0)
        weakref.finalize(self, file.close)
        self._number = file.fileno()
        if read_magic(file) != (1, 0):  # type: ignore[no-untyped-call]
            raise ValueError("another version of the format")
        found, in_columns, stored = read_array_header_1_0(file)  # type: ignore[no-untyped-call]
        if found != tuple(shape) or stored != dtype or in_columns:
            raise ValueError(f"it holds {stored} {found}")
        self._start, self._shape, self._dtype = file.tell(), tuple(shape), dtype
        self.stamp = self._now()

    def item(self, number: int) -> NDArray[Any]:
        """One item along the first axis.

        Raises:
            OSError, ValueError: it can no longer be read, or the file was written to since it was opened.
        """
        array = np.empty(self._shape[1:], self._dtype)
        self._fill(array, number * array.size)
        return self._unchanged(array)

    def rows(self, number: int, first: int, last: int) -> NDArray[Any]:
        """Rows ``first`` to ``last`` of every channel of one item, ``(m, r, w)``; raises as :meth:`item` does."""
        _, channels, height, width = self._shape
        array = np.empty((channels, last - first, width), self._dtype)
        for channel, part in enumerate(array):
            self._fill(part, ((number * channels + channel) * height + first) * width)
        return self._unchanged(array)

    def whole(self) -> NDArray[Any]:
        """All items; raises as :meth:`item` does."""
        array = np.empty(self._shape, self._dtype)
        self._fill(array, 0)
        return self._unchanged(array)

    def _fill(self, array: NDArray[Any], first: int) -> None:
        """Read as many values as ``array`` has, from the value ``first`` on."""
        view, start = array.reshape(-1).view(np.uint8).data, self._start + first * self._dtype.itemsize
        done = 0
        while done < array.nbytes:  # one call gives at most 2 GiB
            got = os.preadv(self._number, [view[done:]], start + done)
            if not got:
                raise ValueError("it ends too early")
            done += got

    def _unchanged(self, array: NDArray[Any]) -> NDArray[Any]:
        if self._now() != self.stamp:  # asked last, so that what is written during the read counts
            raise ValueError("it was written to while it was in use")
        return array

    def _now(self) -> Stamp:
        return _stamp(os.fstat(self._number))


def _stamp(facts: os.stat_result) -> Stamp:
    return Stamp(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
