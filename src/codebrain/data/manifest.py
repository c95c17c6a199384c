"""What a slice store writes down: a record per subject, a row per study looked at, the manifest of all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np

from codebrain.data.splits import SPLITS
from codebrain.errors import CodeBrainError, Notice, refusal
from codebrain.parsing import require_types
from codebrain.vocabulary import Modality, Preparation, TrainingDomain

SCHEMA_VERSION = 1


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
        domain: what the scans were like; ``None`` in stores that are older than this field.
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
    domain: TrainingDomain | None = None

    @property
    def foreground_fraction(self) -> float:
        """Foreground share of all stored pixels."""
        n, _, h, w = self.shape
        return sum(self.foreground_pixels) / max(n * h * w, 1)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        raw = asdict(self) | {"foreground_fraction": round(self.foreground_fraction, 6)}
        if self.domain is None:  # the fingerprints of older stores stay what they were
            del raw["domain"]
        return raw

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> SubjectRecord:
        """Inverse of :meth:`as_dict`.

        Raises:
            InputRefused: ``DATA_CORRUPT`` when a field is missing or has another shape.
        """
        try:
            require_types(cls, raw)
            known = {f.name: raw[f.name] for f in fields(cls) if f.name != "domain"}
            if raw.get("domain") is not None:
                known["domain"] = TrainingDomain.from_dict(raw["domain"])
            for name in ("available", "shape", "foreground_pixels", "full_slice", "offset"):
                known[name] = tuple(known[name])
            known["notices"] = tuple(Notice(**notice) for notice in known["notices"])
            record = cls(**known)
            if len(record.foreground_pixels) != record.shape[0] or min(record.shape) < 1:
                raise ValueError("the shape does not fit")
            if Path(record.subject).name != record.subject or "\0" in record.subject:
                raise ValueError("files cannot be named after the subject")
        except (KeyError, TypeError, ValueError) as error:
            raise corrupt(f"a subject's record is damaged: {error}") from error
        return record


@dataclass(frozen=True)
class SubjectRow:
    """What happened to one subject.

    Attributes:
        status: ``prepared``, ``skipped``, ``refused`` or ``missing``.
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
        protocol: what else the studies have in common: kind of source, reference, threads.
    """

    preparation: Preparation
    splits: Mapping[str, Any]
    rows: tuple[SubjectRow, ...]
    records: tuple[SubjectRecord, ...]
    created_by: str = ""
    align: str = "auto"
    protocol: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over preparation, splits and records (with file hashes): equal for equal training data."""
        parts = {
            "preparation": json.loads(self.preparation.to_json()),
            "splits": dict(self.splits),
            "split_of": {row.subject: row.split for row in self.rows if row.status == "prepared"},
            "records": [record.as_dict() for record in self.records],
            **({"protocol": dict(self.protocol)} if self.protocol else {}),
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
            "protocol": dict(self.protocol),
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
                splits=dict(raw["splits"]),
                rows=tuple(_row(row) for row in raw["subjects"]),
                records=tuple(SubjectRecord.from_dict(record) for record in raw["records"]),
                created_by=raw["created_by"],
                align=raw["align"],
                protocol=dict(raw.get("protocol", {})),  # younger than the first stores
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise corrupt(f"the manifest is damaged: {error}") from error
        _require_rows(manifest)
        if raw.get("fingerprint") != manifest.fingerprint:
            raise corrupt("the manifest does not fit its fingerprint: it was edited or damaged")
        return manifest


def _require_rows(manifest: Manifest) -> None:
    """``DATA_CORRUPT`` unless every record has a name of its own and a row that says its split."""
    split_of = {row.subject: row.split for row in manifest.rows if row.status == "prepared"}
    names = [record.subject for record in manifest.records]
    channels = len(manifest.preparation.modalities)
    if len({*names}) < len(names) or any(split_of.get(name) not in SPLITS for name in names):
        raise corrupt("the manifest is damaged: a subject stands twice or in no split")
    if any(len(r.available) != channels or r.shape[1] != channels for r in manifest.records):
        raise corrupt("the manifest is damaged: a subject has another number of contrasts")


def _row(raw: Mapping[str, Any]) -> SubjectRow:
    require_types(SubjectRow, raw)
    return SubjectRow(**raw)


def corrupt(message: str, file: Path | None = None) -> CodeBrainError:
    """The refusal of a damaged store."""
    return refusal(
        "DATA_CORRUPT", message, file=file,
        hint="Run `codebrain prepare` again with --resume: only damaged subjects are repeated.",
    )  # fmt: skip


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


def domain_of(records: Sequence[SubjectRecord]) -> TrainingDomain | None:
    """What the scans of all these subjects were like; ``None`` where it is not known of every one."""
    domains = [record.domain for record in records if record.domain is not None]
    return reduce(or_, domains) if domains and len(domains) == len(records) else None
