"""Limits are those allotted to us, not those of the hardware."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from codebrain import machine
from codebrain.errors import CodeBrainError


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1), ("max 100000", 16)]
)
def test_cores_of_a_cgroup(quota, cores, cgroup):
    (cgroup / "cpu.max").write_text(quota)
    assert machine.allotted_cores() == cores


def test_cores_of_an_older_cgroup(cgroup):
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.allotted_cores() == 3


def test_cores_without_a_cgroup_are_those_of_the_affinity(cgroup):
    assert machine.allotted_cores() == 16


def test_memory_of_a_cgroup(cgroup):
    (cgroup / "memory.max").write_text("1048576")
    assert machine.memory_limit() == 2**20
    (cgroup / "memory.max").write_text("max")
    assert machine.memory_limit() > 2**20


def test_what_a_cgroup_leaves_counts_the_cache_as_free(cgroup):
    for name, text in {
        "memory.max": 2**30,
        "memory.current": 2**29,
        "memory.stat": f"anon 5\ninactive_file {2**20}",
    }.items():
        (cgroup / name).write_text(str(text))
    assert machine.available_memory() <= 2**29 + 2**20
    (cgroup / "memory.current").write_text(str(2**30))
    assert machine.available_memory() == 2**20


def test_what_the_address_space_leaves():
    """A real limit, in a process of its own."""
    code = (
        "import resource; from codebrain import machine; size = machine._address_room; assert size() is None;"
        "pages = int(open('/proc/self/statm').read().split()[0]); most = pages * resource.getpagesize() + 2**26;"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most)); print(machine.available_memory())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 2**25 < int(told) <= 2**26


def test_peak_memory_is_that_of_this_process():
    assert 2**24 < machine.peak_memory() < 2**40


def test_threads_follow_the_allotment_and_the_environment(cgroup, monkeypatch):
    before = torch.get_num_threads()
    try:
        (cgroup / "cpu.max").write_text("200000 100000")
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert machine.set_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert machine.set_threads() == 1
        assert machine.set_threads(3) == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "code"),
    [("tpu", "CONFIG"), ("cpu:1", "CONFIG"), ("cuda:x", "CONFIG"), ("", "CONFIG"), ("cuda:99", "ENV_GPU")],
)
def test_devices_that_do_not_exist(name, code):
    with pytest.raises(CodeBrainError) as caught:
        machine.choose_device(name)
    assert caught.value.code == code


def test_the_cpu_is_always_there():
    assert machine.choose_device("cpu") == torch.device("cpu")
    assert machine.choose_device("auto").type in ("cpu", "cuda")


def test_as_many_jobs_as_fit_into_memory(cgroup):
    (cgroup / "memory.max").write_text(str(10 * 2**30))
    assert [machine.jobs_that_fit(wanted, 2**31) for wanted in (1, 4, 9)] == [1, 4, 4]
    assert machine.jobs_that_fit(4, 2**40) == 1


FREED = """
import resource
from codebrain.machine import keep_freed_memory
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
if not keep_freed_memory():
    raise SystemExit(77)
first = faults(); block = bytearray(2**26); del block
again = faults(); block = bytearray(2**26)
print(again - first, faults() - again)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="advice for the C library of Linux")
def test_freed_memory_is_kept():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode == 77:
        pytest.skip("another C library")
    first, again = (int(word) for word in done.stdout.split())
    assert first >= 16 and again < first / 10
