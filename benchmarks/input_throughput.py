"""Does the slice store keep up with training: prepared slices per second, and the start on 45,000 slices.

::

    python benchmarks/input_throughput.py [--folder FOLDER] [--repeats 9]

Two stores of random numbers are made in a temporary folder (1.3 GB; the second is sparse and takes nothing) and removed
again. Slices have four contrasts of 240 x 240, as BraTS has. Printed are slices per second for whole slices and for
crops, read as training reads them, beside the same slices read and converted one by one with numpy, in turns; the
time to open a store of 500 subjects with 90 slices each; and what comparing its hashes takes per gigabyte, which
training does once before its first step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from codebrain.data.manifest import Manifest, SubjectRecord, SubjectRow, scale_of
from codebrain.data.slices import SliceStore
from codebrain.imaging.safe_files import sha256_file
from codebrain.machine import allotted_cores, keep_freed_memory
from codebrain.vocabulary import ModalitySet, Preparation

MODALITIES = ModalitySet.parse("T1,T1CE,T2,FLAIR")
SHAPE = (90, 4, 240, 240)
BATCH = 48


def write_subject(folder: Path, name: str, *, sparse: bool) -> SubjectRecord:
    """The two files of a subject, and its record."""
    n, m, h, w = SHAPE
    slices, brain = folder / f"{name}.npy", folder / f"{name}-brain.npy"
    numbers = np.random.default_rng(len(name)).integers(0, 65536, (1, m, h, w), np.uint16)
    for path, shape, dtype in ((slices, SHAPE, np.dtype("<u2")), (brain, (n, h, w // 8), np.dtype(np.uint8))):
        with path.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            if sparse:
                file.truncate(file.tell() + int(np.prod(shape)) * dtype.itemsize)
            elif path == slices:
                file.write(np.roll(np.broadcast_to(numbers, SHAPE), 1, axis=0).tobytes())
            else:
                file.write(b"\xff" * int(np.prod(shape)))
    hashes = ["", ""] if sparse else [sha256_file(slices), sha256_file(brain)]
    return SubjectRecord(
        subject=name, patient=name, available=(True,) * m, shape=SHAPE, foreground_pixels=(h * w // 2,) * n,
        frame={}, full_slice=(h, w), offset=(0, 0), normalisations={}, alignment={}, reference="T1", inputs={},
        intensity_range=dict.fromkeys(map(str, MODALITIES), 100.0), task="",
        slices_sha256=hashes[0], slices_bytes=slices.stat().st_size,
        brain_sha256=hashes[1], brain_bytes=brain.stat().st_size,
    )  # fmt: skip


def make_store(root: Path, subjects: int, *, sparse: bool = False) -> Path:
    """A store of random numbers."""
    (root / "slices").mkdir(parents=True)
    records = [write_subject(root / "slices", f"s{n:04d}", sparse=sparse) for n in range(subjects)]
    split = ["val", "test", *(["train"] * (subjects - 2))]
    manifest = Manifest(
        preparation=Preparation(MODALITIES, intensity_scale=scale_of(records, MODALITIES.members)),
        splits={name: [r.subject for r, s in zip(records, split, strict=True) if s == name] for name in set(split)},
        rows=tuple(
            SubjectRow(r.subject, r.patient, "prepared", split=s)  # type: ignore[arg-type]
            for r, s in zip(records, split, strict=True)
        ),
        records=tuple(records), created_by="benchmark",
    )  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(manifest.as_dict()))
    return root


def one_by_one(store: SliceStore, picks: np.ndarray) -> np.ndarray:
    """The same slices with numpy alone: a plain reader that seeks, reads and converts."""
    images = np.zeros((len(picks), *SHAPE[1:]), np.float32)
    for image, (subject, z) in zip(images, picks, strict=True):
        with (store.root / "slices" / f"{store.names[subject]}.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            offset = file.tell() + int(z) * image.size * 2
            file.seek(offset)
            image[:] = np.fromfile(file, "<u2", image.size).reshape(image.shape).astype(np.float32) / 65535
    return images


def rates(ways: dict[str, Callable[[np.ndarray], object]], store: SliceStore, repeats: int) -> dict[str, list[float]]:
    """Slices per second of every way, in turns, over other slices each time."""
    picks, rng = store.index("train"), np.random.default_rng(0)
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, read in ways.items():
            drawn = [picks[rng.choice(len(picks), BATCH)] for _ in range(8)]
            begun = time.perf_counter()
            for some in drawn:
                read(some)
            if repeat:  # the first warms up
                seen[name].append(8 * BATCH / (time.perf_counter() - begun))
    return seen


def said(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):8.0f}  ({min(values):.0f} - {max(values):.0f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="where the stores are made, instead of the temporary folder")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    keep_freed_memory()  # as training does
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = SliceStore.open(make_store(Path(folder) / "full", 32))
        generator = np.random.default_rng(0)
        seen = rates(
            {
                "whole slices": lambda some: store.batch(some, crop=None, generator=generator),
                "crops of 256": lambda some: store.batch(some, crop=256, generator=generator),
                "crops of 192": lambda some: store.batch(some, crop=192, generator=generator),
                "one by one, numpy": lambda some: one_by_one(store, some),
            }, store, options.repeats,
        )  # fmt: skip
        print(f"4 x 240 x 240, batches of {BATCH}, {allotted_cores()} cores; slices/s, median (range)")
        for name, values in seen.items():
            print(f"{name:20}{said(values)}")
        ratios = [a / b for a, b in zip(seen["whole slices"], seen["one by one, numpy"], strict=True)]
        print(f"ratio to one by one   {statistics.median(ratios):.2f}  ({min(ratios):.2f} - {max(ratios):.2f})")
        begun = time.perf_counter()
        store.verify()
        gigabytes = sum(r.slices_bytes + r.brain_bytes for r in store.manifest.records) / 1e9
        print(f"hashes compared: {(time.perf_counter() - begun) / gigabytes:.2f} s per GB (in the page cache)")
        large = make_store(Path(folder) / "large", 500, sparse=True)
        opened = []
        for _ in range(5):
            begun = time.perf_counter()
            count = len(SliceStore.open(large).index("train"))
            opened.append(time.perf_counter() - begun)
        print(f"open and index {count:,} training slices of 500 subjects: {statistics.median(opened):.2f} s "
              f"({min(opened):.2f} - {max(opened):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
