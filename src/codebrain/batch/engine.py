"""A batch: studies to an output folder, by workers that keep the model."""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import codebrain
from codebrain import output
from codebrain.batch.folder import BAD, FILES, RECORD, BatchFolder, StudyRecord, task_digest
from codebrain.batch.layouts import BatchStudy, Layout
from codebrain.data.crew import Job, crew
from codebrain.data.isolated import LOST, Tell
from codebrain.errors import CodeBrainError, Notice, as_refusal, refusal
from codebrain.faults import fault
from codebrain.imaging import safe_files
from codebrain.machine import IDLE_S, STUDY_TIMEOUT_S, allotted_cores, default_threads, memory_limit
from codebrain.models import model_facts
from codebrain.plan import check_targets
from codebrain.vocabulary import Modality

if TYPE_CHECKING:
    from codebrain.impute import Imputer
    from codebrain.results import Imputation

_log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""``progress(done, total, note)``."""

_WORKER_BYTES = 3 << 30
"""Of a worker at a whole head of 256 x 256 x 256 voxels, with room to spare."""

COLUMNS = ("study", "status", "code", "message", "given", "imputed", "doubt", "seconds", "report")


@dataclass(frozen=True)
class BatchSettings:
    """What every study of a batch has in common.

    Attributes:
        model: a bundled name or a model folder.
        want: contrasts to impute where they are missing; all that the model knows by default.
        align: ``auto`` registers contrasts on different grids, ``none`` refuses them.
        intensity: ``scanner`` or ``unit``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        engine: ``auto``, ``torch``, ``openvino`` or ``onnx``.
        device: where to compute.
        threads: CPU threads of each worker; by default the allotted cores, shared out.
    """

    model: str = "starter"
    want: tuple[Modality, ...] | None = None
    align: Literal["auto", "none"] = "auto"
    intensity: Literal["scanner", "unit"] = "scanner"
    precision: str = "auto"
    engine: str = "auto"
    device: str = "auto"
    threads: int | None = None

    def decisive(self) -> dict[str, Any]:
        """What decides the results; not where and how fast they are computed."""
        return {"want": None if self.want is None else [str(m) for m in self.want], "align": self.align,
                "intensity": self.intensity, "precision": self.precision, "engine": self.engine}  # fmt: skip


@dataclass(frozen=True)
class BatchResult:
    """What became of the studies of this batch.

    Attributes:
        records: one for each study that was asked for, in that order; fewer when it was interrupted.
        kept: names of those that were finished before.
        notices: of the output folder.
    """

    records: tuple[StudyRecord, ...]
    kept: frozenset[str]
    notices: tuple[Notice, ...] = ()

    @property
    def bad(self) -> tuple[StudyRecord, ...]:
        """The studies that were refused or failed."""
        return tuple(record for record in self.records if record.status in BAD)


@dataclass(frozen=True)
class _Task:
    study: BatchStudy
    settings: BatchSettings
    digest_settings: Mapping[str, Any]
    layout: Layout
    stage: Path


@dataclass(frozen=True)
class _Outcome:
    record: StudyRecord
    stage: Path | None = None


def default_jobs() -> int:
    """Workers that cores and memory allow: one core computes a slice about as fast as several."""
    limit = memory_limit()
    by_memory = allotted_cores() if limit is None else max(1, limit // _WORKER_BYTES)
    return int(min(allotted_cores(), by_memory))


def run_batch(
    studies: Sequence[BatchStudy],
    out: Path | str,
    *,
    settings: BatchSettings,
    layout: Layout,
    jobs: int | None = None,
    study_timeout_s: float | None = STUDY_TIMEOUT_S,
    overwrite: bool = False,
    sources: Sequence[Path] = (),
    prepare: Callable[[Path], None] = lambda folder: None,
    progress: Progress | None = None,
) -> BatchResult:
    """Impute what is missing in every study.

    Args:
        studies: what to do.
        out: the output folder.
        settings: how.
        layout: how results are named.
        jobs: worker processes; by default what cores and memory allow, 0 works in this process. Workers are spawned,
            so a script that calls this needs ``if __name__ == "__main__"``.
        study_timeout_s: how long a worker may say nothing before it is ended and its study counts as failed
            (``ENV_TIMEOUT``); one that does nothing at all is ended after ``IDLE_S``. Not without workers.
        overwrite: make again what was made with other settings.
        sources: folders of raw data, in which no result may lie.
        prepare: called with the locked output folder before the work.
        progress: told about studies and slices.

    Raises:
        EnvironmentRefused: ``LOCKED``, ``OUT_*`` (also during the work: a full disk stops every study), ``ENV_GPU``,
            ``ENV_WORKER`` and ``ENV_TIMEOUT`` when a worker ended or hung before its first study, or too many did in
            a row.
        ModelRefused: as :func:`codebrain.models.load_model`.
        InputRefused: ``MOD_TARGET_UNKNOWN``.
    """
    name, sha256, modalities = model_facts(settings.model)
    check_targets(settings.want or (), modalities)
    decisive = {"layout": layout.name, "model": name, "model_sha256": sha256, "codebrain": codebrain.__version__,
                **settings.decisive()}  # fmt: skip
    workers = default_jobs() if jobs is None else jobs
    studies = _without_collisions(studies)
    need = sum(_need_bytes(study) for study in studies[: max(workers, 1)])
    with BatchFolder(out, settings=decisive, overwrite=overwrite, sources=sources, need_bytes=need) as folder:
        prepare(folder.path)
        batch = _Batch(folder, studies, layout, progress)
        todo = batch.sift(workers)
        shared = settings if settings.threads else replace(settings, threads=_share(workers))
        tasks = [_Task(study, shared, folder.settings, layout, folder.state) for study in todo]
        try:
            job = Job(_Begin(shared), _attempt, _died)
            for outcome in crew(job, tasks, jobs=workers, told=batch.told, patience_s=study_timeout_s, idle_s=IDLE_S):
                batch.settle(outcome)
        finally:
            batch.write_table()
    return BatchResult(batch.records(), frozenset(batch.kept), folder.notices)


def _share(workers: int) -> int:
    return max(1, default_threads() // max(1, workers))


def _need_bytes(study: BatchStudy) -> int:
    sizes = [path.stat().st_size for path in study.files.values() if path.is_file()]
    return 4 * max(sizes, default=0) + 2**23


def _without_collisions(studies: Sequence[BatchStudy]) -> list[BatchStudy]:
    """Names that differ in case only, or that files cannot have, are refused: they are one file on many systems."""
    taken: set[str] = set()
    checked: list[BatchStudy] = []
    for study in studies:
        problem: CodeBrainError | None = None
        if study.name.casefold() in taken:
            problem = refusal("OUT_NAME", "another study has this name, perhaps in another case", found=study.name,
                              hint="Rename one of them.")  # fmt: skip
        taken.add(study.name.casefold())
        try:
            output.check_stem(study.name)
        except CodeBrainError as error:
            problem = error
        checked.append(study if problem is None else replace(study, refused=problem))
    return checked


class _Batch:
    """The studies of one batch and what has become of them."""

    def __init__(
        self, folder: BatchFolder, studies: Sequence[BatchStudy], layout: Layout, progress: Progress | None
    ) -> None:
        self.folder = folder
        self.studies = studies
        self.layout = layout
        self.kept: set[str] = set()
        self._progress = progress
        self._settled: dict[str, StudyRecord] = {}

    def sift(self, workers: int) -> list[BatchStudy]:
        """Those that are left to do; the others are settled."""
        usable = [study for study in self.studies if study.refused is None]
        for study in self.studies:
            if study.refused is not None:
                record = _bad(study, study.refused)
                self._settled[study.name] = record if record.code == "OUT_NAME" else self.folder.note(record)
        known = [study for study in usable if study.name in self.folder.records]
        pool = ThreadPoolExecutor(max(1, workers))  # hashing leaves the interpreter free
        try:
            for study, is_whole in zip(known, pool.map(self._finished, known), strict=True):
                if is_whole:
                    self.kept.add(study.name)
                    self._settled[study.name] = self.folder.records[study.name]
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt does not wait for a thousand hashes
        self._tell("")  # the time that is left is reckoned from here
        return [study for study in usable if study.name not in self.kept]

    def _finished(self, study: BatchStudy) -> bool:
        return self.folder.finished(study.name, {str(m): path for m, path in study.files.items()})

    def settle(self, outcome: _Outcome) -> None:
        """Commit what a worker has done; an output that cannot be written stops the batch."""
        record = outcome.record
        if record.code.startswith("OUT_") and record.code != "OUT_NAME":
            raise refusal(record.code, record.message, hint="What is finished is kept for the next run.")
        if outcome.stage is not None:
            self.folder.commit(outcome.stage, record)
        else:
            record = self.folder.note(record)
        level = logging.WARNING if record.code in LOST else logging.INFO  # at once, not with the sum at the end
        _log.log(level, "%s: %s", record.study, record.message or record.status)
        self._settled[record.study] = record
        self._tell(record.study)

    def told(self, task: _Task, message: tuple[int, int]) -> None:
        """A worker says how far it is with a study."""
        self._tell(f"{task.study.name} slice {message[0]} of {message[1]}")

    def _tell(self, note: str) -> None:
        if self._progress is not None:
            self._progress(len(self._settled), len(self.studies), note)

    def records(self) -> tuple[StudyRecord, ...]:
        """What has become of the studies so far, in their order."""
        return tuple(self._settled[study.name] for study in self.studies if study.name in self._settled)

    def write_table(self) -> None:
        """A line for every study in the folder, also of earlier batches."""
        if self.layout.table is None:
            return
        fault("batch.table")
        path = self.folder.path / self.layout.table
        path.parent.mkdir(exist_ok=True)
        safe_files.sweep_temporaries(path.parent, alone=True)
        safe_files.write_text(path, table(self.folder.records[name] for name in sorted(self.folder.records)))


def table(records: Iterator[StudyRecord] | Sequence[StudyRecord]) -> str:
    """Tab-separated, one line for each study."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        facts = record.facts
        writer.writerow([
            record.study, record.status, record.code or "n/a", record.message or "n/a",
            ",".join(facts.get("given", ())) or "n/a", ",".join(facts.get("imputed", ())) or "n/a",
            _number(facts.get("doubt"), 3), _number(facts.get("seconds"), 1), facts.get("report") or "n/a",
        ])  # fmt: skip
    return stream.getvalue()


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


