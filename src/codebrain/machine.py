"""What this machine gives us: cores, memory, device; read from the limits allotted, not from the hardware."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from codebrain.errors import refusal
from codebrain.threads import allot

if TYPE_CHECKING:
    import torch

STUDY_TIMEOUT_S = 7200.0
"""How long the worker of a study may say nothing. The slowest step, a registration with a deformation, takes
minutes; a computation that never ends takes for ever."""

IDLE_S = 50.0
"""How long a worker may neither say, compute, read nor write anything: a stopped process, a lock, a disk that hangs.
With the rhythm at which workers are looked at it is ended within a minute."""

_CGROUP = Path("/sys/fs/cgroup")


def allotted_cores() -> int:
    """Cores that this process may use: CPU affinity, then the cgroup's quota, at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, affinity if quota is None else min(affinity, int(quota + 0.5)))


def _cgroup_quota() -> float | None:
    """Cores of the cgroup's CPU quota (version 2, then version 1), or None without one."""
    words = _read(_CGROUP / "cpu.max").split()
    if len(words) == 2 and words[0] != "max":
        return float(words[0]) / float(words[1])
    quota, period = _read(_CGROUP / "cpu/cpu.cfs_quota_us"), _read(_CGROUP / "cpu/cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def memory_limit() -> int | None:
    """Bytes that this process may use: the smaller of the cgroup's limit and the machine's memory."""
    found = [_physical_memory()]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(_CGROUP / name)
        if text.isdigit():
            found.append(int(text))
    known = [size for size in found if size]
    return min(known) if known else None


def available_memory() -> int | None:
    """Bytes that this process may still take: of the machine, of its cgroup, of its address space; None if unknown.

    Page cache that the kernel gives back counts as available.
    """
    found = [room for room in (_free_memory(), _cgroup_room(), _address_room()) if room is not None]
    return max(0, min(found)) if found else None


def _free_memory() -> int | None:
    """What Linux says is available; None elsewhere."""
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_room() -> int | None:
    """The cgroup's limit less what is used and cannot be given back (version 2, then version 1)."""
    for limit, usage, cache in (("memory.max", "memory.current", "inactive_file"), (
        "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"
    )):  # fmt: skip
        most, used = _read(_CGROUP / limit), _read(_CGROUP / usage)
        if most.isdigit() and used.isdigit():
            stat = dict(line.split(" ", 1) for line in _read((_CGROUP / limit).with_name("memory.stat")).splitlines())
            return int(most) - int(used) + int(stat.get(cache, "0"))
    return None


def _address_room() -> int | None:
    """What ``ulimit -v`` leaves; None without a limit or where the size of the process is not known."""
    most, pages = resource.getrlimit(resource.RLIMIT_AS)[0], _read(Path("/proc/self/statm")).split()
    if most == resource.RLIM_INFINITY or not pages:
        return None
    return most - int(pages[0]) * resource.getpagesize()


def in_gib(size: int) -> str:
    """For messages, for example ``1.7 GiB``."""
    return f"{size / 2**30:.1f} GiB"


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


_SHARE = 0.8
"""Of the memory limit that work at the same time may plan with; the rest is for everybody else."""


def jobs_that_fit(wanted: int, bytes_each: int) -> int:
    """How many of ``wanted`` processes of ``bytes_each`` fit into the memory allotted to us; at least one."""
    limit = memory_limit()
    return wanted if limit is None else max(1, min(wanted, int(_SHARE * limit // bytes_each)))


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def choose_device(name: str = "auto") -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names; ``auto`` is a GPU where there is one.

    Raises:
        UsageError: ``CONFIG`` for another name.
        EnvironmentRefused: ``ENV_GPU`` when a GPU is asked for that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or (kind == "cpu" and number):
        known = "auto, cpu, cuda or cuda:N"
        raise refusal("CONFIG", f"no device is called {name!r}", field="device", expected=known)
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise refusal(
            "ENV_GPU", f"the device {name} is not there", found=f"{torch.cuda.device_count()} GPUs",
            hint="Use --device cpu, or look at `codebrain info`.",
        )  # fmt: skip
    return torch.device(name)


def short_floats() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, and torch knows how."""
    import torch

    found = any(_has(name) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return found and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def integer_products() -> bool:
    """Whether this processor multiplies 8-bit integers in hardware, and torch knows how."""
    import torch

    return _has("_is_vnni_supported") and hasattr(torch.ops.onednn, "qlinear_pointwise")


def _has(name: str) -> bool:
    """A question to torch about the processor, no where this torch does not know the question."""
    import torch

    return bool(getattr(torch.cpu, name, bool)())


def set_threads(threads: int | None = None) -> int:
    """Let torch compute with ``threads`` threads; by default with the cores we were allotted.

    A smaller ``OMP_NUM_THREADS`` in the environment is respected. Returns the number in force.

    Raises:
        UsageError: ``CONFIG`` for fewer than one.
    """
    import torch

    if threads is not None and threads < 1:
        raise refusal("CONFIG", "the number of threads must be at least 1", field="threads", found=threads)
    torch.set_num_threads(allot(threads or default_threads()))
    return torch.get_num_threads()


def default_threads() -> int:
    """The cores we were allotted, or a smaller ``OMP_NUM_THREADS``."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(allotted_cores(), int(asked)) if asked.isdigit() and int(asked) > 0 else allotted_cores()


def keep_freed_memory() -> bool:
    """Let the C library keep large blocks that were freed, for the next tensor of the size.

    glibc gives blocks of more than 32 MB back to the kernel, which has to clear every page again for the next one: a
    third of the time of a training step at the published size, and more of the time of reading. Without effect on
    results, on a GPU, and with other C libraries; the process stays as large as it once was.

    Returns:
        Whether the C library took the advice.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    advice = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 2**26}
    return all(mallopt(name, value) == 1 for name, value in advice.items())


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h; a threshold of -1 is none, mallopt(3)
