"""Methods or variants as bars: mean over all scenarios, one-to-one and many-to-one (paper, figure 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from codebrain.benchmark.figures.drawing import (
    NORMAL,
    PAGE,
    SMALL,
    Drawing,
    Sheet,
    caption_of,
    drawn,
    height_of,
    look_of,
    text_width,
    wrapped,
)
from codebrain.benchmark.rows import Row
from codebrain.benchmark.summary import Given, models_of, select, summarise
from codebrain.benchmark.tables import REGION_TITLES, UNITS
from codebrain.errors import refusal
from codebrain.metrics import PRINTED_SCALE
from codebrain.vocabulary import Modality

_PANELS: dict[Given, str] = {"any": "all scenarios", "one": "one-to-one", "many": "many-to-one"}
_BAR, _GAP, _TOP, _BOTTOM = 0.2, 0.12, 0.3, 0.5

Intervals = Mapping[str, tuple[float, float]]
"""Lower and upper end by label, in the unit of the rows' values."""


def bars_figure(
    rows: Sequence[Row], *, metric: str = "PSNR", region: str = "slice", intervals: Intervals | None = None
) -> Drawing:
    """A horizontal bar per method, in the order of the rows, with its value; a panel per kind of scenario.

    An axis that does not start at zero says so.

    Args:
        rows: of all methods.
        metric: ``PSNR``, ``SSIM`` or ``MAE``.
        region: ``slice``, ``brain`` or ``volume``.
        intervals: of the mean over all scenarios; drawn in the first panel.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when matplotlib is not installed.
        UsageError: ``CONFIG`` when no row is about that metric and region.
    """
    chosen = select(rows, metric=metric, region=region)
    if not chosen:
        raise refusal("CONFIG", "there is no score to draw", found=f"{metric}, {region}",
                      expected=", ".join(sorted({f"{row.metric}, {row.region}" for row in rows})))  # fmt: skip
    return drawn(lambda: bars_sheet(chosen, intervals or {}))


def bars_sheet(rows: Sequence[Row], intervals: Intervals) -> tuple[Any, str]:
    """The figure and its caption; the rows are of one metric and region."""
    metric, models = rows[0].metric, models_of(rows)
    names = ["\n".join(wrapped(model, 1.8, SMALL)) for model in models]
    left = max(text_width(line, SMALL) for name in names for line in name.split("\n")) + 0.2
    height = len(models) * max(_BAR, 1.15 * height_of(names, SMALL))
    caption = _caption(rows, intervals)
    sheet = Sheet.of(PAGE, _TOP + height + _BOTTOM, caption)
    panels = _panels(rows)
    width = (PAGE - left - 0.1) / len(panels) - _GAP
    for number, (given, title) in enumerate(panels.items()):
        axes = sheet.axes(left + number * (width + _GAP), _TOP, width, height)
        values = _values(rows, models, given)
        ends = _ends(intervals if number == 0 else {}, models, values, PRINTED_SCALE[metric])
        start = _bars(axes, values, ends, width)
        axes.set_title(title, fontsize=NORMAL, pad=4)
        axes.set_xlabel(
            f"{metric} ({UNITS[metric]})" + (f"\naxis starts at {start:g}" if start else ""), fontsize=SMALL
        )
        axes.set_yticks(range(len(models)), names if number == 0 else [""] * len(models), fontsize=SMALL)
        for tick in axes.get_yticklabels():
            tick.set_parse_math(False)
    return sheet.figure, caption


def _panels(rows: Sequence[Row]) -> dict[Given, str]:
    """Titles by kind of scenario; where there is one kind alone, its mean is the mean over all."""
    kinds = {row.one_present for row in rows}
    if len(kinds) == 2:
        return _PANELS
    only: Given = "one" if kinds == {True} else "many"
    return {only: _PANELS[only]}


def _values(rows: Sequence[Row], models: Sequence[str], given: Given) -> list[float | None]:
    """The printed mean of every method; None for one without such scenarios."""
    metric, region = rows[0].metric, rows[0].region
    scores = [summarise(rows, metric=metric, region=region, model=model, given=given) for model in models]
    return [None if score is None else score.mean * PRINTED_SCALE[metric] for score in scores]


def _ends(
    intervals: Intervals, models: Sequence[str], values: Sequence[float | None], scale: float
) -> list[tuple[float, float] | None]:
    """Printed ends of every method's interval, where there is one."""
    found = [intervals.get(model) if value is not None else None for model, value in zip(models, values, strict=True)]
    return [None if ends is None else (ends[0] * scale, ends[1] * scale) for ends in found]


def _bars(axes: Any, values: Sequence[float | None], ends: Sequence[tuple[float, float] | None], width: float) -> float:
    """Bars from top to bottom with their values behind them; returns where the axis starts."""
    reach = [max(value, *(end or (value,))) for value, end in zip(values, ends, strict=True) if value is not None]
    least = [min(value, *(end or (value,))) for value, end in zip(values, ends, strict=True) if value is not None]
    start = _start(min(least), max(reach))
    label = text_width("00.00", SMALL) + 0.12
    axes.set_xlim(start, start + (max(*reach, start) - start or 1.0) * width / (width - label))
    axes.set_ylim(len(values) - 0.4, -0.6)
    for place, (value, end) in enumerate(zip(values, ends, strict=True)):
        if value is not None:
            _bar(axes, place, value, end, start)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=SMALL, width=0.5, length=2)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="x", linewidth=0.3, color="0.85")
    axes.set_axisbelow(True)
    return start


def _bar(axes: Any, place: int, value: float, end: tuple[float, float] | None, start: float) -> None:
    colour, hatch = look_of(place)
    axes.barh(place, value - start, left=start, height=0.72, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
    if end is not None:
        axes.hlines(place, *end, color="black", linewidth=0.9)
        axes.vlines(end, place - 0.16, place + 0.16, color="black", linewidth=0.9)
    axes.annotate(
        f"{value:.2f}", (max(value, *(end or (value,))), place), xytext=(2.5, 0), textcoords="offset points",
        ha="left", va="center", fontsize=SMALL,
    )  # fmt: skip


def _start(lowest: float, highest: float) -> float:
    """Zero, unless all bars would be of about the same length: then a round number below the lowest."""
    if lowest < 0.5 * highest or highest <= 0:
        return min(0.0, math.floor(lowest))
    room = max(highest - lowest, 0.05 * highest)
    step = 10.0 ** math.floor(math.log10(room))
    return max(0.0, math.floor((lowest - room / 2) / step) * step)


def _caption(rows: Sequence[Row], intervals: Intervals) -> str:
    metric, patients = rows[0].metric, len({row.patient for row in rows})
    drawn_for = [model for model in models_of(rows) if model in intervals]
    return caption_of(
        [
            f"Mean {metric} of imputed contrasts, {REGION_TITLES[rows[0].region].lower()}, {patients} "
            f"{'patient' if patients == 1 else 'patients'}; "
            f"{'lower' if metric == 'MAE' else 'higher'} is better.",
            *(["One-to-one: one contrast given; many-to-one: several given."] if len(_panels(rows)) > 1 else []),
            *(["Whiskers: interval of the mean over all scenarios."] if drawn_for else []),
        ],
        imputed={Modality.parse(row.modality) for row in rows},
    )
