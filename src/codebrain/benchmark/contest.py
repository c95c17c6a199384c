"""One method of a suite, from its recipe to its scores, in a process of its own.

Everything that is finished is a file, written whole, so that a run that is killed goes on where it was:

::

    OUT/runs/<method>/            the training run, and ``trained.json`` when it is complete
    OUT/cells/<method>/<pattern>.csv    the rows of one pattern
    OUT/cells/<method>/facts.json       what they were made with, and how fast the method is
"""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from codebrain.benchmark.references import reference_model
from codebrain.benchmark.rows import Row, rows_from_csv, rows_to_csv
from codebrain.benchmark.scoring import (
    Patterns,
    Subject,
    Wiring,
    completions,
    evaluate,
    scored_slices,
    suitable_patterns,
)
from codebrain.benchmark.suite import Method, slug
from codebrain.benchmark.worker import sentence_of, speak_up
from codebrain.data.isolated import Tell
from codebrain.data.slices import SliceStore
from codebrain.data.splits import Split
from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging import safe_files
from codebrain.machine import choose_device, peak_memory
from codebrain.models import load_model, with_settings
from codebrain.models._contract import ImputationModel
from codebrain.output import read_json
from codebrain.training.config import TrainConfig
from codebrain.training.log import seconds_of
from codebrain.training.loop import train, vars_of
from codebrain.vocabulary import ModalitySet, Pattern, pattern_name

_log = logging.getLogger(__name__)

TRAINED, FACTS = "trained.json", "facts.json"
SHARE = 100
"""Units of progress that a training counts for; a scored pattern counts one."""


@dataclass(frozen=True)
class Contestant:
    """A method with weights of its own, and the lines of the table that use them.

    Attributes:
        label: of the method.
        lines: labels and methods; the first is the method itself.
        config: how it is trained, its length fixed; None for a method that is not trained here.
        data: the slice store.
        out: the benchmark's folder.
        modalities: contrasts that are judged.
        split, patterns, middle: see :class:`~codebrain.benchmark.suite.Suite`.
        device: where it runs.
        threads: that torch may use.
        batch: slices that the model gets at a time.
        was_trained: whether it was when the run began, so that training is no part of its progress.
        log_level: of the parent.
    """

    label: str
    lines: Mapping[str, Method]
    config: TrainConfig | None
    data: Path
    out: Path
    modalities: ModalitySet
    split: Split
    patterns: Patterns
    middle: int | None = None
    device: str = "cpu"
    threads: int = 1
    batch: int = 8
    was_trained: bool = False
    log_level: int = logging.WARNING

    @property
    def run(self) -> Path:
        """Folder of the training run."""
        return self.out / "runs" / slug(self.label)

    def finished(self, store: SliceStore) -> dict[str, Any] | None:
        """What ``trained.json`` says, when it is about this configuration and these slices."""
        found = dict(read_json(self.run / TRAINED))
        wanted = {"config": _plain(self.config), "data": store.fingerprint}
        return found if {name: found.get(name) for name in wanted} == wanted else None

    @property
    def training_units(self) -> int:
        """Units of progress that training counts for, if there is any."""
        return 0 if self.config is None or self.was_trained else SHARE


@dataclass(frozen=True)
class Outcome:
    """How a contestant fared, line by line.

    Attributes:
        label: of the method.
        facts: parameters, budget spent, seconds per slice, weights.
        patterns: those that are scored, in files of these names.
        errors: what stopped a line; the patterns that were finished before are kept.
    """

    label: str
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    patterns: dict[str, list[str]] = field(default_factory=dict)
    errors: dict[str, CodeBrainError] = field(default_factory=dict)


def contest(task: Contestant, tell: Tell) -> Outcome:
    """Train if need be, score every line on every pattern; what goes wrong is an outcome, not an exception."""
    outcome = Outcome(task.label)
    speak_up(task.label, task.log_level)
    try:
        torch.set_num_threads(task.threads)
        store = SliceStore.open(task.data)
        base, spent = _weights(task, store, tell)
    except Exception as error:
        outcome.errors[task.label] = sentence_of(error)
        return outcome
    reached = task.training_units
    for label, method in task.lines.items():
        outcome.patterns[label] = []
        try:
            model = with_settings(base, method.settings)
            outcome.facts[label] = {**spent, **_prepare(task, label, model, store)}
            for name in _score(task, label, model, store):
                outcome.patterns[label].append(name)
                reached += 1
                tell((reached, f"{label}, {name}"))
        except Exception as error:
            outcome.errors[label] = sentence_of(error)
    return outcome


def died(task: Contestant, error: CodeBrainError) -> Outcome:
    """The outcome of a contestant whose process ended without a word."""
    return Outcome(task.label, errors={task.label: error})


# --- weights ---


def _weights(task: Contestant, store: SliceStore, tell: Tell) -> tuple[ImputationModel, dict[str, Any]]:
    """The model, trained, loaded or fitted, and what that cost."""
    method = task.lines[task.label]
    if method.recipe is not None:
        done = task.finished(store) or _train(task, store, tell)
        return _base(task, store), done["spent"]
    begun = time.perf_counter()
    model = _base(task, store)
    if method.folder is not None:
        return model, {"source": "given"}
    return model, {"source": "reference", "seconds": round(time.perf_counter() - begun, 2)}


def _base(task: Contestant, store: SliceStore) -> ImputationModel:
    """The method's own model, once it is there: fitted, given or trained."""
    method = task.lines[task.label]
    if method.reference is not None:
        return reference_model(method.reference, store, modalities=task.modalities)
    return load_model(method.folder or task.run / "model")


