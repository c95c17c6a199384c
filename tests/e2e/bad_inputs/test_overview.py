"""Every row of the specification has a test, or a reason why it has none here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from specification import ELSEWHERE, ROWS

TESTS = Path(__file__).resolve().parents[2]


def marked_files() -> list[Path]:
    """Test modules that speak of rows."""
    words = ("mark.row(", "as_parameters(")
    return sorted(
        path
        for path in TESTS.rglob("test_*.py")
        if path != Path(__file__) and any(word in path.read_text(encoding="utf-8") for word in words)
    )


def loaded(path: Path) -> ModuleType:
    """The module as pytest imports it: by its name, its folder on the path."""
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    return importlib.import_module(path.stem)


def rows_of(module: ModuleType) -> Iterator[str]:
    """Row numbers that the module's tests are marked with, directly or in a parameter."""
    everywhere = getattr(module, "pytestmark", [])
    yield from _rows(everywhere if isinstance(everywhere, list) else [everywhere])
    for name, test in vars(module).items():
        if name.startswith("test_"):
            yield from _rows(getattr(test, "pytestmark", []))


def _rows(marks) -> Iterator[str]:
    for mark in marks:
        if mark.name == "row":
            yield from mark.args
        elif mark.name == "parametrize":
            for parameter in mark.args[1]:
                yield from _rows(getattr(parameter, "marks", []))


TESTED = {row for path in marked_files() for row in rows_of(loaded(path))}


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ELSEWHERE])
def test_the_row_has_a_test(row):
    assert row in TESTED, f"no test is marked with row {row}"


def test_only_known_rows_are_named():
    assert set(ROWS) >= TESTED and set(ROWS) >= ELSEWHERE.keys()
    assert len(ROWS) == 128
