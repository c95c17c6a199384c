"""The rows of the list of bad and odd inputs, and which of them are not tested here, with the reason.

A row is tested by a test marked with its number, ``@pytest.mark.row("A1")``, anywhere below ``tests``;
``test_overview.py`` fails for a row that has none. To read the specification: ``pytest tests/e2e/bad_inputs -v``.
"""

from __future__ import annotations

_LETTERS = {"A": 21, "B": 15, "C": 16, "D": 10, "E": 10, "F": 14, "G": 14, "H": 7, "I": 11, "J": 10}

ROWS = tuple(f"{letter}{number}" for letter, count in _LETTERS.items() for number in range(1, count + 1))

ELSEWHERE = {
    **{row: "server and viewer: they do not exist yet" for row in ROWS if row[0] == "I"},
    "B14": "later: needs a detector of images that are no brain MRI",
    "C16": "later; doctor already measures it (GEO_NOT_ALIGNED in its tests)",
    "D3": "later; doctor already says so (MOD_NAME in its tests)",
    "J7": "later: needs lesion experiments",
    "J9": "later: needs machine-readable fields in model cards",
}
