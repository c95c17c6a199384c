"""Workers that live on: what is dear to load is loaded once by each, and a task that kills its worker takes no other.

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
from typing import Any, Generic, TypeVar

from codebrain.data.isolated import Tell, end_with
from codebrain.errors import CodeBrainError, as_refusal, refusal

State = TypeVar("State")
Task = TypeVar("Task")
Result = TypeVar("Result")

_PATIENCE_S = 1.0
"""How long workers that are told to end may take before they are killed; a batch ends within five seconds."""


@dataclass(frozen=True)
class Job(Generic[State, Task, Result]):
    """What a crew does; both functions must be importable by name.

    Attributes:
        begin: makes what a worker keeps, for example a loaded model; given the number of the worker.
        work: ``work(kept, task, tell)``; should answer with a result and not raise.
        died: the result of a task whose worker ended, with this exit status, without an answer.
    """

    begin: Callable[[int], State]
    work: Callable[[State, Task, Tell], Result]
    died: Callable[[Task, int | None], Result]


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
) -> Iterator[Result]:
    """Results as they come, from workers that take one task after another.

    A worker that dies is replaced. Closing the iterator ends the workers. A worker never outlives this process.

    Args:
        job: what to do.
        tasks: one argument each, picklable, begun in this order.
        jobs: workers; 0 works in this process (then a crash is ours).
        told: hears in this process what a task tells.

    Raises:
        CodeBrainError: what ``begin`` raised; ``ENV_WORKER`` when a worker ended while it began.
    """
    if jobs == 0:
        kept = job.begin(0) if tasks else None
        for task in tasks:
            yield job.work(kept, task, partial(told, task))  # type: ignore[arg-type]
        return
    waiting = deque(tasks)
    workers = [_start(job, slot) for slot in range(min(jobs, len(tasks)))]
    try:
        while waiting or any(worker.task is not None for worker in workers):
            for pipe in wait([worker.pipe for worker in workers if worker.task is not None or not worker.ready]):
                worker = next(one for one in workers if one.pipe is pipe)
                kind, message = _hear(worker)
                if kind == "tell" and worker.task is not None:
                    told(worker.task, message)
                elif kind == "ended":
                    yield _mourn(job, workers, worker, replace=bool(waiting))
                elif kind == "failed":
                    raise message
                else:
                    worker.ready, worker.task = True, None
                    if waiting:  # before the result is handed on, which may take its time
                        _give(worker, waiting.popleft())
                    if kind == "answer":
                        yield message
    finally:
        _dismiss(workers)


def _mourn(
    job: Job[State, Task, Result], workers: list[_Worker[Task]], worker: _Worker[Task], *, replace: bool
) -> Result:
    """The result of a dead worker's task; a new worker comes where there is work left."""
    workers.remove(worker)
    worker.process.join()
    worker.pipe.close()
    status = worker.process.exitcode
    if worker.task is None:
        raise refusal("ENV_WORKER", "a worker process ended while it loaded the model", found=f"status {status}",
                      hint="Use fewer --jobs if memory is short.")  # fmt: skip
    if replace:
        workers.append(_start(job, worker.slot))
    return job.died(worker.task, status)


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
        worker.process.join(_PATIENCE_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


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
