"""Forcing bytes to disk makes no difference to a test and costs most of its time on a busy disk."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _quick_disk(request: pytest.FixtureRequest) -> None:
    # A patch of its own: a test that undoes its monkeypatch must not undo this.
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda _: None)
    request.addfinalizer(patch.undo)
