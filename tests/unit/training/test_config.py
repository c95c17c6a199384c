from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codebrain.errors import UsageError
from codebrain.models import build_model
from codebrain.training.config import load_config, recipe_names
from codebrain.vocabulary import ModalitySet


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_reads_and_names_real_stages_and_players(name: str) -> None:
    config = load_config(name)
    with torch.device("meta"):
        model = build_model(config.model, ModalitySet.parse("T1,T2"), config.settings)
    for stage, settings in config.stages.items():
        assert stage in model.stages
        assert set(settings.optimisers) <= set(model.players(stage))
        assert (settings.steps is None) != (settings.epochs is None)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_how_long_where_and_how_good(name: str) -> None:
    from codebrain.training.config import RECIPES

    header = (RECIPES / f"{name}.yaml").read_text().split("\nmodel:")[0]
    for word in ("codebrain train", "Hardware", "xpected score"):
        assert word in header, word


def test_the_published_settings() -> None:
    paper, released = load_config("codebrain_paper_ixi"), load_config("codebrain_released_brats")
    assert {stage.epochs for stage in paper.stages.values()} == {300}
    assert {stage.batch_size for stage in paper.stages.values()} == {48}
    assert [stage.batch_size for stage in released.stages.values()] == [8, 16]
    assert {stage.steps for stage in released.stages.values()} == {300_000}
    grader = released.stages["grading"].optimisers["grader"]
    assert (grader.lr, grader.lr_end, grader.betas, grader.weight_decay) == (5e-4, 5e-5, (0.9, 0.9), 0.0)
    assert released.augmentation == "released" and released.patterns == "batch"
    assert released.modalities == ["FLAIR", "T1", "T2", "T1Gd"]


BAD = {
    "unknown key": ("model: codebrain\nstagess: {}\n", "Did you mean stages"),
    "unknown nested key": ("model: codebrain\nstages: {grading: {batchsize: 3}}\n", "batch_size"),
    "wrong type": ("model: codebrain\nseed: many\n", "seed"),
    "not YAML": ("model: [codebrain\n", "line"),
    "python object": ("model: !!python/object/apply:os.system ['true']\n", "line 1"),
    "no mapping": ("- model\n", "mapping"),
    "key twice": ("model: codebrain\nseed: 1\nseed: 2\n", "line 3"),
    "no steps": ("model: codebrain\nstages:\n  grading:\n    steps: 0\n", "line 4, stages.grading.steps"),
    "steps and epochs": ("model: codebrain\nstages:\n  grading: {steps: 2, epochs: 1}\n", "not both"),
    "negative rate": (
        "model: codebrain\nstages: {grading: {optimisers: {grader: {lr: -1}}}}\n",
        "optimisers.grader.lr",
    ),
    "rate that is no number": ("model: codebrain\nstages: {grading: {optimisers: {grader: {lr: .nan}}}}\n", "finite"),
    "text for a number": ("model: codebrain\nseed: '7'\n", "line 2, seed"),
}


@pytest.mark.row("D10")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_by_name(case: str, tmp_path: Path) -> None:
    text, expected = BAD[case]
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(file)
    assert caught.value.code == "CONFIG"
    assert expected in str(caught.value)


def test_a_rate_may_be_written_without_a_point() -> None:
    config = load_config("codebrain_small", ["stages.grading.optimisers.grader.lr=1e-4"])
    assert config.stages["grading"].optimisers["grader"].lr == 1e-4


def test_a_bad_override_is_not_blamed_on_a_line_of_the_file() -> None:
    with pytest.raises(UsageError) as caught:
        load_config("codebrain_small", ["seed=many"])
    assert "line" not in str(caught.value) and caught.value.field == "seed"


def test_overrides_reach_any_depth() -> None:
    config = load_config("codebrain_small", ["stages.grading.steps=7", "precision=fp32"])
    assert config.stages["grading"].steps == 7 and config.precision == "fp32"
    with pytest.raises(UsageError, match="Did you mean"):
        load_config("codebrain_smal")


def test_a_curriculum_says_which_patterns_may_be_drawn() -> None:
    config = load_config("codebrain_small", ["stages.grading.curriculum=[[0.25, 0.5], [0.5, 0.8]]"])
    easiest = config.stages["grading"].easiest
    assert [easiest(progress) for progress in (0.0, 0.24, 0.25, 0.49, 0.5, 0.99)] == [0.5, 0.5, 0.8, 0.8, 1.0, 1.0]
    with pytest.raises(UsageError, match="order"):
        load_config("codebrain_small", ["stages.grading.curriculum=[[0.5, 0.8], [0.25, 0.5]]"])
