"""Raw studies to a slice store: one worker process per study, resumable, one bad study never stops the rest.

The steps of a study are those of :func:`codebrain.imaging.prepared.prepare_study`, which imputation uses too.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.lib.format import write_array
from numpy.typing import NDArray

import codebrain
from codebrain.data.isolated import Tell, isolated
from codebrain.data.manifest import SCHEMA_VERSION, Manifest, SubjectRecord, SubjectRow, domain_of, files_of, scale_of
from codebrain.data.slices import FULL_SCALE
from codebrain.data.sources import Found, SubjectFiles, find_subjects
from codebrain.data.splits import Splits, split_patients
from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging.domain import training_domain
from codebrain.imaging.prepared import PreparedStudy, prepare_study
from codebrain.imaging.safe_files import (
    FolderLock,
    output_refusal,
    sha256_bytes,
    sha256_file,
    sweep_temporaries,
    write_bytes,
    write_json,
    write_text,
)
from codebrain.imaging.study import Study
from codebrain.vocabulary import Modality, Preparation, TrainingDomain

_log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""``progress(done, total, subject)``."""

_COLUMNS = (
    "subject patient split status code message contrasts slices height width foreground reference moved heads notices"
)


@dataclass(frozen=True)
class _Task:
    subject: SubjectFiles
    preparation: Preparation
    align: Literal["auto", "none"]
    store: Path
    resume: bool


@dataclass(frozen=True)
class _Outcome:
    """What a worker hands back: a record, or why there is none."""

    subject: SubjectFiles
    record: SubjectRecord | None = None
    code: str = ""
    message: str = ""