# In a worker


@dataclass(frozen=True)
class _Begin:
    settings: BatchSettings

    def __call__(self, slot: int) -> Imputer:
        from codebrain.impute import Imputer

        one = self.settings
        return Imputer.from_pretrained(
            one.model, device=one.device, threads=one.threads, precision=one.precision, engine=one.engine
        )


def _attempt(imputer: Imputer, task: _Task, tell: Tell) -> _Outcome:
    """One study; whatever goes wrong with it becomes its record."""
    stage = task.stage / safe_files.temporary_name(task.study.name)
    try:
        return _impute(imputer, task, stage, tell)
    except Exception as error:
        shutil.rmtree(stage, ignore_errors=True)
        known = as_refusal(error)
        if known is None and isinstance(error, OSError):
            known = safe_files.output_refusal(error, task.stage)
        if known is None:
            _log.debug("imputing %s failed", task.study.name, exc_info=True)
            known = refusal("ENV_WORKER", f"a bug of ours: {type(error).__name__}")
        return _Outcome(_bad(task.study, known))


def _impute(imputer: Imputer, task: _Task, stage: Path, tell: Tell) -> _Outcome:
    study, settings = task.study, task.settings
    given = [m for m in study.files if m in imputer.modalities]
    wanted = imputer.modalities if settings.want is None else settings.want
    missing = [m for m in wanted if m not in study.files]
    if not given:
        found = ", ".join(study.files) or "no anatomical scan"
        return _Outcome(StudyRecord(study.name, "skipped", "MOD_NONE", f"nothing to impute from: {found}"))
    task.layout.check(study)
    if not missing:
        digest, inputs = _inputs(study, {m: safe_files.sha256_file(path) for m, path in study.files.items()}, task)
        return _Outcome(StudyRecord(study.name, "nothing", task=digest, inputs=inputs))
    fault("batch.begin")
    result = imputer(
        study.files, missing, name=study.name, align=settings.align, intensity=settings.intensity,
        advance=lambda done, total, note: tell((done, total)),
    )  # fmt: skip
    notices = (*study.notices, *result.notices)
    warnings = [notice.as_dict() for notice in notices]
    result = replace(result, notices=notices, record={**result.record, "warnings": warnings})
    (stage / FILES).mkdir(parents=True)
    report = task.layout.write(study, result, stage / FILES)
    read = {Modality.parse(row["contrast"]): str(row["sha256"]) for row in result.record["inputs"]}
    digest, inputs = _inputs(study, read, task)
    record = StudyRecord(study.name, "done", task=digest, inputs=inputs, outputs=_outputs(stage / FILES),
                         facts=_facts(result, report))  # fmt: skip
    safe_files.write_json(stage / RECORD, record.as_dict())
    fault("batch.staged")
    return _Outcome(record, stage)


