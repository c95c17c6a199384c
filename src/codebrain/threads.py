"""Work on whole volumes side by side, with as many threads as this process was allotted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_MOST_AT_ONCE = 2
"""Volumes that are worked on at the same time: each needs some twelve bytes a voxel for a while."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Threads:
    """How many this process was allotted; one until it is said, as in the workers of a preparation."""

    allotted = 1


def allot(count: int) -> int:
    """From now on this process may use ``count`` threads; gives the number back."""
    _Threads.allotted = count
    return count


def in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """``work`` done for every item, two at a time where two threads are allotted; results in order.

    For work on whole volumes in numpy, scipy and zlib, which let other threads run meanwhile.

    Raises:
        Exception: the first that ``work`` raised, in the order of the items, when all have ended.
    """
    todo = list(items)
    workers = min(_Threads.allotted, len(todo), _MOST_AT_ONCE)
    if workers < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, todo))
