"""One process per task: memory stays flat, and a task that dies or hangs takes no other with it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

from codebrain.errors import CodeBrainError, refusal

Task = TypeVar("Task")
Result = TypeVar("Result")
Worker = TypeVar("Worker", bound=Hashable)

Tell = Callable[[Any], None]
"""What a task calls to say how far it is."""

_ENDING_S = 5.0
"""How long a process may take to end once it has answered, or was killed; one that hangs in the kernel, on a lost
network disk, is left behind."""


def death(status: int | None) -> CodeBrainError:
    """What is said of a worker that ended, with this exit status, without an answer."""
    why = " (killed: not enough memory?)" if status == -9 else ""
    return refusal("ENV_WORKER", f"the worker process ended with status {status}{why}")


def hang(silent_s: float) -> CodeBrainError:
    """What is said of a worker that was ended because it showed no progress for so long."""
    return refusal("ENV_TIMEOUT", f"the worker process showed no progress for {silent_s:g} s and was ended")


class Patience(Generic[Worker]):
    """Since when each worker has said nothing.

    Args:
        limit_s: how long that is borne; for ever by default.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self.limit_s = limit_s
        self._heard: dict[Worker, float] = {}

    def heard(self, worker: Worker) -> None:
        """It begins, or has just said something."""
        self._heard[worker] = time.monotonic()

    def forget(self, worker: Worker) -> None:
        """Nothing is expected of it."""
        self._heard.pop(worker, None)

    def left_s(self) -> float | None:
        """Seconds until it ends with the first of them."""
        if self.limit_s is None or not self._heard:
            return None
        return max(0.0, min(self._heard.values()) + self.limit_s - time.monotonic())

    def exhausted(self) -> list[Worker]:
        """Those that have been silent for too long; what waits in their pipe must have been heard before."""
        if self.limit_s is None:
            return []
        begun = time.monotonic() - self.limit_s
        return [worker for worker, heard in self._heard.items() if heard <= begun]


def see_off(process: BaseProcess, patience_s: float = _ENDING_S) -> None:
    """Wait for a process that should end by itself; kill it when it does not."""
    process.join(patience_s)
    if process.is_alive():
        process.kill()
        process.join(_ENDING_S)


def isolated(
    function: Callable[[Task, Tell], Result],
    tasks: Sequence[Task],
    *,
    jobs: int,
    died: Callable[[Task, CodeBrainError], Result],
    told: Callable[[Task, Any], None] = lambda task, message: None,
    patience_s: float | None = None,
    placed: Callable[[Task, int], Task] = lambda task, slot: task,
    threads: int | None = None,
) -> Iterator[Result]:
    """Results as they come, each from a fresh process.

    A pool would be a second faster per task, but one crash in a library, or the out-of-memory killer, breaks a
    whole pool. Closing the iterator ends the processes that are at work.

    Args:
        function: importable by name, ``function(task, tell)``; should answer with a result and not raise.
        tasks: one argument each, picklable.
        jobs: processes at a time; 0 works in this process.
        died: the result of a task whose process ended without an answer; why is :func:`death` or :func:`hang`. It is
            not begun again.
        told: hears in this process what a task tells.
        patience_s: how long a process may neither answer nor tell anything before it is killed; for ever by default.
            Without processes there is no limit.
        placed: the task as it is begun in one of ``jobs`` slots, 0 or higher; for what two tasks at work at the
            same time must not share, a GPU for example.
        threads: of every library in each process; set before any of them is loaded, because later is too late.
    """
    if jobs == 0:
        for task in tasks:
            yield function(placed(task, 0), partial(told, task))
        return
    waiting = deque(tasks)
    running: dict[Connection, tuple[BaseProcess, Task]] = {}
    free, slots = list(range(jobs)), dict[Connection, int]()
    patience = Patience[Connection](patience_s)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.popleft()
                slot = free.pop(0)
                pipe, process = _start(function, placed(task, slot), threads)
                running[pipe], slots[pipe] = (process, task), slot
                patience.heard(pipe)
            ready = cast("list[Connection]", wait(list(running), patience.left_s()))
            for pipe in ready + [silent for silent in patience.exhausted() if silent not in ready]:
                process, task = running[pipe]
                if pipe in ready:
                    patience.heard(pipe)
                    answered, message = _hear(pipe, process, task, died)
                else:
                    see_off(process, 0)
                    pipe.close()
                    answered, message = True, died(task, hang(patience_s or 0))
                if not answered:
                    told(task, message)
                    continue
                del running[pipe]
                patience.forget(pipe)
                free.append(slots.pop(pipe))
                yield cast("Result", message)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            see_off(process)


def _start(function: Callable[[Task, Tell], Result], task: Task, threads: int | None) -> tuple[Connection, BaseProcess]:
    # Spawned, not forked: libraries with threads (SimpleITK, torch) do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(function, task, theirs, os.getpid()), daemon=True)
    # Born deaf to an interrupt from the terminal, which is the parent's to handle; one that comes now waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with limited_threads(threads):  # a child is born with our environment
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()  # so that our end closes when the worker ends
    return ours, process


_THREAD_VARIABLES = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """The environment in which ITK, OpenMP and the linear algebra start with so many threads; put back afterwards."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    try:
        if threads is not None:
            os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _work(function: Callable[[Task, Tell], Result], task: Task, pipe: Connection, parent: int) -> None:
    """A worker's life; an interrupt from the terminal is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    pipe.send((True, function(task, lambda message: pipe.send((False, message)))))
    pipe.close()


def end_with(parent: int) -> None:
    """End when the process ``parent`` ends, however it ends: nobody would take the result.

    Linux does it at once, even inside a library that holds the interpreter (registration does, for seconds); a thread
    does it elsewhere.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
    sentinel = getattr(multiprocessing.parent_process(), "sentinel", None)
    if sentinel is not None:
        threading.Thread(target=_watch, args=(sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _hear(
    pipe: Connection, process: BaseProcess, task: Task, died: Callable[[Task, CodeBrainError], Result]
) -> tuple[bool, Any]:
    """Whether the worker has answered, and its answer or what it tells meanwhile."""
    try:
        answered, message = pipe.recv()
    except (EOFError, OSError):
        see_off(process)
        answered, message = True, died(task, death(process.exitcode))
    if answered:
        pipe.close()
        see_off(process)
    return answered, message
