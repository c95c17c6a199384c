"""Writing: all or nothing, under full disks, kills and other processes."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from codebrain.errors import CodeBrainError
from codebrain.imaging import safe_files
from codebrain.imaging.safe_files import (
    FolderLock,
    append_line,
    atomic_path,
    sha256_bytes,
    sha256_file,
    sweep_temporaries,
    temporary_name,
    write_bytes,
    write_json,
    write_text,
)

GONE = 2**22 + 1
"""A process number beyond Linux's largest."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_new_content_replaces_the_old(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    write_text(target, "new ü")
    assert target.read_text(encoding="utf-8") == "new ü"
    assert names(tmp_path) == ["a.txt"]


def test_json_is_readable_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"ä": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"ä": [1, None]}


def test_new_files_obey_the_umask_and_replaced_ones_keep_their_mode(tmp_path):
    before = os.umask(0o077)
    try:
        write_bytes(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    (tmp_path / "new").chmod(0o640)
    write_bytes(tmp_path / "new", b"again")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "OUT_SPACE"),
        (errno.EDQUOT, "OUT_SPACE"),
        (errno.EFBIG, "OUT_SPACE"),
        (errno.EIO, "OUT_SPACE"),
        (errno.EACCES, "OUT_PERMISSION"),
        (errno.EROFS, "OUT_PERMISSION"),
    ],
)
def test_a_failing_disk_leaves_the_older_file_and_no_temporary(number, code, tmp_path, monkeypatch):
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")

    def fails(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(CodeBrainError) as caught:
        write_bytes(target, b"new")
    assert (caught.value.code, caught.value.exit_code) == (code, 4)
    assert target.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_a_disk_that_fills_up_while_writing(tmp_path):
    target = tmp_path / "a.bin"
    write_bytes(target, b"old")
    with pytest.raises(CodeBrainError) as caught, atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no space left on device")
    assert caught.value.code == "OUT_SPACE"
    assert target.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_another_error_in_the_body_passes_and_cleans_up(tmp_path):
    for error in (KeyError("mine"), KeyboardInterrupt(), FileNotFoundError(errno.ENOENT, "no", "/other/file")):
        with pytest.raises(type(error)), atomic_path(tmp_path / "a") as temporary:
            temporary.write_bytes(b"half")
            raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("where", ["no/such/parent/file", "file/in/a/file"])
def test_a_place_that_is_no_folder(where, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CodeBrainError) as caught:
        write_bytes(tmp_path / where, b"")
    assert caught.value.code == "OUT_PERMISSION"


def test_a_folder_of_the_same_name_stays(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(CodeBrainError) as caught:
        write_bytes(tmp_path / "a", b"")
    assert caught.value.code == "OUT_PERMISSION" and names(tmp_path) == ["a"]


def test_names_as_long_as_they_can_be(tmp_path):
    write_bytes(tmp_path / ("ä" * 127), b"x")
    assert (tmp_path / ("ä" * 127)).read_bytes() == b"x"
    with pytest.raises(CodeBrainError) as caught:
        write_bytes(tmp_path / ("a" * 256), b"x")
    assert caught.value.code == "OUT_NAME"


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from codebrain.imaging.safe_files import write_bytes
target, trials, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
write_bytes(target, bytes([7]) * 300_000)
for trial in range(trials):
    child = os.fork()
    if child == 0:
        for value in range(250):
            write_bytes(target, bytes([value]) * 300_000)
        os._exit(0)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    content = target.read_bytes()
    if len(content) != 300_000 or len(set(content)) != 1:
        sys.exit(f"trial {trial}: {len(content)} bytes, {len(set(content))} values")
"""


def test_killed_at_any_instant_the_file_is_the_old_or_the_new_one(tmp_path):
    words = [sys.executable, "-c", KILLER, str(tmp_path / "a.bin"), "60", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    strays = names(tmp_path)[:-1]
    assert all(name.startswith(".a.bin.tmp-") for name in strays)
    assert len(sweep_temporaries(tmp_path)) == len(strays)
    assert names(tmp_path) == ["a.bin"]


def test_sweeping_removes_only_what_the_dead_left(tmp_path):
    (tmp_path / f".a.tmp-{GONE}-0123abcd").write_text("half")
    (tmp_path / f".run.tmp-{GONE}-0123abcd").mkdir()
    (tmp_path / f".run.tmp-{GONE}-0123abcd" / "file").write_text("half")
    kept = [temporary_name("mine"), ".hidden", "a.tmp-1-0123abcd", f".b.tmp-{GONE}-xyz"]
    for name in kept:
        (tmp_path / name).write_text("")
    removed = sweep_temporaries(tmp_path)
    assert len(removed) == 2 and names(tmp_path) == sorted(kept)


def test_a_stray_of_an_earlier_process_with_our_number_is_swept(tmp_path):
    """Containers give the same number to process after process."""
    mine = temporary_name("a")
    head, _, mark = mine.rpartition("-")
    earlier = f"{head}-{(int(mark[:3], 16) + 1) % 4096:03x}{mark[3:]}"
    for name in (mine, earlier):
        (tmp_path / name).write_text("half")
    assert [path.name for path in sweep_temporaries(tmp_path)] == [earlier]


def fill(stage, files):
    for name, text in files.items():
        (stage / name).parent.mkdir(exist_ok=True)
        (stage / name).write_text(text)


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fails", range(1, 12))
def test_a_step_that_fails_puts_every_earlier_file_back(fails, tmp_path, monkeypatch):
    fill(tmp_path, {"a": "old", "gone": "old", "last": "old"})
    before = content(tmp_path)
    count = 0
    real = os.replace

    def replace(source, target, **rest):
        nonlocal count
        count += 1
        if count == fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target, **rest)

    new = {"a": "new", "b/c": "new", "last": "new"}
    monkeypatch.setattr(os, "replace", replace)
    try:
        with safe_files.staged(tmp_path, last="last", remove=lambda stage: [Path("gone")]) as stage:
            fill(stage, new)
    except CodeBrainError as error:
        assert error.code == "OUT_SPACE" and content(tmp_path) == before
        assert not (tmp_path / "b").exists()
    else:
        assert count < fails and content(tmp_path) == new
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_lock_on_a_full_disk_is_no_lock(tmp_path, monkeypatch):
    def fails(handle, mode):
        os.close(handle)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdopen", fails)
    with pytest.raises(CodeBrainError) as caught:
        FolderLock(tmp_path).acquire()
    assert caught.value.code == "OUT_SPACE" and names(tmp_path) == []


def test_lines_are_appended_and_a_torn_one_is_cut_away(tmp_path):
    log = tmp_path / "log.jsonl"
    append_line(log, '{"step": 1}')
    with log.open("a") as stream:
        stream.write('{"step": 2, "lo')
    append_line(log, '{"step": 2}', sync=True)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_torn_line_longer_than_a_block(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("first\n" + "x" * 10_000)
    append_line(log, "second")
    assert log.read_text() == "first\nsecond\n"
    log.write_text("x" * 10_000)
    append_line(log, "only")
    assert log.read_text() == "only\n"


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    log = tmp_path / "log.jsonl"
    append_line(log, "first")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, line, at: real(handle, line[:3], at))
    with pytest.raises(CodeBrainError) as caught:
        append_line(log, "second")
    assert caught.value.code == "OUT_SPACE"
    assert log.read_text() == "first\n"


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == sha256_bytes(b"abc")
    assert sha256_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_has_one_holder(tmp_path):
    with FolderLock(tmp_path) as lock:
        assert lock.notices == ()
        with pytest.raises(CodeBrainError) as caught, FolderLock(tmp_path):
            pytest.fail("two holders")
        assert (caught.value.code, caught.value.exit_code) == ("LOCKED", 4)
        assert str(os.getpid()) in str(caught.value)
    assert names(tmp_path) == []
    with FolderLock(tmp_path):
        pass


def stale(tmp_path, **changes):
    with FolderLock(tmp_path) as lock:
        text = lock.path.read_text()
    lock.path.write_text(json.dumps(json.loads(text) | changes))
    return lock.path


@pytest.mark.parametrize(
    "changes", [{"pid": GONE}, {"boot": "another"}, {"ticks": 1}], ids=["dead", "rebooted", "same number"]
)
def test_a_stale_lock_is_taken_over_with_a_note(changes, tmp_path):
    stale(tmp_path, **changes)
    with FolderLock(tmp_path) as lock:
        assert [notice.code for notice in lock.notices] == ["LOCK_STALE"]
    assert names(tmp_path) == []


def test_a_torn_lock_is_taken_over(tmp_path):
    (tmp_path / FolderLock.NAME).write_text('{"pid"')
    with FolderLock(tmp_path) as lock:
        assert lock.notices


def test_the_lock_of_another_host_is_believed(tmp_path):
    stale(tmp_path, host="elsewhere", pid=GONE)
    with pytest.raises(CodeBrainError) as caught, FolderLock(tmp_path):
        pass
    assert caught.value.code == "LOCKED" and "elsewhere" in str(caught.value)


def test_a_lock_that_was_taken_over_is_not_removed_by_its_first_holder(tmp_path):
    first = FolderLock(tmp_path)
    first.acquire()
    first.path.write_text("another's")
    first.release()
    assert first.path.read_text() == "another's"


RACER = """
import sys, time
from codebrain.imaging.safe_files import FolderLock
from codebrain.errors import CodeBrainError
while time.time() < float(sys.argv[2]):
    pass
try:
    FolderLock(sys.argv[1]).acquire()
except CodeBrainError as error:
    sys.exit(error.exit_code)
print("mine", flush=True)
sys.stdin.read()
"""


def test_of_two_that_start_together_one_gets_a_stale_lock(tmp_path):
    import time

    stale(tmp_path, pid=GONE)
    start = str(time.time() + 0.5)
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), start],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in pair:
        process.stdout.readline()  # "mine" or the end
    outputs = [process.communicate()[0] for process in pair]
    assert sorted(process.returncode for process in pair) == [0, 4]
    assert outputs == ["", ""]


def test_random_names_differ():
    random.seed(0)
    assert len({safe_files.temporary_name("a") for _ in range(50)}) == 50
    assert len(Path(temporary_name("x" * 255)).name.encode()) <= 255
