"""The slice store: prepared studies as slices on disk, and batches drawn from them.

::

    DST/manifest.json               preparation, splits, one row and record per subject, fingerprint
    DST/slices/<subject>.npy        uint16 (n, m, h, w); value / 65535 is the intensity in [0, 1]
    DST/slices/<subject>-brain.npy  uint8 (n, h, ceil(w / 8)), bits of the foreground mask
    DST/slices/<subject>.json       the subject's record again, for resuming

The mask is the brain where the study is skull-stripped and the head where it is not. Uncompressed, because
training reads slices at random and gzip would be read from its start every time.

A store is used for days. Files that were cut, edited or taken away meanwhile are ``DATA_CORRUPT`` when they are next
read, and never a crash (:mod:`codebrain.data.array_file`). 16-bit whole numbers leave no room for slices that are not
finite or not in [0, 1]; a file of another type is refused when it is opened.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt16
from numpy.typing import NDArray

from codebrain.data.array_file import ArrayFile, Stamp, stamp
from codebrain.data.manifest import Manifest, SubjectRecord, SubjectRow, corrupt, files_of
from codebrain.data.splits import SPLITS, Split
from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging.safe_files import sha256_file
from codebrain.machine import allotted_cores
from codebrain.parsing import parse_json_object
from codebrain.vocabulary import Preparation

__all__ = ["FULL_SCALE", "LEAST_FOREGROUND", "Manifest", "Picks", "SliceStore", "SubjectRecord", "SubjectRow"]

FULL_SCALE = 65535
_FULL = np.float32(FULL_SCALE)
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)  # set bits of a byte
LEAST_FOREGROUND = 0.01
"""Slices with less foreground than this fraction of their area are not drawn for training."""
_OPEN_FILES = 64
"""Subjects kept open at a time; two files each, well under the usual limit of 1,024."""

_SLICES, _BRAIN = 0, 1  # of a subject's files

Picks = Int[np.ndarray, "b 2"]


class SliceStore:
    """Read access to a slice store; open with :meth:`open`.

    Picks are ``(subject number, slice number)``; subject numbers count through :attr:`names`.

    Attributes:
        damaged: why, by subject whose files were found missing, cut or edited since the store was opened.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self.names = tuple(record.subject for record in manifest.records)
        self._number = {name: i for i, name in enumerate(self.names)}
        self._split = {row.subject: row.split for row in manifest.rows}
        self.damaged: dict[str, CodeBrainError] = {}
        self._stamps: dict[str, Stamp] = {}
        self._opened: OrderedDict[str, ArrayFile] = OrderedDict()
        self._threads: ThreadPoolExecutor | None = None
        self._lock = Lock()

    @classmethod
    def open(cls, root: Path | str) -> SliceStore:
        """Open a store: schema, fingerprint and file sizes are checked, contents by :meth:`verify`.

        Raises:
            InputRefused: ``DATA_CORRUPT``, ``DATA_VERSION``; ``DATA_NONE`` without a finished store.
        """
        root = Path(root)
        path = root / "manifest.json"
        try:
            raw = parse_json_object(path.read_bytes())
        except FileNotFoundError:
            raise refusal(
                "DATA_NONE", "there is no finished slice store here", file=root, expected="manifest.json",
                hint="Make one with `codebrain prepare folder SRC -o DST`, or finish it with --resume.",
            ) from None  # fmt: skip
        except (OSError, ValueError) as error:
            raise corrupt(f"the manifest is not JSON: {error}", path) from error
        store = cls(root, Manifest.from_dict(raw))
        store._check_sizes()
        return store

    @property
    def preparation(self) -> Preparation:
        """How the slices were made; models trained on them carry it."""
        return self.manifest.preparation

    @property
    def fingerprint(self) -> str:
        """See :attr:`Manifest.fingerprint`."""
        return self.manifest.fingerprint

    def counts(self) -> dict[Split, int]:
        """Subjects in each split."""
        where = [self._split[name] for name in self.names]
        return {split: where.count(split) for split in SPLITS}

    def subjects(self, split: Split) -> tuple[str, ...]:
        """Names of the subjects in ``split``.

        Raises:
            UsageError: ``CONFIG`` when there is no such split.
            InputRefused: ``DATA_SPLIT`` when the split is empty.
        """
        if split not in SPLITS:
            raise refusal("CONFIG", f"no split is called {split!r}", expected=", ".join(SPLITS))
        names = tuple(name for name in self.names if self._split[name] == split)
        if not names:
            counts = ", ".join(f"{name} {count}" for name, count in self.counts().items())
            raise refusal(
                "DATA_SPLIT", f"the slice store has no subjects for {split}", file=self.root, found=counts,
                hint="Prepare it again with other --val or --test.",
            )  # fmt: skip
        return names

    def record(self, subject: str) -> SubjectRecord:
        """What is known about ``subject``.

        Raises:
            UsageError: ``CONFIG`` when the store has no such subject.
        """
        if subject not in self._number:
            raise refusal("CONFIG", f"the slice store has no subject {subject!r}", file=self.root)
        return self.manifest.records[self._number[subject]]

    def patient(self, subject: str) -> str:
        """Whose study ``subject`` is."""
        return self.record(subject).patient

    def slices(self, subject: str) -> UInt16[np.ndarray, "n m h w"]:
        """The stored slices.

        Raises:
            InputRefused: ``DATA_CORRUPT`` when the file has vanished or changed since the store was opened; so do
                all below that read.
        """
        return self._read(subject, _SLICES, ArrayFile.whole)

    def stack(self, subject: str) -> Float[np.ndarray, "n m h w"]:
        """All slices of a subject in [0, 1], float32; absent contrasts are zero."""
        return _to_unit(self.slices(subject))

    def brain(self, subject: str) -> Bool[np.ndarray, "n h w"]:
        """The foreground mask of all slices."""
        width = self.record(subject).shape[3]
        return np.unpackbits(self._read(subject, _BRAIN, ArrayFile.whole), axis=-1, count=width).astype(bool)

    def index(self, split: Split, *, least_foreground: float = LEAST_FOREGROUND) -> Picks:
        """Every slice of ``split`` worth learning from, ``(k, 2)``: subject number, slice number.

        Slices whose foreground covers less than ``least_foreground`` of their area are left out.

        Raises:
            InputRefused: ``DATA_SPLIT`` when none is left.
        """
        parts = []
        for name in self.subjects(split):
            record = self.record(name)
            share = np.asarray(record.foreground_pixels) / (record.shape[2] * record.shape[3])
            kept = np.flatnonzero(share >= least_foreground)
            parts.append(np.stack([np.full_like(kept, self._number[name]), kept], axis=1))
        picks = np.concatenate(parts).astype(np.int64)
        if not len(picks):
            raise refusal("DATA_SPLIT", f"no slice of {split} has enough foreground", file=self.root)
        return picks

    def batch(
        self, picks: Picks, *, crop: int | None, generator: np.random.Generator
    ) -> tuple[Float[np.ndarray, "b m h w"], Bool[np.ndarray, "b m"], tuple[str, ...]]:
        """Read slices.

        Args:
            picks: subject and slice numbers.
            crop: edge of a square cut around a foreground pixel drawn at random, moved inwards where it would
                leave the slice, zeros where the slice is smaller; ``None`` gives whole slices, each in the
                middle of the smallest frame (a multiple of the preparation's) that holds them all.
            generator: source of chance for the crops; one number is drawn for every slice.

        Returns:
            Images in [0, 1] as float32, which contrasts have ground truth, and ``subject/slice`` per sample.

        Raises:
            InputRefused: ``DATA_CORRUPT`` when a file has vanished or changed since the store was opened; its subject
                is then among :attr:`damaged`.
        """
        return self._batch(picks, crop, generator, np.float32)

    def stored_batch(
        self, picks: Picks, *, crop: int | None, generator: np.random.Generator
    ) -> tuple[UInt16[np.ndarray, "b m h w"], Bool[np.ndarray, "b m"], tuple[str, ...]]:
        """:meth:`batch` as it is stored, half as many bytes: 65535 is the intensity 1."""
        return self._batch(picks, crop, generator, np.uint16)

    def _batch(
        self, picks: Picks, crop: int | None, generator: np.random.Generator, dtype: type[np.generic]
    ) -> tuple[NDArray[Any], Bool[np.ndarray, "b m"], tuple[str, ...]]:
        names = [self.names[number] for number, _ in picks]
        records = [self.record(name) for name in names]
        h, w = (crop, crop) if crop is not None else self._frame(records)
        images = np.empty((len(picks), len(self.preparation.modalities), h, w), dtype)
        lots = generator.random(len(picks)) if crop is not None else np.zeros(len(picks))

        def place(numbers: range) -> None:
            for number in numbers:
                _place(images[number], self._cut(names[number], int(picks[number, 1]), crop, lots[number]))

        hands = allotted_cores()
        for _ in self._crew().map(place, (range(first, len(picks), hands) for first in range(hands))):
            pass  # reading and converting leave the interpreter free; what went wrong is raised here
        available = np.array([record.available for record in records], dtype=bool)
        return images, available, tuple(f"{name}/{z}" for name, (_, z) in zip(names, picks, strict=True))

    def verify(self, *, part: int = 0, parts: int = 1) -> None:
        """Read every file to its end and compare SHA-256, several at a time.

        Args:
            part, parts: of several processes on one machine, each can read its share of the subjects.

        Raises:
            InputRefused: ``DATA_CORRUPT`` naming the first file that differs.
        """
        self._check_sizes()
        shared = (file for record in self.manifest.records[part::parts] for file in files_of(self.root, record))
        pool = ThreadPoolExecutor(allotted_cores())  # hashing leaves the interpreter free
        try:
            for _ in pool.map(_refuse_other_content, shared):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def _check_sizes(self) -> None:
        for record in self.manifest.records:
            for path, _, size in files_of(self.root, record):
                try:
                    now = stamp(path)
                except OSError as error:
                    raise corrupt("a file of the slice store is missing", path) from error
                if now.size != size:
                    raise corrupt(f"a file of the slice store has {now.size} bytes instead of {size}", path)
                self._stamps[path.name] = now

    def _crew(self) -> ThreadPoolExecutor:
        """Threads that read, as many as there are cores; begun with the first batch."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(allotted_cores(), "slices")
        return self._threads

    def _cut(self, subject: str, z: int, crop: int | None, lot: float) -> UInt16[np.ndarray, "m r c"]:
        """A slice, or as much of it as lies in a crop."""
        _, _, h, w = self.record(subject).shape
        if crop is None or (crop >= h and crop >= w):  # a crop that holds the slice holds it wherever it was drawn
            return self._read(subject, _SLICES, lambda file: file.item(z))
        top, left = self._corner(subject, z, crop, lot)
        bottom = min(top + crop, self.record(subject).shape[2])
        return self._read(subject, _SLICES, lambda file: file.rows(z, top, bottom))[:, :, left : left + crop]

    def _read(self, subject: str, which: int, part: Callable[[ArrayFile], NDArray[Any]]) -> NDArray[Any]:
        """A part of a subject's slices or masks; a file that fails is opened once more before it is given up."""
        path, sha256, _ = files_of(self.root, self.record(subject))[which]
        for last in (False, True):
            try:
                return part(self._open(path, sha256, *self._kind(subject, which)))
            except (OSError, ValueError) as error:
                with self._lock:
                    self._opened.pop(path.name, None)
                if last:
                    why = error.strerror if isinstance(error, OSError) else error
                    self.damaged[subject] = corrupt(f"a file of the slice store cannot be used: {why}", path)
                    raise self.damaged[subject] from error
        raise AssertionError

    def _kind(self, subject: str, which: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        n, m, h, w = self.record(subject).shape
        return ((n, m, h, w), np.dtype("<u2")) if which == _SLICES else ((n, h, -(-w // 8)), np.dtype(np.uint8))

    def _open(self, path: Path, sha256: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ArrayFile:
        """The open file; those used least recently are closed, so that open files stay few."""
        with self._lock:
            if path.name in self._opened:
                self._opened.move_to_end(path.name)
                return self._opened[path.name]
        file = ArrayFile(path, shape, dtype)
        if file.stamp != self._stamps.get(path.name):  # edited, or copied or touched and still the same?
            if sha256_file(path) != sha256:
                raise ValueError("it is not the one that was written")
            self._stamps[path.name] = file.stamp
        with self._lock:
            self._opened[path.name] = file
            while len(self._opened) > 2 * _OPEN_FILES:
                self._opened.popitem(last=False)  # closed when the last thread that reads it is done
        return file

    def _frame(self, records: Sequence[SubjectRecord]) -> tuple[int, int]:
        step = self.preparation.multiple
        largest = [max(record.shape[axis] for record in records) for axis in (2, 3)]
        return -(-largest[0] // step) * step, -(-largest[1] // step) * step

    def _corner(self, subject: str, z: int, crop: int, lot: float) -> tuple[int, int]:
        _, _, h, w = self.record(subject).shape
        mask = self._read(subject, _BRAIN, lambda file: file.item(z))
        upto = _ONES[mask].sum(1, dtype=np.int64).cumsum()  # foreground pixels in the rows up to each
        row, column = h // 2, w // 2
        if upto[-1]:
            number = int(lot * upto[-1])
            row = int(np.searchsorted(upto, number, side="right"))
            column = int(np.flatnonzero(np.unpackbits(mask[row]))[number - (upto[row - 1] if row else 0)])
        return _inside(row - crop // 2, h - crop), _inside(column - crop // 2, w - crop)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_opened", "_threads", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._opened, self._threads, self._lock = OrderedDict(), None, Lock()


def _refuse_other_content(file: tuple[Path, str, int]) -> None:
    path, expected, _ = file
    try:
        found = sha256_file(path)
    except OSError as error:
        raise corrupt(f"a file of the slice store cannot be read: {error.strerror}", path) from error
    if found != expected:
        raise corrupt("the file is not the one that was written", path)


def _to_unit(stored: UInt16[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return stored.astype(np.float32) / np.float32(FULL_SCALE)


def _inside(corner: int, most: int) -> int:
    return max(0, min(corner, most))


def _place(image: Shaped[np.ndarray, "m h w"], stored: UInt16[np.ndarray, "m r c"]) -> None:
    """Write a slice into the middle of a frame that is at least as large, and zeros around it.

    Into a frame of floats in [0, 1], into one of whole numbers as it is stored.
    """
    rows, columns = stored.shape[1:]
    top, left = (image.shape[1] - rows) // 2, (image.shape[2] - columns) // 2
    bottom, right = top + rows, left + columns
    image[:, :top], image[:, bottom:] = 0, 0
    image[:, top:bottom, :left], image[:, top:bottom, right:] = 0, 0
    if image.dtype == stored.dtype:
        image[:, top:bottom, left:right] = stored
        return
    for channel, plane in zip(image, stored, strict=True):  # in one pass, without a float copy of the slice
        np.divide(plane, _FULL, out=channel[top:bottom, left:right], dtype=np.float32, casting="unsafe")
