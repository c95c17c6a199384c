"""The folder that a batch fills: one taker at a time, every study whole or absent, finished work known by its record.

Inside the output folder lies a hidden one::

    .codebrain/batch.json          settings and model of everything here
    .codebrain/records/<study>.json  what became of a study: hashes of what was read and written, settings, model
    .codebrain/ready/<study>/      a finished study whose files are just taking their names
    .codebrain/.<study>.tmp-...    a study that a worker is filling

A worker fills a hidden folder. This process moves it to ``ready`` in one rename, gives every file its name in one
rename each, and moves the record last. Killed between these, the next start finishes what is in ``ready``; killed
before, the study was never there. Workers name nothing themselves, so one that outlives a killed parent for a moment
can do no harm.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from codebrain import output
from codebrain.errors import CodeBrainError, Notice, refusal
from codebrain.faults import fault
from codebrain.imaging import safe_files
from codebrain.parsing import require_types

STATE = ".codebrain"
FILES, RECORD = "files", "record.json"  # inside the folder that a worker fills
_RECORDS, _READY, _BATCH = "records", "ready", "batch.json"
SCHEMA = 1

Status = Literal["done", "nothing", "skipped", "refused", "failed"]
FINISHED = ("done", "nothing")
BAD = ("refused", "failed")


@dataclass(frozen=True)
class StudyRecord:
    """What became of a study.

    Attributes:
        study: its name.
        status: ``done``; ``nothing`` was missing; ``skipped``, nothing to impute from; ``refused``, the study must be
            mended; ``failed``, the machine or a bug of ours.
        code: of a refusal or failure.
        message: the sentence, without folders.
        task: digest of everything that decides the results; empty unless finished.
        inputs: file (relative to the data set) and SHA-256 by contrast.
        outputs: ``file``, ``sha256`` and ``bytes`` of everything that was written.
        facts: for tables and pages: contrasts given and imputed, seconds, doubt, warnings, the report's file.
    """

    study: str
    status: Status
    code: str = ""
    message: str = ""
    task: str = ""
    inputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    outputs: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"schema": "codebrain batch study", "schema_version": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> StudyRecord | None:
        """Inverse of :meth:`as_dict`; ``None`` for what is no record of this version."""
        known = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
        if raw.get("schema_version") != SCHEMA or len(known) < len(cls.__dataclass_fields__):
            return None
        try:
            require_types(cls, known)
            require_types(StudyFacts, known["facts"])
            return cls(**known) if all(map(_is_output, known["outputs"])) else None
        except ValueError:
            return None


@dataclass(frozen=True)
class StudyFacts:
    """The types of what tables and pages read from ``facts``; each may be absent."""

    given: list[str] = field(default_factory=list)
    imputed: list[str] = field(default_factory=list)
    doubt: float | None = None
    seconds: float | None = None
    warnings: list[dict[str, Any]] = field(default_factory=list)
    enhancement: str | None = None
    model: dict[str, Any] | None = None
    report: str | None = None


def _is_output(row: Mapping[str, Any]) -> bool:
    """Whether a row names a file inside the folder, and its hash."""
    name = row.get("file")
    if not isinstance(name, str) or not isinstance(row.get("sha256"), str) or "\0" in name:
        return False
    return Path(name).name != "" and not Path(name).is_absolute() and ".." not in Path(name).parts


def task_digest(inputs: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """SHA-256 over the SHA-256 of every input and the settings."""
    parts = {"schema": SCHEMA, "inputs": dict(inputs), "settings": dict(settings)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def read_records(folder: Path) -> list[StudyRecord]:
    """What became of every study in a batch's folder, in the order of names."""
    found = []
    for path in sorted((folder / STATE / _RECORDS).glob("*.json")):
        record = StudyRecord.from_dict(output.read_json(path))
        if record is not None and record.study == path.stem:
            found.append(record)
    return found


def forget(folder: Path) -> None:
    """Remove the records of a finished batch; its results stay, and the next batch knows nothing of them."""
    shutil.rmtree(folder / STATE, ignore_errors=True)


