"""Memory over many studies: what the process that leads and the one that works hold after 20, 100 and 400.

::

    python reliability/memory.py batch                   # codebrain-bids ... participant, one worker
    python reliability/memory.py prepare                 # codebrain prepare folder, all in one process
    python reliability/memory.py index                   # reading a BIDS data set of 10,000 subjects, names only
    python reliability/memory.py batch --studies 10,40   # read off elsewhere

The studies are tiny and the model is tiny, so that what stays behind of every study is not hidden by what one study
needs for a moment: a whole head takes half a gigabyte and gives it back. ``prepare`` gives each study a process of its
own; here all are done in one (``--jobs 0``), which is harder. Resident sizes come from ``/proc``, so this needs Linux.

Promised is that nothing grows without end: after the first reading a worker grows by at most 32 MiB, and the leading
process, which keeps a record of every study, by at most 16 KiB for each, 160 MB at 10,000.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import Tally, report, save_tiny_model

READ_AT = (20, 100, 400)
GROWTH_OF_WORKER = 32 << 20
GROWTH_PER_STUDY = 16 << 10
INDEX_PER_SUBJECT = 32 << 10
ORIGINALS = 4
"""Studies that differ; the others are links to them."""


@dataclass
class Readings:
    """Resident bytes after so many studies, of the leading process and its worker (0 without one)."""

    at: Sequence[int]
    rows: list[tuple[int, int, int]] = field(default_factory=list)

    def __call__(self, done: int, total: int, note: str) -> None:
        """Progress of a batch: read where it is time to."""
        if done in self.at and (not self.rows or self.rows[-1][0] < done):
            workers = [resident(child.pid or 0) for child in multiprocessing.active_children()]
            self.rows.append((done, resident(os.getpid()), max(workers, default=0)))


def resident(process: int) -> int:
    """Bytes of memory that a process holds now."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- the works; each runs in a process of its own ---


def batch(folder: Path, at: Sequence[int]) -> list[tuple[int, int, int]]:
    """The engine of codebrain-bids with one worker."""
    import datasets
    import scans
    from codebrain.batch.derivatives import DerivativeLayout, batch_studies, begin_dataset
    from codebrain.batch.engine import BatchSettings, run_batch
    from codebrain.imaging.bids_dataset import read_dataset

    root = datasets.begin(folder / "bids")
    for number in range(max(at)):
        for contrast, path in zip(
            ("T1", "FLAIR"), datasets.add(root, f"sub-{number:05d}_T1w.nii.gz", f"sub-{number:05d}_FLAIR.nii.gz"),
            strict=True,
        ):  # fmt: skip
            path.unlink()
            if number < ORIGINALS:
                scans.write_scan(path, scans.head(contrast) * (1 + number / 50))
            else:
                path.hardlink_to(str(path).replace(f"{number:05d}", f"{number % ORIGINALS:05d}"))
    save_tiny_model(folder / "model")
    readings, dataset = Readings(at), read_dataset(root)
    run_batch(
        batch_studies(dataset), folder / "out", layout=DerivativeLayout(), jobs=1, progress=readings,
        settings=BatchSettings(str(folder / "model"), align="none", device="cpu", threads=1),
        prepare=lambda out: begin_dataset(out, dataset),
    )  # fmt: skip
    return readings.rows


def prepare(folder: Path, at: Sequence[int]) -> list[tuple[int, int, int]]:
    """Preparation of a slice store, every study in this process."""
    from codebrain.data.prepare import prepare_folder
    from fabricated import fabricate_study

    for number in range(max(at)):
        home = folder / "studies" / f"ms-{number:05d}"
        if number < ORIGINALS:
            fabricate_study(home, ("T1", "FLAIR"), seed=number)
            continue
        home.mkdir()
        for path in (folder / "studies" / f"ms-{number % ORIGINALS:05d}").iterdir():
            (home / path.name).hardlink_to(path)
    readings = Readings(at)
    prepare_folder(folder / "studies", folder / "out", jobs=0, test=["ms-00000"], val=[], progress=readings)
    return [(done, 0, size) for done, size, _ in readings.rows]


def index(folder: Path, at: Sequence[int]) -> list[tuple[int, int, int]]:
    """Reading data sets of so many subjects; the size before the first comes first."""
    import datasets
    from codebrain.imaging.bids_dataset import read_dataset

    datasets.begin(folder / "bids-0")
    datasets.add(folder / "bids-0", "sub-0_T1w.nii.gz")
    kept = [read_dataset(folder / "bids-0")]  # what is imported once does not count
    rows = [(0, resident(os.getpid()), 0)]
    for count in at:
        root = datasets.begin(folder / f"bids-{count}")
        for number in range(count):
            datasets.add(root, f"sub-{number:05d}_T1w.nii.gz", f"sub-{number:05d}_T2w.nii.gz")
        before = resident(os.getpid())
        kept.append(read_dataset(root))
        rows.append((count, rows[0][1] + resident(os.getpid()) - before, 0))
    return rows


WORKS = {"batch": batch, "prepare": prepare, "index": index}


# --- what was promised ---


def judge(work: str, rows: Sequence[tuple[int, int, int]]) -> list[Tally]:
    """A trial for every reading after the first."""
    first = rows[0]
    each = INDEX_PER_SUBJECT if work == "index" else GROWTH_PER_STUDY
    leading = Tally(f"memory of {work}, leading process: at most {each >> 10} KiB more for each study")
    working = Tally(f"memory of {work}, worker: at most {GROWTH_OF_WORKER >> 20} MiB more over all")
    for done, leader, worker in rows[1:]:
        more = leader - first[1]
        if leader:
            # A few MiB come and go with the allocator; over few studies they would look like much.
            allowed = each * (done - first[0]) + (8 << 20)
            leading.add(f"after {done}", [f"{more >> 10} KiB more"] if more > allowed else [])
        if worker:
            more = worker - first[2]
            working.add(f"after {done}", [f"{more >> 20} MiB more"] if more > GROWTH_OF_WORKER else [])
    return [tally for tally in (leading, working) if tally.tried]


def _child(work: Callable[..., list[tuple[int, int, int]]], folder: Path, at: Sequence[int], answer) -> None:  # type: ignore[no-untyped-def]
    import logging

    logging.disable(logging.CRITICAL)
    answer.send(work(folder, at))


def run(work: str, at: Sequence[int]) -> tuple[list[tuple[int, int, int]], list[Tally]]:
    """The readings, taken in a new process, and what they mean."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(partial(WORKS[work]), Path(folder), at, theirs))
        process.start()
        theirs.close()
        try:
            rows: list[tuple[int, int, int]] = ours.recv()
        except EOFError:
            raise SystemExit(f"{work} did not come to its end") from None
        process.join()
    return rows, judge(work, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=list(WORKS))
    parser.add_argument("--studies", help="where to read, as 20,100,400")
    arguments = parser.parse_args()
    usual = (1000, 10_000) if arguments.work == "index" else READ_AT
    at = sorted(int(word) for word in arguments.studies.split(",")) if arguments.studies else usual
    rows, tallies = run(arguments.work, at)
    print("| after | leading process | worker |\n|---|---|---|")
    for done, leader, worker in rows:
        shown = (f"{size / 2**20:.1f} MiB" if size else "" for size in (leader, worker))
        print(f"| {done:,} | {' | '.join(shown)} |")
    return report(tallies)


if __name__ == "__main__":
    sys.exit(main())
