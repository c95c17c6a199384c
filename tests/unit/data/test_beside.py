"""Work beside this process, each time in a fresh interpreter, where nothing with threads has been loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="work is done beside on Linux only")
pytestmark = linux

BEGIN = """
import os, sys, threading
import numpy as np
from codebrain.data.beside import beside
from codebrain.errors import CodeBrainError, refusal
from codebrain.threads import _Threads
"""


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own."""
    return subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=60, check=False)


def printed(code: str) -> str:
    told = fresh(code)
    assert told.returncode == 0 and not told.stderr, told.stderr
    return told.stdout.strip()


def test_images_come_back_from_another_process_whole_and_writable():
    code = """
image = np.arange(10_000, dtype="f4").reshape(100, 100)
def work():
    turned = np.asfortranarray(image[:, :50])
    return os.getpid(), image, turned, image[::2, ::3], turned, np.zeros((0, 3)), _Threads.allotted
with beside(work, threads=5) as result:
    pid, whole, turned, every, same, empty, threads = result()
assert pid != os.getpid() and threads == 4
np.testing.assert_array_equal(whole, image)
np.testing.assert_array_equal(turned, image[:, :50])
np.testing.assert_array_equal(every, image[::2, ::3])
assert turned is same and turned.flags.f_contiguous and empty.shape == (0, 3)
whole[0] = 5
assert whole[0, 0] == 5 and turned[0, 0] == 0
print(len(os.listdir("/proc/self/fd")), os.popen("ps -o stat= --ppid %d | grep -c Z" % os.getpid()).read().strip())
"""
    descriptors, zombies = printed(code).split()
    assert int(zombies) == 0
    assert int(descriptors) <= 5, "what both shared was closed"


def test_a_refusal_crosses_with_its_facts():
    code = """
def work(): raise refusal("IN_CHECKSUM", "damaged", file="t1.nii.gz", found=3)
with beside(work, threads=2) as result:
    try: result()
    except CodeBrainError as error: print(error.code, error.file, error.found)
"""
    assert printed(code) == "IN_CHECKSUM t1.nii.gz 3"


@pytest.mark.parametrize(
    "ending",
    ["os.kill(os.getpid(), 9)", "os._exit(3)", "raise ValueError('ours')", "return lambda: 0"],
    ids=["killed", "left", "a bug", "cannot be pickled"],
)
def test_without_an_answer_the_work_is_done_here(ending):
    code = f"""
home = os.getpid()
def work():
    if os.getpid() != home:
        {ending}
    return 7
with beside(work, threads=2) as result:
    print(result())
"""
    told = fresh(code)
    assert told.returncode == 0 and told.stdout.strip() == "7"


def test_nothing_is_copied_where_memory_is_short():
    code = """
import codebrain.data.beside as module
module.available_memory = lambda: 10_000
with beside(lambda: (os.getpid(), np.zeros(10_000)), threads=2) as result:
    print(result()[0] == os.getpid())
"""
    assert printed(code) == "True"


@pytest.mark.parametrize(
    "given",
    ["threads=1", "threads=2, torch=1", "threads=2, thread=1"],
    ids=["one thread", "torch is there", "a thread is there"],
)
def test_no_fork_where_it_would_be_no_gain_or_not_safe(given):
    code = f"""
def setting(threads, torch=0, thread=0):
    if torch: sys.modules["torch"] = os
    if thread: threading.Thread(target=threading.Event().wait, daemon=True).start()
    return threads
with beside(os.getpid, threads=setting({given})) as result:
    print(result() == os.getpid())
"""
    assert printed(code) == "True"


def test_leaving_early_ends_the_copy_and_an_interrupt_is_not_its_own():
    code = """
import time
def work():
    print(os.getpid(), flush=True); time.sleep(60)
with beside(work, threads=2) as result:
    time.sleep(0.5)
raise SystemExit(0)
"""
    pid = int(printed(code))
    assert not _alive(pid)


def test_the_copy_ends_with_its_parent():
    code = """
import time
def work():
    print(os.getpid(), flush=True); time.sleep(60)
with beside(work, threads=2) as result:
    result()
"""
    process = subprocess.Popen([sys.executable, "-c", BEGIN + code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.kill(pid, signal.SIGINT)  # a terminal sends it to both; the parent says what happens
    time.sleep(0.2)
    assert _alive(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
