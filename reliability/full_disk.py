"""A full disk at every write of every command that writes.

::

    TMPDIR=/dev/shm python reliability/full_disk.py [--every N] [--only NAME]

(The temporary folder lies in memory, because waiting until a disk has written takes most of the time; the faults come
before that.) For each command the operations of a good run are counted (:mod:`faulty_disk`); then it is run again for
every one of them, which fails: once alone, and once with all that follow. As promised means: exit status 4, no
temporary left, and

- where the results of an earlier run are replaced, every earlier file byte for byte as it was, and none beside
  them (a store that is extended may have finished studies more);
- where a long work goes on (training, benchmark, a store made anew), every file that was complete still complete,
  and the same command with ``--resume`` then ends in the result of an undisturbed run. There a single failure may
  also be survived (status 0).
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    Tally,
    differences,
    quiet,
    report,
    save_tiny_model,
    snapshot,
    status_of,
    temporaries,
)
from faulty_disk import FaultyDisk

RECIPE = """
model: toy
checkpoint_steps: 1
stages:
  reconstruction: {steps: 2, batch_size: 2, crop: 16, validate_every: 1}
  grading: {steps: 1, batch_size: 2, crop: 16, validate_every: 1}
"""
# Checkpoints in and at the end of both stages, older ones pruned, best weights replaced, a model exported.
SUITE = """
title: Trial
layout: [methods]
patterns: leave-one-out
methods:
  zeros: {reference: zeros}
  mean: {reference: mean}
