"""A whole suite: plan, contestants side by side, what each of them left behind.

Training and scoring are files (see :mod:`~codebrain.benchmark.contest`), and so is the plan, ``plan.json``: the
number of steps that a budget of seconds came to is measured once and kept, so that a run which goes on, or one
method more, changes nothing for the others.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codebrain.benchmark.budget import fit_budget, seconds_per_step, trained_stages
from codebrain.benchmark.contest import SHARE, Contestant, Outcome, contest, died, patterns_to_score, rows_of
from codebrain.benchmark.rows import Row
from codebrain.benchmark.scoring import Patterns, Wiring, parse_patterns
from codebrain.benchmark.suite import Suite
from codebrain.data.isolated import isolated
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging import safe_files
from codebrain.machine import allotted_cores, set_threads
from codebrain.output import read_json
from codebrain.settings import parse_settings
from codebrain.training.config import TrainConfig
from codebrain.training.loop import vars_of
from codebrain.vocabulary import ModalitySet

_log = logging.getLogger(__name__)

PLAN = "plan.json"

Advance = Callable[[int, int, str], None]


@dataclass
class Results:
    """What a suite came to.

    Attributes:
        rows: of every finished pattern, method by method in the suite's order.
        facts: by method: parameters, budget spent, seconds per slice, weights.
        failures: by method: the sentence that says why it has no, or not all, rows.
        finished: by method that was scored on every pattern: whose weights it uses.
    """

    rows: list[Row] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    finished: dict[str, Contestant] = field(default_factory=dict)


def run_suite(
    suite: Suite,
    configs: Mapping[str, TrainConfig],
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    jobs: int = 1,
    batch: int = 8,
    progress: Advance = lambda done, total, note: None,
) -> Results:
    """Train and score every method of a suite; what is finished in ``out`` already is not done again.

    Args:
        suite: of :func:`~codebrain.benchmark.suite.load_suite`.
        configs: of its trained methods.
        data: the slice store.
        out: an existing folder that is ours.
        device: ``auto``, ``cpu`` or ``cuda[:N]``; with several GPUs ``auto`` and ``cuda`` deal methods out to them.
        threads: of each process; by default the allotted cores, shared by ``jobs``.
        jobs: methods at a time; 0 works in this process.
        batch: slices that a model gets at a time when it is scored.
        progress: told (done, total, a note).

    Raises:
        InputRefused: ``DATA_CONTRASTS`` when the store lacks a contrast of the suite, or no pattern suits.
        UsageError: ``CONFIG`` for patterns that are none.
    """
    store = SliceStore.open(data)
    modalities = _modalities(suite, store)
    patterns = parse_patterns(suite.patterns, modalities)
    threads = set_threads(threads or max(1, allotted_cores() // max(jobs, 1)))  # budgets are measured as they are spent
    planned, failures = _plan(suite, configs, store, out, device=device)
    tasks = [
        Contestant(
            label, {line: suite.methods[line] for line in suite.family(label)}, planned.get(label), data, out,
            modalities, suite.split, patterns, suite.middle, place, threads, batch,
        )
        for label, place in zip(suite.bases, _places(device, len(suite.bases)), strict=True)
        if label not in failures
    ]  # fmt: skip
    outcomes = _run(tasks, _cells(store, suite, modalities, patterns), jobs, progress)
    results = Results(failures={**failures, **{o.label: o.error for o in outcomes if o.error is not None}})
    owners = {task.label: task for task in tasks}
    for outcome in outcomes:
        results.facts |= outcome.facts
        if outcome.error is None:
            results.finished |= dict.fromkeys(owners[outcome.label].lines, owners[outcome.label])
    results.rows = [row for label in suite.methods for row in rows_of(out, label)]
    results.finished = {label: results.finished[label] for label in suite.methods if label in results.finished}
    return results


def _modalities(suite: Suite, store: SliceStore) -> ModalitySet:
    known = store.preparation.modalities
    wanted = ModalitySet.parse(suite.modalities) if suite.modalities else known
    lacking = [str(m) for m in wanted if m not in known]
    if lacking:
        raise refusal("DATA_CONTRASTS", f"the slice store has no {', '.join(lacking)}", file=store.root,
                      found=str(known), expected=str(wanted), hint="Name fewer contrasts in the suite.")  # fmt: skip
    return wanted


def _cells(store: SliceStore, suite: Suite, modalities: ModalitySet, patterns: Patterns) -> int:
    """How many patterns a method is scored on."""
    wiring = Wiring(modalities, store.preparation.modalities, modalities)
    count = len(patterns_to_score(store, wiring, suite.split, patterns))
    if not count:
        raise refusal("DATA_CONTRASTS", f"no subject of {suite.split} has contrasts for the patterns of the suite",
                      file=store.root, found=str(store.preparation.modalities), expected=str(modalities))  # fmt: skip
    return count


def _places(device: str, count: int) -> list[str]:
    """A device for each of so many tasks."""
    import torch

    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return [f"cuda:{number % gpus}" if gpus > 1 else device for number in range(count)]


def _run(tasks: list[Contestant], cells: int, jobs: int, progress: Advance) -> list[Outcome]:
    """All contestants, ``jobs`` at a time."""
    trained = sum(SHARE for task in tasks if task.config is not None)
    total = trained + cells * sum(len(task.lines) for task in tasks)
    done = {task.label: 0.0 for task in tasks}

    def told(task: Contestant, message: tuple[float, str]) -> None:
        units, note = message
        done[task.label] = units
        progress(round(sum(done.values())), total, f"{task.label}: {note}")

    outcomes = []
    for outcome in isolated(contest, tasks, jobs=jobs, died=died, told=told):
        outcomes.append(outcome)
        if outcome.error is not None:
            _log.warning("%s: %s", outcome.label, outcome.error["message"])
    return outcomes


# --- the plan ---


def _plan(
    suite: Suite, configs: Mapping[str, TrainConfig], store: SliceStore, out: Path, *, device: str
) -> tuple[dict[str, TrainConfig], dict[str, dict[str, Any]]]:
    """How long each method is trained, and those for which that could not be found out."""
    before = dict(read_json(out / PLAN)).get("methods", {})
    planned: dict[str, TrainConfig] = {}
    failures: dict[str, dict[str, Any]] = {}
    written: dict[str, Any] = {}
    for label, config in configs.items():
        asked = {"recipe": vars_of(config), "budget": json.loads(json.dumps(asdict(suite.budget)))}
        known = before.get(label, {})
        try:
            if known.get("asked") == asked:
                planned[label] = parse_settings(TrainConfig, known["resolved"], where=PLAN)
            else:
                planned[label] = _lengthen(suite, config, store, out, device, label)
        except CodeBrainError as error:
            failures[label] = error.as_dict()
            _log.warning("%s: %s", label, error)
            continue
        written[label] = {"asked": asked, "resolved": vars_of(planned[label])}
    safe_files.write_json(out / PLAN, {"methods": {**before, **written}, "data": store.fingerprint})
    return planned, failures


def _lengthen(suite: Suite, config: TrainConfig, store: SliceStore, out: Path, device: str, label: str) -> TrainConfig:
    stages = trained_stages(config, store)
    seconds: dict[str, float] = {}
    if suite.budget.seconds is not None:
        seconds = seconds_per_step(config, stages, store, out, device=device)
        _log.info("%s: %s s a step", label, ", ".join(f"{name} {value:.3f}" for name, value in seconds.items()))
    return fit_budget(config, stages, suite.budget, seconds)
