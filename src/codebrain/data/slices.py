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

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16
from numpy.typing import NDArray

from codebrain.data.splits import SPLITS, Split
from codebrain.errors import CodeBrainError, Notice, refusal
from codebrain.imaging.safe_files import sha256_file
from codebrain.vocabulary import Modality, Preparation

SCHEMA_VERSION = 1
FULL_SCALE = 65535
LEAST_FOREGROUND = 0.01
"""Slices with less foreground than this fraction of their area are not drawn for training."""
_OPEN_FILES = 64
"""Subjects kept mapped at a time; two files each, well under the usual limit of 1,024."""

Picks = Int[np.ndarray, "b 2"]


@dataclass(frozen=True)
class SubjectRecord:
    """Everything known about one prepared subject.

    Attributes:
        subject: name; the slices lie in ``slices/<subject>.npy``.
        patient: whose study it is.
        available: which contrasts have ground truth, in the order of the preparation.
        shape: ``(n, m, h, w)`` of the stored slices.
        foreground_pixels: number of foreground pixels of each slice.
        frame: record that puts slices back on the grid of the reference input.
        full_slice: ``(h, w)`` of the uncut slice at the network's spacing.
        offset: where the stored slice begins in the uncut one, ``(row, column)``.
        normalisations: record by contrast that gives scanner units back.
        intensity_range: by contrast, the scanner value of 1 minus that of 0.
        alignment: how contrasts were brought onto one grid.
        reference: contrast whose grid the study has.
        inputs: by contrast, relative file and SHA-256.
        notices: what was accepted with a warning.
        task: SHA-256 over inputs and preparation; equal tasks give equal slices.
        slices_sha256, slices_bytes, brain_sha256, brain_bytes: of the two files.
    """

    subject: str
    patient: str
    available: tuple[bool, ...]
    shape: tuple[int, int, int, int]
    foreground_pixels: tuple[int, ...]
    frame: Mapping[str, Any]
    full_slice: tuple[int, int]
    offset: tuple[int, int]
    normalisations: Mapping[str, Mapping[str, Any]]
    intensity_range: Mapping[str, float]
    alignment: Mapping[str, Any]
    reference: str
    inputs: Mapping[str, Mapping[str, str]]
    task: str
    slices_sha256: str
    slices_bytes: int
    brain_sha256: str
    brain_bytes: int
    notices: tuple[Notice, ...] = ()

    @property
    def foreground_fraction(self) -> float:
        """Foreground share of all stored pixels."""
        n, _, h, w = self.shape
        return sum(self.foreground_pixels) / max(n * h * w, 1)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"foreground_fraction": round(self.foreground_fraction, 6)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> SubjectRecord:
        """Inverse of :meth:`as_dict`.

        Raises:
            InputRefused: ``DATA_CORRUPT`` when a field is missing or has another shape.
        """
        try:
            known = {f.name: raw[f.name] for f in fields(cls)}
            for name in ("available", "shape", "foreground_pixels", "full_slice", "offset"):
                known[name] = tuple(known[name])
            known["notices"] = tuple(Notice(**notice) for notice in known["notices"])
            record = cls(**known)
            if len(record.shape) != 4 or len(record.foreground_pixels) != record.shape[0]:
                raise ValueError("the shape does not fit")
        except (KeyError, TypeError, ValueError) as error:
            raise corrupt(f"a subject's record is damaged: {error}") from error
        return record


@dataclass(frozen=True)
class SubjectRow:
    """What happened to one subject.

    Attributes:
        status: ``prepared``, ``skipped`` or ``refused``.
        code, message: why it was not prepared.
        split: the split it is in, when prepared.
    """

    subject: str
    patient: str
    status: str
    code: str = ""
    message: str = ""
    split: str = ""


