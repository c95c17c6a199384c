"""Raw studies to a slice store: one worker process per study, resumable, one bad study never stops the rest.

The steps of a study are those of :func:`codebrain.imaging.prepared.prepare_study`, which imputation uses too.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib.format import write_array
from numpy.typing import NDArray

import codebrain
from codebrain.data.datasets import Protocol
from codebrain.data.isolated import LOST, Tell, isolated, limited_threads
from codebrain.data.manifest import SCHEMA_VERSION, Manifest, SubjectRecord, SubjectRow, domain_of, files_of, scale_of
from codebrain.data.overlay import draw_overlays
from codebrain.data.slices import FULL_SCALE
from codebrain.data.sources import Found, SubjectFiles, find_subjects
from codebrain.data.splits import Division, Drawn, Splits
from codebrain.data.table import quality_rows, quality_table, subjects_table
from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging.align import AlignMode
from codebrain.imaging.domain import training_domain
from codebrain.imaging.prepared import PreparedStudy, prepare_study
from codebrain.imaging.safe_files import (
    FolderLock,
    ensure_folder,
    sha256_bytes,
    sha256_file,
    staged,
    sweep_temporaries,
    temporary_name,
    write_bytes,
    write_json,
    write_text,
)
from codebrain.imaging.study import Study
from codebrain.machine import IDLE_S, STUDY_TIMEOUT_S, allotted_cores, jobs_that_fit
from codebrain.parsing import parse_json_object
from codebrain.vocabulary import Modality, Preparation, TrainingDomain

_log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""``progress(done, total, subject)``."""

PICTURES = "qc"
"""Folder of the store with a picture of every registration."""

BYTES_EACH: dict[AlignMode, int] = {"none": 3 << 29, "auto": 3 << 29, "synra": 11 << 28}
"""Memory to plan with for one study: for ``synra`` a quarter more than the peak on IXI's grids (2.2 GiB), for the
others three times theirs (0.5 GiB), because scans may be larger."""


@dataclass(frozen=True)
class _Task:
    subject: SubjectFiles
    protocol: Protocol
    store: Path
    resume: bool


@dataclass(frozen=True)
class _Outcome:
    """What a worker hands back: a record, or why there is none."""

    subject: SubjectFiles
    record: SubjectRecord | None = None
    code: str = ""
    message: str = ""
    seconds: float = 0.0


