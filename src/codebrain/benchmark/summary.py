"""From rows to the numbers of a table: pooled over slices, then over cells, with spread over patients."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack

from codebrain.benchmark.rows import Row
from codebrain.vocabulary import Modality

Given = Literal["any", "one", "many"]
Cell = tuple[str, str]
"""A pattern and an absent contrast."""


@dataclass(frozen=True)
class Score:
    """A mean and how far patients lie from each other.

    Attributes:
        mean: mean over cells; a cell is the mean over the slices of all patients.
        spread: standard deviation over patients (n - 1) of their own mean over cells; None for one patient.
        cells: how many (pattern, absent contrast) pairs.
        patients: how many patients.
    """

    mean: float
    spread: float | None
    cells: int
    patients: int


class Which(TypedDict, total=False):
    """Which of a metric's rows count.

    Attributes:
        task: ``imputation`` (when absent) or ``reconstruction``.
        region: ``slice`` (when absent), ``brain`` or ``volume`` (patients' volumes weigh alike).
        given: ``one`` keeps patterns with one present contrast (O->O), ``many`` the others (M->O).
        pattern: keeps one pattern.
        modality: keeps one absent contrast.
    """

    task: str
    region: str
    given: Given
    pattern: str | None
    modality: str | None


def select(
    rows: Iterable[Row],
    *,
    metric: str,
    model: str | None = None,
    task: str = "imputation",
    region: str = "slice",
    given: Given = "any",
    pattern: str | None = None,
    modality: str | None = None,
) -> list[Row]:
    """The rows that count: see :class:`Which`; None keeps every model, pattern or contrast."""
    return [
        row
        for row in rows
        if row.metric == metric and row.task == task and row.region == region
        and model in (None, row.model) and pattern in (None, row.pattern) and modality in (None, row.modality)
        and (given == "any" or row.one_present == (given == "one"))
    ]  # fmt: skip


def summarise(rows: Iterable[Row], *, metric: str, model: str | None = None, **which: Unpack[Which]) -> Score | None:
    """Average rows as the released code does; None when no row fits.

    Within a cell every slice of the split counts alike: patients are weighted by their slices, which gives
    exactly the mean over all slices. Cells are then averaged with equal weight: 9 for three contrasts (IXI),
    28 for four (BraTS).

    Args:
        rows: of one or more models.
        metric: ``PSNR``, ``SSIM`` or ``MAE``.
        model: label of the model; None when the rows are all of one.
        which: task, region, patterns and contrasts, as in :class:`Which`.

    Source: the released code's evaluation; CodeBrain (arXiv 2501.18328), Table 2.
    """
    chosen = select(rows, metric=metric, model=model, **which)
    if not chosen:
        return None
    cells = _cell_means(chosen)
    own = list(patient_means(chosen).values())
    return Score(mean(cells.values()), _deviation(own), len(cells), len(own))


def patient_means(rows: Iterable[Row]) -> dict[str, float]:
    """Each patient's own mean over cells; the rows are of one model, metric, task and region."""
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_patient[row.patient].append(row)
    return {patient: mean(_cell_means(theirs).values()) for patient, theirs in by_patient.items()}


def _cell_means(rows: Iterable[Row]) -> dict[Cell, float]:
    total: dict[Cell, float] = defaultdict(float)
    weight: dict[Cell, int] = defaultdict(int)
    for row in rows:
        total[row.pattern, row.modality] += row.value * row.weight
        weight[row.pattern, row.modality] += row.weight
    return {cell: total[cell] / weight[cell] for cell in total}


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean of at least one value."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _deviation(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def models_of(rows: Iterable[Row]) -> list[str]:
    """Labels in the order of first appearance."""
    return list(dict.fromkeys(row.model for row in rows))


def patterns_of(rows: Iterable[Row]) -> list[str]:
    """Patterns, fewest contrasts first, then in the order of the vocabulary."""
    order = [str(m) for m in Modality]

    def rank(pattern: str) -> tuple[int, list[int]]:
        names = pattern.split("+")
        return len(names), [order.index(name) for name in names]

    return sorted({row.pattern for row in rows}, key=rank)
