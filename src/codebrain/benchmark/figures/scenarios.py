"""One model, scenario by scenario: what it is given, what it imputes, how far that is off (paper, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from codebrain.benchmark.figures.chosen import Look, given_label, scenarios_to_show, selection, subjects_to_show
from codebrain.benchmark.figures.drawing import (
    LARGEST_ERROR,
    PAGE,
    SMALL,
    Drawing,
    Sheet,
    caption_of,
    drawn,
    error_map,
    given_image,
    image,
    imputed_image,
    wrapped,
)
from codebrain.benchmark.scoring import Wiring
from codebrain.data.slices import SliceStore
from codebrain.data.splits import Split
from codebrain.marks import SYNTHETIC
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import ModalitySet, Pattern

_LEFT, _RIGHT, _TOP, _GAP, _BETWEEN = 0.85, 0.68, 0.3, 0.03, 0.1


@dataclass(frozen=True)
class Case:
    """A slice and what a model made of it.

    Attributes:
        look: the slice.
        completed: the judged contrasts in the full frame, by pattern.
        every: how many patterns the study allows.
    """

    look: Look
    completed: dict[Pattern, Float[Tensor, "s h w"]]
    every: int


def scenarios_figure(
    model: ImputationModel,
    store: SliceStore,
    *,
    split: Split = "test",
    judged: ModalitySet | None = None,
    device: torch.device | str = "cpu",
    patients: int = 1,
    label: str | None = None,
) -> Drawing:
    """A row per scenario, a pair of columns per contrast: image and absolute error; true images on top.

    Given contrasts are framed and have no error; imputed ones are marked as synthetic. All patterns are shown
    when there are six or fewer, else a selection that the caption states.

    Args:
        model: any imputation model.
        store: the prepared slices.
        split: whose patients.
        judged: the contrasts that are given and judged; by default all that model and store share.
        device: where the model runs.
        patients: how many, one block of rows each.
        label: the model's name in the caption; its own when absent.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when matplotlib is not installed.
        ModelRefused: ``CKPT_MISMATCH`` when model and store do not fit.
        InputRefused: ``DATA_SPLIT``, ``DATA_CONTRASTS`` when there is nothing to show.
    """
    wiring = Wiring.of(model, store.preparation, judged)
    model = model.to(device).eval()
    cases = []
    for name in subjects_to_show(store, split, wiring, patients):
        look = Look.read(store, name, wiring, device=device)
        patterns, every = scenarios_to_show(look)
        cases.append(Case(look, {pattern: look.completed(model, pattern) for pattern in patterns}, every))
    return drawn(lambda: scenarios_sheet(cases, model, label or model.name))


def scenarios_sheet(cases: Sequence[Case], model: ImputationModel, label: str) -> tuple[Any, str]:
    """The figure and its caption."""
    caption = _caption(cases, model, label)
    width = (PAGE - _LEFT - _RIGHT) / (2 * len(cases[0].look.contrasts)) - _GAP
    heights = [width * case.look.shape[0] / case.look.shape[1] for case in cases]
    deep = [(len(case.completed) + 1) * (height + _GAP) for case, height in zip(cases, heights, strict=True)]
    sheet = Sheet.of(PAGE, _TOP + sum(deep) + (len(cases) - 1) * _BETWEEN, caption)
    _column_names(sheet, cases[0].look, width)
    shown, top = None, _TOP
    for case, height, depth in zip(cases, heights, deep, strict=True):
        shown = _block(sheet, case, (top, width, height)) or shown
        top += depth + _BETWEEN
    bar = min(2.5, deep[0] - heights[0] - 2 * _GAP)
    sheet.colour_bar(shown, PAGE - _RIGHT + 0.08, _TOP + heights[0] + _GAP, bar, "absolute error (data range 1)")
    return sheet.figure, caption


def _caption(cases: Sequence[Case], model: ImputationModel, label: str) -> str:
    contrasts = cases[0].look.contrasts
    imputed = [m for case in cases for pattern in case.completed for m in contrasts.absent(pattern)]
    return caption_of(
        [
            f"Imputation by {label}, a scenario per row "
            f"({'; '.join(case.look.title for case in cases)}).",
            *dict.fromkeys(selection(len(case.completed), case.every) for case in cases),
            "First row: the true images. Framed in green: given to the model as they are.",
            f"{SYNTHETIC}: imputed, with the absolute error to its right (colours end at {LARGEST_ERROR}); "
            "one grey scale per contrast, that of the true image.",
        ],
        models=[model],
        imputed=imputed,
    )  # fmt: skip


def _column_names(sheet: Sheet, look: Look, width: float) -> None:
    for place, contrast in enumerate(look.contrasts):
        x, y = _LEFT + 2 * place * (width + _GAP) + width / 2, _TOP - 0.05
        sheet.text(x, y, str(contrast), ha="center", va="bottom", weight="bold")
        sheet.text(x + width + _GAP, y, "error", ha="center", va="bottom", color="0.35")


def _block(sheet: Sheet, case: Case, where: tuple[float, float, float]) -> Any:
    """The rows of one patient from there down, with cells of that size; returns an error map."""
    (top, width, height), look, shown = where, case.look, None
    for row, pattern in enumerate([None, *case.completed]):
        y = top + row * (height + _GAP)
        text = f"true\n{look.subject.record.patient}" if pattern is None else given_label(look.contrasts, pattern)
        lines = [line for part in text.split("\n") for line in wrapped(part, _LEFT - 0.15, SMALL)]
        sheet.text(_LEFT - 0.07, y + height / 2, "\n".join(lines), size=SMALL, ha="right", va="center")
        for place in range(len(look.contrasts)):
            x = _LEFT + 2 * place * (width + _GAP)
            shown = _cell(sheet, case, pattern, place, (x, y, width, height)) or shown
    return shown


def _cell(
    sheet: Sheet, case: Case, pattern: Pattern | None, place: int, where: tuple[float, float, float, float]
) -> Any:
    """A contrast of a scenario: image and, if it was imputed and the truth is known, its error."""
    look, (x, y, width, height) = case.look, where
    known, white = look.subject.available[place], look.white(place)
    axes = sheet.blank(x, y, width, height)
    if pattern is None or pattern[place]:
        if not known:
            axes.text(0.5, 0.5, "not acquired", transform=axes.transAxes, ha="center", va="center", fontsize=SMALL)
        elif pattern is None:
            image(axes, look.truth(place), white)
        else:
            given_image(axes, look.truth(place), white)
        return None
    completed = case.completed[pattern]
    imputed_image(axes, look.cut(completed[place]), white)
    return error_map(sheet.blank(x + width + _GAP, y, width, height), look.error(completed, place)) if known else None
