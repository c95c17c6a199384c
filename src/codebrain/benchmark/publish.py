"""What a suite came to, as files: rows, tables beside the paper's, figures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from codebrain.benchmark import figures, layout, tables
from codebrain.benchmark.contest import model_of
from codebrain.benchmark.figures import Drawing
from codebrain.benchmark.paper import Published, published
from codebrain.benchmark.rows import REGIONS, TASKS, Row, rows_to_csv, rows_to_parquet
from codebrain.benchmark.runner import Results
from codebrain.benchmark.statistics import Bootstrap, interval, reference_of
from codebrain.benchmark.suite import Suite
from codebrain.benchmark.summary import models_of
from codebrain.benchmark.tables import Numbers, Table
from codebrain.benchmark.worker import sentence_of
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError
from codebrain.imaging import safe_files
from codebrain.output import FIGURES

_log = logging.getLogger(__name__)

Draw = Callable[[], Drawing | None]


def publish(
    folder: Path, suite: Suite, results: Results, store: SliceStore, *, device: torch.device
) -> tuple[str, list[CodeBrainError]]:
    """Write everything that the suite's layout asks for into ``folder``.

    Tables and figures hold the methods that are complete; the rows of the others are in ``rows.csv``.

    Returns:
        The tables as Markdown, and what kept some of the other files from being written.
    """
    safe_files.write_text(folder / "rows.csv", rows_to_csv(results.rows))
    rows = [row for row in results.rows if row.model in results.finished]
    remarks = remarks_on(suite, results, rows)
    found = list(all_tables(suite, results, rows)) if rows else []
    text = layout.markdown(found, remarks, suite.title)
    safe_files.write_text(folder / "table.md", text)
    safe_files.write_text(folder / "table.tex", layout.latex(found, remarks))
    safe_files.write_text(folder / "table.html", layout.html(found, remarks, suite.title))
    extras = {"rows.parquet": lambda: {"rows.parquet": rows_to_parquet(results.rows)}}
    if rows:
        (folder / FIGURES).mkdir()
        extras |= {name: _files(name, draw) for name, draw in drawings(suite, results, rows, store, device)}
    return text, [error for name, make in extras.items() if (error := _written(folder, name, make)) is not None]


def _files(name: str, draw: Draw) -> Callable[[], dict[str, bytes]]:
    def make() -> dict[str, bytes]:
        drawing = draw()
        return {} if drawing is None else drawing.files(f"{FIGURES}/{name}")

    return make


def _written(folder: Path, name: str, make: Callable[[], dict[str, bytes]]) -> CodeBrainError | None:
    """Make and write some files; a picture that cannot be drawn must not cost the tables of a week of training."""
    try:
        for file, content in make().items():
            safe_files.write_bytes(folder / file, content)
    except Exception as error:
        known = sentence_of(error)
        _log.warning("%s is left out: %s", name, known)
        return known
    return None


# --- tables ---


def _bootstrap(rows: Sequence[Row]) -> Bootstrap | None:
    """How intervals are made; none for one patient."""
    return Bootstrap() if len({row.patient for row in rows}) > 1 else None


def all_tables(suite: Suite, results: Results, rows: Sequence[Row]) -> Iterator[Table]:
    """The tables of the suite's layout, the most important first."""
    how = _bootstrap(rows)
    heading = "Variant" if "ablation" in suite.layout else "Model"
    present = {(row.region, row.task) for row in rows}
    for task in TASKS:
        if ("slice", task) in present:
            theirs = paper_numbers(suite, task)
            yield from tables.compared(rows, theirs, task=task, bootstrap=how, heading=heading)
    if len(models_of(rows)) > 1 and how is not None:
        yield tables.paired(rows, reference=_reference(suite, rows), bootstrap=how)
    yield tables.budget(_spent(suite, results))
    for region, task in ((region, task) for region in REGIONS[1:] for task in TASKS if (region, task) in present):
        yield from tables.compared(rows, region=region, task=task, bootstrap=how, heading=heading)
    if "scenarios" in suite.layout:
        shown = _reference(suite, rows)
        yield tables.by_pattern(rows, shown, bootstrap=how)
        if "CodeBrain" in suite.methods[shown].paper_lines:
            yield from _cells_beside(suite, [row for row in rows if row.model == shown])


def _reference(suite: Suite, rows: Sequence[Row]) -> str:
    """The method that the others are tested against, and whose scenarios and codes are shown."""
    named = suite.reference if suite.reference in models_of(rows) else None
    return reference_of(models_of(rows), named)


def paper_numbers(suite: Suite, task: str) -> Numbers:
    """The published means by our label, for the methods that name their line in the paper."""
    labels = {line: label for label, method in suite.methods.items() for line in method.paper_lines}
    return {
        (labels[line], number.given, number.metric): number.value
        for number in _of_table(suite)
        if (line := _line(number)) in labels and number.task == task and not number.pattern and not number.modality
    }


def _of_table(suite: Suite) -> list[Published]:
    return [] if suite.paper is None else published(suite.paper.table, suite.paper.dataset)


def _line(number: Published) -> str:
    return f"{number.method}, {number.setting}" if number.setting else number.method


