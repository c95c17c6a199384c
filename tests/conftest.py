"""What tests share: shape checking, where the real scans lie, one thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before torch is imported. Two test processes with two threads each on two cores wait for one another: a short
# training run took 14 seconds instead of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Shapes in signatures are checked on every call that the tests make.
install_import_hook(
    ["codebrain.nn", "codebrain.models", "codebrain.metrics", "codebrain.uncertainty"], "beartype.beartype"
)

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans beside the project; tests that need it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the real scans beside the project (../shared/data)")
    return REAL_DATA
