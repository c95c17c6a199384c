"""Short versions of reliability/memory.py: what stays behind of every study of a batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "reliability"))
import memory

pytestmark = [
    pytest.mark.row("E10"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident sizes come from /proc"),
]


@pytest.mark.parametrize(("work", "at"), [("prepare", (4, 16)), ("index", (50, 400))])
def test_memory_does_not_grow_with_the_studies(work, at):
    rows, tallies = memory.run(work, at)
    assert [row[0] for row in rows][-2:] == list(at)
    assert sum(tally.kept for tally in tallies) >= 1 and not any(tally.broken for tally in tallies)


def test_a_leak_would_be_seen():
    mib = 1 << 20
    leaking = [(20, 100 * mib, 300 * mib), (400, 150 * mib, 340 * mib)]
    leading, working = memory.judge("batch", leaking)
    assert leading.broken and working.broken
    steady = [(20, 100 * mib, 300 * mib), (400, 103 * mib, 310 * mib)]
    assert not any(tally.broken for tally in memory.judge("batch", steady))