def prepare_folder(
    source: Path | Sequence[Path],
    target: Path,
    *,
    preparation: Preparation | None = None,
    align: Literal["auto", "none"] = "auto",
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
    return prepare_store(
        find_subjects(source), target, sources=[Path(source)] if isinstance(source, Path | str) else source,
        preparation=preparation, align=align, seed=seed, val=val, test=test, jobs=jobs, resume=resume,
        overwrite=overwrite, progress=progress,
    )  # fmt: skip


def prepare_store(
    found: Found,
    target: Path,
    *,
    sources: Sequence[Path] = (),
    preparation: Preparation | None = None,
    align: Literal["auto", "none"] = "auto",
    seed: int = 0,
    val: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    jobs: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make a slice store.

    Splits are drawn over the patients that could be prepared. The manifest is written last: a store that was
    cut short has none, and is finished with ``resume``.

    Args:
        found: the studies.
        target: folder of the store; made when its parent exists.
        sources: the folders that were searched; the store may not lie inside them.
        preparation: by default that of the contrasts that occur.
        align: how contrasts on different grids are treated.
        seed: of the split.
        val: patients or subjects for validation; empty for none; ``None`` draws them.
        test: the same for test.
        jobs: worker processes at a time; 0 works in this process (then a crash of a study is ours). Workers
            are spawned, so a script that calls this needs ``if __name__ == "__main__"``.
        resume: keep subjects whose files, inputs and preparation are unchanged.
        overwrite: replace an earlier store.
        progress: told after each subject.

    Returns:
        The manifest, with a row for every study that was looked at.

    Raises:
        InputRefused: ``DATA_EMPTY`` when no study could be prepared, ``DATA_SPLIT`` when the patients cannot
            be divided.
        EnvironmentRefused: ``OUT_EXISTS``, ``OUT_CLOBBER``, ``OUT_PERMISSION``, ``OUT_SPACE``, ``LOCKED``.
    """
    preparation = preparation or Preparation(found.modalities)
    found = found.restricted_to(preparation.modalities)
    _check_target(target, sources, resume=resume, overwrite=overwrite)
    # Wrong names are refused now and not after hours of work.
    split_patients(_patients(found.subjects), seed=seed, val=val, test=test)
    _make_folders(target)
    with FolderLock(target):
        _sweep(target)
        tasks = [_Task(subject, preparation, align, target, resume) for subject in found.subjects]
        try:
            done = isolated(_attempt, tasks, jobs=jobs, died=_died)
            outcomes = _reported(done, len(tasks), progress)
        finally:
            _sweep(target)
        records, rows = _settle(outcomes, found)
        write_text(target / "subjects.tsv", _table(rows, records))
        splits = _split(records, found, seed=seed, val=val, test=test)
        manifest = _manifest(preparation, align, splits, rows, records)
        write_text(target / "subjects.tsv", _table(manifest.rows, records))
        write_json(target / "manifest.json", manifest.as_dict())
        if overwrite:
            _remove_strangers(target, records)
    return manifest


def prepare_subject(task: _Task) -> SubjectRecord:
    """Prepare and store one study, or find that this was done before.

    Raises:
        CodeBrainError: whatever is wrong with the study or with the place to write to.
    """
    subject = task.subject
    inputs = {str(m): {"file": subject.relative(m), "sha256": sha256_file(path)} for m, path in subject.files.items()}
    digest = _digest(task, inputs)
    if task.resume and (record := _finished(task, digest)) is not None:
        return replace(record, patient=subject.patient, inputs=inputs)
    study = Study.read(dict(subject.files), name=subject.subject)
    prepared = prepare_study(study, task.preparation, align=task.align)
    return _store(task, prepared, inputs, digest, domain=training_domain(study.volumes.values()))


def _digest(task: _Task, inputs: Mapping[str, Mapping[str, str]]) -> str:
    parts = {
        "schema": SCHEMA_VERSION,
        "version": codebrain.__version__,
        "preparation": replace(task.preparation, intensity_scale={}, domain=None).to_json(),
        "align": task.align,
        "inputs": {m: facts["sha256"] for m, facts in inputs.items()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(task: _Task, digest: str) -> SubjectRecord | None:
    """The record of an earlier run, when it is of the same task and its files are intact."""
    path = task.store / "slices" / f"{task.subject.subject}.json"
    try:
        record = SubjectRecord.from_dict(json.loads(path.read_text(encoding="utf-8")))
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
    """Write slices, mask and record; an older manifest goes first, because it describes older files."""
    (task.store / "manifest.json").unlink(missing_ok=True)
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
        alignment=_plain(prepared.alignment),
        reference=str(prepared.reference_modality),
        inputs=inputs,
        task=digest,
        slices_sha256=sha256_bytes(slices),
        slices_bytes=len(slices),
        brain_sha256=sha256_bytes(brain),
        brain_bytes=len(brain),
        notices=tuple(replace(notice, file=Path(notice.file).name) for notice in prepared.notices),
        domain=domain,
    )
    for (path, _, _), content in zip(files_of(task.store, record), (slices, brain), strict=True):
        write_bytes(path, content)
    write_json(task.store / "slices" / f"{record.subject}.json", record.as_dict())
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
    try:
        return _Outcome(task.subject, prepare_subject(task))
    except CodeBrainError as error:
        name = f"{error.file.name}: " if error.file is not None else ""
        facts = f" (found {error.found})" if error.found is not None else ""
        return _Outcome(task.subject, code=error.code, message=f"{name}{error.message}{facts}")
    except MemoryError:
        return _Outcome(task.subject, code="ENV_MEMORY", message="there was not enough memory")
    except Exception as error:
        _log.exception("preparing %s failed", task.subject.subject)
        return _Outcome(task.subject, code="ENV_WORKER", message=f"a bug of ours: {type(error).__name__}")


def _died(task: _Task, status: int | None) -> _Outcome:
    why = " (killed: not enough memory?)" if status == -9 else ""
    message = f"the worker process ended with status {status}{why}"
    return _Outcome(task.subject, code="ENV_WORKER", message=message)


def _reported(outcomes: Iterable[_Outcome], total: int, progress: Progress | None) -> list[_Outcome]:
    """Collect the outcomes; an output that cannot be written stops the work, as it would for every study."""
    collected = []
    for outcome in outcomes:
        if outcome.code.startswith("OUT_"):
            raise refusal(outcome.code, outcome.message, hint="What is finished is kept for --resume.")
        collected.append(outcome)
        _log.info("%s: %s", outcome.subject.subject, outcome.message or "prepared")
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
    rows = [SubjectRow(p.subject, "", p.status, p.code, p.message) for p in found.passed_over]
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


def _split(
    records: Sequence[SubjectRecord],
    found: Found,
    *,
    seed: int,
    val: Sequence[str] | None,
    test: Sequence[str] | None,
) -> Splits:
    """Divide the prepared patients; of those asked for by name, at least one must have been prepared."""
    if not records:
        raise refusal(
            "DATA_EMPTY", "no study could be prepared", found=f"{len(found.subjects)} refused",
            hint="subjects.tsv in the output folder says why for each.",
        )  # fmt: skip
    patients = {record.subject: record.patient for record in records}
    known = set(patients) | set(patients.values())
    asked = {"val": val, "test": test}
    kept = {split: None if ids is None else [i for i in ids if i in known] for split, ids in asked.items()}
    for split, ids in asked.items():
        if ids and not kept[split]:
            raise refusal(
                "DATA_SPLIT", f"every study asked for in {split} was refused", field=split,
                found=", ".join(ids),
                hint="subjects.tsv in the output folder says why.",
            )  # fmt: skip
    return split_patients(patients, seed=seed, val=kept["val"], test=kept["test"])


def _manifest(
    preparation: Preparation,
    align: str,
    splits: Splits,
    rows: Sequence[SubjectRow],
    records: tuple[SubjectRecord, ...],
) -> Manifest:
    trained = [record for record in records if splits.of_subject[record.subject] == "train"]
    scale = scale_of(trained, preparation.modalities.members)
    return Manifest(
        preparation=replace(preparation, intensity_scale=scale, domain=domain_of(trained)),
        splits=splits.as_dict(),
        rows=tuple(replace(row, split=splits.of_subject.get(row.subject, "")) for row in rows),
        records=records,
        created_by=f"codebrain {codebrain.__version__}",
        align=align,
    )


def _table(rows: Sequence[SubjectRow], records: Sequence[SubjectRecord]) -> str:
    """One line per study for people: what became of it, and how it was aligned."""
    by_name = {record.subject: record for record in records}
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS.split(), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        line = asdict(row) | _facts(by_name.get(row.subject))
        writer.writerow({key: " ".join(str(value).split()) for key, value in line.items()})
    return stream.getvalue()


def _facts(record: SubjectRecord | None) -> dict[str, Any]:
    if record is None:
        return {}
    return {
        "contrasts": ",".join(record.inputs),
        "slices": record.shape[0],
        "height": record.shape[2],
        "width": record.shape[3],
        "foreground": f"{record.foreground_fraction:.3f}",
        "reference": record.reference,
        "moved": ",".join(record.alignment.get("moved", {})),
        "heads": ",".join(record.domain.heads) if record.domain else "",
        "notices": ",".join(notice.code for notice in record.notices),
    }


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
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise output_refusal(error, folder) from error


def _sweep(target: Path) -> None:
    """Remove what killed workers left half-written."""
    for folder in (target, target / "slices"):
        sweep_temporaries(folder)


def _remove_strangers(target: Path, records: Sequence[SubjectRecord]) -> None:
    """After ``overwrite``: drop the files of subjects that the earlier store had and this one has not."""
    ours = {f"{r.subject}{tail}" for r in records for tail in (".npy", "-brain.npy", ".json")}
    for path in (target / "slices").iterdir():
        if path.name not in ours and path.suffix in (".npy", ".json"):
            path.unlink()
