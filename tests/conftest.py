"""What tests share: shape checking, where the real scans lie, one thread."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans beside the project; tests that need it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the real scans beside the project (../shared/data)")
    return REAL_DATA
