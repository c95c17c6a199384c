"""Tables from rows: the laid-out numbers of the paper's Tables 1 and 2, ablations, tests and budgets.

All of one kind: a line per model or pattern, groups of columns, the best of a column in bold where lines
compete. :mod:`codebrain.benchmark.layout` prints them as Markdown, LaTeX and HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

from codebrain.benchmark import layout
from codebrain.benchmark.layout import Table, html
from codebrain.benchmark.rows import REGIONS, TASKS, Row
from codebrain.benchmark.statistics import (
    FEWEST_PATIENTS,
    OUR_METHOD,
    Bootstrap,
    Interval,
    Paired,
    interval,
    paired_tests,
)
from codebrain.benchmark.summary import Cell, Given, Score, Which, models_of, patterns_of, summarise
from codebrain.marks import RESEARCH_USE_ONLY
from codebrain.metrics import PRINTED_SCALE, PSNR_CAP_DB

__all__ = [
    "BUDGET", "DASH", "GIVENS", "REGION_TITLES", "UNITS", "Numbers", "Table", "all_tables",
    "beside_paper", "budget", "by_pattern", "cells_beside", "compared", "comparison", "html", "latex", "markdown",
    "notes", "paired", "paired_notes", "printed",
]  # fmt: skip

UNITS = {"PSNR": "dB", "SSIM": "%", "MAE": "x1000"}
REGION_TITLES = {
    "slice": "Whole slices",
    "brain": "Inside the foreground only",
    "volume": "Whole volumes",
}
GIVENS: dict[Given, str] = {"any": "all", "one": "one present", "many": "several present"}
"""Which patterns a mean is over; the paper writes O->O for one and M->O for several present contrasts."""

Numbers = Mapping[tuple[str, str, str], float]
"""Published numbers in printed units by (model's label, ``any``/``one``/``many``, metric)."""

DASH = "–"
FEW = 20
"""Patients below which the remarks warn that percentile intervals are too narrow."""


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Attributes:
        text: what is printed.
        rank: as printed, higher is better; None where nothing competes.
    """

    text: str = DASH
    rank: float | None = None


Line = tuple[str, list[Entry]]


def _table(
    title: str,
    groups: Iterable[tuple[str, int]],
    columns: Iterable[str],
    lines: Sequence[Line],
    *,
    best: bool = False,
    rule_before: tuple[int, ...] = (),
) -> Table:
    body = tuple((name, *(entry.text for entry in entries)) for name, entries in lines)
    marked = _best([entries for _, entries in lines]) if best else frozenset()
    return Table(title, tuple(groups), tuple(columns), body, rule_before, marked)


def _best(lines: Sequence[Sequence[Entry]]) -> frozenset[tuple[int, int]]:
    """The highest of every column in which two or more compete; all that print alike share it."""
    found = set()
    for j, column in enumerate(zip(*lines, strict=True), start=1):
        ranks = [entry.rank for entry in column if entry.rank is not None]
        found |= {(i, j) for i, entry in enumerate(column) if len(ranks) > 1 and entry.rank == max(ranks)}
    return frozenset(found)


def printed(score: Score | None, metric: str, between: Interval | None = None) -> str:
    """``24.31 ± 0.52``, or ``24.31 [23.80, 24.79]`` with an interval, in the paper's units.

    No spread with one patient, a dash without a score.
    """
    if score is None:
        return DASH
    scale = PRINTED_SCALE[metric]
    spread = "" if score.spread is None else f" ± {score.spread * scale:.2f}"
    return f"{_minus(f'{score.mean * scale:.2f}')}{spread if between is None else _brackets(between, scale)}"


def _brackets(between: Interval, scale: float) -> str:
    return f" [{_minus(f'{between.low * scale:.2f}')}, {_minus(f'{between.high * scale:.2f}')}]"


def _minus(number: str) -> str:
    return number.replace("-", "−")


def _ranked(text: str, value: float, metric: str) -> Entry:
    """An entry of a column of a metric; ``value`` in printed units."""
    return Entry(text, round(-value if metric == "MAE" else value, 2))


def _entry(rows: Sequence[Row], metric: str, bootstrap: Bootstrap | None = None, **which: Unpack[Which]) -> Entry:
    score = summarise(rows, metric=metric, **which)
    if score is None:
        return Entry()
    between = None if bootstrap is None else interval(rows, metric=metric, bootstrap=bootstrap, **which)
    return _ranked(printed(score, metric, between), score.mean * PRINTED_SCALE[metric], metric)


def comparison(
    rows: Sequence[Row],
    *,
    region: str = "slice",
    task: str = "imputation",
    bootstrap: Bootstrap | None = None,
    best: bool = False,
    heading: str = "Model",
) -> Table:
    """Models below each other: mean over all cells, over O->O, over M->O (the paper's Table 2).

    Args:
        rows: of all models.
        region: one of the rows' regions.
        task: ``imputation`` or ``reconstruction``.
        bootstrap: prints intervals instead of the spread.
        best: prints the best of every column in bold.
        heading: of the first column.
    """
    chosen = [row for row in rows if row.region == region and row.task == task]
    lines = [
        (model, [_entry(mine, m, bootstrap, region=region, task=task, given=g) for g in GIVENS for m in UNITS])
        for model, mine in _by_model(chosen).items()
    ]
    groups = ((name, len(UNITS)) for name in GIVENS.values())
    return _table(f"{REGION_TITLES[region]}, {task}", groups, (heading, *list(UNITS) * len(GIVENS)), lines, best=best)


def _by_model(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(row)
    return found


def beside_paper(
    rows: Sequence[Row],
    published: Numbers,
    *,
    metric: str,
    region: str = "slice",
    task: str = "imputation",
    heading: str = "Model",
) -> Table:
    """One metric of every model: ours, the paper's and the difference, for all cells, O->O and M->O.

    Models that only the rows or only the paper have keep their line, with dashes for what is missing.
    """
    mine = _by_model(row for row in rows if row.region == region and row.task == task)
    lines = []
    for model in dict.fromkeys([*mine, *(name for name, _, m in published if m == metric)]):
        own = mine.get(model, [])
        scores = [summarise(own, metric=metric, region=region, task=task, given=given) for given in GIVENS]
        theirs = [published.get((model, given, metric)) for given in GIVENS]
        lines.append((model, [e for pair in zip(scores, theirs, strict=True) for e in _beside(*pair, metric)]))
    groups = ((name, 3) for name in GIVENS.values())
    title = f"{metric} ({UNITS[metric]}) beside the paper's: {REGION_TITLES[region].lower()}, {task}"
    return _table(title, groups, (heading, *["ours", "paper", "difference"] * len(GIVENS)), lines, best=True)


def cells_beside(rows: Sequence[Row], published: Mapping[Cell, float], *, metric: str, task: str, source: str) -> Table:
    """One metric of one model, cell by cell: ours, theirs and the difference (the paper's Table 1).

    Args:
        rows: of one model.
        published: in printed units by pattern and absent contrast; a pattern's contrasts may stand in any order.
        metric: one of :data:`UNITS`.
        task: ``imputation`` or ``reconstruction``.
        source: whose numbers they are, for the heading.
    """
    theirs = {(frozenset(pattern.split("+")), modality): value for (pattern, modality), value in published.items()}
    mine = [row for row in rows if row.region == "slice" and row.task == task and row.metric == metric]
    lines = []
    for pattern in patterns_of(mine):
        for modality in dict.fromkeys(row.modality for row in mine if row.pattern == pattern):
            score = summarise(mine, metric=metric, task=task, pattern=pattern, modality=modality)
            number = theirs.get((frozenset(pattern.split("+")), modality))
            lines.append((f"{pattern} to {modality}", list(_beside(score, number, metric))))
    title = f"{metric} ({UNITS[metric]}) beside {source}: whole slices, {task}, by cell"
    return _table(title, (), ("Cell", "ours", "theirs", "difference"), lines)


def _beside(score: Score | None, theirs: float | None, metric: str) -> tuple[Entry, Entry, Entry]:
    ours = None if score is None else score.mean * PRINTED_SCALE[metric]
    both = [Entry() if value is None else _ranked(f"{value:.2f}", value, metric) for value in (ours, theirs)]
    gap = Entry() if ours is None or theirs is None else Entry(_signed(ours - theirs))
    return both[0], both[1], gap


def _signed(value: float) -> str:
    """With a sign, unless it prints as zero."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else _minus(text)


def compared(
    rows: Sequence[Row],
    published: Numbers | None = None,
    *,
    region: str = "slice",
    task: str = "imputation",
    bootstrap: Bootstrap | None = None,
    heading: str = "Model",
) -> list[Table]:
    """:func:`comparison` with the best in bold, and beside the paper's numbers one table for each metric of theirs.

    Args:
        rows: of all models, or variants of one.
        published: the paper's numbers by the same labels.
        region: one of the rows' regions.
        task: ``imputation`` or ``reconstruction``.
        bootstrap: prints intervals instead of the spread.
        heading: of the first column.
    """
    metrics = [metric for metric in UNITS if any(metric == name for _, _, name in published or ())]
    return [
        comparison(rows, region=region, task=task, bootstrap=bootstrap, best=True, heading=heading),
        *(beside_paper(rows, published or {}, metric=m, region=region, task=task, heading=heading) for m in metrics),
    ]


def by_pattern(rows: Sequence[Row], model: str, *, region: str = "slice", bootstrap: Bootstrap | None = None) -> Table:
    """One model's patterns, imputation and reconstruction side by side (the paper's Table 1)."""
    mine = [row for row in rows if row.model == model and row.region == region]
    tasks = [task for task in TASKS if any(row.task == task for row in mine)]

    def line(name: str, given: Given = "any", pattern: str | None = None) -> Line:
        return name, [
            _entry(mine, m, bootstrap, task=t, region=region, given=given, pattern=pattern)
            for t in tasks
            for m in UNITS
        ]

    patterns = [line(pattern, pattern=pattern) for pattern in patterns_of(mine)]
    means = [line(f"mean, {name}", given) for given, name in GIVENS.items()]
    return _table(
        f"{model}: {REGION_TITLES[region].lower()}, by present contrasts",
        ((task, len(UNITS)) for task in tasks),
        ("Present", *list(UNITS) * len(tasks)),
        [*patterns, *means],
        rule_before=(len(patterns),),
    )


def paired(
    rows: Sequence[Row],
    *,
    reference: str | None = None,
    bootstrap: Bootstrap | None = None,
    **which: Unpack[Which],
) -> Table:
    """Every model minus the reference over patients, with interval and Holm's p-value, for the three metrics.

    Raises:
        UsageError: ``CONFIG`` when no row is of the reference.
    """
    tests = {
        (test.model, metric): test
        for metric in UNITS
        for test in paired_tests(rows, metric=metric, reference=reference, bootstrap=bootstrap, **which)
    }
    against = next((test.reference for test in tests.values()), reference or OUR_METHOD)
    lines = []
    for model in dict.fromkeys(name for name, _ in tests):
        found = [tests.get((model, metric)) for metric in UNITS]
        patients = max(test.patients for test in found if test)
        lines.append((model, [Entry(str(patients)), *(entry for test in found for entry in _tested(test))]))
    where = [REGION_TITLES[which.get("region", "slice")].lower(), which.get("task", "imputation")]
    where += [GIVENS[given]] if (given := which.get("given", "any")) != "any" else []
    return _table(
        f"Difference from {against}: {', '.join(where)}",
        [("", 1), *((metric, 2) for metric in UNITS)],
        ("Model", "Patients", *["difference", "p (Holm)"] * len(UNITS)),
        lines,
    )


def _tested(test: Paired | None) -> tuple[Entry, Entry]:
    if test is None or test.difference is None:
        return Entry(), Entry()
    scale = PRINTED_SCALE[test.metric]
    between = "" if test.interval is None else _brackets(test.interval, scale)
    return Entry(f"{_signed(test.difference * scale)}{between}"), Entry(_probability(test.adjusted))


def _probability(p: float | None) -> str:
    if p is None:
        return "too few patients"
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


BUDGET = {
    "parameters": ("Parameters", "{:,.0f}"),
    "samples": ("Samples seen", "{:,.0f}"),
    "steps": ("Optimiser steps", "{:,.0f}"),
    "training_seconds": ("Training, s", "{:,.0f}"),
    "slice_seconds": ("Per imputed slice, s", "{:.3f}"),
}
"""Keys of a line of the budget beside ``method``: heading and format."""


def budget(lines: Iterable[Mapping[str, object]]) -> Table:
    """What every method was given and costs; keys ``method`` and those of :data:`BUDGET`, a dash where absent."""
    shown = [
        (str(line["method"]), [
            Entry() if line.get(key) is None else Entry(form.format(line[key])) for key, (_, form) in BUDGET.items()
        ])
        for line in lines
    ]  # fmt: skip
    return _table("Budget", (), ("Method", *(heading for heading, _ in BUDGET.values())), shown)


def all_tables(rows: Sequence[Row]) -> list[Table]:
    """Comparisons by region and task, then every model's patterns on whole slices."""
    found = {(row.region, row.task) for row in rows}
    compared = [comparison(rows, region=r, task=t) for r in REGIONS for t in TASKS if (r, t) in found]
    first = next(region for region in REGIONS if any(row.region == region for row in rows))
    return [*compared, *(by_pattern(rows, model, region=first) for model in models_of(rows))]


def notes(
    rows: Sequence[Row], *, split: str, middle: int | None = None, bootstrap: Bootstrap | None = None
) -> list[str]:
    """What a reader must know to compare the numbers with others."""
    patients, studies = (len({getattr(row, name) for row in rows}) for name in ("patient", "subject"))
    slices = sum({row.subject: row.n_slices for row in rows if row.region != "brain"}.values())
    which = "all slices" if middle is None else f"the middle {middle} slices"
    cells = {model: _cells([row for row in rows if row.model == model]) for model in models_of(rows)}
    counted = ", ".join((_count(patients, "patient"), _count(studies, "study"), _count(slices, "slice")))
    lines = [
        f"Split {split}: {counted}; {which} of each study of which the foreground covers at least 1 %.",
        "PSNR in dB, SSIM in %, MAE times 1000. 2-D slices in their full in-plane frame, output clamped to "
        "[0, 1], data range 1; SSIM with a Gaussian window of 11, sigma 1.5; identical images count as "
        f"{PSNR_CAP_DB:.0f} dB.",
        "Foreground is the brain where the study is skull-stripped, else the head. A whole volume is scored "
        "as one image, so its PSNR is not the mean of its slices'.",
        "A cell is one pattern and one absent contrast; mean over slices within a cell, then over cells: "
        f"{next(iter(cells.values()))}.",
        *_spread_notes(patients, bootstrap),
    ]
    if len(set(cells.values())) > 1:
        listed = ", ".join(f"{model} {count}" for model, count in cells.items())
        lines.append(f"The models know different contrasts, so their means are over different cells: {listed}.")
    return [*lines, f"{RESEARCH_USE_ONLY}."]


def _spread_notes(patients: int, bootstrap: Bootstrap | None) -> list[str]:
    if patients < 2:
        return ["One patient: there is no spread."]
    if bootstrap is None:
        return ["± is the standard deviation over patients."]
    few = f" With {patients} patients such intervals are too narrow." if patients < FEW else ""
    return [
        f"In brackets: {bootstrap.level:.0%} percentile bootstrap interval over patients, "
        f"{bootstrap.resamples:,} resamples, seed {bootstrap.seed}; it does not cover the chance of training.{few}"
    ]


def paired_notes() -> list[str]:
    """What the table of :func:`paired` means."""
    return [
        "Differences are the model's minus the reference's, each patient's own mean over the cells that both were "
        "scored on, then the mean over patients, who weigh alike.",
        "p: two-sided Wilcoxon signed-rank test over patients, corrected after Holm for all models of a column; "
        f"not given for fewer than {FEWEST_PATIENTS} patients, where it cannot fall below 0.05.",
    ]


def _cells(rows: Sequence[Row]) -> str:
    cells = {(row.pattern, row.modality) for row in rows}
    one = sum("+" not in pattern for pattern, _ in cells)
    return f"{len(cells)} ({one} with one contrast present, {len(cells) - one} with several)"


def _count(number: int, thing: str) -> str:
    plural = {"study": "studies"}.get(thing, f"{thing}s")
    return f"{number} {thing if number == 1 else plural}"


def markdown(rows: Sequence[Row], remarks: Iterable[str]) -> str:
    """The whole of an evaluation's ``table.md``."""
    return layout.markdown(all_tables(rows), remarks, "Evaluation")


def latex(rows: Sequence[Row], remarks: Iterable[str]) -> str:
    """The whole of an evaluation's ``table.tex``; needs the booktabs package."""
    return layout.latex(all_tables(rows), remarks)
