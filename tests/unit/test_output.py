"""An output folder: checked first, filled at once, older results safe until the new ones are complete."""

from __future__ import annotations

import errno
import json
import os

import pytest

from codebrain.errors import CodeBrainError
from codebrain.output import RunFolder, check_stem


def fill(stage, files):
    rows = [{"file": name} for name in files]
    for name, text in files.items():
        (stage / name).parent.mkdir(exist_ok=True)
        (stage / name).write_text(text)
    (stage / "run.json").write_text(json.dumps({"outputs": rows}))


def finished_run(out, files):
    with RunFolder(out) as folder, folder.staged() as stage:
        fill(stage, files)
    return out


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_files_take_their_names_together_and_nothing_else_stays(tmp_path):
    out = finished_run(tmp_path / "out", {"a.nii.gz": "image", "figures/a.png": "picture"})
    assert names(out) == ["a.nii.gz", "figures", "figures/a.png", "run.json"]


def test_an_error_while_writing_leaves_the_older_files_byte_for_byte(tmp_path):
    out = finished_run(tmp_path / "out", {"a.nii.gz": "old"})
    before = {name: (out / name).read_bytes() for name in names(out)}
    with pytest.raises(ZeroDivisionError), RunFolder(out, overwrite=True) as folder, folder.staged() as stage:
        fill(stage, {"a.nii.gz": "new"})
        _ = 1 / 0
    assert {name: (out / name).read_bytes() for name in names(out)} == before


def test_a_full_disk_is_a_refusal_and_leaves_the_older_files(tmp_path):
    out = finished_run(tmp_path / "out", {"a.nii.gz": "old"})
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))
    with pytest.raises(CodeBrainError) as caught, RunFolder(out, overwrite=True) as folder, folder.staged():
        raise full
    assert caught.value.code == "OUT_SPACE"
    assert (out / "a.nii.gz").read_text() == "old"
    assert names(out) == ["a.nii.gz", "run.json"]


def test_overwriting_removes_what_only_the_older_run_wrote(tmp_path):
    out = finished_run(tmp_path / "out", {"a.nii.gz": "old", "b.nii.gz": "old"})
    (out / "mine.txt").write_text("not codebrain's")
    with RunFolder(out, overwrite=True) as folder, folder.staged() as stage:
        fill(stage, {"a.nii.gz": "new"})
    assert names(out) == ["a.nii.gz", "mine.txt", "run.json"]
    assert (out / "a.nii.gz").read_text() == "new"


def test_names_in_an_older_record_cannot_reach_outside_the_folder(tmp_path):
    out = finished_run(tmp_path / "out", {"a.nii.gz": "old"})
    (tmp_path / "outside").write_text("stays")
    listed = [{"file": "../outside"}, {"file": str(tmp_path / "outside")}]
    (out / "run.json").write_text(json.dumps({"outputs": listed}))
    with RunFolder(out, overwrite=True) as folder, folder.staged() as stage:
        fill(stage, {"a.nii.gz": "new"})
    assert (tmp_path / "outside").read_text() == "stays"


def test_a_folder_without_run_json_is_unfinished_and_redone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.nii.gz").write_text("half a fi")
    finished_run(out, {"a.nii.gz": "whole"})
    assert (out / "a.nii.gz").read_text() == "whole"


def test_what_a_killed_run_left_hidden_is_swept(tmp_path):
    out = tmp_path / "out"
    (out / ".run.tmp-4194304-01234567").mkdir(parents=True)
    finished_run(out, {"a.nii.gz": "whole"})
    assert names(out) == ["a.nii.gz", "run.json"]


def refused(**kwargs):
    with pytest.raises(CodeBrainError) as caught, RunFolder(**kwargs):
        pass
    return caught.value.code


def test_a_finished_run_is_not_overwritten_unasked(tmp_path):
    assert refused(folder=finished_run(tmp_path / "out", {})) == "OUT_EXISTS"


def test_a_folder_that_cannot_be_made(tmp_path):
    assert refused(folder=tmp_path / "no" / "such" / "parent") == "OUT_PERMISSION"
    (tmp_path / "file").write_text("")
    assert refused(folder=tmp_path / "file") == "OUT_PERMISSION"


def test_a_disk_without_room_is_found_before_the_work(tmp_path):
    assert refused(folder=tmp_path / "out", need_bytes=2**62) == "OUT_SPACE"
    assert not (tmp_path / "out").exists()


def test_raw_scans_and_results_stay_apart(tmp_path):
    scan = tmp_path / "raw" / "t1.nii.gz"
    assert refused(folder=scan.parent, inputs=[scan]) == "OUT_CLOBBER"
    assert refused(folder=tmp_path / "raw" / "out", sources=[tmp_path / "raw"]) == "OUT_CLOBBER"
    assert not (tmp_path / "raw").exists()


def test_results_do_not_go_into_a_raw_bids_data_set(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    assert refused(folder=tmp_path / "out") == "OUT_CLOBBER"
    (tmp_path / "derivatives").mkdir()
    finished_run(tmp_path / "derivatives" / "out", {})


def test_two_runs_at_once(tmp_path):
    with RunFolder(tmp_path / "out"):
        assert refused(folder=tmp_path / "out") == "LOCKED"


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path):
    with RunFolder(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stem", ["study", "sub 01", "Müller–7", "a.b", "研究"])
def test_stems_that_files_can_have(stem):
    assert check_stem(stem) == stem


@pytest.mark.parametrize("stem", ["", ".", "..", ".hidden", "-o", "a/b", "a\\b", "a\nb", "a\x00", " a", "é" * 120])
def test_stems_that_files_cannot_have(stem):
    with pytest.raises(CodeBrainError) as caught:
        check_stem(stem)
    assert caught.value.code == "OUT_NAME"
