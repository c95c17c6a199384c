"""Workers that hang, with the real limits: how long until the study is named, and what becomes of the others.

::

    python reliability/hangs.py [--only NAME ...]

Each trial types a command with one worker and makes it hang at its second study: stopped from outside by
``SIGSTOP``, or asleep for an hour in the middle of the work. As promised means: the study is named on stderr within
60 seconds with ``ENV_TIMEOUT``, the other studies are finished, and the command ends with status 6. Where every
worker sleeps, four are lost, all of them named, and the command ends with status 4. A worker that computes in
silence for twice the limit, as a registration does, is not ended.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import Tally, report

from codebrain.data.crew import MOST_RESTARTS
from codebrain.data.isolated import Tell, isolated
from codebrain.machine import IDLE_S

PROMISED_S = 60.0


@dataclass
class Watch:
    """What a command says, and when; and its workers, which may be stopped.

    Attributes:
        process: the command.
        said: lines on stderr with the time of their arrival.
        stopped: when workers were stopped.
    """

    process: subprocess.Popen[str]
    said: list[tuple[float, str]] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)

    def listen(self) -> None:
        """Until it ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append((time.monotonic(), line.rstrip()))

    def stop_workers(self, begun: Callable[[int], bool], most: int) -> None:
        """Stop workers, one after the other, each as soon as it is at a study; with ``most`` 0 only note that time."""
        while most == 0 and not self.stopped and self.process.poll() is None:
            time.sleep(0.02)
            self.stopped += [time.monotonic()] if begun(0) else []
        known: set[int] = set()
        while self.process.poll() is None and len(known) < most:
            time.sleep(0.05)
            for worker in set(_workers(self.process.pid)) - known:
                if begun(worker):
                    known.add(worker)
                    self.stopped.append(time.monotonic())
                    os.kill(worker, signal.SIGSTOP)


