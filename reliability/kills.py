"""SIGKILL at random instants over a batch of 20 studies.

::

    python reliability/kills.py batch --kills 500      # codebrain-bids ... participant
    python reliability/kills.py prepare --kills 500    # codebrain prepare folder --resume

A batch is run once without a disturbance; its files are the reference. Then it is started again and again and killed
each time at an instant drawn evenly over its start and the next few studies, until it comes to its end; then the
next batch begins, until there were enough kills. After every kill:

- every file that has its name is byte for byte the reference's (records and pages but for seconds and bytes of
  memory; a table of studies may lack the last ones);
- every study that was finished at the kill before is untouched: same inodes, same times of change;
- what an earlier kill left hidden is gone once the new run has finished a study.

At the end of every batch all files are there, and no temporary and no lock.

A start of Python and torch costs seconds, so the processes are forks of one that has everything loaded; they run the
commands' own code, in this process (``--jobs 0``) or with workers that are started anew (``--jobs 1``).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import Tally, differences, report, save_tiny_model

WINDOW = 3.0
"""Instants are drawn over the time that a start and this many studies take."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch", "SimpleITK", "codebrain.impute", "codebrain.batch.engine", "codebrain.app.bids_app",
     "codebrain.data.prepare", "codebrain.batch.derivatives", "codebrain.report.page"]
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """A command over many studies.

    Attributes:
        make: fills a folder with the inputs of so many studies.
        work: runs the command in such a folder, into the folder given.
        finished: files of studies that are recorded as finished, by study.
        partial: names of tables that may lack the last studies.
    """

    make: Callable[[Path, int], None]
    work: Callable[[Path, Path, int], object]
    finished: Callable[[Path], dict[str, list[Path]]]
    partial: tuple[str, ...]


# --- the commands ---


def make_studies(folder: Path, count: int) -> None:
    from fabricated import fabricate_study

    for number in range(count):
        fabricate_study(folder / "studies" / f"ms-{number:02d}", ("T1", "FLAIR"), seed=number)


def prepare(folder: Path, out: Path, jobs: int) -> None:
    from codebrain.data.prepare import prepare_folder

    prepare_folder(folder / "studies", out, jobs=jobs, test=["ms-00"], val=[], resume=True)


def prepared(out: Path) -> dict[str, list[Path]]:
    """A study is finished when its record is there."""
    slices = out / "slices"
    names = [path.stem for path in slices.glob("*.json")]
    return {n: [slices / f"{n}{tail}" for tail in (".npy", "-brain.npy", ".json")] for n in names}


def make_dataset(folder: Path, count: int) -> None:
    import datasets
    import scans

    root = datasets.begin(folder / "bids")
    for number in range(count):
        for path in datasets.add(root, f"sub-{number:02d}_T1w.nii.gz", f"sub-{number:02d}_FLAIR.nii.gz"):
            contrast = "T1" if "T1w" in path.name else "FLAIR"
            scans.write_scan(path, scans.head(contrast) * (1 + number / 50))  # no two studies alike
    save_tiny_model(folder / "model")


def bids(folder: Path, out: Path, jobs: int) -> None:
    from codebrain.app import bids_app
    from codebrain.batch.engine import BatchSettings
    from codebrain.machine import STUDY_TIMEOUT_S

    settings = BatchSettings(str(folder / "model"), align="none", device="cpu", threads=1)
    selection = bids_app.Selection(None, None, [], True)
    bids_app.participant(
        folder / "bids", out, selection, settings, jobs=jobs, study_timeout=STUDY_TIMEOUT_S, overwrite=False,
        as_json=False, quiet=True,
    )  # fmt: skip


def recorded(out: Path) -> dict[str, list[Path]]:
    """A study is finished when the batch has moved its record to the others."""
    found = {}
    for path in (out / ".codebrain" / "records").glob("*.json"):
        record = json.loads(path.read_bytes())
        found[path.stem] = [path, *(out / row["file"] for row in record["outputs"])]
    return found


BATCHES = {
    "prepare": Batch(make_studies, prepare, prepared, ("subjects.tsv",)),
    "batch": Batch(make_dataset, bids, recorded, ("studies.tsv",)),
}


# --- what is there ---

_PASSING = re.compile(
    rb'("(?:seconds|peak_memory_bytes|bytes|sha256|write|read|prepare|model|restore|score)": )[^,}\n]+'
)
_SHOWN = re.compile(rb"\d+\.\d+ (?:s|GiB)\b")


def content(path: Path) -> str:
    """Hash of what does not depend on the clock and the machine's memory."""
    data = path.read_bytes()
    if path.suffix == ".json":
        json.loads(data)
        data = _PASSING.sub(rb"\1", data)
    elif path.suffix == ".html":
        data = _SHOWN.sub(b"", data)
    elif path.suffix == ".tsv":
        rows = [line.split(b"\t") for line in data.splitlines()]
        gone = rows[0].index(b"seconds") if b"seconds" in rows[0] else None
        data = b"\n".join(b"\t".join(cell for n, cell in enumerate(row) if n != gone) for row in rows)
    return hashlib.sha256(data).hexdigest()


