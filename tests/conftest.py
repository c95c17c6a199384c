"""What tests share: shape checking, where the real scans lie, one thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Before torch is imported. Two test processes with two threads each on two cores wait for one another: a short
# training run took 14 seconds instead of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Shapes in signatures are checked on every call that the tests make.
install_import_hook(
    ["codebrain.nn", "codebrain.models", "codebrain.metrics", "codebrain.uncertainty"], "beartype.beartype"
)

# Property tests: few examples and always the same ones in CI; `--hypothesis-profile=long` draws many, anew each time.
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
settings.register_profile(
    "long", deadline=None, max_examples=int(os.environ.get("CODEBRAIN_EXAMPLES", "10000")), print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("ci")

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans beside the project; tests that need it skip where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the real scans beside the project (../shared/data)")
    return REAL_DATA