def _inputs(study: BatchStudy, hashes: Mapping[Modality, str], task: _Task) -> tuple[str, dict[str, dict[str, str]]]:
    digest = task_digest({str(m): sha for m, sha in hashes.items()}, task.digest_settings)
    return digest, {str(m): {"file": study.shown[m], "sha256": sha} for m, sha in hashes.items()}


def _outputs(files: Path) -> list[dict[str, Any]]:
    """Every file below ``files``, hashed; their folders are forced to disk too."""
    for folder in [files, *(path for path in files.rglob("*") if path.is_dir())]:
        safe_files.fsync_path(folder)
    return [
        {"file": path.relative_to(files).as_posix(), "sha256": safe_files.sha256_file(path),
         "bytes": path.stat().st_size}
        for path in sorted(files.rglob("*")) if path.is_file()
    ]  # fmt: skip


def _facts(result: Imputation, report: str | None) -> dict[str, Any]:
    doubt = result.record["uncertainty"]
    return {
        "given": [str(m) for m in result.given],
        "imputed": [str(m) for m in result.contrasts],
        "doubt": None if doubt is None else doubt["score"],
        "low_confidence": result.low_confidence,
        "seconds": round(sum(result.record["seconds"].values()), 2),
        "warnings": result.record["warnings"],
        "enhancement": result.record["enhancement"],
        "model": result.record["model"],
        "report": report,
    }  # fmt: skip


def _bad(study: BatchStudy, error: CodeBrainError) -> StudyRecord:
    """The record of a study that cannot be done: refused when the study must be mended, else failed."""
    named = f"{error.file.name}: " if error.file is not None else ""
    status: Any = "refused" if error.exit_code in (2, 3) or error.code == "OUT_NAME" else "failed"
    return StudyRecord(study.name, status, error.code, f"{named}{error.brief}")


def _died(task: _Task, error: CodeBrainError) -> _Outcome:
    return _Outcome(StudyRecord(task.study.name, "failed", error.code, error.message))
