"""Workers that live on: what is dear to load is loaded once by each; a task that kills or hangs its worker is alone.

The sibling of :func:`codebrain.data.isolated.isolated`, which gives every task a process of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

from codebrain.data.isolated import Patience, Tell, death, end_with, see_off
from codebrain.errors import CodeBrainError, as_refusal, refusal

State = TypeVar("State")
Task = TypeVar("Task")
Result = TypeVar("Result")

_PATIENCE_S = 1.0
"""How long workers that are told to end may take before they are killed; a batch ends within five seconds."""


MOST_RESTARTS = 3
"""Workers that are replaced in a row, without a single answer between them. Whatever ends a fourth will end the next:
a driver, a disk, too little memory."""


@dataclass(frozen=True)
class Job(Generic[State, Task, Result]):
    """What a crew does; both functions must be importable by name.

    Attributes:
        begin: makes what a worker keeps, for example a loaded model; given the number of the worker.
        work: ``work(kept, task, tell)``; should answer with a result and not raise.
        died: the result of a task whose worker ended without an answer, and why. It is not begun again.
    """

    begin: Callable[[int], State]
    work: Callable[[State, Task, Tell], Result]
    died: Callable[[Task, CodeBrainError], Result]


@dataclass
class _Worker(Generic[Task]):
    process: BaseProcess
    pipe: Connection
    slot: int
    task: Task | None = None
    ready: bool = False


def crew(
    job: Job[State, Task, Result],
    tasks: Sequence[Task],
    *,
    jobs: int,
    told: Callable[[Task, Any], None] = lambda task, message: None,
    patience_s: float | None = None,
    idle_s: float | None = None,
) -> Iterator[Result]:
    """Results as they come, from workers that take one task after another.

    A worker that dies or hangs is replaced, unless too many were (:data:`MOST_RESTARTS`). Closing the iterator ends
    the workers. A worker never outlives this process.

    Args:
        job: what to do.
        tasks: one argument each, picklable, begun in this order.
        jobs: workers; 0 works in this process (then a crash is ours).
        told: hears in this process what a task tells.
        patience_s: how long a worker may neither answer nor tell anything before it is killed; for ever by default.
            Without workers there is no limit.
        idle_s: how long it may do nothing at all, as :class:`~codebrain.data.isolated.Patience` has it.

    Raises:
        CodeBrainError: what ``begin`` raised; ``ENV_WORKER`` when a worker ended while it began or too many in a row
            were lost, ``ENV_TIMEOUT`` when it, or the last of them, hung.
    """
    if jobs == 0:
        kept = job.begin(0) if tasks else None
        for task in tasks:
            yield job.work(kept, task, partial(told, task))  # type: ignore[arg-type]
        return
    at_work = _Crew(job, tasks, Patience[Connection](patience_s, idle_s))
    try:
        for slot in range(min(jobs, len(tasks))):
            at_work.enlist(slot)
        while at_work.left:
            for worker, kind, message in at_work.listen():
                if kind == "tell" and worker.task is not None:
                    told(worker.task, message)
                elif kind == "failed":
                    raise cast("CodeBrainError", message)
                elif kind in ("ended", "hangs"):
                    yield at_work.replace(worker, message)
                else:
                    at_work.next_task(worker)  # before the result is handed on, which may take its time
                    if kind == "answer":
                        at_work.succeeded()
                        yield cast("Result", message)
    finally:
        _dismiss(at_work.workers)


class _Crew(Generic[State, Task, Result]):
    """The workers, and the tasks that none has taken yet."""

    def __init__(self, job: Job[State, Task, Result], tasks: Sequence[Task], patience: Patience[Connection]) -> None:
        self.job = job
        self.waiting = deque(tasks)
        self.workers: list[_Worker[Task]] = []
        self.patience = patience
        self.lost: list[CodeBrainError] = []
        """Why workers were lost since the last answer."""
        self.vacant: list[int] = []

    @property
    def left(self) -> bool:
        """Whether there is something to do or to wait for."""
        return bool(self.waiting) or any(worker.task is not None for worker in self.workers)

    def listen(self) -> Iterator[tuple[_Worker[Task], str, Any]]:
        """Wait, and give every worker that has said something, or hangs.

        Raises:
            CodeBrainError: when there is work and nobody left to do it.
        """
        if not self.workers:
            raise self._given_up()
        heeded = {worker.pipe: worker for worker in self.workers if worker.task is not None or not worker.ready}
        ready = wait(list(heeded), self.patience.left_s())
        hanging = self.patience.exhausted()
        for pipe, worker in heeded.items():
            if pipe in ready:
                self._expect(worker)
                yield worker, *_hear(worker)
            elif pipe in hanging:
                yield worker, "hangs", hanging[pipe]

    def enlist(self, slot: int) -> None:
        """Start a worker."""
        worker: _Worker[Task] = _start(self.job, slot)
        self.workers.append(worker)
        self._expect(worker)

    def _expect(self, worker: _Worker[Task]) -> None:
        self.patience.heard(worker.pipe, worker.process.pid or 0)

    def next_task(self, worker: _Worker[Task]) -> None:
        """Give a worker that is ready something to do, if there is anything."""
        worker.ready, worker.task = True, None
        if self.waiting:
            _give(worker, self.waiting.popleft())
        else:
            self.patience.forget(worker.pipe)

    def succeeded(self) -> None:
        """There was an answer: workers that were not replaced come back."""
        self.lost.clear()
        self._fill()

    def replace(self, worker: _Worker[Task], why: CodeBrainError | None) -> Result:
        """The result of the task of a worker that hangs, or is dead (``None``); a new one comes where there is work."""
        self.workers.remove(worker)
        self.patience.forget(worker.pipe)
        see_off(worker.process, 0 if why else _PATIENCE_S)
        worker.pipe.close()
        why = why or death(worker.process.exitcode)
        if worker.task is None:
            raise refusal(
                why.code, f"{why.message} while it loaded the model", hint="Use fewer --jobs if memory is short."
            )
        self.lost.append(why)
        self.vacant.append(worker.slot)
        self._fill()
        return self.job.died(worker.task, why)

    def _fill(self) -> None:
        while self.waiting and self.vacant and len(self.lost) <= MOST_RESTARTS:
            self.enlist(self.vacant.pop())

    def _given_up(self) -> CodeBrainError:
        last = self.lost[-1]
        return refusal(
            last.code,
            f"{len(self.lost)} workers in a row were lost without a single result, so that no more are started:"
            f" {last.message} ({len(self.waiting)} left to do)",
            hint="Look at these, at memory and at the disk; type the command again to go on, perhaps with --jobs 1.",
        )


def _give(worker: _Worker[Task], task: Task) -> None:
    worker.task = task
    with contextlib.suppress(OSError):  # one that has just died is heard of at the next turn
        worker.pipe.send(task)


def _hear(worker: _Worker[Task]) -> tuple[str, Any]:
    try:
        kind, message = worker.pipe.recv()
    except (EOFError, OSError):
        return "ended", None
    return str(kind), message


def _dismiss(workers: Sequence[_Worker[Task]]) -> None:
    for worker in workers:
        worker.pipe.close()
        worker.process.terminate()
    for worker in workers:
        see_off(worker.process, _PATIENCE_S)


def _start(job: Job[State, Task, Result], slot: int) -> _Worker[Task]:
    # Spawned, not forked: libraries with threads (SimpleITK, torch) do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_live, args=(job, slot, theirs, os.getpid()), daemon=True)
    # Born deaf to an interrupt from the terminal, which is the parent's to handle; one that comes now waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    theirs.close()  # so that our end closes when the worker ends
    return _Worker(process, ours, slot)


def _live(job: Job[State, Task, Result], slot: int, pipe: Connection, parent: int) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    try:
        kept = job.begin(slot)
    except Exception as error:
        pipe.send(("failed", as_refusal(error) or _bug(error)))
        return
    pipe.send(("ready", None))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(("answer", job.work(kept, task, lambda message: pipe.send(("tell", message)))))


def _bug(error: Exception) -> CodeBrainError:
    return refusal("ENV_WORKER", f"a worker could not begin: {type(error).__name__}: {error}")