def hidden(path: Path, out: Path) -> bool:
    """Whether a file waits under a temporary name, or for its name."""
    parts = path.relative_to(out).parts
    return any(".tmp-" in part for part in parts) or ".codebrain.lock" in parts or parts[:2] == (".codebrain", "ready")


def named(out: Path) -> dict[str, str]:
    """Content of every file that has its name."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and not hidden(path, out))
    return {str(path.relative_to(out)): content(path) for path in files}


def strays(out: Path) -> set[str]:
    """Temporaries, outermost only."""
    return {str(path.relative_to(out)) for path in out.rglob("*.tmp-*")}


def marks(batch: Batch, out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file of every finished study."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for paths in batch.finished(out).values()
        for path in paths
    }


# --- the trials ---


def _child(kind: str, folder: Path, out: Path, jobs: int, said: Path) -> None:
    with said.open("w") as errors:
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    BATCHES[kind].work(folder, out, jobs)


class Kills:
    """Kills one batch after the other.

    Args:
        kind: of :data:`BATCHES`.
        folder: an empty one.
        studies: how many in a batch.
        jobs: as the commands take it; 0 works without workers.
        seed: of the instants.
    """

    def __init__(self, kind: str, folder: Path, *, studies: int, jobs: int, seed: int) -> None:
        self.kind, self.batch, self.folder, self.jobs = kind, BATCHES[kind], folder, jobs
        self.studies = studies
        self.chance = random.Random(seed)
        self.out = folder / "out"
        self.tally = Tally(f"SIGKILL in {kind}, {studies} studies, {jobs} workers: nothing corrupt, repeated or left")
        self.ends = Tally(f"{kind} brought to its end after kills: all files, none besides")
        self.batch.make(folder, studies)
        self._timed()  # also loads what the forks share
        shutil.rmtree(self.out, ignore_errors=True)
        whole, start = self._timed(), self._timed()  # the second finds everything done
        self.window = start + WINDOW * (whole - start) / studies
        self.whole = named(self.out)
        if not self.whole or len(self.batch.finished(self.out)) != studies:
            raise SystemExit(f"the undisturbed run is not whole: {self._said()}")
        self._clear()

    def _said(self) -> str:
        return (self.folder / "said.txt").read_text()[-400:]

    def _timed(self) -> float:
        begun = time.perf_counter()
        self._run(None)
        return time.perf_counter() - begun

    def _run(self, instant: float | None) -> bool:
        """Start the batch; kill it at the instant. Says whether it was killed before its end."""
        process = _context.Process(
            target=_child, args=(self.kind, self.folder, self.out, self.jobs, self.folder / "said.txt")
        )
        process.start()
        process.join(instant)
        killed = process.is_alive()
        if killed:
            process.kill()
        process.join()
        if not killed and process.exitcode:
            raise SystemExit(f"the batch ended with status {process.exitcode}: {self._said()}")
        return killed and process.exitcode == -9

    def _clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.before: dict[str, tuple[int, int]] = {}
        self.left: set[str] = set()
        self.killed = 0

    def start(self, *, dying: bool = True) -> None:
        """One start of the batch: a kill that is judged, or its end."""
        killed = self._run(self.chance.uniform(0, self.window) if dying else None)
        if self.jobs:
            time.sleep(0.2)  # workers end with their parent; the kernel needs an instant for it
        faults = self._judge()
        if killed:
            self.tally.add(f"kill {self.tally.tried + 1}", faults)
            self.killed += 1
            return
        faults += differences(named(self.out), self.whole)
        faults += [f"{name} stayed" for name in strays(self.out)]
        faults += [str(path.name) for path in self.out.rglob(".codebrain.lock")]
        self.ends.add(f"end {self.ends.tried + 1}", faults)
        if not self.killed:
            self.window *= 0.7  # the machine has become faster
        self._clear()

    def _judge(self) -> list[str]:
        if not self.out.is_dir():
            return []
        found = named(self.out)
        faults = [
            f"{name} is {'new' if name not in self.whole else 'not whole'}"
            for name, hashed in found.items()
            if self.whole.get(name) != hashed and Path(name).name not in self.batch.partial
        ]
        now = marks(self.batch, self.out)
        faults += [f"{Path(name).name} was made again" for name, mark in self.before.items() if now.get(name) != mark]
        left = strays(self.out)
        if len(now) > len(self.before):  # the new run has got so far that it has tidied up
            faults += [f"{name} stayed from the kill before" for name in left & self.left]
        self.before, self.left = now, left
        return faults


def run(kind: str, kills: int, *, studies: int = 20, jobs: int = 0, seed: int = 0) -> list[Tally]:
    """So many kills, and as many batches as they take."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Kills(kind, Path(folder), studies=studies, jobs=jobs, seed=seed)
        with contextlib.suppress(KeyboardInterrupt):  # what was tried until then counts
            while trial.tally.tried < kills:
                trial.start()
                if sys.stderr.isatty():
                    print(f"\r{trial.tally.tried} kills, {trial.ends.tried} batches", end="", file=sys.stderr)
            trial.start(dying=False)
    return [trial.tally, trial.ends]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(BATCHES))
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=0, help="workers; 0 works without")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    return report(
        run(arguments.kind, arguments.kills, studies=arguments.studies, jobs=arguments.jobs, seed=arguments.seed)
    )


if __name__ == "__main__":
    sys.exit(main())
