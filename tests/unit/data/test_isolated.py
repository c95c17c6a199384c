from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from codebrain.data.isolated import _LOOKS, Patience, Tell, isolated
from codebrain.data.pulse import pulse
from codebrain.errors import CodeBrainError
from codebrain.machine import IDLE_S


def _square(number: int, tell: Tell) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def _linger(path: Path) -> None:
    path.with_suffix(".started").write_text(str(os.getpid()))
    time.sleep(60)


def _died(number: int, error: CodeBrainError) -> int:
    assert error.code == "ENV_WORKER" and "status -9 (killed: not enough memory?)" in str(error)
    return -9


def test_a_killed_process_takes_no_other_task_with_it() -> None:
    assert sorted(isolated(_square, [1, 2, 3, 4], jobs=2, died=_died)) == [-9, 1, 4, 16]


def _hang_now_and_then(task: tuple[Path, float], tell: Tell) -> str:
    path, rest = task
    with (path.parent / "begun").open("a") as begun:
        begun.write(f"{path.name} ")
    if path.name == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    for _ in range(12):
        time.sleep(rest)
        tell("still at work")
    return path.name


@pytest.mark.row("F10")
def test_a_process_that_shows_no_progress_is_ended_and_no_other(tmp_path: Path) -> None:
    """The slow one takes longer than the limit, but says how far it is; the one that hangs is not begun again."""
    tasks = [(tmp_path / "hangs", 0.0), (tmp_path / "slow", 0.5), (tmp_path / "last", 0.0)]
    begun = time.monotonic()
    results = list(isolated(_hang_now_and_then, tasks, jobs=2, patience_s=5.0, died=lambda task, error: str(error)))
    assert time.monotonic() - begun < 30
    assert sorted(results)[:2] == ["last", "slow"]
    assert "no progress for 5 s" in sorted(results)[2]
    assert sorted((tmp_path / "begun").read_text().split()) == ["hangs", "last", "slow"]


def _stands_still_or_computes(task: tuple[str, Path], tell: Tell) -> str:
    how, fifo = task
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "reads a pipe that nobody fills":
        fifo.open("rb")
    elif how == "waits for a lock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    elif how == "looks at the clock":
        while True:
            time.sleep(0.2)
    elif how == "its child is stopped":
        subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 19)"], check=False)
    elif how == "its child computes":
        subprocess.run([sys.executable, "-c", _COMPUTE], check=True)
    else:
        exec(_COMPUTE)
    return f"{how} and answers"


_COMPUTE = "import time\nend = time.monotonic() + 4\nwhile time.monotonic() < end: sum(range(10000))"
_STILL = ("stopped", "reads a pipe that nobody fills", "waits for a lock", "looks at the clock", "its child is stopped")