def _workers(pid: int) -> list[int]:
    """Children that Python spawned to work."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if Path(f"/proc/{pid}").exists() else []
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def start(*words: object, fault: str = "") -> Watch:
    """Type a command."""
    command = [sys.executable, "-m", *map(str, words)]
    environment = {**os.environ, "CODEBRAIN_FAULT": fault}
    return Watch(
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    )


# --- trials: name, what was not as promised, seconds ---

Outcome = tuple[str, list[str], list[float]]


def batch_of(folder: Path, studies: int, fault: str = "") -> Watch:
    """``codebrain-bids`` over so many studies, with one worker."""
    from kills import make_dataset

    make_dataset(folder, studies)
    return start("codebrain.app.bids_app", folder / "bids", folder / "out", "participant", "--model",
                 folder / "model", "--jobs", 1, "--device", "cpu", fault=fault)  # fmt: skip


def _named(watch: Watch) -> list[tuple[float, str]]:
    """Studies that were said to hang, and when."""
    found = [(at, re.match(r".*\b((?:sub|ms)-\w+): .*worker process neither", line)) for at, line in watch.said]
    return [(at, match.group(1)) for at, match in found if match]


def _waited(watch: Watch) -> list[float]:
    """Seconds from each stop to the sentence that names the study."""
    return [at - when for (at, _), when in zip(_named(watch), watch.stopped, strict=False)]


def _end(watch: Watch, begun: Callable[[int], bool], most: int = 1) -> int:
    threads = [
        threading.Thread(target=watch.listen), threading.Thread(target=watch.stop_workers, args=(begun, most))
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    status = watch.process.wait()
    for thread in threads:
        thread.join()
    return status


def batch_stopped(folder: Path) -> Outcome:
    records = folder / "out" / ".codebrain" / "records"
    watch = batch_of(folder, 8)
    status = _end(watch, lambda worker: records.is_dir() and any(records.iterdir()))
    named = _named(watch)
    faults = [] if status == 6 else [f"status {status}: {watch.said[-1:]}"]
    faults += [] if len(named) == 1 and watch.stopped else [f"named {named}"]
    finished = len(list((folder / "out").rglob("*_desc-imputed_T2w.nii.gz")))
    faults += [] if finished == 7 else [f"{finished} of the 7 others finished"]
    return "batch, worker stopped", faults, _waited(watch)


def batch_asleep(folder: Path) -> Outcome:
    """The worker sleeps at its second study; when that began is known from the end of the first."""
    watch = batch_of(folder, 3, fault="batch.begin:2:hang")
    first = folder / "out" / ".codebrain" / "records" / "sub-00.json"
    status = _end(watch, lambda worker: first.is_file(), most=0)
    named = [name for _, name in _named(watch)]
    faults = [] if (status, named) == (6, ["sub-01"]) else [f"status {status}, named {named}"]
    return "batch, worker asleep", faults, _waited(watch)


def batch_all_asleep(folder: Path) -> Outcome:
    """Every worker sleeps at its first study; the seconds from one sentence to the next hold a start of a worker."""
    watch = batch_of(folder, 12, fault="batch.begin:1:hang")
    status = _end(watch, lambda worker: True, most=0)
    named, last = _named(watch), watch.said[-1:]
    faults = [] if status == 4 and last and "in a row were lost" in last[0][1] else [f"status {status}: {last}"]
    faults += [] if len(named) == MOST_RESTARTS + 1 else [f"{len(named)} were lost"]
    times = [*watch.stopped, *(at for at, _ in named)]
    return "batch, every worker asleep", faults, [after - before for before, after in pairwise(times)]


def prepare_stopped(folder: Path) -> Outcome:
    from kills import make_studies

    make_studies(folder, 5)
    store = folder / "store"
    watch = start("codebrain", "prepare", "folder", folder / "studies", "-o", store, "--jobs", 1)
    seen: set[int] = set()

    def second(worker: int) -> bool:  # each study has a process of its own
        seen.add(worker)
        return len(seen) == 2

    status = _end(watch, second)
    named = _named(watch)
    faults = [] if status == 6 else [f"status {status}: {watch.said[-1:]}"]
    faults += [] if len(named) == 1 and watch.stopped else [f"named {named}"]
    finished = len(list((store / "slices").glob("*.json")))
    faults += [] if finished == 4 else [f"{finished} of the 4 others finished"]
    return "prepare, worker stopped", faults, _waited(watch)


def compute(seconds: float, tell: Tell) -> str:
    """Silent and busy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(100000))
    return "done"


def silent_and_busy(folder: Path) -> Outcome:
    begun = time.monotonic()
    (answer,) = isolated(compute, [2 * IDLE_S], jobs=1, idle_s=IDLE_S, died=lambda task, error: str(error))
    return "computes in silence", [] if answer == "done" else [answer], [time.monotonic() - begun]


TRIALS = (batch_stopped, batch_asleep, batch_all_asleep, prepare_stopped, silent_and_busy)


def run(only: Sequence[str] = ()) -> list[Tally]:
    """All trials at a time: they wait most of the while."""
    tallies = []

    def attempt(trial: Callable[[Path], Outcome], folder: Path) -> None:
        name, faults, seconds = trial(folder)
        if trial not in (silent_and_busy, batch_all_asleep):
            faults += [f"{s:.1f} s" for s in seconds if s > PROMISED_S] + ([] if seconds else ["nothing was timed"])
        tally = Tally(f"{name} ({', '.join(f'{s:.1f}' for s in seconds)} s)")
        tally.add(name, faults)
        tallies.append(tally)

    with tempfile.TemporaryDirectory() as root:
        threads = []
        for trial in TRIALS:
            if not only or trial.__name__ in only:
                folder = Path(root) / trial.__name__
                folder.mkdir()
                threads.append(threading.Thread(target=attempt, args=(trial, folder)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return tallies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=(), choices=[trial.__name__ for trial in TRIALS])
    return report(run(parser.parse_args().only))


if __name__ == "__main__":
    sys.exit(main())
