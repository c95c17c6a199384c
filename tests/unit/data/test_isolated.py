from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from codebrain.data.isolated import isolated


def _square(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def _linger(path: Path) -> None:
    path.with_suffix(".started").write_text(str(os.getpid()))
    time.sleep(60)


def _died(number: int, status: int | None) -> int:
    return status or 0


def test_a_killed_process_takes_no_other_task_with_it() -> None:
    assert sorted(isolated(_square, [1, 2, 3, 4], jobs=2, died=_died)) == [-9, 1, 4, 16]


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


def _quick_or_linger(path: Path) -> None:
    if path.name == "slow":
        _linger(path)
