"""Methods side by side on the same slice: image, absolute error and PSNR under each name (paper, figure 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from codebrain.benchmark.figures.chosen import Look, common, subjects_to_show
from codebrain.benchmark.figures.drawing import (
    LARGEST_ERROR,
    PAGE,
    SMALL,
    Drawing,
    Sheet,
    block,
    caption_of,
    drawn,
    error_map,
    given_image,
    image,
    imputed_image,
    word,
    wrapped,
)
from codebrain.benchmark.scoring import Wiring
from codebrain.data.slices import SliceStore
from codebrain.data.splits import Split
from codebrain.errors import refusal
from codebrain.marks import SYNTHETIC
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import Modality, ModalitySet, Pattern, strict_subsets

_LEFT, _RIGHT, _GAP, _BETWEEN = 0.75, 0.7, 0.04, 0.1
_NARROWEST, _WIDEST = 0.85, 1.35

Scenario = tuple[ModalitySet, Modality]
"""The given contrasts, and the absent one that is shown."""


@dataclass(frozen=True)
class Contest:
    """One scenario of a slice, and what every method made of it.

    Attributes:
        look: the slice, as the first method sees it.
        pattern: the given contrasts.
        place: the contrast that is shown.
        completed: the judged contrasts in the full frame, by method.
    """

    look: Look
    pattern: Pattern
    place: int
    completed: dict[str, Float[Tensor, "s h w"]]


def methods_figure(
    models: Mapping[str, ImputationModel],
    store: SliceStore,
    *,
    split: Split = "test",
    judged: ModalitySet | None = None,
    device: torch.device | str = "cpu",
    scenarios: Sequence[Scenario] | None = None,
) -> Drawing:
    """The truth and every method's image, their absolute errors below, for some scenarios of one slice.

    Args:
        models: by label, in the order of the columns.
        store: the prepared slices.
        split: whose first complete patient.
        judged: the contrasts that are given and judged; those that not every method knows are left out.
        device: where the models run, one after the other.
        scenarios: what is given and what is shown; by default one with one given contrast and one with all
            but the shown one, not T1Gd if that can be helped.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when matplotlib is not installed.
        ModelRefused: ``CKPT_MISMATCH`` when a model and the store do not fit.
        InputRefused: ``DATA_SPLIT``, ``DATA_CONTRASTS`` when there is nothing to show.
        UsageError: ``CONFIG`` for a scenario that the study does not allow.
    """
    shared = common(models, store, judged)
    wirings = {label: Wiring.of(model, store.preparation, shared) for label, model in models.items()}
    first = next(iter(wirings.values()))
    name = subjects_to_show(store, split, first)[0]
    look = Look.read(store, name, first, device=device)
    chosen = [(look.contrasts.pattern(given), look.contrasts.index(shown)) for given, shown in
              (scenarios or default_scenarios(look.contrasts, look.subject.available))]  # fmt: skip
    for pattern, place in chosen:
        _check(look, pattern, place)
    contests = [Contest(look, pattern, place, {}) for pattern, place in chosen]
    for label, model in models.items():
        model.to(device).eval()
        seen = Look.read(store, name, wirings[label], device=device)
        for contest in contests:
            contest.completed[label] = seen.completed(model, contest.pattern)
        model.cpu()  # the next one may need the room
    return drawn(lambda: methods_sheet(contests, list(models.values())))


def default_scenarios(contrasts: ModalitySet, available: Pattern) -> list[Scenario]:
    """One contrast to the next, and all but the last to the last; T1Gd comes last, its enhancement is unknowable."""
    have = sorted(contrasts.present(available), key=lambda m: m is Modality.T1GD)
    one: Scenario = (ModalitySet((have[0],)), have[1])
    if len(have) == 2:
        return [one]
    shown = [m for m in have if m is not Modality.T1GD][-1]
    return [one, (ModalitySet(tuple(m for m in contrasts.present(available) if m is not shown)), shown)]


def _check(look: Look, pattern: Pattern, place: int) -> None:
    if pattern not in strict_subsets(look.subject.available) or place not in look.subject.absent(pattern):
        raise refusal(
            "CONFIG", "the study does not allow this scenario", field="scenarios",
            found=f"{'+'.join(look.contrasts.present(pattern))} to {look.contrasts.members[place]}",
            expected=f"given and absent contrasts among {', '.join(look.contrasts.present(look.subject.available))}",
        )  # fmt: skip


def methods_sheet(contests: Sequence[Contest], models: Sequence[ImputationModel]) -> tuple[Any, str]:
    """The figure and its caption."""
    labels = list(contests[0].completed)
    columns = len(labels) + 1
    width = min(_WIDEST, max(_NARROWEST, (PAGE - _LEFT - _RIGHT) / columns - _GAP))
    height = width * contests[0].look.shape[0] / contests[0].look.shape[1]
    titles, top = block(["truth", *labels], width - 0.02, SMALL)
    top, deep = top + 0.1, 2 * (height + _GAP) + _BETWEEN
    caption = _caption(contests, models)
    sheet = Sheet.of(_LEFT + columns * (width + _GAP) + _RIGHT, top + len(contests) * deep - _BETWEEN, caption)
    for column, title in enumerate(titles):
        x = _LEFT + column * (width + _GAP) + width / 2
        sheet.text(x, top - 0.05, title, size=SMALL, weight="bold" if column == 0 else "normal",
                   ha="center", va="bottom", gid="column")  # fmt: skip
    shown = None
    for number, contest in enumerate(contests):
        shown = _rows(sheet, contest, top + number * deep, width, height)
    bar = min(2.5, 2 * len(contests) * height)
    sheet.colour_bar(shown, sheet.width - _RIGHT + 0.08, top, bar, "absolute error (data range 1)")
    return sheet.figure, caption


def _caption(contests: Sequence[Contest], models: Sequence[ImputationModel]) -> str:
    shown = [contest.look.contrasts.members[contest.place] for contest in contests]
    return caption_of(
        [
            f"The same slice ({contests[0].look.title}) imputed by {len(models)} "
            f"{'method' if len(models) == 1 else 'methods'}.",
            "Under the truth what the model was given, framed in green; under each image its absolute error "
            f"(colours end at {LARGEST_ERROR}) and the PSNR of this slice over its full frame.",
            f"{SYNTHETIC}: imputed; grey scale of the true image.",
        ],
        models=models,
        imputed=shown,
    )  # fmt: skip


def _rows(sheet: Sheet, contest: Contest, top: float, width: float, height: float) -> Any:
    """Images and, below, errors of one scenario; returns the last error map."""
    look, place = contest.look, contest.place
    white, below, shown = look.white(place), top + height + _GAP, None
    given = " + ".join(look.contrasts.present(contest.pattern))
    lines = [*wrapped(given, _LEFT - 0.12, SMALL), "to " + str(look.contrasts.members[place])]
    sheet.text(_LEFT - 0.07, below, "\n".join(lines), size=SMALL, ha="right", va="center")
    image(sheet.blank(_LEFT, top, width, height), look.truth(place), white)
    _given(sheet, contest, (_LEFT, below, width, height))
    for column, completed in enumerate(contest.completed.values(), start=1):
        x = _LEFT + column * (width + _GAP)
        imputed_image(sheet.blank(x, top, width, height), look.cut(completed[place]), white)
        axes = sheet.blank(x, below, width, height)
        shown = error_map(axes, look.error(completed, place))
        word(axes, f"{look.psnr(completed, place):.2f} dB", "white", top=True)
    return shown


def _given(sheet: Sheet, contest: Contest, where: tuple[float, float, float, float]) -> None:
    """All given contrasts in the place of one image, side by side and below each other."""
    x, y, width, height = where
    look = contest.look
    places = [place for place, here in enumerate(contest.pattern) if here]
    across = math.ceil(math.sqrt(len(places)))
    w, h = width / across, height / across
    for number, place in enumerate(places):
        axes = sheet.blank(x + number % across * w, y + number // across * h, w - 0.02, h - 0.02)
        given_image(axes, look.truth(place), look.white(place), str(look.contrasts.members[place]))
