from __future__ import annotations

from pathlib import Path

import pytest

from codebrain.benchmark.budget import fit_budget, seconds_per_step, trained_stages
from codebrain.benchmark.suite import Budget
from codebrain.training.config import load_config
from fabricated import fabricate_store

SMALL = ["settings.width=2", "settings.depth=1", "settings.critic_width=2", "precision=fp32"]


def test_stages_share_samples_as_their_recipe_does(tmp_path: Path) -> None:
    store = fabricate_store(tmp_path, 4, val=[], test=["s00"])
    config = load_config("codebrain_small", [*SMALL, "stages.grading.batch_size=24"])
    stages = trained_stages(config, store)
    fitted = fit_budget(config, stages, Budget(samples=120_000, validations=2), {}).stages
    seen = {name: stage.steps * stage.batch_size for name, stage in fitted.items()}
    assert sum(seen.values()) == pytest.approx(120_000, rel=0.001)
    assert seen["grading"] / seen["reconstruction"] == pytest.approx(1600 * 24 / (1300 * 12), rel=0.001)
    assert all(stage.validate_every == -(-stage.steps // 2) for stage in fitted.values())


def test_epochs_become_steps_and_without_a_budget_the_recipe_decides(tmp_path: Path) -> None:
    store = fabricate_store(tmp_path, 4, val=[], test=["s00"])  # three training subjects of four slices that count
    lengths = ["stages.grading.steps=null", "stages.grading.epochs=3", "stages.grading.batch_size=5"]
    config = load_config("codebrain_small", [*SMALL, *lengths])
    fitted = fit_budget(config, trained_stages(config, store), Budget(), {}).stages
    assert (fitted["grading"].steps, fitted["grading"].epochs) == (3 * -(-12 // 5), None)
    assert fitted["reconstruction"].steps == 1300


def test_seconds_are_shared_by_what_steps_cost(tmp_path: Path) -> None:
    store = fabricate_store(tmp_path, 4, val=[], test=["s00"])
    config = load_config("codebrain_small", SMALL)
    fitted = fit_budget(
        config, trained_stages(config, store), Budget(seconds=600), {"reconstruction": 0.5, "grading": 0.1}
    ).stages
    spent = fitted["reconstruction"].steps * 0.5 + fitted["grading"].steps * 0.1
    assert spent == pytest.approx(600, rel=0.002)
    assert fitted["grading"].steps / fitted["reconstruction"].steps == pytest.approx(1600 / 1300, rel=0.01)


def test_steps_are_timed_stage_by_stage_and_leave_nothing_behind(tmp_path: Path) -> None:
    store = fabricate_store(tmp_path / "store", 4, shape=(4, 40, 32), val=["s01"], test=["s00"])
    crops = [f"stages.{name}.{key}" for name in ("reconstruction", "grading") for key in ("crop=32", "batch_size=2")]
    config = load_config("codebrain_small", [*SMALL, *crops])
    out = tmp_path / "out"
    out.mkdir()
    seconds = seconds_per_step(config, trained_stages(config, store), store, out, device="cpu")
    assert set(seconds) == {"reconstruction", "grading"} and all(0 < value < 60 for value in seconds.values())
    assert not list(out.iterdir())
