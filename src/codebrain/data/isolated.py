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
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

from codebrain.data.pulse import Pulse, pulse
from codebrain.errors import CodeBrainError, refusal

Task = TypeVar("Task")
Result = TypeVar("Result")
Worker = TypeVar("Worker", bound=Hashable)

Tell = Callable[[Any], None]
"""What a task calls to say how far it is."""

_LOOKS = 10
"""How often an idle worker is looked at before it is ended."""

_LEAST_BUSY = 0.01
"""Of the time; less is no work."""

LOST = ("ENV_WORKER", "ENV_TIMEOUT")
"""Codes of a worker that ended or hung."""

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


def standstill(idle_s: float) -> CodeBrainError:
    """What is said of a worker that was ended because it did nothing at all for so long."""
    what = "the worker process neither computed, read, wrote nor answered"
    return refusal("ENV_TIMEOUT", f"{what} for {idle_s:g} s and was ended")


@dataclass
class _Watched:
    """A worker from which something is expected.

    Attributes:
        pid: its process.
        heard: when it last said something.
        looked: when its process was last looked at.
        pulse: what it had done when it was last seen to do something.
        idle_s: how long it has done nothing since.
    """

    pid: int
    heard: float
    looked: float
    pulse: Pulse | None = None
    idle_s: float = 0.0


class Patience(Generic[Worker]):
    """Which workers hang: those that say nothing for long, and those that do nothing for a while.

    A registration says nothing for minutes and computes all the time. A worker that is stopped, waits for a lock or
    for a disk does nothing, and needs no such time to be known (on Linux; elsewhere only silence counts).

    Args:
        silent_s: how long silence is borne; for ever by default.
        idle_s: how long idleness is borne: no reading, no writing, and no more computing than a hundredth of the
            time, which is what a thread needs that only looks at the clock. For ever by default.
    """

    def __init__(self, silent_s: float | None = None, idle_s: float | None = None) -> None:
        self.silent_s = silent_s
        self.idle_s = idle_s
        self._watched: dict[Worker, _Watched] = {}

    def heard(self, worker: Worker, pid: int) -> None:
        """It begins, or has just said something."""
        now = time.monotonic()
        self._watched[worker] = _Watched(pid, now, now)

    def forget(self, worker: Worker) -> None:
        """Nothing is expected of it."""
        self._watched.pop(worker, None)

    def left_s(self) -> float | None:
        """Seconds until a worker has to be looked at, or ended."""
        now, due = time.monotonic(), list[float]()
        for one in self._watched.values():
            due += [] if self.silent_s is None else [one.heard + self.silent_s]
            due += [] if self.idle_s is None else [one.looked + self.idle_s / _LOOKS]
        return max(0.0, min(due) - now) if due else None

    def exhausted(self) -> dict[Worker, CodeBrainError]:
        """Those that hang, and why; what waits in their pipe must have been heard before."""
        now = time.monotonic()
        found = {}
        for worker, one in self._watched.items():
            if self.silent_s is not None and one.heard + self.silent_s <= now:
                found[worker] = hang(self.silent_s)
            elif self.idle_s is not None and self._idle(one, now, self.idle_s):
                found[worker] = standstill(self.idle_s)
        return found

    @staticmethod
    def _idle(one: _Watched, now: float, limit_s: float) -> bool:
        """Look at a worker, if it is time."""
        rhythm = limit_s / _LOOKS
        if now < one.looked + rhythm:
            return False
        seen = pulse(one.pid)
        before, passed, one.looked = one.pulse, now - one.looked, now
        if seen is None or before is None or _lives(before, seen, limit_s):
            one.pulse, one.idle_s = seen, 0.0
            return False
        # Longer gaps are not its fault: we were busy ourselves, or the whole job was stopped (Ctrl-Z) and goes on.
        one.idle_s += min(passed, 2 * rhythm)
        return one.idle_s >= limit_s


def _lives(before: Pulse, now: Pulse, limit_s: float) -> bool:
    computed = (now.ticks - before.ticks) / os.sysconf("SC_CLK_TCK")
    return now.runs or now.moved != before.moved or computed > _LEAST_BUSY * limit_s


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
    idle_s: float | None = None,
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
        died: the result of a task whose process ended without an answer; why is :func:`death`, :func:`hang` or
            :func:`standstill`. It is not begun again.
        told: hears in this process what a task tells.
        patience_s: how long a process may neither answer nor tell anything before it is killed; for ever by default.
            Without processes there is no limit.
        idle_s: how long it may do nothing at all, as :class:`Patience` has it.
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
    patience = Patience[Connection](patience_s, idle_s)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.popleft()
                slot = free.pop(0)
                pipe, process = _start(function, placed(task, slot), threads)
                running[pipe], slots[pipe] = (process, task), slot
                patience.heard(pipe, process.pid or 0)
            ready = cast("list[Connection]", wait(list(running), patience.left_s()))
            hanging = patience.exhausted()
            for pipe in dict.fromkeys([*ready, *hanging]):
                process, task = running[pipe]
                if pipe in ready:
                    patience.heard(pipe, process.pid or 0)
                    answered, message = _hear(pipe, process, task, died)
                else:
                    see_off(process, 0)
                    pipe.close()
                    answered, message = True, died(task, hanging[pipe])
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
