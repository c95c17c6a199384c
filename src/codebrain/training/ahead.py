"""The next batches are made by a thread while a step runs; what goes wrong there is raised where they are taken.

On a GPU the thread has a stream of its own, so that copies and augmentation run beside the step and not between two of
its kernels; the step's stream waits for a batch, and nobody else.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

from codebrain.errors import refusal
from codebrain.faults import fault
from codebrain.nn.batch import Batch
from codebrain.training.batches import TrainingBatches

PATIENCE_S = 50.0
"""How long one batch may take. The slowest kind, 48 slices deformed on a slow CPU, takes seconds; a disk that is gone
takes for ever, and bad-inputs F10 wants that said within a minute."""
_READY = 2
"""Batches that wait; more would only take memory."""
_TICK_S = 0.2

Take = Callable[[], Batch]


@contextmanager
def ahead(batches: TrainingBatches, first: int, last: int) -> Iterator[Take]:
    """Batches ``first`` to ``last - 1``, each taken by one call, in order.

    The thread is a daemon: one that hangs in the kernel, on a disk that was lost, keeps no process alive. Batches are
    functions of their step, so those that were made and not taken are simply made again after resuming.

    Raises:
        EnvironmentRefused: on taking, ``ENV_TIMEOUT`` when a batch is not there after :data:`PATIENCE_S`.
        CodeBrainError: on taking, what making the batch raised.
    """
    ready: queue.Queue[tuple[Batch | BaseException, Any]] = queue.Queue(_READY)
    over, at_work = threading.Event(), [first]
    lane = _lane(batches.device)

    def make() -> None:
        for step in range(first, last):
            at_work[0] = step
            try:
                fault("step.fetch")
                with torch.cuda.stream(lane):  # without a lane, nothing
                    made: Batch | BaseException = batches.batch(step)
            except BaseException as error:  # raised again by whoever takes the batch
                made = error
            while not over.is_set():
                try:
                    ready.put((made, lane and lane.record_event()), timeout=_TICK_S)
                    break
                except queue.Full:
                    continue
            if over.is_set() or isinstance(made, BaseException):
                return

    thread = threading.Thread(target=make, name="next-batch", daemon=True)
    thread.start()

    def take() -> Batch:
        begun = time.monotonic()
        while True:
            try:
                taken, done = ready.get(timeout=_TICK_S)
                break
            except queue.Empty:
                if time.monotonic() - begun > PATIENCE_S:
                    raise _hangs(batches, at_work[0]) from None
        if isinstance(taken, BaseException):
            raise taken
        if done is not None:
            _take_over(taken, done, torch.cuda.current_stream(batches.device))
        return taken

    try:
        yield take
    finally:
        over.set()
        thread.join(_TICK_S * 5)


def _lane(device: torch.device | str) -> Any:
    """A stream for the batches of a GPU; None elsewhere."""
    return torch.cuda.Stream(device) if torch.device(device).type == "cuda" else None  # type: ignore[no-untyped-call]


def _take_over(batch: Batch, done: Any, stream: Any) -> None:
    """``stream`` goes on when the batch is done, and its memory goes to no other batch while ``stream`` reads it."""
    stream.wait_event(done)
    for part in fields(batch):
        value = getattr(batch, part.name)
        if isinstance(value, torch.Tensor):
            value.record_stream(stream)


def _hangs(batches: TrainingBatches, step: int) -> Exception:
    return refusal(
        "ENV_TIMEOUT", f"step {step + 1}: a batch could not be read within {PATIENCE_S:g} s. It is "
        f"{', '.join(batches.ids(step))}", file=batches.store.root,
        hint="Look whether the disk of the slice store still answers; --resume goes on from the last checkpoint.",
    )  # fmt: skip
