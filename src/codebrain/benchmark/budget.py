"""Equal budgets: how many steps of each stage a method may take."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from codebrain.benchmark.suite import Budget
from codebrain.data.slices import SliceStore
from codebrain.models import build_model
from codebrain.training.batches import TrainingBatches
from codebrain.training.config import StageConfig, TrainConfig
from codebrain.training.loop import train
from codebrain.vocabulary import ModalitySet

_MEASURED_STEPS = 6
"""Steps of each stage that are timed; the first two, in which memory is found and kernels are chosen, are not."""


def trained_stages(config: TrainConfig, store: SliceStore) -> dict[str, StageConfig]:
    """The stages that take steps, with their length as a number of steps."""
    modalities = ModalitySet.parse(config.modalities or list(store.preparation.modalities))
    with torch.device("meta"):
        model = build_model(config.model, modalities, config.settings)
    found = {}
    for number, name in enumerate(model.stages):
        if model.players(name):
            stage = config.stages.get(name, StageConfig())
            steps = TrainingBatches(store, config, stage, number, modalities).steps
            found[name] = replace(stage, steps=steps, epochs=None)
    return found


def fit_budget(
    config: TrainConfig, stages: Mapping[str, StageConfig], budget: Budget, seconds: Mapping[str, float]
) -> TrainConfig:
    """The configuration whose stages, longer or shorter by one factor, spend the budget.

    Args:
        config: as the recipe has it.
        stages: of :func:`trained_stages`.
        budget: what may be spent; without samples and seconds only the number of validations changes.
        seconds: a step of each stage takes; needed for a budget of seconds.
    """
    if budget.samples is not None:
        factor = budget.samples / sum((stage.steps or 0) * stage.batch_size for stage in stages.values())
    elif budget.seconds is not None:
        factor = budget.seconds / sum((stage.steps or 0) * seconds[name] for name, stage in stages.items())
    else:
        factor = 1.0
    return replace(config, stages={**config.stages, **{n: _scaled(s, factor, budget) for n, s in stages.items()}})


def _scaled(stage: StageConfig, factor: float, budget: Budget) -> StageConfig:
    steps = max(1, round((stage.steps or 0) * factor))
    return replace(stage, steps=steps, validate_every=max(1, -(-steps // budget.validations)))


def seconds_per_step(
    config: TrainConfig, stages: Mapping[str, StageConfig], store: SliceStore, folder: Path, *, device: str
) -> dict[str, float]:
    """Median time of a training step of each stage, measured on a run of a few steps in a temporary folder."""
    short = {n: replace(s, steps=_MEASURED_STEPS, validate_every=_MEASURED_STEPS) for n, s in stages.items()}
    ends: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".timing-") as place:
        train(
            replace(config, stages={**config.stages, **short}, validation_slices=1),
            store,
            Path(place) / "run",
            device=device,
            progress=lambda done, total, note: ends[note.split()[0]].append(time.perf_counter()),
        )
    return {name: statistics.median(b - a for a, b in itertools.pairwise(t[1:])) for name, t in ends.items()}
