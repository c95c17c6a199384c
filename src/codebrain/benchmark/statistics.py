"""How sure a table's numbers are: bootstrap intervals over patients, paired tests between models.

Patients were drawn from a population; slices, patterns and contrasts were not. So patients are what is
resampled, whole with all their rows, and what is counted in a test. Neither covers the chance of training:
another seed of the same method would give other numbers.

Source: Efron & Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993, chapter 13 (percentile
interval); Wilcoxon, Biometrics Bulletin 1(6), 1945; Holm, Scandinavian Journal of Statistics 6(2), 1979.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from codebrain.benchmark.rows import Row
from codebrain.benchmark.summary import Which, mean, patient_means, select
from codebrain.errors import refusal

Floats = NDArray[np.floating[Any]]

FEWEST_PATIENTS = 6
"""Patients below which there is no p-value: with five, the exact two-sided test cannot fall below 2/32 = 0.06."""

OUR_METHOD = "CodeBrain"
"""The label that other methods are tested against when none is named."""


@dataclass(frozen=True)
class Bootstrap:
    """How an interval is made.

    Attributes:
        resamples: times that as many patients as there are, are drawn with replacement.
        level: share of the resamples' means inside the interval.
        seed: of the draws. Models with the same patients share their draws.
    """

    resamples: int = 10_000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high``."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """A model against a reference, patient by patient.

    Attributes:
        model, reference: labels.
        metric: what was compared.
        patients: those that both models were scored on.
        difference: mean over patients of the model's own mean minus the reference's; None without a patient.
        interval: of the difference; None for one patient.
        p: two-sided p-value of the signed-rank test; None for fewer than :data:`FEWEST_PATIENTS`.
        adjusted: the p-value after Holm's correction for all models compared with the reference.
    """

    model: str
    reference: str
    metric: str
    patients: int
    difference: float | None
    interval: Interval | None
    p: float | None
    adjusted: float | None = None


def interval(
    rows: Iterable[Row],
    *,
    metric: str,
    model: str | None = None,
    bootstrap: Bootstrap | None = None,
    **which: Unpack[Which],
) -> Interval | None:
    """Percentile bootstrap interval over patients of what :func:`~.summary.summarise` calls the mean.

    Every resample is pooled like the table: slices within a cell, then cells alike. A cell that none of the
    drawn patients has (cohorts with gaps) does not count in that resample. With few patients such intervals
    are too narrow: 84 % instead of 95 % for five, 93 % for twenty.

    Args:
        rows: of one or more models.
        metric: ``PSNR``, ``SSIM`` or ``MAE``.
        model: label of the model; None when the rows are all of one.
        bootstrap: how; the defaults when absent.
        which: as for :func:`~.summary.summarise`.

    Returns:
        None for fewer than two patients.
    """
    how = bootstrap or Bootstrap()
    total, weight = _totals(select(rows, metric=metric, model=model, **which))
    if len(total) < 2:
        return None
    counts = _counts(len(total), how.resamples, how.seed)
    counted = counts @ weight
    cells = np.divide(counts @ total, counted, out=np.zeros_like(counted), where=counted > 0)
    return _percentiles(cells.mean(1, where=counted > 0), how.level)


def _totals(rows: Iterable[Row]) -> tuple[Floats, Floats]:
    """Weighted sums and weights, ``(patients, cells)``; sorted, so that the order of rows changes no digit."""
    rows = sorted(rows, key=lambda row: (row.patient, row.pattern, row.modality, row.subject, row.value))
    patients = {name: i for i, name in enumerate(sorted({row.patient for row in rows}))}
    cells = {cell: j for j, cell in enumerate(sorted({(row.pattern, row.modality) for row in rows}))}
    total = np.zeros((len(patients), len(cells)))
    weight = np.zeros_like(total)
    for row in rows:
        place = patients[row.patient], cells[row.pattern, row.modality]
        total[place] += row.value * row.weight
        weight[place] += row.weight
    return total, weight


@lru_cache(maxsize=4)
def _counts(patients: int, resamples: int, seed: int) -> Floats:
    """How often each patient is drawn, ``(resamples, patients)``; kept, as a table needs the same again and again."""
    chance = np.random.default_rng(seed)
    counts = chance.multinomial(patients, np.full(patients, 1 / patients), resamples).astype(float)
    counts.setflags(write=False)
    return counts


def _percentiles(values: Floats, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_tests(
    rows: Iterable[Row],
    *,
    metric: str,
    reference: str | None = None,
    bootstrap: Bootstrap | None = None,
    **which: Unpack[Which],
) -> list[Paired]:
    """Every other model against the reference, in the order of the rows.

    The unit is the patient's own mean over the cells that both models were scored on. Patients weigh alike
    here, whatever their number of slices, so a difference may deviate a little from that of two pooled means.

    Args:
        rows: of two or more models.
        metric: ``PSNR``, ``SSIM`` or ``MAE``.
        reference: a label; :data:`OUR_METHOD` when absent, or the first model if that was not scored.
        bootstrap: how the difference's interval is made; the defaults when absent.
        which: as for :func:`~.summary.summarise`.

    Raises:
        UsageError: ``CONFIG`` when no row is of the reference.
    """
    by_model: dict[str, list[Row]] = {}
    for row in select(rows, metric=metric, **which):
        by_model.setdefault(row.model, []).append(row)
    if not by_model:
        return []
    against = reference_of(by_model, reference)
    how = bootstrap or Bootstrap()
    return _holm([
        _paired(mine, by_model[against], how)
        for model, mine in by_model.items() if model != against
    ])  # fmt: skip


def reference_of(models: Iterable[str], named: str | None = None) -> str:
    """The label that the others are tested against.

    Raises:
        UsageError: ``CONFIG`` when it is not among the models.
    """
    labels = list(models)
    if named is None:
        return next((label for label in labels if label.casefold() == OUR_METHOD.casefold()), labels[0])
    if named not in labels:
        raise refusal("CONFIG", "no rows are of the reference", found=named, expected=" or ".join(labels))
    return named


def _paired(mine: Sequence[Row], theirs: Sequence[Row], how: Bootstrap) -> Paired:
    shared = {_what(row) for row in mine} & {_what(row) for row in theirs}
    ours, others = (patient_means(row for row in rows if _what(row) in shared) for rows in (mine, theirs))
    differences = np.array([ours[patient] - others[patient] for patient in sorted(ours)])
    return Paired(
        mine[0].model, theirs[0].model, mine[0].metric, len(differences),
        difference=mean(differences.tolist()) if len(differences) else None,
        interval=_interval_of_mean(differences, how),
        p=_signed_rank(differences),
    )  # fmt: skip


def _what(row: Row) -> tuple[str, str, str]:
    """What two models' rows must share to be comparable."""
    return row.subject, row.pattern, row.modality


def _interval_of_mean(values: Floats, how: Bootstrap) -> Interval | None:
    if len(values) < 2:
        return None
    return _percentiles(_counts(len(values), how.resamples, how.seed) @ values / len(values), how.level)


def _signed_rank(differences: Floats) -> float | None:
    """Two-sided p-value; equal pairs are dropped as in the original test, and nothing but equal pairs gives 1."""
    from scipy.stats import wilcoxon

    if len(differences) < FEWEST_PATIENTS:
        return None
    unequal = differences[differences != 0]
    return float(wilcoxon(unequal).pvalue) if len(unequal) else 1.0


def _holm(tests: Sequence[Paired]) -> list[Paired]:
    """Fill in the adjusted p-values; tests without a p-value are no comparisons and do not count."""
    adjusted: dict[str, float] = {}
    ranked = sorted((test.p, test.model) for test in tests if test.p is not None)
    largest = 0.0
    for i, (p, model) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - i) * p))
        adjusted[model] = largest
    return [replace(test, adjusted=adjusted.get(test.model)) for test in tests]
