"""The next batches are made by a thread while a step runs; what goes wrong there is raised where they are taken."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    ready: queue.Queue[Batch | BaseException] = queue.Queue(_READY)
    over, at_work = threading.Event(), [first]

    def make() -> None:
        for step in range(first, last):
            at_work[0] = step
            try:
                fault("step.fetch")
                made: Batch | BaseException = batches.batch(step)
            except BaseException as error:  # raised again by whoever takes the batch
                made = error
            while not over.is_set():
                try:
                    ready.put(made, timeout=_TICK_S)
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
                taken = ready.get(timeout=_TICK_S)
                break
            except queue.Empty:
                if time.monotonic() - begun > PATIENCE_S:
                    raise _hangs(batches, at_work[0]) from None
        if isinstance(taken, BaseException):
            raise taken
        return taken

    try:
        yield take
    finally:
        over.set()
        thread.join(_TICK_S * 5)


def _hangs(batches: TrainingBatches, step: int) -> Exception:
    return refusal(
        "ENV_TIMEOUT", f"step {step + 1}: a batch could not be read within {PATIENCE_S:g} s. It is "
        f"{', '.join(batches.ids(step))}", file=batches.store.root,
        hint="Look whether the disk of the slice store still answers; --resume goes on from the last checkpoint.",
    )  # fmt: skip
