"""Every recipe in the package can start: its model builds, its batches can be drawn, its players exist."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from codebrain.models import build_model
from codebrain.training.batches import TrainingBatches
from codebrain.training.config import load_config, recipe_names
from codebrain.vocabulary import ModalitySet
from fabricated import fabricate_store


@pytest.fixture(params=recipe_names())
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_its_model_builds_with_the_players_it_names(recipe: str) -> None:
    config = load_config(recipe)
    with torch.device("meta"):
        model = build_model(config.model, ModalitySet.parse(config.modalities or "T1,T2,FLAIR"), config.settings)
    for name in model.stages:
        assert set(config.stages[name].optimisers) == set(model.players(name)), "each player has its optimiser"


def test_its_first_batch_can_be_drawn(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe)
    names = ",".join(config.modalities or ["T1", "T2", "FLAIR"])
    store = fabricate_store(tmp_path, 3, modalities=names, shape=(4, 40, 32), val=["s00"], test=["s01"])
    for number, stage in enumerate(config.stages.values()):
        batches = TrainingBatches(store, config, stage, number, ModalitySet.parse(names))
        batch = batches.batch(0)
        h, w = batch.images.shape[2:]
        assert batch.images.shape[0] == stage.batch_size and h % 8 == w % 8 == 0
        assert (stage.crop is None) or h == w == stage.crop
        assert batch.images.min() >= 0 and batch.images.max() <= 1 and batch.images.std() > 0
