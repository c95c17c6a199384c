"""What every command shares: options, one way to fail, one way to speak.

A command is a file in ``codebrain/app/commands`` with ``register(app)``; it hands its work to :func:`run`::

    def register(app: typer.Typer) -> None:
        @app.command()
        def phantom(out: OutOption, as_json: JsonOption = False, debug: DebugOption = False) -> None:
            \"\"\"Simulate studies.\"\"\"
            run(lambda: _phantom(out, as_json), as_json=as_json, debug=debug)

Results go to stdout (:func:`emit`, :func:`emit_json`), all else to stderr (:func:`say`, :func:`progress`).
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from codebrain.errors import as_refusal
from codebrain.errors import one_line as one_line  # noqa: PLC0414 (commands import it from here)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DeviceOption = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:N]", help="Where to compute.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; by default the cores allotted to us.")
]
EngineOption = Annotated[
    str, typer.Option("--engine", metavar="auto|torch|openvino|onnx", help="What computes the network.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
VerboseOption = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more (-vv: everything).")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
TimeoutOption = Annotated[
    float,
    typer.Option("--study-timeout", metavar="SECONDS", min=1,
                 help="End a worker that computes in silence for so long; one that does nothing is ended in a minute."),
]  # fmt: skip
OutOption = Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="Folder for the results.")]

_EVERY_SECONDS = 30.0
"""Between two lines about a long work, where there is no terminal for a bar."""

Advance = Callable[[int, int, str], None]
"""``advance(done, total, note)``: what the library calls to tell how far it is."""


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; unwinds like KeyboardInterrupt so that temporaries are removed."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"signal {number}")


def run(
    work: Callable[[], object],
    *,
    as_json: bool = False,
    debug: bool = False,
    verbose: int = 0,
    quiet: bool = False,
) -> None:
    """Do a command's work; a failure becomes one line on stderr and an exit status.

    Raises:
        typer.Exit: with the status of the published list (0 is silence; 1 is a bug of ours).
    """
    try:
        with _logging(verbose, quiet), _threads(debug), _signals():
            work()
    except typer.Exit:
        raise
    except (KeyboardInterrupt, Terminated) as stop:
        number = stop.number if isinstance(stop, Terminated) else signal.SIGINT
        say(f"codebrain: stopped by {signal.Signals(number).name}; nothing half-written was left")
        raise typer.Exit(128 + number) from None
    except BrokenPipeError:
        _close_stdout()
        raise typer.Exit(0) from None
    except Exception as error:
        raise typer.Exit(report_error(error, as_json=as_json, debug=debug)) from None


def report_error(error: Exception, *, as_json: bool = False, debug: bool = False) -> int:
    """Say what went wrong, once, and return the exit status."""
    known = as_refusal(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if known is not None:
        code, status, facts = known.code, known.exit_code, known.as_dict()
        sentence = str(known)
    else:
        sentence = f"{type(error).__name__}: {error}. This is a bug of ours; please report it with --debug"
        code, status = "BUG", 1
        facts = {"code": code, "exit": status, "message": sentence}
    say(f"codebrain: {code}: {sentence}")
    if as_json:
        emit_json({"error": facts})
    return status


def _close_stdout() -> None:
    """The reader went away: let the interpreter's last flush go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        sys.stdout = io.StringIO()


@contextmanager
def _signals() -> Iterator[None]:
    """First SIGINT, SIGTERM or SIGHUP unwinds cleanly, a second one ends at once; restored afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    numbers = [n for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = {n: signal.signal(getattr(signal, n), stop) for n in numbers}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


@contextmanager
def _logging(verbose: int, quiet: bool) -> Iterator[None]:
    """The library's log on stderr while a command runs; as it was before, afterwards."""
    logger = logging.getLogger("codebrain")
    level, handler = logger.level, logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("codebrain: %(message)s"))
    logger.setLevel(logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def _threads(debug: bool) -> Iterator[None]:
    """What ends a library's own thread (TensorBoard's, on a full disk) is a line like any other error."""
    before = threading.excepthook

    def hear(stopped: threading.ExceptHookArgs) -> None:
        if debug:
            before(stopped)
        logging.getLogger("codebrain").warning("a thread in the background has ended: %s", stopped.exc_value)

    threading.excepthook = hear
    try:
        yield
    finally:
        threading.excepthook = before


def leave(status: int) -> NoReturn:
    """End the process as ``sys.exit`` does, without clearing up what the system takes back anyway.

    Freeing torch and all that was computed, object by object, takes half a second. Threads are waited for and exit
    handlers run, as :mod:`multiprocessing` ends its workers.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:
        sys.exit(status)  # which knows what to say of a full disk behind stdout
    os._exit(status)


def say(text: str) -> None:
    """One line on stderr."""
    print(one_line(text), file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """A result on stdout; characters that its encoding lacks, as in the C locale, are escaped."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def emit_json(document: Any) -> None:
    """A result as one line of JSON on stdout; NaN is refused because it is not JSON."""
    emit(json.dumps(document, default=str, allow_nan=False))


def _no_bar(done: int, total: int, note: str = "") -> None:
    """What :func:`progress` yields away from a terminal."""


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Advance]:
    """A bar with the time left on stderr, on a terminal only; elsewhere nothing.

    Yields:
        ``advance(done, total, note)``.
    """
    if quiet or not sys.stderr.isatty():
        yield _no_bar
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, description=one_line(f"{title} {note}".strip()))

        yield advance


def teller(bar: Advance, *, as_json: bool, quiet: bool, unit: str = "step", units: str | None = None) -> Advance:
    """The bar of :func:`progress` on a terminal; elsewhere a line now and then, with the time left.

    Args:
        bar: what :func:`progress` yields.
        as_json: lines of JSON on stdout.
        quiet: say nothing.
        unit: what is counted.
        units: its plural, where that is not ``unit`` with an s.
    """
    begun = last = time.monotonic()
    first = -1

    def tell(done: int, total: int, note: str) -> None:
        nonlocal last, first, begun
        bar(done, total, note)
        now = time.monotonic()
        if first < 0:
            first, begun = done, now
        if bar is not _no_bar or now - last < _EVERY_SECONDS:
            return
        last = now
        # Nothing is known about the time left before something was done.
        left = (now - begun) / (done - first) * (total - done) / 60 if done > first else None
        if as_json:
            minutes = None if left is None else round(left, 1)
            emit_json({unit: done, units or f"{unit}s": total, "note": note, "minutes_left": minutes})
        elif not quiet:
            say(f"{unit} {done} of {total}, {note}" + ("" if left is None else f", {left:.0f} min left"))

    return tell