def _train(task: Contestant, store: SliceStore, tell: Tell) -> dict[str, Any]:
    config = task.config
    assert config is not None, "only methods with a recipe are trained"
    task.run.mkdir(parents=True, exist_ok=True)
    begun = any((task.run / "checkpoints").glob("step-*"))
    try:
        train(
            config, store, task.run, device=task.device, resume=begun,
            progress=lambda done, total, note: tell((SHARE * done / max(total, 1), note)),
        )  # fmt: skip
    except CodeBrainError as error:
        if error.code != "CKPT_MISMATCH":
            raise
        hint = f"Use another label, or remove runs/{task.run.name} to train it anew."
        raise refusal(error.code, error.message, file=error.file, field=error.field, hint=hint) from error
    steps = {name: stage.steps or 0 for name, stage in config.stages.items()}
    spent = {
        "source": "trained",
        "steps": sum(steps.values()),
        "samples": sum(steps[name] * stage.batch_size for name, stage in config.stages.items()),
        "seconds": round(seconds_of(task.run), 1),
        "peak_memory_bytes": peak_memory(),
    }
    done = {"config": _plain(config), "data": store.fingerprint, "spent": spent}
    safe_files.write_json(task.run / TRAINED, done)
    return done


def _plain(config: TrainConfig | None) -> dict[str, Any]:
    return {} if config is None else vars_of(config)


# --- scores ---


def _prepare(task: Contestant, label: str, model: ImputationModel, store: SliceStore) -> dict[str, Any]:
    """What is worth knowing about a line's model; rows of other weights, settings or slices are cleared away."""
    wiring = _judged(model, store, task.modalities)
    folder = task.out / "cells" / slug(label)
    made_with = {
        "architecture": model.architecture, "sha256": model.sha256,
        "settings": json.loads(json.dumps(asdict(model.settings))), "data": store.fingerprint,
        "split": task.split, "middle": task.middle, "modalities": str(task.modalities),
    }  # fmt: skip
    facts = dict(read_json(folder / FACTS))
    if facts.get("made_with") == made_with:
        return facts
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts = {
        "made_with": made_with,
        "label": type(model).label,
        "parameters": parameters(model),
        "seconds_per_slice": seconds_per_slice(model, store, wiring, task),
    }
    safe_files.write_json(folder / FACTS, facts)
    return facts


def _score(task: Contestant, label: str, model: ImputationModel, store: SliceStore) -> Iterator[str]:
    """Score a line on every pattern that is not there yet; yields each pattern's name."""
    wiring = _judged(model, store, task.modalities)
    for name, pattern in patterns_to_score(store, wiring, task.split, task.patterns):
        cell = task.out / "cells" / slug(label) / f"{name}.csv"
        if not cell.is_file():
            rows = evaluate(
                model, store, split=task.split, patterns=[pattern], device=choose_device(task.device), batch=task.batch,
                middle=task.middle, label=label, judged=task.modalities,
            )  # fmt: skip
            safe_files.write_text(cell, rows_to_csv(rows))
        yield name


def _judged(model: ImputationModel, store: SliceStore, wanted: ModalitySet) -> Wiring:
    """The wiring to the contrasts of the suite, all of which the model must know."""
    lacking = [str(m) for m in wanted if m not in model.modalities]
    if lacking:
        raise refusal(
            "CKPT_MISMATCH", f"the model {model.name} does not know every contrast of the suite", field="modalities",
            found=str(model.modalities), expected=str(wanted), hint="Leave it out, or name fewer contrasts.",
        )  # fmt: skip
    return Wiring.of(model, store.preparation, wanted)


def patterns_to_score(
    store: SliceStore, wiring: Wiring, split: Split, patterns: Patterns
) -> list[tuple[str, ModalitySet]]:
    """Name and present contrasts of every pattern that suits some subject of the split, fewest contrasts first."""
    found: dict[Pattern, None] = {}
    for name in store.subjects(split):
        found |= dict.fromkeys(suitable_patterns(patterns, store.record(name).available, wiring))
    ordered = sorted(found, key=lambda pattern: (sum(pattern), [not here for here in pattern]))
    return [(pattern_name(wiring.shared, p), ModalitySet(tuple(wiring.shared.present(p)))) for p in ordered]


def model_of(task: Contestant, label: str, store: SliceStore) -> ImputationModel:
    """The model behind a line, once its contestant has finished."""
    return with_settings(_base(task, store), task.lines[label].settings)


def rows_of(out: Path, label: str, patterns: Iterable[str]) -> list[Row]:
    """The rows of a line's finished patterns, under its label."""
    cells = [out / "cells" / slug(label) / f"{name}.csv" for name in patterns]
    return [replace(row, model=label) for cell in cells for row in rows_from_csv(cell.read_text(encoding="utf-8"))]


def parameters(model: ImputationModel) -> int:
    """Weights that a model folder holds: critics are not counted."""
    left_out = tuple(f"{part}." for part in model.training_only)
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(left_out))


@torch.inference_mode()
def seconds_per_slice(
    model: ImputationModel, store: SliceStore, wiring: Wiring, task: Contestant, repeats: int = 5
) -> float | None:
    """Median time to impute a subject's middle slice from its first contrast alone, after one that is not timed."""
    subjects = [name for name in store.subjects(task.split) if scored_slices(store.record(name))]
    if not subjects:
        return None
    device = choose_device(task.device)
    model = model.to(device).eval()
    subject = Subject.read(store, subjects[0], wiring, device=device, middle=1)
    alone = next(iter(suitable_patterns("all", subject.record.available, wiring)), None)
    if alone is None:
        return None
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        next(completions(model, subject, alone))  # reads the result on the CPU, which waits for a GPU
        times.append(time.perf_counter() - begun)
    return round(statistics.median(times[1:]), 5)
