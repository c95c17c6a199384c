"""A whole suite: plan, contestants side by side, what each of them left behind.

How long each method is trained is found out first (:mod:`~codebrain.benchmark.budget`); trainings and scores are
files (:mod:`~codebrain.benchmark.contest`), so that a run goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codebrain.benchmark.budget import Timing, plan, trained_stages
from codebrain.benchmark.contest import Contestant, Outcome, contest, died, patterns_to_score, rows_of
from codebrain.benchmark.rows import Row
from codebrain.benchmark.scoring import Patterns, Wiring, parse_patterns
from codebrain.benchmark.suite import Suite
from codebrain.benchmark.worker import SILENT_S
from codebrain.data.isolated import isolated
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError, refusal
from codebrain.machine import IDLE_S, allotted_cores, choose_device, set_threads
from codebrain.training.config import TrainConfig
from codebrain.vocabulary import ModalitySet

_log = logging.getLogger(__name__)

Advance = Callable[[int, int, str], None]


@dataclass
class Results:
    """What a suite came to.

    Attributes:
        rows: of every finished pattern, method by method in the suite's order.
        facts: by method: parameters, budget spent, seconds per slice, weights.
        errors: by method: why it has no, or not all, rows.
        finished: by method that was scored on every pattern: whose weights it uses.
        machine: device, threads of a method and methods at a time.
    """

    rows: list[Row] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, CodeBrainError] = field(default_factory=dict)
    finished: dict[str, Contestant] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)


def run_suite(
    suite: Suite,
    configs: Mapping[str, TrainConfig],
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    jobs: int | None = None,
    batch: int = 8,
    progress: Advance = lambda done, total, note: None,
) -> Results:
    """Train and score every method of a suite; what is finished in ``out`` already is not done again.

    Args:
        suite: of :func:`~codebrain.benchmark.suite.load_suite`.
        configs: of its trained methods.
        data: the slice store.
        out: an existing folder that is ours.
        device: ``auto``, ``cpu`` or ``cuda[:N]``; with several GPUs ``auto`` and ``cuda`` give each method at work
            one of its own.
        threads: of each process; by default the allotted cores, shared by ``jobs``.
        jobs: methods at a time; by default as many as there are GPUs to share out, else one; 0 works in this process.
        batch: slices that a model gets at a time when it is scored.
        progress: told (done, total, a note).

    Raises:
        InputRefused: ``DATA_CONTRASTS`` when the store lacks a contrast of the suite, or no pattern suits.
        UsageError: ``CONFIG`` for patterns that are none, or a recipe whose stages or players the model has not.
    """
    store = SliceStore.open(data)
    modalities = _modalities(suite, store)
    patterns = parse_patterns(suite.patterns, modalities)
    cells = _cells(store, suite, modalities, patterns)
    places = _places(device)
    jobs = len(places) if jobs is None else jobs
    threads = set_threads(threads or max(1, allotted_cores() // max(jobs, 1)))  # budgets are timed as they are spent
    trained = {label: replace(config, modalities=[str(m) for m in modalities]) for label, config in configs.items()}
    stages = {label: trained_stages(config, store) for label, config in trained.items()}  # all, before anything starts
    machine = {"device": str(choose_device(places[0])), "threads": threads, "jobs": jobs}
    timings = [Timing(label, trained[label], stages[label], suite.budget, data, out, places[0], threads)
               for label in trained]  # fmt: skip
    planned, errors = plan(timings, store, out, machine)
    level = logging.getLogger("codebrain").getEffectiveLevel()
    tasks = [
        Contestant(
            label, {line: suite.methods[line] for line in suite.family(label)}, planned.get(label), data, out,
            modalities, suite.split, patterns, suite.middle, places[0], threads, batch, log_level=level,
        )
        for label in suite.bases
        if label not in errors
    ]  # fmt: skip
    tasks = [replace(task, was_trained=task.finished(store) is not None) for task in tasks]
    outcomes = _run(tasks, cells, places, jobs, progress)
    return _gathered(suite, tasks, outcomes, errors, machine)


def _gathered(
    suite: Suite,
    tasks: Sequence[Contestant],
    outcomes: Sequence[Outcome],
    errors: dict[str, CodeBrainError],
    machine: dict[str, Any],
) -> Results:
    """Everything in the suite's order, whoever finished first."""
    owners = {line: task for task in tasks for line in task.lines}
    for outcome in outcomes:
        errors |= outcome.errors
    begun = {line for outcome in outcomes for line in outcome.patterns}
    errors |= {
        line: refusal("CKPT_NONE", f"it uses the weights of {method.of}, which are not there")
        for line, method in suite.methods.items()
        if method.of in errors and line not in errors and line not in begun
    }
    facts = {line: found for outcome in outcomes for line, found in outcome.facts.items()}
    patterns = {line: names for outcome in outcomes for line, names in outcome.patterns.items()}
    return Results(
        rows=[row for m in suite.methods for row in rows_of(owners[m].out, m, patterns.get(m, []))] if owners else [],
        facts={m: facts[m] for m in suite.methods if m in facts},
        errors={m: errors[m] for m in suite.methods if m in errors},
        finished={m: owners[m] for m in suite.methods if m in patterns and m not in errors},
        machine=machine,
    )


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


def _places(device: str) -> list[str]:
    """The devices to share out: every GPU where none is named, else the one place that is."""
    import torch

    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return [f"cuda:{number}" for number in range(gpus)] if gpus > 1 else [device]


def _run(tasks: Sequence[Contestant], cells: int, places: Sequence[str], jobs: int, progress: Advance) -> list[Outcome]:
    """All contestants, ``jobs`` at a time."""
    whole = {task.label: task.training_units + cells * len(task.lines) for task in tasks}
    done = dict.fromkeys(whole, 0.0)

    def tell(label: str, units: float, note: str) -> None:
        done[label] = units
        progress(round(sum(done.values())), sum(whole.values()), f"{label}: {note}")

    outcomes = []
    for outcome in isolated(
        contest, tasks, jobs=jobs, died=died, patience_s=SILENT_S, idle_s=IDLE_S,
        told=lambda task, message: tell(task.label, *message),
        placed=lambda task, slot: replace(task, device=places[slot % len(places)]),
    ):  # fmt: skip
        outcomes.append(outcome)
        tell(outcome.label, whole[outcome.label], "failed" if outcome.errors else "done")
        for line, error in outcome.errors.items():
            _log.warning("%s: %s", line, error)
    return outcomes