def _cells_beside(suite: Suite, rows: Sequence[Row]) -> Iterator[Table]:
    """CodeBrain's cells beside the paper's Table 1 and the released code's log, where these are known."""
    for table, source in (("1", "the paper's table 1"), ("released", "the released code's log")):
        known = published(table, suite.paper.dataset) if suite.paper is not None else []
        numbers = [n for n in known if n.pattern and n.modality and n.metric in tables.UNITS]
        second = " (second-hand)" if any(n.second_hand for n in numbers) else ""
        for task, metric in dict.fromkeys((n.task, n.metric) for n in numbers):
            theirs = {(n.pattern, n.modality): n.value for n in numbers if (n.task, n.metric) == (task, metric)}
            if any(row.task == task for row in rows):
                yield tables.cells_beside(rows, theirs, metric=metric, task=task, source=f"{source}{second}")


def _spent(suite: Suite, results: Results) -> Iterator[dict[str, Any]]:
    for label, facts in results.facts.items():
        own = suite.methods[label].of is None
        yield {
            "method": label,
            "parameters": facts.get("parameters") or None,
            "samples": facts.get("samples") if own else None,
            "steps": facts.get("steps") if own else None,
            "training_seconds": facts.get("seconds") if own else None,
            "slice_seconds": facts.get("seconds_per_slice"),
        }


# --- remarks ---


def remarks_on(suite: Suite, results: Results, rows: Sequence[Row]) -> list[str]:
    """What a reader must know about the tables."""
    how = _bootstrap(rows)
    found = tables.notes(rows, split=suite.split, middle=suite.middle, bootstrap=how) if rows else []
    found += tables.paired_notes() if how is not None and len(models_of(rows)) > 1 else []
    found += _budget_remarks(suite, results)
    found += [f"{label}: {facts['label']}." for label, facts in results.facts.items() if facts.get("label")]
    variants = {label: method for label, method in suite.methods.items() if method.of}
    found += [f"{label} is the model of {m.of} with {_listed(m.settings)}." for label, m in variants.items()]
    found += _paper_remarks(suite)
    return found + [
        f"{label} is not complete and stands in no table. {error.code}: {error.brief}"
        for label, error in results.errors.items()
    ]


def _budget_remarks(suite: Suite, results: Results) -> list[str]:
    budget, machine = suite.budget, results.machine
    if budget.seconds is not None:
        spent = f"had {budget.seconds:g} seconds of training steps, as measured on a few steps beforehand"
    elif budget.samples is not None:
        spent = f"saw {budget.samples:,} slices, to a whole number of steps"
    else:
        spent = "was trained for as long as its recipe says"
    where = (
        f"Every method that was trained here {spent}, with the optimiser settings of its recipe and the suite's "
        "changes. Training seconds include validation and checkpoints; a slice was imputed by itself to be timed. On "
        f"{machine['device']}, {machine['threads']} threads for each of {machine['jobs'] or 1} methods at a time."
    )
    given = [label for label, facts in results.facts.items() if facts.get("source") == "given"]
    return [where, *(f"{label} was given, not trained here: the budget does not hold for it." for label in given)]


def _paper_remarks(suite: Suite) -> list[str]:
    if suite.paper is None or not _of_table(suite):
        return []
    lines = [
        f"The paper's numbers are those of its table {suite.paper.table} on {suite.paper.dataset}; they can be "
        "compared with ours only where data, split and sizes are the paper's."
    ]
    if any(number.second_hand for number in _of_table(suite)):
        lines.append("Some of them are second-hand: they were read in notes about the paper, not in it.")
    return lines


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


# --- figures ---


def drawings(
    suite: Suite, results: Results, rows: Sequence[Row], store: SliceStore, device: torch.device
) -> Iterator[tuple[str, Draw]]:
    """The figures of the suite's layout by file name, each drawn when it is asked for."""
    for metric in tables.UNITS:
        yield f"scores_{metric.lower()}", partial(_bars, rows, metric)
    judged = next(iter(results.finished.values())).modalities
    shown = _reference(suite, rows)

    def model(label: str) -> Any:
        return model_of(results.finished[label], label, store)

    if "methods" in suite.layout or "ablation" in suite.layout:
        yield (
            "methods",
            lambda: figures.methods_figure(
                {label: model(label) for label in results.finished},
                store,
                split=suite.split,
                judged=judged,
                device=device,
            ),
        )
    if "scenarios" in suite.layout:
        yield (
            "scenarios",
            lambda: figures.scenarios_figure(
                model(shown), store, split=suite.split, judged=judged, device=device, label=shown
            ),
        )
    if "codes" in suite.layout:
        yield (
            "codes",
            lambda: figures.codes_figure(
                model(shown), store, split=suite.split, judged=judged, device=device, label=shown
            ),
        )


def _bars(rows: Sequence[Row], metric: str) -> Drawing:
    ends = {label: interval(rows, metric=metric, model=label) for label in models_of(rows)}
    known = {label: (end.low, end.high) for label, end in ends.items() if end is not None}
    return figures.bars_figure(rows, metric=metric, intervals=known)
