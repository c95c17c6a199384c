"""One process per task: memory stays flat, and a task that dies takes no other with it."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar, cast

Task = TypeVar("Task")
Result = TypeVar("Result")


def isolated(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    jobs: int,
    died: Callable[[Task, int | None], Result],
) -> Iterator[Result]:
    """Results as they come, each from a fresh process.

    A pool would be a second faster per task, but one crash in a library, or the out-of-memory killer, breaks a
    whole pool. Closing the iterator ends the processes that are at work.

    Args:
        function: importable by name; should answer with a result and not raise.
        tasks: one argument each, picklable.
        jobs: processes at a time; 0 works in this process.
        died: the result of a task whose process ended, with this exit status, without an answer.
    """
    if jobs == 0:
        yield from (function(task) for task in tasks)
        return
    waiting = deque(tasks)
    running: dict[Connection, tuple[BaseProcess, Task]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.popleft()
                pipe, process = _start(function, task)
                running[pipe] = (process, task)
            for ready in cast("list[Connection]", wait(list(running))):
                process, task = running.pop(ready)
                yield _answer(ready, process, task, died)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _start(function: Callable[[Task], Result], task: Task) -> tuple[Connection, BaseProcess]:
    # Spawned, not forked: libraries with threads (SimpleITK, torch) do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(function, task, theirs), daemon=True)
    process.start()
    theirs.close()  # so that our end closes when the worker ends
    return ours, process


def _work(function: Callable[[Task], Result], task: Task, pipe: Connection) -> None:
    """A worker's life; an interrupt from the terminal is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe.send(function(task))
    pipe.close()


def _answer(pipe: Connection, process: BaseProcess, task: Task, died: Callable[[Task, int | None], Result]) -> Result:
    try:
        result = cast("Result", pipe.recv())
    except (EOFError, OSError):
        process.join()
        result = died(task, process.exitcode)
    pipe.close()
    process.join()
    return result
