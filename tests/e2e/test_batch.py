"""A batch of studies: nothing half, nothing twice, nothing stopped by one bad study; at every point a kill can fall on.

The studies are those of a folder layout; ``codebrain-bids`` and ``codebrain brasyn`` use the same engine.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

import scans
from codebrain import faults
from codebrain.batch.engine import BatchSettings, run_batch
from codebrain.batch.layouts import BatchStudy, FolderLayout
from codebrain.errors import CodeBrainError
from codebrain.imaging.safe_files import FolderLock
from codebrain.vocabulary import Modality

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "SimpleITK", "codebrain.impute", "codebrain.batch.engine"])


def studies_in(folder: Path) -> list[BatchStudy]:
    found = []
    for home in sorted(folder.iterdir()):
        files = {m: home / f"{m}.nii.gz" for m in Modality if (home / f"{m}.nii.gz").exists()}
        found.append(BatchStudy(home.name, files, {m: path.name for m, path in files.items()}))
    return found


@pytest.fixture
def raw(tmp_path):
    for name in ("a", "b", "c"):
        scans.write_study(tmp_path / "raw" / name, ("T1", "FLAIR"))
    return tmp_path / "raw"


@pytest.fixture
def batch(raw, tmp_path, tiny_model):
    """Run a batch over ``raw`` into ``out``, in this process unless ``jobs`` says otherwise."""

    def run(jobs=0, want=(Modality.T2,), model=tiny_model, **options):
        settings = BatchSettings(str(model), want, align="none")
        studies = options.pop("studies", None) or studies_in(raw)
        return run_batch(studies, tmp_path / "out", settings=settings, layout=FolderLayout(), jobs=jobs, **options)

    return run


def content(out: Path) -> dict[str, str]:
    """Hash of every image that has its name: equal images are equal files."""
    found = [path for path in out.rglob("*.nii.gz") if ".codebrain" not in path.parts]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def statuses(result):
    return {record.study: record.status for record in result.records}


def rows(out: Path):
    return list(csv.DictReader(io.StringIO((out / "studies.tsv").read_text()), delimiter="\t"))


def assert_clean(out: Path) -> None:
    """No stray temporary, no lock, nothing that waits to be published."""
    assert not [path for path in out.rglob("*") if ".tmp-" in path.name or path.name == FolderLock.NAME]
    assert list((out / ".codebrain" / "ready").iterdir()) == []


def test_a_whole_batch_and_a_second_run_that_repeats_nothing(batch, raw, tmp_path):
    told = []
    result = batch(progress=lambda *facts: told.append(facts))
    out = tmp_path / "out"
    assert statuses(result) == {"a": "done", "b": "done", "c": "done"} and not result.bad and not result.kept
    assert_clean(out)
    assert sorted(p.name for p in (out / "a").iterdir()) == [
        "a_T2_imputed.json", "a_T2_imputed.nii.gz", "a_T2_uncertainty.nii.gz", "figures", "preview.png", "report.html",
        "run.json",
    ]  # fmt: skip
    record = result.records[0]
    assert record.facts["given"] == ["T1", "FLAIR"] and record.facts["imputed"] == ["T2"]
    assert 0 < record.facts["doubt"] < 1 and record.facts["report"] == "a/report.html"
    for row in record.outputs:
        assert hashlib.sha256((out / row["file"]).read_bytes()).hexdigest() == row["sha256"]
    assert [(row["study"], row["status"], row["imputed"]) for row in rows(out)] == [
        ("a", "done", "T2"), ("b", "done", "T2"), ("c", "done", "T2"),
    ]  # fmt: skip
    assert told[-1][:2] == (3, 3) and any("slice" in note for _, _, note in told)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    again = batch()
    assert again.kept == {"a", "b", "c"} and statuses(again) == statuses(result)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")} == before


def test_what_changed_is_done_again_and_only_that(batch, raw, tmp_path):
    batch()
    out = tmp_path / "out"
    scans.write_scan(raw / "a" / "T1.nii.gz", 1.5 * scans.head("T1") + 7)  # another scan under the same name
    damaged = out / "b" / "b_T2_imputed.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-1])  # a result that somebody spoiled
    result = batch()
    assert result.kept == {"c"} and not result.bad
    record = next(record for record in result.records if record.study == "b")
    assert {row["file"]: row["sha256"] for row in record.outputs}["b/b_T2_imputed.nii.gz"] == content(out)[
        "b/b_T2_imputed.nii.gz"
    ]


def test_other_settings_are_refused_unless_they_may_replace(batch, tmp_path):
    batch()
    with pytest.raises(CodeBrainError) as caught:
        batch(want=(Modality.PD,))
    assert caught.value.code == "OUT_EXISTS" and "want" in str(caught.value)
    result = batch(want=(Modality.PD,), overwrite=True)
    assert not result.kept and sorted(content(tmp_path / "out")) == sorted(
        f"{name}/{name}_PD_{what}.nii.gz" for name in "abc" for what in ("imputed", "uncertainty")
    )
    with pytest.raises(CodeBrainError) as caught:
        batch(want=(Modality.T2,), model="no such model")
    assert caught.value.code == "CKPT_NONE"


def test_bad_studies_stop_no_other_and_are_tried_again(batch, raw, tmp_path):
    (raw / "b" / "T1.nii.gz").write_bytes(b"\x1f\x8b")
    scans.write_study(raw / "d", ("T2", "T1"))
    (raw / "e").mkdir()
    result = batch()
    assert statuses(result) == {"a": "done", "b": "refused", "c": "done", "d": "nothing", "e": "skipped"}
    assert [record.code for record in result.bad] == ["IN_TRUNCATED"]
    assert str(tmp_path) not in (tmp_path / "out" / "studies.tsv").read_text()
    assert not (tmp_path / "out" / "b").exists()
    assert_clean(tmp_path / "out")
    scans.write_scan(raw / "b" / "T1.nii.gz")
    again = batch()
    assert again.kept == {"a", "c", "d"} and statuses(again)["b"] == "done"


def test_a_failure_keeps_the_results_of_an_earlier_run(batch, raw, tmp_path):
    batch()
    before = content(tmp_path / "out")
    (raw / "b" / "T1.nii.gz").write_bytes(b"")
    result = batch()
    assert statuses(result)["b"] == "refused" and "earlier run were kept" in result.bad[0].message
    assert content(tmp_path / "out") == before


@pytest.mark.row("E10")
def test_names_that_would_be_one_file(batch, raw, tmp_path):
    files = studies_in(raw)[0].files
    studies = [BatchStudy(name, files, dict.fromkeys(files, "x")) for name in ("p1", "P1", "../up")]
    result = batch(studies=studies)
    assert [(r.study, r.status, r.code) for r in result.records] == [
        ("p1", "done", ""), ("P1", "refused", "OUT_NAME"), ("../up", "refused", "OUT_NAME"),
    ]  # fmt: skip
    assert not (tmp_path / "up").exists()


def test_files_of_others_are_not_replaced_unasked(batch, tmp_path):
    mine = tmp_path / "out" / "a" / "report.html"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(CodeBrainError) as caught:
        batch()
    assert caught.value.code == "OUT_EXISTS" and mine.read_text() == "mine"
    assert statuses(batch(overwrite=True))["a"] == "done" and mine.read_text() != "mine"


def test_an_output_among_the_raw_scans(batch, raw, tmp_path):
    with pytest.raises(CodeBrainError) as caught:
        batch(sources=[tmp_path])
    assert caught.value.code == "OUT_CLOBBER" and not (tmp_path / "out").exists()


def test_a_locked_folder(batch, tmp_path):
    (tmp_path / "out").mkdir()
    with FolderLock(tmp_path / "out"), pytest.raises(CodeBrainError) as caught:
        batch()
    assert (caught.value.code, caught.value.exit_code) == ("LOCKED", 4)


def test_a_full_disk_stops_the_batch_and_keeps_what_is_finished(batch, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEBRAIN_FAULT", "batch.begin:2:enospc")
    faults._visits.clear()
    with pytest.raises(CodeBrainError) as caught:
        batch()
    assert caught.value.code == "OUT_SPACE"
    assert [row["study"] for row in rows(tmp_path / "out")] == ["a"]
    monkeypatch.delenv("CODEBRAIN_FAULT")
    assert batch().kept == {"a"}


def _work(raw: Path, out: Path, model: Path, fault: str) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ["CODEBRAIN_FAULT"] = fault
    settings = BatchSettings(str(model), (Modality.T2,), align="none")
    run_batch(studies_in(raw), out, settings=settings, layout=FolderLayout(), jobs=0)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, tiny_model):
    """What a batch of ``raw`` that is never stopped gives."""
    root = tmp_path_factory.mktemp("whole")
    for name in ("a", "b", "c"):
        scans.write_study(root / "raw" / name, ("T1", "FLAIR"))
    settings = BatchSettings(str(tiny_model), (Modality.T2,), align="none")
    run_batch(studies_in(root / "raw"), root / "out", settings=settings, layout=FolderLayout(), jobs=0)
    return content(root / "out")


@pytest.mark.parametrize("point", faults.BATCH_POINTS)
def test_killed_at_any_point_the_next_run_completes_it(point, batch, raw, tmp_path, tiny_model, expected):
    out = tmp_path / "out"
    nth = {"batch.table": 1, "batch.publish.half": 13}.get(point, 2)
    process = _context.Process(target=_work, args=(raw, out, tiny_model, f"{point}:{nth}:kill9"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"{point} was never reached"
    whole = content(out)
    assert whole.items() <= expected.items()  # what has its name is whole
    before = {name: (out / name).stat().st_ino for name in whole}
    result = batch()
    published = {"batch.begin": 1, "batch.staged": 1, "batch.table": 3}.get(point, 2)
    assert len(result.kept) == published
    assert content(out) == expected
    assert_clean(out)
    assert {name: (out / name).stat().st_ino for name in before} == before  # finished work was not repeated


def test_strays_of_a_killed_batch_go_even_if_their_process_seems_alive(batch, tmp_path):
    batch()
    state = tmp_path / "out" / ".codebrain"
    for folder in (state, state / "records", tmp_path / "out"):
        (folder / f".x.tmp-{os.getpid()}-00000000").mkdir()
    batch()
    assert_clean(tmp_path / "out")


@pytest.mark.row("F10")
def test_a_worker_that_dies_takes_one_study_with_it(batch, raw, tmp_path, monkeypatch):
    """Every worker dies at its second study; the model was loaded once per worker."""
    monkeypatch.setenv("CODEBRAIN_FAULT", "batch.begin:2:kill9")
    result = batch(jobs=1)
    assert statuses(result) == {"a": "done", "b": "failed", "c": "done"}
    assert result.bad[0].code == "ENV_WORKER" and "status -9" in result.bad[0].message
    assert_clean(tmp_path / "out")
    monkeypatch.delenv("CODEBRAIN_FAULT")
    shutil.rmtree(raw / "a"), shutil.rmtree(raw / "c")
    assert statuses(batch()) == {"b": "done"}
    assert [row["study"] for row in rows(tmp_path / "out")] == ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.row("F10")
def test_a_worker_that_hangs_takes_one_study_with_it(batch, raw, tmp_path, monkeypatch, caplog):
    """Every worker hangs at its second study, and does nothing then."""
    monkeypatch.setattr("codebrain.batch.engine.IDLE_S", 2.0)
    monkeypatch.setenv("CODEBRAIN_FAULT", "batch.begin:2:hang")
    result = batch(jobs=1)
    assert statuses(result) == {"a": "done", "b": "failed", "c": "done"}
    assert result.bad[0].code == "ENV_TIMEOUT" and "nor answered for 2 s" in result.bad[0].message
    assert [r.getMessage().split(":")[0] for r in caplog.records if r.levelname == "WARNING"] == ["b"]  # named at once
    assert_clean(tmp_path / "out")


def test_an_unreadable_record_counts_as_none(batch, tmp_path):
    batch()
    record = tmp_path / "out" / ".codebrain" / "records" / "a.json"
    record.write_text(json.dumps({"schema_version": 1, "study": "a"}))
    assert batch().kept == {"b", "c"}
