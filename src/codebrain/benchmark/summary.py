"""From rows to the numbers of a table: pooled over slices, then over cells, with spread over patients."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

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


def summarise(
    rows: Iterable[Row],
    *,
    metric: str,
    model: str | None = None,
    task: str = "imputation",
    region: str = "slice",
    given: Given = "any",
    pattern: str | None = None,
    modality: str | None = None,
) -> Score | None:
    """Average rows as the released code does; None when no row fits.

    Within a cell every slice of the split counts alike: patients are weighted by their slices, which gives
    exactly the mean over all slices. Cells are then averaged with equal weight: 9 for three contrasts (IXI),
    28 for four (BraTS).

    Args:
        rows: of one or more models.
        metric: ``PSNR``, ``SSIM`` or ``MAE``.
        model: label of the model; None when the rows are all of one.
        task: ``imputation`` or ``reconstruction``.
        region: ``slice``, ``brain`` or ``volume`` (patients' volumes weigh alike).
        given: ``one`` keeps patterns with one present contrast (O->O), ``many`` the others (M->O).
        pattern: keeps one pattern.
        modality: keeps one absent contrast.

    Source: the released code's evaluation; CodeBrain (arXiv 2501.18328), Table 2.
    """
    chosen = [
        row
        for row in rows
        if row.metric == metric and row.task == task and row.region == region
        and model in (None, row.model) and pattern in (None, row.pattern) and modality in (None, row.modality)
        and (given == "any" or row.one_present == (given == "one"))
    ]  # fmt: skip
    if not chosen:
        return None
    cells = _cell_means(chosen)
    by_patient: dict[str, list[Row]] = defaultdict(list)
    for row in chosen:
        by_patient[row.patient].append(row)
    own = [mean(_cell_means(theirs).values()) for theirs in by_patient.values()]
    return Score(mean(cells.values()), _deviation(own), len(cells), len(own))


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
