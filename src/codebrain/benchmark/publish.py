"""What a suite came to, as files: rows, tables beside the paper's, figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from codebrain.benchmark import figures, layout, tables
from codebrain.benchmark.contest import model_of
from codebrain.benchmark.figures import Drawing
from codebrain.benchmark.paper import published
from codebrain.benchmark.rows import REGIONS, TASKS, Row, rows_to_csv, rows_to_parquet
from codebrain.benchmark.runner import Results
from codebrain.benchmark.statistics import Bootstrap, interval, reference_of
from codebrain.benchmark.suite import Suite
from codebrain.benchmark.summary import models_of
from codebrain.benchmark.tables import Numbers, Table
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError
from codebrain.imaging import safe_files

FIGURES = "figures"


def publish(
    folder: Path, suite: Suite, results: Results, store: SliceStore, *, device: torch.device
) -> tuple[str, CodeBrainError | None]:
    """Write everything that the suite's layout asks for into ``folder``.

    Returns:
        The tables as Markdown, and which optional package kept some of the files from being written, if one did.
    """
    found = list(all_tables(suite, results))
    remarks = remarks_on(suite, results)
    text = layout.markdown(found, remarks, suite.title)
    safe_files.write_text(folder / "rows.csv", rows_to_csv(results.rows))
    safe_files.write_text(folder / "table.md", text)
    safe_files.write_text(folder / "table.tex", layout.latex(found, remarks))
    safe_files.write_text(folder / "table.html", layout.html(found, remarks, suite.title))
    try:
        safe_files.write_bytes(folder / "rows.parquet", rows_to_parquet(results.rows))
        (folder / FIGURES).mkdir()
        for name, drawing in drawings(suite, results, store, device):
            for file, content in drawing.files(name).items():
                safe_files.write_bytes(folder / FIGURES / file, content)
    except CodeBrainError as error:
        if error.code != "ENV_EXTRA":
            raise
        return text, error
    return text, None


def _bootstrap(rows: list[Row]) -> Bootstrap | None:
    """How intervals are made; none for one patient."""
    return Bootstrap() if len({row.patient for row in rows}) > 1 else None


def all_tables(suite: Suite, results: Results) -> Iterator[Table]:
    """The tables of the suite's layout, the most important first."""
    rows, how = results.rows, _bootstrap(results.rows)
    present = {(row.region, row.task) for row in rows}
    places = [(region, task) for region in REGIONS for task in TASKS if (region, task) in present]
    heading = "Variant" if "ablation" in suite.layout else "Model"
    for region, task in places:
        if region == "slice":
            yield tables.comparison(rows, region=region, task=task, bootstrap=how, best=True, heading=heading)
            yield from _beside(suite, rows, task, heading)
    if len(models_of(rows)) > 1 and how is not None:
        yield tables.paired(rows, reference=_reference(suite, rows), bootstrap=how)
    yield tables.budget(_spent(suite, results))
    for region, task in places:
        if region != "slice":
            yield tables.comparison(rows, region=region, task=task, bootstrap=how, best=True, heading=heading)
    if "scenarios" in suite.layout:
        shown = _reference(suite, rows)
        yield tables.by_pattern(rows, shown, bootstrap=how)
        yield from _cells_beside(suite, [row for row in rows if row.model == shown])


def _reference(suite: Suite, rows: list[Row]) -> str:
    """The method that the others are tested against, and whose scenarios and codes are shown."""
    named = suite.reference if suite.reference in models_of(rows) else None
    return reference_of(models_of(rows), named)


def _beside(suite: Suite, rows: list[Row], task: str, heading: str) -> Iterator[Table]:
    """One table for each metric that the paper reports for this task."""
    theirs = paper_numbers(suite, task)
    for metric in tables.UNITS:
        if any(name == metric for _, _, name in theirs):
            yield tables.beside_paper(rows, theirs, metric=metric, task=task, heading=heading)