@pytest.mark.row("F10")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process does")
def test_processes_that_do_nothing_are_ended_and_silent_ones_that_compute_are_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    tasks = [(how, tmp_path / "fifo") for how in (*_STILL, "computes", "its child computes")]
    begun = time.monotonic()
    results = isolated(_stands_still_or_computes, tasks, jobs=len(tasks), idle_s=1.5,
                       died=lambda task, error: f"{task[0]}: {error.code} {error.message}")  # fmt: skip
    why = "ENV_TIMEOUT the worker process neither computed, read, wrote nor answered for 1.5 s and was ended"
    assert sorted(results) == sorted(
        [*(f"{how}: {why}" for how in _STILL), "computes and answers", "its child computes and answers"]
    )
    assert time.monotonic() - begun < 60


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process does")
def test_a_time_in_which_nobody_looked_counts_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z stops the workers with us; when all go on hours later, none of them hangs."""
    now = [0.0]
    monkeypatch.setattr("codebrain.data.isolated.time.monotonic", lambda: now[0])
    with subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 19)"]) as process:
        while pulse(process.pid).runs or Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "T":  # type: ignore[union-attr]
            time.sleep(0.02)
        patience = Patience[str](idle_s=50.0)
        patience.heard("it", process.pid)
        now[0] = 5.0
        assert patience.left_s() == 0 and not patience.exhausted()
        now[0] = 7205.0
        assert not patience.exhausted()
        for _ in range(7):
            now[0] += 5.0
            assert not patience.exhausted()
        now[0] += 5.0
        assert patience.exhausted()["it"].code == "ENV_TIMEOUT"
        process.kill()


@pytest.mark.row("F10")
def test_within_a_minute() -> None:
    """Longest time from the last sign of life: a look that comes just too early, the limit, the look after it."""
    assert IDLE_S * (1 + 2 / _LOOKS) <= 60


def _answers_and_stays(number: int, tell: Tell) -> int:
    threading.Thread(target=time.sleep, args=(600,)).start()  # the interpreter waits for it at its end
    return number


@pytest.mark.row("F10")
def test_a_process_that_has_answered_and_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codebrain.data.isolated._ENDING_S", 0.2)
    monkeypatch.setattr("codebrain.data.isolated.see_off.__defaults__", (0.2,))
    assert sorted(isolated(_answers_and_stays, [1, 2], jobs=1, died=_died)) == [1, 2]


def test_zero_jobs_work_here() -> None:
    assert list(isolated(_square, [1, 2], jobs=0, died=_died)) == [1, 4]


def test_closing_ends_the_processes(tmp_path: Path) -> None:
    results = isolated(_quick_or_linger, [tmp_path / "quick", tmp_path / "slow"], jobs=2, died=lambda *_: None)
    next(results)
    while not (tmp_path / "slow.started").exists():
        time.sleep(0.02)
    time.sleep(0.05)
    results.close()  # type: ignore[attr-defined]
    pid = int((tmp_path / "slow.started").read_text())
    assert not Path(f"/proc/{pid}").exists()


def _quick_or_linger(path: Path, tell: Tell) -> None:
    if path.name == "slow":
        _linger(path)


def _counts_up(number: int, tell: Tell) -> int:
    for step in range(number):
        tell(step)
    return number


@pytest.mark.parametrize("jobs", [0, 2])
def test_what_a_task_tells_is_heard_here(jobs: int) -> None:
    heard: list[tuple[int, int]] = []
    results = isolated(_counts_up, [2, 3], jobs=jobs, died=_died, told=lambda task, step: heard.append((task, step)))
    assert sorted(results) == [2, 3]
    assert sorted(heard) == [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]


def _where(task: tuple[int, int], tell: Tell) -> tuple[int, int]:
    time.sleep(0.05)
    return task


def test_tasks_at_work_together_have_slots_of_their_own() -> None:
    results = list(isolated(_where, [(n, -1) for n in range(5)], jobs=2, died=lambda *_: (0, 0),
                            placed=lambda task, slot: (task[0], slot)))  # fmt: skip
    assert sorted(number for number, _ in results) == [0, 1, 2, 3, 4]
    assert {slot for _, slot in results} == {0, 1}


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_isolated as here
if __name__ == "__main__":
    list(here.isolated(here._quick_or_linger, [Path(sys.argv[1])], jobs=1, died=here._died))
"""


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """It would go on writing beside the run that has taken the dead one's place."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    words = [sys.executable, str(script), str(tmp_path / "slow"), str(Path(__file__).parent)]
    parent = subprocess.Popen(words)
    started = tmp_path / "slow.started"
    while not (started.exists() and started.read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    worker = Path(f"/proc/{started.read_text()}/stat")
    for _ in range(250):
        if not worker.exists() or worker.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail("the worker lives on")


def _threads(number: int, tell: Tell) -> list[str]:
    return [os.environ[name] for name in ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "OMP_NUM_THREADS")]


def test_processes_are_born_with_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", raising=False)
    assert list(isolated(_threads, [1], jobs=1, died=lambda *_: [], threads=3)) == [["3", "3"]]
    assert os.environ["OMP_NUM_THREADS"] == "7" and "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS" not in os.environ
