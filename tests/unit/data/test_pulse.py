"""What a process does, seen from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from codebrain.data.pulse import pulse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process does")

BUSY = "while True: sum(range(10000))"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"
WRITES = "import time, os\nwhile True: os.write(1, b'x' * 100); time.sleep(0.05)"
RESTS = "import time; time.sleep(600)"
WAITS_FOR_ITSELF = "import threading; lock = threading.Lock(); lock.acquire(); print('x', flush=True); lock.acquire()"


@pytest.fixture
def start():
    """Start some Python in a process group of its own, and wait until it has begun."""
    started = []

    def begin(code):
        code = f"print('begun', flush=True)\n{code}"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        started.append(process)
        assert process.stdout.readline() == b"begun\n"
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def settled(process):
    """Its pulse once it has come to rest, within 10 s."""
    for _ in range(100):
        before = pulse(process.pid)
        time.sleep(0.1)
        if pulse(process.pid) == before and not before.runs:
            return before
    raise AssertionError("it never rests")


@pytest.mark.parametrize("code", [RESTS, WAITS_FOR_ITSELF])
def test_one_that_rests(start, code):
    process = start(code)
    before = settled(process)
    time.sleep(0.3)
    assert pulse(process.pid) == before


@pytest.mark.parametrize("code", [BUSY, CHILD])
def test_one_that_computes_itself_or_through_a_child(start, code):
    process = start(code)
    before = pulse(process.pid)
    for _ in range(100):
        time.sleep(0.1)
        now = pulse(process.pid)
        if now.ticks >= before.ticks + 10:
            break
    assert now.ticks >= before.ticks + 10


def test_one_that_computes_is_at_rest_when_it_is_stopped(start):
    process = start(BUSY)
    process.send_signal(signal.SIGSTOP)
    before = settled(process)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.05)
    assert any(pulse(process.pid).runs for _ in range(100)) and pulse(process.pid) != before


def test_one_that_writes_now_and_then(start):
    process = start(WRITES)
    before = pulse(process.pid)
    time.sleep(0.3)
    assert pulse(process.pid).moved != before.moved


def test_one_that_is_gone(start):
    process = start("pass")
    process.wait()
    assert pulse(process.pid) is None
