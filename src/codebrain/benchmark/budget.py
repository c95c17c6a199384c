"""Equal budgets: how many steps of each stage a method may take.

The number of steps that a budget of seconds comes to is measured once and kept in ``plan.json``, so that a run
which goes on, or one method more, changes nothing for the others.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from codebrain.benchmark.suite import Budget
from codebrain.benchmark.worker import SILENT_S, sentence_of, speak_up
from codebrain.data.isolated import Tell, isolated
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging import safe_files
from codebrain.machine import IDLE_S, set_threads
from codebrain.models import build_model
from codebrain.output import read_json
from codebrain.settings import parse_settings
from codebrain.training.batches import TrainingBatches
from codebrain.training.config import StageConfig, TrainConfig
from codebrain.training.loop import refuse_unknown_stages, train, vars_of
from codebrain.vocabulary import ModalitySet

_log = logging.getLogger(__name__)

PLAN = "plan.json"

_MEASURED_STEPS = 10
"""Steps of each stage that are timed; the first two, in which memory is found and kernels are chosen, are not."""


def trained_stages(config: TrainConfig, store: SliceStore) -> dict[str, StageConfig]:
    """The stages that take steps, with their length as a number of steps.

    Raises:
        UsageError: ``CONFIG`` for settings, stages or players that the model has not.
        InputRefused: ``DATA_CONTRASTS`` when no training subject has two of its contrasts.
    """
    modalities = ModalitySet.parse(config.modalities or list(store.preparation.modalities))
    with torch.device("meta"):
        model = build_model(config.model, modalities, config.settings)
    refuse_unknown_stages(config, model)
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
    if not stages:
        factor = 1.0
    elif budget.samples is not None:
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
    place = folder / safe_files.temporary_name("timing")  # swept at the next start, should we be killed
    try:
        train(
            replace(config, stages={**config.stages, **short}, validation_slices=1),
            store,
            place,
            device=device,
            verify=False,  # the training itself does, and a minute per method is much of a short budget
            progress=lambda done, total, note: ends[note.split()[0]].append(time.perf_counter()),
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {name: statistics.median(b - a for a, b in itertools.pairwise(t[1:])) for name, t in ends.items()}


@dataclass(frozen=True)
class Timing:
    """A method whose length has to be found out.

    Attributes:
        label: of the method.
        config: as its recipe has it.
        stages: those that take steps.
        budget: what it may spend.
        data, out: the slice store and the benchmark's folder.
        device, threads: as it will be trained.
    """

    label: str
    config: TrainConfig
    stages: Mapping[str, StageConfig]
    budget: Budget
    data: Path
    out: Path
    device: str
    threads: int

    def asked(self, store: SliceStore, machine: Mapping[str, Any]) -> dict[str, Any]:
        """All that the length depends on, as plain data."""
        asked = {"recipe": vars_of(self.config), "budget": json.loads(json.dumps(asdict(self.budget)))}
        timed = {name: machine[name] for name in ("device", "threads")} if self.budget.seconds is not None else {}
        return {**asked, "data": store.fingerprint, **timed}


def plan(
    timings: Sequence[Timing], store: SliceStore, out: Path, machine: Mapping[str, Any]
) -> tuple[dict[str, TrainConfig], dict[str, CodeBrainError]]:
    """How long each method is trained, and why that could not be found out for some."""
    entries = dict(dict(read_json(out / PLAN)).get("methods", {}))
    asked = {timing.label: timing.asked(store, machine) for timing in timings}
    new = [timing for timing in timings if entries.get(timing.label, {}).get("asked") != asked[timing.label]]
    errors: dict[str, CodeBrainError] = {}
    safe_files.write_json(out / PLAN, {"methods": entries})
    # Timed one after the other, so that none is slowed by another; in processes, so that their memory is free again.
    for timing, config, error in isolated(_lengthen, new, jobs=1 if timings and timings[0].budget.seconds else 0,
                                          died=_died, patience_s=SILENT_S, idle_s=IDLE_S):  # fmt: skip
        if config is None:
            errors[timing.label] = error or refusal("ENV_WORKER", "its length could not be found out")
            _log.warning("%s: %s", timing.label, errors[timing.label])
            continue
        entries[timing.label] = {"asked": asked[timing.label], "resolved": vars_of(config)}
        safe_files.write_json(out / PLAN, {"methods": entries})
    known = [timing.label for timing in timings if timing.label not in errors]
    return {label: parse_settings(TrainConfig, entries[label]["resolved"], where=PLAN) for label in known}, errors


Lengthened = tuple[Timing, TrainConfig | None, CodeBrainError | None]


def _lengthen(timing: Timing, tell: Tell) -> Lengthened:
    seconds: dict[str, float] = {}
    try:
        if timing.budget.seconds is not None:
            speak_up(timing.label, logging.WARNING)
            set_threads(timing.threads)
            store = SliceStore.open(timing.data)
            seconds = seconds_per_step(timing.config, timing.stages, store, timing.out, device=timing.device)
        return timing, fit_budget(timing.config, timing.stages, timing.budget, seconds), None
    except Exception as error:
        return timing, None, sentence_of(error)


def _died(timing: Timing, error: CodeBrainError) -> Lengthened:
    return timing, None, error
