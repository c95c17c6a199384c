"""Work that a copy of this process does while this one does something else, for example import torch.

Importing holds the interpreter, so a thread would only wait; a spawned process would import everything again. A fork of
a process that has loaded nothing yet costs a few milliseconds. The result comes back through memory that both share, so
that images are not copied through a pipe.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NoReturn, TypeVar, cast

from codebrain.data.isolated import end_with
from codebrain.errors import CodeBrainError
from codebrain.machine import available_memory
from codebrain.threads import allot

Result = TypeVar("Result")

_THREADED = ("torch", "SimpleITK", "ants")
"""Libraries whose threads do not survive a fork."""

_ALIGNMENT = 64


@contextmanager
def beside(work: Callable[[], Result], *, threads: int) -> Iterator[Callable[[], Result]]:
    """Begin ``work`` beside this process; call what is given for its result, once.

    Where a fork is not possible or no gain (other systems than Linux, one thread, libraries with threads already
    loaded), and where the copy ended without a result, the call does the work itself. Leaving the context ends the
    copy.

    Args:
        work: reads and computes, writes nothing; its result can be pickled.
        threads: of both together.

    Raises:
        CodeBrainError: on the call, what ``work`` raised. Other errors are met again by doing the work again here,
            so that they come with their own traceback.
    """
    if threads < 2 or not _can_fork():
        yield work
        return
    shared = os.memfd_create("beside")
    ours, theirs = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _live(work, shared, theirs, parent=parent, threads=threads - 1)
    os.close(theirs)
    try:
        with os.fdopen(ours, "rb") as answer:
            yield lambda: _result(answer.read(), shared, work)
    finally:
        os.close(shared)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _result(answer: bytes, shared: int, work: Callable[[], Result]) -> Result:
    received = _received(answer, shared)
    if received is None:
        return work()
    result, error = received
    if error is not None:
        raise error
    return cast("Result", result)


def _can_fork() -> bool:
    fresh = threading.active_count() == 1 and not any(name in sys.modules for name in _THREADED)
    return sys.platform == "linux" and fresh


def _live(work: Callable[[], Any], shared: int, answer: int, *, parent: int, threads: int) -> NoReturn:
    """The copy's life. Nothing of what the caller would do on leaving is done here."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with(parent)
        allot(threads)
        outcome: tuple[Any, CodeBrainError | None]
        try:
            outcome = (work(), None)
        except CodeBrainError as error:
            outcome = (None, error)
        _send(outcome, shared, answer)
    finally:
        os._exit(0)


def _send(outcome: tuple[Any, CodeBrainError | None], shared: int, answer: int) -> None:
    buffers: list[pickle.PickleBuffer] = []
    document = pickle.dumps(outcome, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    starts = [0, *accumulate(-(-view.nbytes // _ALIGNMENT) * _ALIGNMENT for view in views)]
    places = [slice(start, start + view.nbytes) for start, view in zip(starts, views, strict=False)]
    left = available_memory()
    if left is not None and left < 2 * starts[-1]:
        return  # no answer: without a copy the work may fit
    os.ftruncate(shared, starts[-1] + _ALIGNMENT)  # an empty file cannot be mapped
    with mmap.mmap(shared, 0) as memory:
        for place, view in zip(places, views, strict=True):
            memory[place] = view
    with os.fdopen(answer, "wb") as stream:
        stream.write(pickle.dumps((places, document)))


def _received(answer: bytes, shared: int) -> tuple[Any, CodeBrainError | None] | None:
    """What the copy answered; ``None`` where it ended without an answer."""
    try:
        places, document = pickle.loads(answer)
    except (EOFError, pickle.UnpicklingError):
        return None
    # Private: what is changed in an image is copied page by page, as if it were ours alone.
    memory = memoryview(mmap.mmap(shared, 0, access=mmap.ACCESS_COPY))
    outcome: tuple[Any, CodeBrainError | None] = pickle.loads(document, buffers=[memory[place] for place in places])
    return outcome
