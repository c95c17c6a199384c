"""Volumes side by side: in order, no more at once than memory is planned for."""

from __future__ import annotations

import threading
import time

import pytest

from codebrain import threads


@pytest.mark.parametrize("count", [1, 2])
def test_work_in_threads_keeps_its_order_and_its_first_error(count, monkeypatch):
    monkeypatch.setattr(threads._Threads, "allotted", count)
    assert threads.in_threads(lambda n: n * n, range(5)) == [0, 1, 4, 9, 16]
    assert threads.in_threads(lambda n: n, []) == []
    with pytest.raises(ZeroDivisionError):
        threads.in_threads(lambda n: 1 // n, [2, 0, "x"])


def test_two_volumes_at_most_are_worked_on_at_once(monkeypatch):
    monkeypatch.setattr(threads._Threads, "allotted", 8)
    seen = set()
    threads.in_threads(lambda n: (seen.add(threading.get_ident()), time.sleep(0.01)), range(8))
    assert 1 <= len(seen) <= 2