class BatchFolder:
    """An output folder of a batch, locked; use as a context manager around the whole batch.

    Args:
        path: made when it does not exist (its parent must).
        settings: of the batch, with model and version; recorded, and compared with what is here.
        overwrite: do again what was done with other settings.
        sources: folders that were given as raw data.
        need_bytes: an upper estimate of what will be written.

    Attributes:
        records: of every study here, by name.
        notices: what was noticed on taking the folder.

    Raises:
        EnvironmentRefused: ``LOCKED``, ``OUT_EXISTS`` (other settings, or files that are not a batch's),
            ``OUT_CLOBBER``, ``OUT_PERMISSION``, ``OUT_SPACE``; on entering, before any work.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        sources: Iterable[Path] = (),
        need_bytes: int = 0,
    ) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(dict(settings), default=str))
        self.overwrite = overwrite
        self.sources = tuple(sources)
        self.need_bytes = need_bytes
        self.records: dict[str, StudyRecord] = {}
        self.notices: tuple[Notice, ...] = ()
        self._exits = contextlib.ExitStack()

    @property
    def state(self) -> Path:
        """The hidden folder; workers fill folders in it."""
        return self.path / STATE

    def __enter__(self) -> Self:
        output.refuse_raw_data(self.path, sources=self.sources)
        with contextlib.ExitStack() as exits:
            if output.make_folder(self.path):
                exits.callback(self._remove_empty)
            lock = exits.enter_context(safe_files.FolderLock(self.path))
            self.notices = lock.notices
            self._refuse_other_settings()
            try:
                self._open()
            except OSError as error:
                raise safe_files.output_refusal(error, self.path) from error
            exits.callback(self._leave)
            output.refuse_full(self.path, self.need_bytes)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *failure: object) -> None:
        self._exits.close()

    def _open(self) -> None:
        for folder in (self.state, self.state / _RECORDS, self.state / _READY):
            folder.mkdir(exist_ok=True)
        for folder in (self.path, self.state, self.state / _RECORDS):
            safe_files.sweep_temporaries(folder, alone=True)
        self._roll_forward()
        safe_files.write_json(self.state / _BATCH, {"schema_version": SCHEMA, "settings": self.settings})
        self.records = {record.study: record for record in read_records(self.path)}

    def _refuse_other_settings(self) -> None:
        """What is here was made in the same way, or may be made again."""
        before = output.read_json(self.state / _BATCH).get("settings")
        if before is None or before == self.settings or self.overwrite:
            return
        differing = [key for key in {**before, **self.settings} if before.get(key) != self.settings.get(key)]
        raise refusal(
            "OUT_EXISTS", "the output folder holds results that were made in another way", file=self.path,
            field=", ".join(differing), found=", ".join(str(before.get(key)) for key in differing),
            expected=", ".join(str(self.settings.get(key)) for key in differing),
            hint="Choose another folder, or give --overwrite to make them again.",
        )  # fmt: skip

    def _leave(self) -> None:
        """What is ready takes its names even when the batch is interrupted; what was begun goes."""
        with contextlib.suppress(OSError):
            self._roll_forward()
            safe_files.sweep_temporaries(self.state, alone=True)

    def _remove_empty(self) -> None:
        """A new folder in which nothing was done goes again."""
        if self.records or any(not path.name.startswith(".") for path in self.path.iterdir()):
            return
        shutil.rmtree(self.state, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def commit(self, stage: Path, record: StudyRecord) -> None:
        """A study that a worker has filled takes its place.

        Raises:
            EnvironmentRefused: ``OUT_SPACE``, ``OUT_PERMISSION``; ``OUT_EXISTS`` where a file lies that no record of
                ours explains.
        """
        self._refuse_foreign(record)
        ready = self.state / _READY / record.study
        try:
            shutil.rmtree(ready, ignore_errors=True)
            stage.replace(ready)
            safe_files.fsync_path(ready.parent)
            fault("batch.ready")
            self._publish(ready, record)
        except OSError as error:
            raise safe_files.output_refusal(error, self.path) from error
        self.records[record.study] = record

    def _refuse_foreign(self, record: StudyRecord) -> None:
        older = self.records.get(record.study)
        if older is None and self._record_file(record.study).exists():
            return  # a damaged record of ours: what it was about is made again
        ours = {str(row["file"]) for row in older.outputs} if older is not None else set()
        names = (str(row["file"]) for row in record.outputs)
        foreign = next((name for name in names if name not in ours and (self.path / name).exists()), None)
        if foreign is not None and not self.overwrite:
            raise refusal(
                "OUT_EXISTS", "a file that this batch did not write is in the way", file=self.path / foreign,
                hint="Choose another folder, or give --overwrite to replace it.",
            )  # fmt: skip

    def _roll_forward(self) -> None:
        for ready in sorted((self.state / _READY).iterdir()):
            # A folder without its record lost it to the last step of an earlier commit.
            record = StudyRecord.from_dict(output.read_json(ready / RECORD))
            if record is not None:
                self._publish(ready, record)
                self.records[record.study] = record
            else:
                shutil.rmtree(ready, ignore_errors=True)

    def _publish(self, ready: Path, record: StudyRecord) -> None:
        """Give the files their names; may be done again from any point at which it was stopped."""
        older = self._older(record.study)
        touched = {self.path}
        for name in (str(row["file"]) for row in record.outputs):
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            touched |= {folder for folder in target.parents if folder.is_relative_to(self.path)}
            with contextlib.suppress(FileNotFoundError):  # it has its name already
                (ready / FILES / name).replace(target)
            fault("batch.publish.half")
        stale = {str(row["file"]) for row in older.outputs} if older is not None else set()
        for name in stale - {str(row["file"]) for row in record.outputs}:
            (self.path / name).unlink(missing_ok=True)
        for folder in touched:
            safe_files.fsync_path(folder)
        (ready / RECORD).replace(self._record_file(record.study))
        safe_files.fsync_path(self.state / _RECORDS)
        fault("batch.recorded")
        shutil.rmtree(ready, ignore_errors=True)

    def _older(self, study: str) -> StudyRecord | None:
        return StudyRecord.from_dict(output.read_json(self._record_file(study)))

    def _record_file(self, study: str) -> Path:
        return self.state / _RECORDS / f"{study}.json"

    def note(self, record: StudyRecord) -> StudyRecord:
        """Record a study without new results; results of an earlier run stay and stay known."""
        older = self.records.get(record.study)
        if older is not None and older.outputs:
            message = f"{record.message}; the results of an earlier run were kept".lstrip("; ")
            record = replace(record, message=message, outputs=older.outputs, facts=older.facts)
        safe_files.write_json(self._record_file(record.study), record.as_dict())
        self.records[record.study] = record
        return record

    def finished(self, study: str, files: Mapping[str, Path]) -> bool:
        """Whether the study was finished with these inputs and settings, and its results are whole.

        Everything is hashed; a file that only has the right name, size or date does not count.
        """
        record = self.records.get(study)
        if record is None or record.status not in FINISHED:
            return False
        try:
            inputs = {contrast: safe_files.sha256_file(path) for contrast, path in files.items()}
            if record.task != task_digest(inputs, self.settings):
                return False
            return all(safe_files.sha256_file(self.path / row["file"]) == row["sha256"] for row in record.outputs)
        except (OSError, CodeBrainError):
            return False
