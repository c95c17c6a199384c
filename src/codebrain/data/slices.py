"""The slice store: prepared studies as memory-mapped slices, and batches drawn from them.

::

    DST/manifest.json               preparation, splits, one row and record per subject, fingerprint
    DST/slices/<subject>.npy        uint16 (n, m, h, w); value / 65535 is the intensity in [0, 1]
    DST/slices/<subject>-brain.npy  uint8 (n, h, ceil(w / 8)), bits of the foreground mask
    DST/slices/<subject>.json       the subject's record again, for resuming

The mask is the brain where the study is skull-stripped and the head where it is not. Uncompressed, because
training reads slices at random and gzip would be read from its start every time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16
from numpy.typing import NDArray

from codebrain.data.manifest import Manifest, SubjectRecord, SubjectRow, corrupt, files_of
from codebrain.data.splits import SPLITS, Split
from codebrain.errors import refusal
from codebrain.imaging.safe_files import sha256_file
from codebrain.parsing import parse_json_object
from codebrain.vocabulary import Preparation

__all__ = ["FULL_SCALE", "LEAST_FOREGROUND", "Manifest", "Picks", "SliceStore", "SubjectRecord", "SubjectRow"]

FULL_SCALE = 65535
LEAST_FOREGROUND = 0.01
"""Slices with less foreground than this fraction of their area are not drawn for training."""
_OPEN_FILES = 64
"""Subjects kept mapped at a time; two files each, well under the usual limit of 1,024."""

Picks = Int[np.ndarray, "b 2"]


class SliceStore:
    """Read access to a slice store; open with :meth:`open`.

    Picks are ``(subject number, slice number)``; subject numbers count through :attr:`names`.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self.names = tuple(record.subject for record in manifest.records)
        self._number = {name: i for i, name in enumerate(self.names)}
        self._split = {row.subject: row.split for row in manifest.rows}
        self._mapped: OrderedDict[str, NDArray[Any]] = OrderedDict()

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
        """The stored slices, mapped from disk."""
        return self._map(f"{subject}.npy", self.record(subject).shape, np.dtype(np.uint16))

    def stack(self, subject: str) -> Float[np.ndarray, "n m h w"]:
        """All slices of a subject in [0, 1], float32; absent contrasts are zero."""
        return _to_unit(self.slices(subject))

    def brain(self, subject: str) -> Bool[np.ndarray, "n h w"]:
        """The foreground mask of all slices."""
        width = self.record(subject).shape[3]
        return np.unpackbits(self._brain_bits(subject), axis=-1, count=width).astype(bool)

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
            generator: source of chance for the crops.

        Returns:
            Images in [0, 1] as float32, which contrasts have ground truth, and ``subject/slice`` per sample.

        Raises:
            InputRefused: ``DATA_CORRUPT`` when a file has vanished or changed since the store was opened.
        """
        names = [self.names[number] for number, _ in picks]
        records = [self.record(name) for name in names]
        h, w = (crop, crop) if crop is not None else self._frame(records)
        images = np.zeros((len(picks), len(self.preparation.modalities), h, w), np.float32)
        for image, name, (_, z) in zip(images, names, picks, strict=True):
            stored = self.slices(name)[z]
            corner = (0, 0) if crop is None else self._corner(name, int(z), crop, generator)
            _place(image, stored[:, corner[0] : corner[0] + h, corner[1] : corner[1] + w])
        available = np.array([record.available for record in records], dtype=bool)
        return images, available, tuple(f"{name}/{z}" for name, (_, z) in zip(names, picks, strict=True))

    def verify(self) -> None:
        """Read every file to its end and compare SHA-256.

        Raises:
            InputRefused: ``DATA_CORRUPT`` naming the first file that differs.
        """
        self._check_sizes()
        for record in self.manifest.records:
            for path, expected, _ in files_of(self.root, record):
                if sha256_file(path) != expected:
                    raise corrupt("the file is not the one that was written", path)

    def _check_sizes(self) -> None:
        for record in self.manifest.records:
            for path, _, size in files_of(self.root, record):
                try:
                    found = path.stat().st_size
                except OSError as error:
                    raise corrupt("a file of the slice store is missing", path) from error
                if found != size:
                    raise corrupt(f"a file of the slice store has {found} bytes instead of {size}", path)

    def _brain_bits(self, subject: str) -> NDArray[np.uint8]:
        n, _, h, w = self.record(subject).shape
        return self._map(f"{subject}-brain.npy", (n, h, -(-w // 8)), np.dtype(np.uint8))

    def _map(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The mapped file; the least recently used mappings are let go, so that open files stay few."""
        if name in self._mapped:
            self._mapped.move_to_end(name)
            return self._mapped[name]
        path = self.root / "slices" / name
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise corrupt("a file of the slice store cannot be read", path) from error
        if array.shape != shape or array.dtype != dtype:
            raise corrupt(f"a file of the slice store holds {array.dtype} {array.shape}", path)
        self._mapped[name] = array
        while len(self._mapped) > 2 * _OPEN_FILES:
            self._mapped.popitem(last=False)
        return array

    def _frame(self, records: Sequence[SubjectRecord]) -> tuple[int, int]:
        step = self.preparation.multiple
        largest = [max(record.shape[axis] for record in records) for axis in (2, 3)]
        return -(-largest[0] // step) * step, -(-largest[1] // step) * step

    def _corner(self, subject: str, z: int, crop: int, generator: np.random.Generator) -> tuple[int, int]:
        _, _, h, w = self.record(subject).shape
        mask = np.unpackbits(self._brain_bits(subject)[z], axis=-1, count=w)
        pixels = np.flatnonzero(mask)
        centre = pixels[generator.integers(len(pixels))] if len(pixels) else (h // 2) * w + w // 2
        row, column = divmod(int(centre), w)
        return _inside(row - crop // 2, h - crop), _inside(column - crop // 2, w - crop)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": OrderedDict()}


def _to_unit(stored: UInt16[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return stored.astype(np.float32) / np.float32(FULL_SCALE)


def _inside(corner: int, most: int) -> int:
    return max(0, min(corner, most))


def _place(image: Float[np.ndarray, "m h w"], stored: UInt16[np.ndarray, "m r c"]) -> None:
    """Write a slice into the middle of a frame of zeros that is at least as large."""
    rows, columns = stored.shape[1:]
    top, left = (image.shape[1] - rows) // 2, (image.shape[2] - columns) // 2
    image[:, top : top + rows, left : left + columns] = _to_unit(stored)
