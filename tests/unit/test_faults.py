from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from codebrain import faults
from codebrain.errors import UsageError


@pytest.fixture(autouse=True)
def _no_visits() -> None:
    faults._visits.clear()


def arm(monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    monkeypatch.setenv("CODEBRAIN_FAULT", plan)


def test_nothing_happens_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODEBRAIN_FAULT", raising=False)
    assert not any(faults.fault(point) or faults.armed(point) for point in faults.POINTS)


def test_the_nth_visit_fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arm(monkeypatch, "step.gradient:3:nan")
    assert [faults.fault("step.gradient") for _ in range(5)] == [False, False, True, False, False]
    assert not faults.fault("ckpt.begin")


@pytest.mark.parametrize("action", ["enospc", "eio", "oom"])
def test_errors_are_those_of_the_operating_system(action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arm(monkeypatch, f"ckpt.begin:{action}")
    with pytest.raises((OSError, MemoryError)) as caught:
        faults.fault("ckpt.begin")
    assert getattr(caught.value, "errno", None) == {"enospc": errno.ENOSPC, "eio": errno.EIO}.get(action)


@pytest.mark.parametrize(("action", "number"), [("term", 15), ("int", 2), ("kill9", 9)])
def test_signals_go_to_ourselves(action: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(faults.os, "kill", lambda pid, sign: sent.append(int(sign)))
    arm(monkeypatch, f"val.mid:{action}")
    faults.fault("val.mid")
    assert sent == [number]


def test_a_torn_file_loses_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(faults.os, "kill", lambda pid, sign: sent.append(int(sign)))
    (tmp_path / "log").write_text("0123456789")
    arm(monkeypatch, "log.append.half:torn:4")
    faults.fault("log.append.half", file=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "012345" and sent == [signal.SIGKILL]


@pytest.mark.parametrize("plan", ["nowhere:kill9", "ckpt.begin:explode", "ckpt.begin", "ckpt.begin:1"])
def test_a_plan_that_is_no_plan_is_refused(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arm(monkeypatch, plan)
    with pytest.raises(UsageError, match="CODEBRAIN_FAULT"):
        faults.fault("ckpt.begin")
