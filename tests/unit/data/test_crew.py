"""Workers that keep what they loaded: loaded once, replaced when they die, gone when their parent is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codebrain.data.crew import Job, crew
from codebrain.data.isolated import Tell
from codebrain.errors import CodeBrainError, refusal


def begin(slot: int) -> dict[str, int]:
    return {"slot": slot, "pid": os.getpid(), "tasks": 0}


def work(kept: dict[str, int], task: int, tell: Tell) -> tuple[int, int, int]:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    kept["tasks"] += 1
    tell(task * 10)
    return task, kept["pid"], kept["tasks"]


def died(task: int, error: CodeBrainError) -> tuple[int, int, int]:
    assert error.code == "ENV_WORKER" and "status -9 (killed: not enough memory?)" in str(error)
    return task, 0, -signal.SIGKILL


JOB = Job(begin, work, died)


def test_a_worker_keeps_what_it_loaded_and_a_dead_one_is_replaced() -> None:
    heard: list[tuple[int, int]] = []
    results = list(crew(JOB, [1, 2, 3, 4, 5], jobs=1, told=lambda task, message: heard.append((task, message))))
    assert [task for task, _, _ in results] == [1, 2, 3, 4, 5]
    first, second, dead, fourth, fifth = results
    assert first[1] == second[1] and (first[2], second[2]) == (1, 2)
    assert dead[1:] == (0, -signal.SIGKILL)
    assert fourth[1] == fifth[1] != first[1] and fourth[2] == 1
    assert heard == [(1, 10), (2, 20), (4, 40), (5, 50)]


def test_several_workers_and_none() -> None:
    results = list(crew(JOB, [1, 2, 4, 5, 6, 7], jobs=2))
    assert sorted(task for task, _, _ in results) == [1, 2, 4, 5, 6, 7]
    assert [pid for _, pid, _ in crew(JOB, [1, 2], jobs=0)] == [os.getpid()] * 2
    assert list(crew(JOB, [], jobs=2)) == []


def refuse(slot: int) -> None:
    raise refusal("CKPT_NONE", "no model is there")


def vanish(slot: int) -> None:
    os._exit(3)


@pytest.mark.parametrize(("start", "code"), [(refuse, "CKPT_NONE"), (vanish, "ENV_WORKER")])
def test_a_worker_that_cannot_begin_stops_the_work(start, code) -> None:
    with pytest.raises(CodeBrainError) as caught:
        list(crew(Job(start, work, died), [1, 2], jobs=1))
    assert caught.value.code == code


def hang_now_and_then(kept: dict[str, int], task: float, tell: Tell) -> str:
    if task == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    for _ in range(12):
        time.sleep(task)
        tell("still at work")
    return f"{task} by {kept['pid']}"


def hung(task: float, error: CodeBrainError) -> str:
    return f"{task}: {error}"


@pytest.mark.row("F10")
def test_a_worker_that_shows_no_progress_is_replaced() -> None:
    """The slow task takes longer than the limit, but says how far it is; the one that hangs is not begun again."""
    begun = time.monotonic()
    first, second, third = crew(Job(begin, hang_now_and_then, hung), [0.5, 0, 0.01], jobs=1, patience_s=5.0)
    assert time.monotonic() - begun < 30
    assert second == "0: the worker process showed no progress for 5 s and was ended."
    assert first.partition(" by ")[2] != third.partition(" by ")[2]


def stop(kept: dict[str, int], task: str, tell: Tell) -> str:
    if task == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif task == "dies":
        os._exit(7)
    return f"{task} done"


def lost(task: str, error: CodeBrainError) -> str:
    return f"{task} {error.code}"


@pytest.mark.row("F10")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process does")
def test_workers_are_replaced_so_often_and_no_more(monkeypatch) -> None:
    """An answer in between is a new start; what is left when the last of a row is lost is not begun."""
    monkeypatch.setattr("codebrain.data.crew.MOST_RESTARTS", 1)
    fine = list(crew(Job(begin, stop, lost), ["stops", "a", "dies", "b"], jobs=1, idle_s=1.0))
    assert fine == ["stops ENV_TIMEOUT", "a done", "dies ENV_WORKER", "b done"]
    row = crew(Job(begin, stop, lost), ["dies", "stops", "a", "b"], jobs=1, idle_s=1.0)
    assert [next(row), next(row)] == ["dies ENV_WORKER", "stops ENV_TIMEOUT"]
    with pytest.raises(CodeBrainError, match=r"2 workers in a row were lost.*2 left to do") as caught:
        next(row)
    assert (caught.value.code, caught.value.exit_code) == ("ENV_TIMEOUT", 4)


def test_a_worker_that_is_still_at_work_brings_the_others_back(monkeypatch) -> None:
    monkeypatch.setattr("codebrain.data.crew.MOST_RESTARTS", 0)
    results = list(crew(Job(begin, rest_or_die, lost), ["rests", "dies", "a", "b"], jobs=2))
    assert sorted(results) == ["a done", "b done", "dies ENV_WORKER", "rests done"]


def rest_or_die(kept: dict[str, int], task: str, tell: Tell) -> str:
    time.sleep(3.0 if task == "rests" else 0.0)
    return stop(kept, task, tell)


def never_begin(slot: int) -> None:
    time.sleep(600)


@pytest.mark.row("F10")
def test_a_worker_that_hangs_while_it_begins_stops_the_work() -> None:
    with pytest.raises(CodeBrainError) as caught:
        list(crew(Job(never_begin, work, died), [1, 2], jobs=1, patience_s=1.0))
    assert (caught.value.code, caught.value.exit_code) == ("ENV_TIMEOUT", 4)


def linger(kept: dict[str, int], path: str, tell: Tell) -> None:
    Path(path).write_text(str(os.getpid()))
    while not path.endswith("quick"):
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_closing_ends_the_workers(tmp_path: Path) -> None:
    tasks = [str(tmp_path / "quick"), str(tmp_path / "slow")]
    results = crew(Job(begin, linger, died), tasks, jobs=1)
    next(results)
    assert wait_for((tmp_path / "slow").exists)
    results.close()  # type: ignore[attr-defined]
    assert not alive(int((tmp_path / "slow").read_text()))


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from codebrain.data.crew import Job, crew\nfrom test_crew import begin, died, linger\n"
        f"if __name__ == '__main__': list(crew(Job(begin, linger, died), [{str(tmp_path / 'slow')!r}], jobs=1))"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script)])
    assert wait_for(lambda: (tmp_path / "slow").exists() and (tmp_path / "slow").read_text())
    worker = int((tmp_path / "slow").read_text())
    assert alive(worker)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not alive(worker), 5)