def paper_numbers(suite: Suite, task: str) -> Numbers:
    """The published means by our label, for the methods that name their line in the paper."""
    if suite.paper is None:
        return {}
    labels = {method.paper: label for label, method in suite.methods.items() if method.paper is not None}
    found: dict[tuple[str, str, str], float] = {}
    for number in published(suite.paper.table, suite.paper.dataset):
        name = f"{number.method}, {number.setting}" if number.setting else number.method
        if name in labels and number.task == task and not number.pattern and not number.modality:
            found[labels[name], number.given, number.metric] = number.value
    return found


def _cells_beside(suite: Suite, rows: list[Row]) -> Iterator[Table]:
    """CodeBrain's cells beside the paper's Table 1 and the released code's log, where these are known."""
    if suite.paper is None or suite.methods[rows[0].model].paper is None:
        return
    for table, source in (("1", "the paper's table 1"), ("released", "the released code's log")):
        numbers = [n for n in published(table, suite.paper.dataset) if n.pattern and n.modality]
        for task, metric in dict.fromkeys((n.task, n.metric) for n in numbers):
            theirs = {(n.pattern, n.modality): n.value for n in numbers if (n.task, n.metric) == (task, metric)}
            if metric in tables.UNITS and any(row.task == task for row in rows):
                yield tables.cells_beside(rows, theirs, metric=metric, task=task, source=source)


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


def remarks_on(suite: Suite, results: Results) -> list[str]:
    """What a reader must know about the tables."""
    how = _bootstrap(results.rows)
    found = tables.notes(results.rows, split=suite.split, middle=suite.middle, bootstrap=how)
    found += tables.paired_notes() if how is not None and len(models_of(results.rows)) > 1 else []
    found += _budget_remarks(suite)
    found += [f"{label}: {facts['label']}." for label, facts in results.facts.items() if facts.get("label")]
    found += [
        f"{label} is the model of {m.of} with {_listed(m.settings)}." for label, m in suite.methods.items() if m.of
    ]
    if suite.paper is not None:
        found.append(
            f"The paper's numbers are those of its table {suite.paper.table} on {suite.paper.dataset}; they can be "
            "compared with ours only where data, split and sizes are the paper's."
        )
    return found + [f"{label} is not complete: {error['message']}" for label, error in results.failures.items()]


def _budget_remarks(suite: Suite) -> list[str]:
    budget = suite.budget
    spent = (
        "Training seconds include validation and checkpoints; seconds per imputed slice are for one slice at a time."
    )
    if budget.seconds is not None:
        return [f"Every trained method had {budget.seconds:g} seconds of training steps as measured beforehand; own "
                f"published optimiser settings. {spent}"]  # fmt: skip
    if budget.samples is not None:
        return [f"Every trained method saw {budget.samples:,} slices; own published optimiser settings. {spent}"]
    return [f"Every trained method was trained for as long as its recipe says. {spent}"]


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def drawings(suite: Suite, results: Results, store: SliceStore, device: torch.device) -> Iterator[tuple[str, Drawing]]:
    """The figures of the suite's layout by file name; pictures need models that are complete."""
    rows = results.rows
    for metric in tables.UNITS:
        ends = {m: e for m in models_of(rows) if (e := interval(rows, metric=metric, model=m)) is not None}
        yield (
            f"scores_{metric.lower()}",
            figures.bars_figure(
                rows, metric=metric, intervals={label: (end.low, end.high) for label, end in ends.items()}
            ),
        )
    if not results.finished:
        return
    models = {label: model_of(task, label, store) for label, task in results.finished.items()}
    judged = next(iter(results.finished.values())).modalities
    if "methods" in suite.layout or "ablation" in suite.layout:
        yield "methods", figures.methods_figure(models, store, split=suite.split, judged=judged, device=device)
    shown = _reference(suite, rows)
    if shown in models and "scenarios" in suite.layout:
        yield (
            "scenarios",
            figures.scenarios_figure(
                models[shown], store, split=suite.split, judged=judged, device=device, label=shown
            ),
        )
    if shown in models and "codes" in suite.layout:
        codes = figures.codes_figure(models[shown], store, split=suite.split, judged=judged, device=device, label=shown)
        if codes is not None:
            yield "codes", codes
