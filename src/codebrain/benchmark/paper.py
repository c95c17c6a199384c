"""The numbers that the paper and its released code report, to stand beside one's own.

Source: Wu et al., CodeBrain, CVPR 2026 (arXiv 2501.18328); every number names where it was read. What is there,
how far it can be trusted and what could not be reached: ``codebrain/benchmark/published/README.md``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from codebrain.errors import refusal

TABLES = ("1", "2", "3", "4", "5", "figure 6", "loss", "released")
"""The paper's tables; ``loss`` is its comparison of PSNR and L1 loss, ``released`` the released code's log."""

DATASETS = ("IXI", "BraTS")


@dataclass(frozen=True)
class Published:
    """One number as it was printed.

    Attributes:
        table: one of :data:`TABLES`.
        dataset: one of :data:`DATASETS`.
        method: as the paper calls it; ``Zeros`` for zero imputation, ``Real`` for the complete set.
        setting: what an ablation changed; empty for the method as published.
        task: ``imputation``, ``reconstruction`` or ``segmentation``.
        given: how many contrasts were present: ``one``, ``many``, ``any`` (the mean over patterns) or ``all``.
        pattern: the present contrasts, ``T1+PD``; empty for a mean over patterns.
        modality: the absent contrast; empty for a mean over contrasts.
        metric: ``PSNR`` (dB), ``SSIM`` (%), ``MAE`` (x1000) or ``Dice`` (%).
        value: in that unit.
        source: version and table, and through whose hands it came.
    """

    table: str
    dataset: str
    method: str
    setting: str
    task: str
    given: str
    pattern: str
    modality: str
    metric: str
    value: float
    source: str

    @property
    def second_hand(self) -> bool:
        """Whether it was read in notes about the paper instead of in the authors' own words."""
        return "second-hand" in self.source


def published(table: str, dataset: str) -> list[Published]:
    """The known numbers of a table, in the order of the table; none where they could not be reached.

    Args:
        table: one of :data:`TABLES`.
        dataset: one of :data:`DATASETS`.

    Raises:
        UsageError: ``CONFIG`` for a table or data set that the paper does not have.
    """
    for name, known in ((table, TABLES), (dataset, DATASETS)):
        if name not in known:
            raise refusal("CONFIG", "the paper has no such numbers", found=name, expected=", ".join(known))
    return [number for number in _numbers() if number.table == table and number.dataset == dataset]


@cache
def _numbers() -> tuple[Published, ...]:
    folder = files("codebrain.benchmark") / "published"
    tables = sorted((file for file in folder.iterdir() if file.name.endswith(".csv")), key=lambda file: file.name)
    lines = (line for file in tables for line in csv.DictReader(file.read_text("utf-8").splitlines()))
    return tuple(Published(**{**line, "value": float(line["value"])}) for line in lines)  # type: ignore[arg-type]