@dataclass(frozen=True)
class Manifest:
    """The store's table of contents.

    Attributes:
        preparation: shared by all subjects; with the intensity scale of the training subjects.
        splits: rule, seed and assignment, as :meth:`codebrain.data.splits.Splits.as_dict` gives it.
        rows: every subject that was looked at.
        records: the prepared subjects, in order; the position is the subject number of picks.
        created_by: program and version.
        align: how contrasts on different grids were treated.
    """

    preparation: Preparation
    splits: Mapping[str, Any]
    rows: tuple[SubjectRow, ...]
    records: tuple[SubjectRecord, ...]
    created_by: str = ""
    align: str = "auto"
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over preparation, splits and records (with file hashes): equal for equal training data."""
        parts = {
            "preparation": json.loads(self.preparation.to_json()),
            "splits": dict(self.splits),
            "split_of": {row.subject: row.split for row in self.rows if row.status == "prepared"},
            "records": [record.as_dict() for record in self.records],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def count(self, status: str) -> int:
        """Subjects with this status."""
        return sum(row.status == status for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "schema_version": self.schema_version,
            "created_by": self.created_by,
            "align": self.align,
            "preparation": json.loads(self.preparation.to_json()),
            "splits": dict(self.splits),
            "subjects": [asdict(row) for row in self.rows],
            "records": [record.as_dict() for record in self.records],
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Manifest:
        """Inverse of :meth:`as_dict`, with the fingerprint checked.

        Raises:
            InputRefused: ``DATA_CORRUPT``, or ``DATA_VERSION`` for another schema.
        """
        if raw.get("schema_version") != SCHEMA_VERSION:
            raise refusal(
                "DATA_VERSION", "the slice store has another format", found=raw.get("schema_version"),
                expected=SCHEMA_VERSION, hint="Prepare it again with this version.",
            )  # fmt: skip
        try:
            manifest = cls(
                preparation=Preparation.from_json(json.dumps(raw["preparation"])),
                splits=raw["splits"],
                rows=tuple(SubjectRow(**row) for row in raw["subjects"]),
                records=tuple(SubjectRecord.from_dict(record) for record in raw["records"]),
                created_by=raw["created_by"],
                align=raw["align"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise corrupt(f"the manifest is damaged: {error}") from error
        if raw.get("fingerprint") != manifest.fingerprint:
            raise corrupt("the manifest does not fit its fingerprint: it was edited or damaged")
        return manifest


def corrupt(message: str, file: Path | None = None) -> CodeBrainError:
    """The refusal of a damaged store."""
    return refusal(
        "DATA_CORRUPT", message, file=file,
        hint="Run `codebrain prepare` again with --resume: only damaged subjects are repeated.",
    )  # fmt: skip


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
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise refusal(
                "DATA_NONE", "there is no finished slice store here", file=root, expected="manifest.json",
                hint="Make one with `codebrain prepare folder SRC -o DST`, or finish it with --resume.",
            ) from None  # fmt: skip
        except (OSError, ValueError) as error:
            raise corrupt("the manifest is not JSON", path) from error
        if not isinstance(raw, dict):
            raise corrupt("the manifest is not a JSON object", path)
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


def files_of(root: Path, record: SubjectRecord) -> list[tuple[Path, str, int]]:
    """The two array files of a subject with their recorded SHA-256 and size."""
    folder = root / "slices"
    return [
        (folder / f"{record.subject}.npy", record.slices_sha256, record.slices_bytes),
        (folder / f"{record.subject}-brain.npy", record.brain_sha256, record.brain_bytes),
    ]


def scale_of(records: Sequence[SubjectRecord], modalities: Sequence[Modality]) -> dict[str, float]:
    """Per contrast, the median over subjects of the scanner value of 1 minus that of 0."""
    found = {m: [r.intensity_range[m] for r in records if m in r.intensity_range] for m in modalities}
    return {str(m): float(np.median(values)) for m, values in found.items() if values}


def _to_unit(stored: UInt16[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return stored.astype(np.float32) / np.float32(FULL_SCALE)


def _inside(corner: int, most: int) -> int:
    return max(0, min(corner, most))


def _place(image: Float[np.ndarray, "m h w"], stored: UInt16[np.ndarray, "m r c"]) -> None:
    """Write a slice into the middle of a frame of zeros that is at least as large."""
    rows, columns = stored.shape[1:]
    top, left = (image.shape[1] - rows) // 2, (image.shape[2] - columns) // 2
    image[:, top : top + rows, left : left + columns] = _to_unit(stored)