def prepare_folder(
    source: Path | Sequence[Path],
    target: Path,
    *,
    preparation: Preparation | None = None,
    align: AlignMode = "auto",
    seed: int = 0,
    val: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make a slice store of one or more folders of study folders; see :func:`prepare_store`.

    Raises:
        InputRefused: as :func:`codebrain.data.sources.find_subjects` and :func:`prepare_store`.
    """
    found = find_subjects(source)
    return prepare_store(
        found,
        target,
        protocol=Protocol(preparation or Preparation(found.modalities), align),
        division=Drawn(seed, val, test),
        sources=[Path(source)] if isinstance(source, Path | str) else source,
        jobs=jobs, resume=resume, overwrite=overwrite, progress=progress,
    )  # fmt: skip


def prepare_store(
    found: Found,
    target: Path,
    *,
    protocol: Protocol,
    division: Division,
    kind: str = "folder",
    sources: Sequence[Path] = (),
    jobs: int = 1,
    study_timeout_s: float | None = STUDY_TIMEOUT_S,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make a slice store.

    The studies that could be prepared are divided. The manifest is written last: a store that was cut short has
    none, and is finished with ``resume``.

    Args:
        found: the studies.
        target: folder of the store; made when its parent exists.
        protocol: how each is prepared.
        division: which split each is in.
        kind: of source, for the record.
        sources: the folders that were searched; the store may not lie inside them.
        jobs: worker processes at a time, fewer where memory is short; 0 works in this process (then a crash of a
            study is ours). Workers are spawned, so a script that calls this needs ``if __name__ == "__main__"``.
        study_timeout_s: how long a worker may take for one study before it is ended and the study refused
            (``ENV_TIMEOUT``); one that does nothing at all is ended after ``IDLE_S``. Not without workers.
        resume: keep subjects whose files, inputs and protocol are unchanged.
        overwrite: replace an earlier store.
        progress: told after each subject.

    Returns:
        The manifest, with a row for every study that was looked at.

    Raises:
        InputRefused: ``DATA_EMPTY`` when no study could be prepared, ``DATA_SPLIT`` when the patients cannot
            be divided.
        EnvironmentRefused: ``OUT_EXISTS``, ``OUT_CLOBBER``, ``OUT_PERMISSION``, ``OUT_SPACE``, ``LOCKED``.
    """
    found = found.restricted_to(protocol.preparation.modalities)
    _check_target(target, sources, resume=resume, overwrite=overwrite)
    # Wrong names are refused now and not after hours of work.
    division.check(_patients(found.subjects))
    _make_folders(target)
    with FolderLock(target):
        _sweep(target)
        tasks = [_Task(subject, protocol, target, resume) for subject in found.subjects]
        try:
            outcomes = _reported(_worked(tasks, protocol, jobs, study_timeout_s), len(tasks), progress)
        finally:
            _sweep(target)
        records, rows = _settle(outcomes, found)
        seconds = {one.subject.subject: round(one.seconds, 1) for one in outcomes if one.seconds}
        try:
            splits = _divided(records, found, division)
        except CodeBrainError:
            write_text(target / "subjects.tsv", subjects_table(rows, records, seconds))
            raise
        for notice in found.notices:
            _log.warning("%s: %s", notice.file or kind, notice.message)
        facts = {
            "kind": kind, "reference": protocol.reference, "reproducible": protocol.reproducible,
            "notices": [notice.as_dict() for notice in found.notices],
        }  # fmt: skip
        manifest = _manifest(protocol, facts, splits, rows, records)
        with staged(target, last="manifest.json") as stage:
            write_text(stage / "subjects.tsv", subjects_table(manifest.rows, records, seconds))
            write_text(stage / "quality.tsv", quality_table(quality_rows(manifest.rows, records)))
            write_json(stage / "manifest.json", manifest.as_dict())
        if overwrite:
            _remove_strangers(target, records)
    return manifest


def _worked(tasks: Sequence[_Task], protocol: Protocol, jobs: int, timeout_s: float | None) -> Iterator[_Outcome]:
    """The outcomes as they come, as many studies at a time as memory and cores allow."""
    fitting = jobs_that_fit(jobs, BYTES_EACH[protocol.align]) if jobs else 0
    if fitting < jobs:
        _log.warning("%d studies at a time instead of %d: more would not fit into memory", fitting, jobs)
    threads = 1 if protocol.reproducible else max(1, allotted_cores() // max(fitting, 1))
    with limited_threads(threads):
        yield from isolated(
            _attempt, tasks, jobs=fitting, died=_died, patience_s=timeout_s, idle_s=IDLE_S, threads=threads
        )


def prepare_subject(task: _Task) -> SubjectRecord:
    """Prepare and store one study, or find that this was done before.

    Raises:
        CodeBrainError: whatever is wrong with the study or with the place to write to.
    """
    subject, protocol = task.subject, task.protocol
    inputs = {str(m): {"file": subject.relative(m), "sha256": sha256_file(path)} for m, path in subject.files.items()}
    digest = _digest(task, inputs)
    if task.resume and (record := _finished(task, digest)) is not None:
        return replace(record, patient=subject.patient, inputs=inputs)
    if subject.check is not None:
        subject.check()
    study = Study.read(dict(subject.files), name=subject.subject)
    with _scratch(task.store):
        prepared = prepare_study(
            study, protocol.preparation, align=protocol.align, reference=protocol.reference, slices=subject.slices
        )
    if prepared.alignment.moved:
        ensure_folder(task.store / PICTURES)
        write_bytes(task.store / PICTURES / f"{subject.subject}.jpg", draw_overlays(study, prepared))
    return _store(task, prepared, inputs, digest, domain=training_domain(study.volumes.values()))


@contextmanager
def _scratch(store: Path) -> Iterator[None]:
    """Temporary files of libraries lie in the store, where the next start sweeps what a killed worker left."""
    before = tempfile.tempdir
    place = store / temporary_name("scratch")
    ensure_folder(place)
    try:
        tempfile.tempdir = str(place)
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(place, ignore_errors=True)


def _digest(task: _Task, inputs: Mapping[str, Mapping[str, str]]) -> str:
    protocol = task.protocol
    parts: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "version": codebrain.__version__,
        "preparation": replace(protocol.preparation, intensity_scale={}, domain=None).to_json(),
        "align": protocol.align,
        "inputs": {m: facts["sha256"] for m, facts in inputs.items()},
    }
    younger = {
        "slices": task.subject.slices, "reference": protocol.reference, "reproducible": protocol.reproducible or None
    }  # fmt: skip
    parts |= {name: value for name, value in younger.items() if value is not None}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(task: _Task, digest: str) -> SubjectRecord | None:
    """The record of an earlier run, when it is of the same task and its files are intact."""
    path = task.store / "slices" / f"{task.subject.subject}.json"
    try:
        record = SubjectRecord.from_dict(parse_json_object(path.read_bytes()))
        intact = all(sha256_file(file) == sha for file, sha, _ in files_of(task.store, record))
    except (OSError, ValueError, CodeBrainError):
        return None
    return record if intact and record.task == digest else None


def _store(
    task: _Task,
    prepared: PreparedStudy,
    inputs: Mapping[str, Mapping[str, str]],
    digest: str,
    *,
    domain: TrainingDomain,
) -> SubjectRecord:
    """Write slices, mask and record, all or none of them."""
    mask = prepared.frame.apply(prepared.foreground.astype(np.float32)) > 0.5
    slices = _array_bytes(np.rint(prepared.slices.clip(0.0, 1.0) * FULL_SCALE).astype(np.uint16))
    brain = _array_bytes(np.packbits(mask, axis=-1))
    record = SubjectRecord(
        subject=task.subject.subject,
        patient=task.subject.patient,
        available=tuple(bool(here) for here in prepared.available),
        shape=cast("tuple[int, int, int, int]", tuple(int(size) for size in prepared.slices.shape)),
        foreground_pixels=tuple(int(count) for count in mask.sum(axis=(1, 2))),
        frame=_plain(prepared.frame),
        full_slice=cast("tuple[int, int]", tuple(int(size) for size in prepared.frame.full_slice)),
        offset=cast("tuple[int, int]", tuple(int(place) for place in prepared.frame.offset)),
        normalisations={str(m): _plain(record) for m, record in prepared.normalisations.items()},
        intensity_range={str(m): _range(record) for m, record in prepared.normalisations.items()},
        alignment=_alignment(prepared),
        reference=str(prepared.reference_modality),
        inputs=inputs,
        task=digest,
        slices_sha256=sha256_bytes(slices),
        slices_bytes=len(slices),
        brain_sha256=sha256_bytes(brain),
        brain_bytes=len(brain),
        notices=tuple(
            replace(notice, file=Path(notice.file).name) for notice in (*task.subject.notices, *prepared.notices)
        ),
        domain=domain,
    )
    earlier = any(path.exists() for path, _, _ in files_of(task.store, record))
    with staged(task.store, last=f"slices/{record.subject}.json") as stage:
        (stage / "slices").mkdir()
        for (path, _, _), content in zip(files_of(stage, record), (slices, brain), strict=True):
            write_bytes(path, content)
        write_json(stage / "slices" / f"{record.subject}.json", record.as_dict())
        if earlier:  # the manifest describes the files that are now replaced
            (task.store / "manifest.json").unlink(missing_ok=True)
    return record


def _alignment(prepared: PreparedStudy) -> dict[str, Any]:
    """Its record without the time it took, so that equal work gives equal records."""
    record: dict[str, Any] = _plain(prepared.alignment)
    for movement in record["moved"].values():
        del movement["seconds"]
    return record


def _array_bytes(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    write_array(stream, np.ascontiguousarray(array), allow_pickle=False)  # type: ignore[no-untyped-call]
    return stream.getvalue()


def _range(normalisation: Any) -> float:
    low, high = normalisation.undo(np.array([0.0, 1.0], np.float32))
    return float(high) - float(low)


def _plain(value: Any) -> Any:
    """A record of the imaging steps as JSON holds it."""
    if hasattr(value, "as_dict"):
        return _plain(value.as_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Modality | Path) else value


def _attempt(task: _Task, tell: Tell) -> _Outcome:
    begun = time.perf_counter()
    try:
        record = prepare_subject(task)
        return _Outcome(task.subject, record, seconds=time.perf_counter() - begun)
    except CodeBrainError as error:
        name = f"{error.file.name}: " if error.file is not None else ""
        facts = f" (found {error.found})" if error.found is not None else ""
        return _Outcome(task.subject, code=error.code, message=f"{name}{error.message}{facts}")
    except MemoryError:
        return _Outcome(task.subject, code="ENV_MEMORY", message="there was not enough memory")
    except Exception as error:
        _log.exception("preparing %s failed", task.subject.subject)
        return _Outcome(task.subject, code="ENV_WORKER", message=f"a bug of ours: {type(error).__name__}")


def _died(task: _Task, error: CodeBrainError) -> _Outcome:
    return _Outcome(task.subject, code=error.code, message=error.message)


def _reported(outcomes: Iterable[_Outcome], total: int, progress: Progress | None) -> list[_Outcome]:
    """Collect the outcomes; an output that cannot be written stops the work, as it would for every study."""
    collected = []
    for outcome in outcomes:
        if outcome.code.startswith("OUT_"):
            raise refusal(outcome.code, outcome.message, hint="What is finished is kept for --resume.")
        collected.append(outcome)
        level = logging.WARNING if outcome.code in LOST else logging.INFO
        _log.log(level, "%s: %s", outcome.subject.subject, outcome.message or "prepared")
        if progress is not None:
            progress(len(collected), total, outcome.subject.subject)
    return collected


# The table of contents


def _settle(outcomes: list[_Outcome], found: Found) -> tuple[tuple[SubjectRecord, ...], tuple[SubjectRow, ...]]:
    """Records of the prepared subjects and a row for every one, both in the order of names.

    The same file under two patients would put one person in two splits; the second is refused.
    """
    owner: dict[str, SubjectRecord] = {}
    records: list[SubjectRecord] = []
    rows = [SubjectRow(p.subject, p.patient, p.status, p.code, p.message) for p in found.passed_over]
    for outcome in sorted(outcomes, key=lambda done: done.subject.subject):
        record, name, patient = outcome.record, outcome.subject.subject, outcome.subject.patient
        if record is None:
            rows.append(SubjectRow(name, patient, "refused", outcome.code, outcome.message))
            continue
        others = [owner.setdefault(facts["sha256"], record) for facts in record.inputs.values()]
        twin = next((other for other in others if other.patient != patient), None)
        if twin is not None:
            message = f"a file is the same as one of {twin.subject}, which belongs to another patient"
            rows.append(SubjectRow(name, patient, "refused", "DATA_DUPLICATE", message))
            continue
        records.append(record)
        rows.append(SubjectRow(name, patient, "prepared"))
    return tuple(records), tuple(sorted(rows, key=lambda row: row.subject))


def _divided(records: Sequence[SubjectRecord], found: Found, division: Division) -> Splits:
    """Divide the prepared studies, and say what is odd about it."""
    if not records:
        raise refusal(
            "DATA_EMPTY", "no study could be prepared", found=f"{len(found.subjects)} refused",
            hint="subjects.tsv in the output folder says why for each.",
        )  # fmt: skip
    splits = division.divide({record.subject: record.patient for record in records})
    if splits.several:
        shown = ", ".join(f"{patient} ({' and '.join(where)})" for patient, where in splits.several.items())
        _log.warning("patients in more than one split, as published: %s", shown)
    missing = sum(one.status == "missing" for one in found.passed_over)
    if missing:
        _log.warning("%d listed studies are not in the source; subjects.tsv names them", missing)
    return splits


def _manifest(
    protocol: Protocol,
    facts: Mapping[str, Any],
    splits: Splits,
    rows: Sequence[SubjectRow],
    records: tuple[SubjectRecord, ...],
) -> Manifest:
    trained = [record for record in records if splits.of_subject[record.subject] == "train"]
    scale = scale_of(trained, protocol.preparation.modalities.members)
    return Manifest(
        preparation=replace(protocol.preparation, intensity_scale=scale, domain=domain_of(trained)),
        splits=splits.as_dict(),
        rows=tuple(replace(row, split=splits.of_subject.get(row.subject, "")) for row in rows),
        records=records,
        created_by=f"codebrain {codebrain.__version__}",
        align=protocol.align,
        protocol=facts,
    )


def _patients(subjects: Iterable[SubjectFiles]) -> dict[str, str]:
    return {subject.subject: subject.patient for subject in subjects}


# The output folder


def _check_target(target: Path, sources: Sequence[Path], *, resume: bool, overwrite: bool) -> None:
    place = target.resolve()
    for source in sources:
        root = Path(source).resolve()
        if place == root or root in place.parents or place in root.parents:
            raise refusal(
                "OUT_CLOBBER", "the slice store and the source lie inside one another", file=target,
                hint="Choose an output folder beside the source.",
            )  # fmt: skip
    if ((resume or overwrite) and target.is_dir()) or not target.exists():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise refusal(
            "OUT_EXISTS", "the output folder is not empty", file=target,
            hint="Use --resume to finish or extend a slice store, --overwrite to make it anew.",
        )  # fmt: skip


def _make_folders(target: Path) -> None:
    for folder in (target, target / "slices"):
        ensure_folder(folder)


def _sweep(target: Path) -> None:
    """Remove what killed workers left half-written."""
    for folder in (target, target / "slices", target / PICTURES):
        if folder.is_dir():
            sweep_temporaries(folder)


def _remove_strangers(target: Path, records: Sequence[SubjectRecord]) -> None:
    """After ``overwrite``: drop the files of subjects that the earlier store had and this one has not."""
    ours = {f"{r.subject}{tail}" for r in records for tail in (".npy", "-brain.npy", ".json")}
    ours |= {f"{r.subject}.jpg" for r in records if r.alignment.get("moved")}
    for path in [*(target / "slices").iterdir(), *(target / PICTURES).glob("*.jpg")]:
        if path.name not in ours and path.suffix in (".npy", ".json", ".jpg"):
            path.unlink()
