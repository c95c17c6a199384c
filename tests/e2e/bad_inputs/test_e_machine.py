"""Rows E: the output and the machine. What stands in the way is found before the work, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import pytest
from inputs import digests, files_in, is_refused

import scans


@pytest.fixture
def study(tmp_path):
    return scans.write_study(tmp_path / "in", ("T1", "FLAIR"))


@pytest.mark.row("E1")
def test_an_output_that_cannot_be_written_is_found_first(study, tmp_path, monkeypatch, impute):
    monkeypatch.setattr("codebrain.imaging.study.Study.read", lambda *_, **__: pytest.fail("the input was read"))
    no_parent = tmp_path / "no" / "such" / "parent"
    a_file = tmp_path / "file"
    a_file.write_text("mine")
    for out in (no_parent, a_file, Path("/proc/codebrain-out")):
        answer = impute("--t1", study["T1"], "-o", out)
        assert (answer.code, answer.status) == ("OUT_PERMISSION", 4), answer.err
    assert a_file.read_text() == "mine" and not no_parent.parent.exists()


@pytest.mark.row("E2")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_disk_that_fills_up_keeps_the_older_results(number, study, tmp_path, monkeypatch, impute):
    words = ("--t1", study["T1"], "--want", "T2", "-o", tmp_path / "out")
    assert impute(*words).status == 0
    before = digests(*(tmp_path / "out" / name for name in files_in(tmp_path / "out")))
    real, calls = os.fsync, []

    def fails_later(handle):
        calls.append(handle)
        if len(calls) > 3:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fails_later)
    answer = impute(*words, "--overwrite")
    assert (answer.code, answer.status) == ("OUT_SPACE", 4), answer.err
    assert digests(*(tmp_path / "out" / name for name in files_in(tmp_path / "out"))) == before


@pytest.mark.row("E3")
def test_results_are_not_overwritten_unasked_and_half_runs_are_redone(study, tmp_path, impute):
    out = tmp_path / "out"
    words = ("--t1", study["T1"], "--want", "T2", "-o", out)
    assert impute(*words).status == 0
    before = digests(*(out / name for name in files_in(out)))
    answer = impute(*words)
    assert (answer.code, answer.status) == ("OUT_EXISTS", 4)
    assert digests(*(out / name for name in files_in(out))) == before
    assert impute(*words, "--overwrite").status == 0

    (out / "run.json").unlink()
    (out / "study_T2_imputed.nii.gz").write_bytes(b"half a fi")
    assert impute(*words).status == 0
    assert nib.load(out / "study_T2_imputed.nii.gz").shape == scans.SHAPE


def lock_of(folder, **changes):
    """A lock as this process would take it, with some facts changed."""
    from codebrain.imaging.safe_files import FolderLock

    folder.mkdir()
    lock = FolderLock(folder)
    lock.acquire()
    path = folder / FolderLock.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


@pytest.mark.row("E4")
def test_two_runs_in_one_folder(study, tmp_path, impute):
    lock = lock_of(tmp_path / "out")
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out")
    assert (answer.code, answer.status) == ("LOCKED", 4), answer.err
    assert str(os.getpid()) in answer.err and os.uname().nodename in answer.err and "since 2" in answer.err
    assert lock.exists()


@pytest.mark.row("E4")
@pytest.mark.parametrize("stale", [{"pid": 2**22 + 1}, {"boot": "another start"}], ids=["dead", "other boot"])
def test_a_stale_lock_is_taken_over_with_a_note(stale, study, tmp_path, impute):
    lock = lock_of(tmp_path / "out", **stale)
    answer = impute("--t1", study["T1"], "--want", "T2", "-o", tmp_path / "out")
    assert answer.status == 0 and "took over" in answer.err, answer.err
    assert not lock.exists()


@pytest.mark.row("E5")
def test_temporaries_lie_beside_the_target(study, tmp_path, monkeypatch, impute):
    with monkeypatch.context() as machine:  # pytest needs its own temporaries back
        machine.setenv("TMPDIR", str(tmp_path / "no such folder"))
        machine.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
        answer = impute("--t1", study["T1"], "--want", "T2", "-o", tmp_path / "out")
    assert answer.status == 0, answer.err


@pytest.mark.row("E6")
def test_clocks_do_not_matter(study, tmp_path, impute):
    out = tmp_path / "out"
    words = ("--t1", study["T1"], "--flair", study["FLAIR"], "--want", "T2", "-o", out)
    assert impute(*words).status == 0
    before = digests(out / "study_T2_imputed.nii.gz")
    for path, moment in ((study["T1"], 4_070_908_800), (study["FLAIR"], 0), (out / "run.json", 4_070_908_800)):
        os.utime(path, (moment, moment))
    assert impute(*words).code == "OUT_EXISTS"
    assert impute(*words, "--overwrite").status == 0
    assert digests(out / "study_T2_imputed.nii.gz") == before


@pytest.mark.row("E7")
def test_no_gpu_is_said_and_never_silently_replaced(study, tmp_path, impute):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--device", "cuda")
    is_refused(answer, "ENV_GPU", 4, tmp_path / "out")
    assert "--device cpu" in answer.err


def failing(monkeypatch, error):
    from codebrain.impute import Imputer

    def fails(*_):
        raise error

    monkeypatch.setattr(Imputer, "_forward", fails)


@pytest.mark.row("E7")
@pytest.mark.parametrize("error", [MemoryError(), "OutOfMemoryError"], ids=["host", "GPU"])
def test_memory_that_does_not_suffice(error, study, tmp_path, monkeypatch, impute):
    import torch

    failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory") if isinstance(error, str) else error)
    is_refused(impute("--t1", study["T1"], "-o", tmp_path / "out"), "ENV_MEMORY", 4, tmp_path / "out")


@pytest.mark.row("E7")
def test_a_study_that_cannot_fit_is_refused_before_the_work_with_the_estimate(study, tmp_path, monkeypatch, impute):
    failing(monkeypatch, AssertionError("the model computed"))
    monkeypatch.setattr("codebrain.intake.prepare_study", lambda *_, **__: pytest.fail("the study was prepared"))
    monkeypatch.setattr("codebrain.intake.available_memory", lambda: 200 * 2**20)
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out")
    is_refused(answer, "ENV_MEMORY", 4, tmp_path / "out")
    assert "0.2 GiB left" in answer.err and "expected about 0.3 GiB" in answer.err


@pytest.mark.row("E7")
def test_under_a_real_limit_of_memory(study, tmp_path, tiny_model):
    """The limit is set when torch has been loaded, whose libraries alone take gigabytes of addresses."""
    words = [str(w) for w in ("impute", "--model", tiny_model, "--t1", study["T1"], "-o", tmp_path / "out")]
    code = (
        "import resource, sys, codebrain.impute; from codebrain.app.cli import main;"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 2**27;"
        f"resource.setrlimit(resource.RLIMIT_AS, (size, size)); sys.exit(main({words!r}))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 4 and "ENV_MEMORY" in told.stderr and "Traceback" not in told.stderr, told.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.row("E7")
def test_a_gpu_that_is_too_small_takes_fewer_slices_and_gives_the_same(study, tmp_path, monkeypatch, impute):
    import torch

    from codebrain.impute import SLICES_AT_ONCE, Imputer

    words = ("--t1", study["T1"], "--want", "T2", "-o")
    assert impute(*words, tmp_path / "large").status == 0
    real, sizes = Imputer._forward, []

    def small(self, slices, given):
        sizes.append(len(slices))
        if len(slices) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, slices, given)

    monkeypatch.setitem(SLICES_AT_ONCE, "cpu", 16)
    monkeypatch.setattr(Imputer, "_forward", small)
    answer = impute(*words, tmp_path / "small")
    assert answer.status == 0 and sizes[:4] == [16, 8, 4, 2] and set(sizes[4:]) <= {1, 2}, answer.err
    assert "warning: ENV_MEMORY: the device ran out of memory; the model takes 2 slices" in answer.err
    assert json.loads((tmp_path / "small" / "run.json").read_text())["warnings"][0]["code"] == "ENV_MEMORY"
    one, other = (nib.load(tmp_path / n / "study_T2_imputed.nii.gz").get_fdata() for n in ("large", "small"))
    assert ((one - other) ** 2).mean() <= 1e-6 * one.max() ** 2, "at least 60 dB"


@pytest.mark.row("E7")
def test_where_it_computes_is_said(study, tmp_path, impute):
    answer = impute("--t1", study["T1"], "--want", "T2", "-o", tmp_path / "out", "--device", "auto")
    device = json.loads((tmp_path / "out" / "run.json").read_text())["device"]
    assert f" on {device} in " in answer.out.splitlines()[0]


@pytest.mark.row("E8")
@pytest.mark.parametrize(
    "message", ["CUDA error: device-side assert triggered\nmore", "CUDA error: unspecified launch failure (Xid 79)"]
)
def test_a_gpu_that_is_lost(message, study, tmp_path, monkeypatch, impute):
    words = ("--t1", study["T1"], "--want", "T2", "-o", tmp_path / "out")
    with monkeypatch.context() as lost:
        failing(lost, RuntimeError(message))
        is_refused(impute(*words), "ENV_GPU", 4, tmp_path / "out")
    assert impute(*words).status == 0, "it can be tried again"