"""


@dataclass(frozen=True)
class Case:
    """A command and what it needs.

    Attributes:
        name: of the row.
        make: fills an empty folder with the inputs and, in ``out``, with what an earlier run left.
        work: runs the command in such a folder; ``True`` asks it to go on where it stopped.
        result: the files that an undisturbed run always writes with the same bytes; all by default.
        adds: whether new files, whole, may stay beside the earlier ones.
        goes_on: whether the work is one that ``--resume`` finishes.
    """

    name: str
    make: Callable[[Path], None]
    work: Callable[[Path, bool], object]
    result: Callable[[str], bool] = lambda name: True
    adds: bool = False
    goes_on: bool = False


# --- the commands ---


def command(*words: object) -> int:
    """Type a command in this process."""
    from codebrain.app.cli import main

    return main([str(word) for word in words])


def make_impute(folder: Path) -> None:
    from scans import write_study

    write_study(folder / "study", ("T1", "FLAIR"))
    save_tiny_model(folder / "earlier model", seed=1)
    save_tiny_model(folder / "model")
    with quiet():
        impute(folder, False, model="earlier model")


def impute(folder: Path, again: bool, model: str = "model") -> int:
    inputs = [folder / "study", "--model", folder / model, "-o", folder / "out", "--device", "cpu"]
    return command("impute", *inputs, "--overwrite")


def rebuild_page(folder: Path, again: bool) -> int:
    return command("report", folder / "out")


def make_store(folder: Path) -> None:
    """Two studies prepared, a third one new."""
    from fabricated import fabricate_study

    for number in range(2):
        fabricate_study(folder / "studies" / f"ms-{number}", ("T1", "FLAIR"), seed=number)
    prepare(folder, False)
    fabricate_study(folder / "studies" / "ms-2", ("T1", "FLAIR"), seed=2)


def prepare(folder: Path, again: bool) -> None:
    from codebrain.data.prepare import prepare_folder

    prepare_folder(folder / "studies", folder / "out", jobs=0, test=["ms-0"], val=[], resume=True)


def make_fresh_store(folder: Path) -> None:
    from fabricated import fabricate_study

    for number in range(2):
        fabricate_study(folder / "studies" / f"ms-{number}", ("T1", "FLAIR"), seed=number)
    (folder / "out").mkdir()


def make_model(folder: Path) -> None:
    save_tiny_model(folder / "out", seed=1)


def replace_model(folder: Path, again: bool) -> None:
    save_tiny_model(folder / "out")


def make_phantom(folder: Path) -> None:
    with quiet():
        phantom(folder, False, seed=0)


def phantom(folder: Path, again: bool, seed: int = 1) -> int:
    return command("phantom", "-o", folder / "out", "--seed", seed, "--spacing", 6, "--overwrite")


def make_training(folder: Path) -> None:
    from fabricated import fabricate_store

    fabricate_store(folder / "store", 4, val=["s00"], test=["s01"])
    (folder / "recipe.yaml").write_text(RECIPE)


def train(folder: Path, again: bool) -> int:
    from codebrain.training import loop
    from toy import build_toy

    words = ["train", folder / "recipe.yaml", "--data", folder / "store", "-o", folder / "out", "-q"]
    begun = (folder / "out" / "checkpoints").is_dir() and any((folder / "out" / "checkpoints").glob("step-*"))
    if again and not begun:
        shutil.rmtree(folder / "out", ignore_errors=True)
    real = loop.build_model
    loop.build_model = lambda name, *rest: build_toy(name, *rest) if name == "toy" else real(name, *rest)
    try:
        return command(*words, *(["--resume"] if again and begun else []))
    finally:
        loop.build_model = real


def make_benchmark(folder: Path) -> None:
    from fabricated import fabricate_store

    fabricate_store(folder / "store", 4, shape=(4, 40, 32), val=["s00"], test=["s01"])
    (folder / "suite.yaml").write_text(SUITE)


def benchmark(folder: Path, again: bool) -> None:
    from codebrain.app.commands.benchmark import Request, _benchmark
    from codebrain.benchmark import publish

    begun = (folder / "out" / "plan.json").is_file()
    request = Request(
        str(folder / "suite.yaml"), folder / "store", folder / "out", again and begun, 0, 8, "cpu", 1, False, True
    )  # in this process: workers would not feel the disk
    real = publish._files
    publish._files = _drawn_once(real)
    try:
        _benchmark(request)
    finally:
        publish._files = real


_drawings: dict[str, dict[str, bytes]] = {}


def _drawn_once(files: Callable[..., Callable[[], dict[str, bytes]]]) -> Callable[..., Callable[[], dict[str, bytes]]]:
    """Drawing takes most of the time and writes nothing; all trials come to the same rows, so to the same pictures."""

    def once(name: str, draw: Callable[[], object]) -> Callable[[], dict[str, bytes]]:
        def bytes_of() -> dict[str, bytes]:
            if name not in _drawings:
                _drawings[name] = files(name, draw)()
            return _drawings[name]

        return bytes_of

    return once


CASES = [
    Case("impute --overwrite", make_impute, impute),
    Case("report", make_impute, rebuild_page),
    Case("prepare --resume, one study more", make_store, prepare, adds=True),
    Case("a model folder replaced", make_model, replace_model),
    Case("phantom --overwrite", make_phantom, phantom),
    Case("prepare", make_fresh_store, prepare, lambda name: name != "subjects.tsv", goes_on=True),  # it tells seconds
    Case("train", make_training, train, lambda name: name.startswith("model/"), goes_on=True),
    Case("benchmark", make_benchmark, benchmark, lambda name: name == "rows.csv", goes_on=True),
]


# --- the trials ---


def trials(case: Case, folder: Path, every: int) -> Iterator[tuple[str, list[str]]]:
    """Every trial of a case: its name and what was not as promised."""
    start, place = folder / "start", folder / "place"
    start.mkdir(parents=True)
    case.make(start)
    shutil.copytree(start, place, symlinks=True)
    with quiet() as said, FaultyDisk(place / "out") as disk:
        status = status_of(lambda: case.work(place, False))
    if status:
        raise SystemExit(f"{case.name} fails on a good disk: {said.getvalue()}")
    operations, whole = disk.visited, snapshot(place / "out")
    for lasting in (False, True):
        for number in range(1, len(operations) + 1, every):
            if lasting and operations[number - 1].startswith("rename"):
                continue
            shutil.rmtree(place)
            shutil.copytree(start, place, symlinks=True)
            name = f"{'from' if lasting else 'only'} {number} ({operations[number - 1]})"
            yield name, one_trial(case, place, whole, FaultyDisk(place / "out", fail_at=number, lasting=lasting))


def one_trial(case: Case, place: Path, whole: dict[str, str], disk: FaultyDisk) -> list[str]:
    before = snapshot(place / "out")
    with quiet() as said, disk, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = status_of(lambda: case.work(place, False))
        gc.collect()
    text = said.getvalue()
    faults = [] if disk.failed else ["the fault was never met"]
    survived = case.goes_on and not disk.lasting and status == 0
    if status != 4 and not survived:
        faults.append(f"exit status {status}")
    if "Traceback" in text or "bug of ours" in text:
        faults.append(f"said {text.strip().splitlines()[-1][:200]}")
    if (place / "out").is_dir():
        faults += [f"{name} stayed" for name in temporaries(place / "out")]
    if not case.goes_on:
        found = snapshot(place / "out")
        kept = {n: h for n, h in found.items() if not (case.adds and n not in before and h == whole.get(n))}
        return faults + differences(kept, before)
    with quiet() as said:
        status = status_of(lambda: case.work(place, True))
    if status:
        return [*faults, f"resuming gave {status}: {said.getvalue().strip()[-300:]}"]
    found, wanted = ({n: h for n, h in files.items() if case.result(n)} for files in (snapshot(place / "out"), whole))
    return faults + differences(found, wanted) + [f"{name} stayed" for name in temporaries(place / "out")]


def run(only: str | None = None, every: int = 1) -> list[Tally]:
    """All trials; one tally per command."""
    tallies = []
    for case in CASES:
        if only is not None and only != case.name:
            continue
        tally = Tally(f"full disk: {case.name}")
        with tempfile.TemporaryDirectory() as folder:
            for name, faults in trials(case, Path(folder) / "case", every):
                tally.add(name, faults)
                if tally.tried % 50 == 0:
                    print(f"{case.name}: {tally.kept} of {tally.tried} so far, {name}", file=sys.stderr)
        print(f"{tally.promise}: {tally.kept} of {tally.tried}", file=sys.stderr)
        tallies.append(tally)
    return tallies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="try only every N-th operation")
    parser.add_argument("--only", help="one command, by the name in the table", choices=[case.name for case in CASES])
    arguments = parser.parse_args()
    return report(run(arguments.only, arguments.every))


if __name__ == "__main__":
    sys.exit(main())
