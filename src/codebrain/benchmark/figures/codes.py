"""The code of a model that has one: predicted beside true, as colour (paper, figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from codebrain.benchmark.figures.chosen import (
    Look,
    box_around,
    given_label,
    scenarios_to_show,
    selection,
    subjects_to_show,
)
from codebrain.benchmark.figures.drawing import PAGE, SMALL, Drawing, Sheet, block, caption_of, drawn, image, white_of
from codebrain.benchmark.scoring import Wiring
from codebrain.data.slices import SliceStore
from codebrain.data.splits import Split
from codebrain.errors import CodeBrainError
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import Modality, ModalitySet, Pattern

_LEFT, _RIGHT, _GAP = 0.75, 0.6, 0.05

MOST_LEVELS_OFF = 2.0
"""Upper end of the scale of levels off."""


@runtime_checkable
class Codes(Protocol):
    """A model with a code; its settings hold the number of ``levels`` of every channel."""

    settings: Any

    def code_levels(self, images: Float[Tensor, "b m h w"]) -> Int[Tensor, "b c hc wc"]:
        """The code of complete images, integers in [0, L)."""
        ...

    def levels(self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]) -> Int[Tensor, "b c hc wc"]:
        """The code predicted from the present ones."""
        ...


@dataclass(frozen=True)
class Coded:
    """Codes of one slice, cut around the foreground.

    Attributes:
        look: the slice.
        levels: how many each channel has.
        true: the code of the complete set.
        predicted: by pattern.
        brain: places that hold some foreground.
        grey: the first contrast that the study has, the same part of the slice.
        every: how many patterns the study allows.
        complete: whether the study has every contrast of the model.
    """

    look: Look
    levels: tuple[int, ...]
    true: Int[Tensor, "c hc wc"]
    predicted: dict[Pattern, Int[Tensor, "c hc wc"]]
    brain: Bool[Tensor, "hc wc"]
    grey: Float[Tensor, "h w"]
    every: int
    complete: bool

    def off(self, pattern: Pattern) -> Float[Tensor, "hc wc"]:
        """By how many levels the prediction is off, mean over channels."""
        return (self.predicted[pattern] - self.true).abs().float().mean(0)

    def right(self, pattern: Pattern) -> float:
        """Share of the levels in the foreground that are right."""
        same = (self.predicted[pattern] == self.true)[:, self.brain]
        return float(same.float().mean()) if same.numel() else float("nan")


def codes_figure(
    model: ImputationModel,
    store: SliceStore,
    *,
    split: Split = "test",
    judged: ModalitySet | None = None,
    device: torch.device | str = "cpu",
    label: str | None = None,
) -> Drawing | None:
    """The true code and, beside it, the codes predicted in some scenarios, three channels as one colour.

    Args:
        model: None is returned for one without a code.
        store: the prepared slices.
        split: whose first complete patient.
        judged: the contrasts that are given; by default all that model and store share.
        device: where the model runs.
        label: the model's name in the caption; its own when absent.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when matplotlib is not installed.
        ModelRefused: ``CKPT_MISMATCH`` when model and store do not fit.
        InputRefused: ``DATA_SPLIT``, ``DATA_CONTRASTS`` when there is nothing to show.
    """
    if not isinstance(model, Codes):
        return None
    wiring = Wiring.of(model, store.preparation, judged)
    model.to(device).eval()
    look = Look.read(store, subjects_to_show(store, split, wiring)[0], wiring, device=device)
    coded = _coded(model, look, store)
    return None if coded is None else drawn(lambda: codes_sheet(coded, model, label or model.name))


@torch.inference_mode()
def _coded(model: Codes, look: Look, store: SliceStore) -> Coded | None:
    """None when the model says that as it is set it has no code (``CONFIG``)."""
    subject, contrasts = look.subject, look.contrasts
    try:
        true = model.code_levels(subject.images)[0].cpu()
    except CodeBrainError as error:
        if error.code != "CONFIG":
            raise
        return None
    brain = _coarse(torch.from_numpy(store.brain(subject.record.subject)[look.number]), true.shape[-2:])
    box = box_around(brain, margin=1)
    patterns, every = scenarios_to_show(look)
    grey = subject.images[0, subject.wiring.model.index(_shown(look))].cpu()
    scale = grey.shape[0] // true.shape[1]
    return Coded(
        look,
        levels=tuple(model.settings.levels),
        true=true[:, *box],
        predicted={pattern: _predicted(model, look, pattern)[:, *box] for pattern in patterns},
        brain=brain[box],
        grey=grey[tuple(slice(part.start * scale, part.stop * scale) for part in box)],
        every=every,
        complete=all(subject.available) and len(contrasts) == len(subject.wiring.model),
    )


def _predicted(model: Codes, look: Look, pattern: Pattern) -> Int[Tensor, "c hc wc"]:
    """The code predicted for the slice from the contrasts of a pattern alone."""
    images = look.subject.images
    given = look.subject.wiring.model.pattern(look.contrasts.present(pattern))
    present = torch.tensor([given], device=images.device)
    return model.levels(images * present[:, :, None, None], present)[0].cpu()


def _coarse(brain: Bool[Tensor, "h w"], size: Sequence[int]) -> Bool[Tensor, "hc wc"]:
    """Whether a place of the code's grid holds some foreground."""
    return F.adaptive_max_pool2d(brain[None].float(), tuple(size))[0] > 0


def colours_of(code: Int[Tensor, "c hc wc"], levels: Sequence[int]) -> list[Float[Tensor, "hc wc 3"]]:
    """Three channels as red, green and blue, each level divided by the highest; a missing channel is black."""
    unit = code / (torch.tensor(levels)[:, None, None] - 1).clamp_min(1)
    unit = F.pad(unit, (0, 0, 0, 0, 0, -len(levels) % 3))
    return [unit[i : i + 3].permute(1, 2, 0) for i in range(0, len(unit), 3)]


def codes_sheet(coded: Coded, model: ImputationModel, label: str) -> tuple[Any, str]:
    """The figure and its caption."""
    columns = len(coded.predicted) + 1
    width = min(1.4, (PAGE - _LEFT - _RIGHT) / columns - _GAP)
    height = width * coded.true.shape[1] / coded.true.shape[2]
    names = [given_label(coded.look.contrasts, pattern) for pattern in coded.predicted]
    titles, top = block(["true code", *names], width, SMALL)
    top += 0.1
    true = colours_of(coded.true, coded.levels)
    caption = _caption(coded, model, label)
    lowest = top + len(true) * (height + _GAP)
    sheet = Sheet.of(_LEFT + columns * (width + _GAP) + _RIGHT, lowest + height + 0.22, caption)
    for column, title in enumerate(titles):
        sheet.text(_LEFT + column * (width + _GAP) + width / 2, top - 0.05, title, size=SMALL,
                   weight="normal" if column else "bold", ha="center", va="bottom", gid="column")  # fmt: skip
    _row_names(sheet, coded, top, height)
    every = [true, *(colours_of(code, coded.levels) for code in coded.predicted.values())]
    for column, groups in enumerate(every):
        for row, colours in enumerate(groups):
            axes = sheet.blank(_LEFT + column * (width + _GAP), top + row * (height + _GAP), width, height)
            axes.imshow(colours.numpy(), interpolation="nearest", aspect="auto")
    _bottom(sheet, coded, lowest, width, height)
    return sheet.figure, caption


def _row_names(sheet: Sheet, coded: Coded, top: float, height: float) -> None:
    """What stands left of the rows."""
    channels = range(1, len(coded.levels) + 1)
    names = [f"channels\n{', '.join(map(str, channels[i : i + 3]))}" for i in range(0, len(channels), 3)]
    for row, name in enumerate([*names, "levels off"]):
        y = top + row * (height + _GAP) + height / 2
        sheet.text(_LEFT - 0.07, y, name, size=SMALL, ha="right", va="center")


def _bottom(sheet: Sheet, coded: Coded, y: float, width: float, height: float) -> None:
    """The slice itself, and by how much each prediction is off."""
    look, shown = coded.look, None
    image(sheet.blank(_LEFT, y, width, height), coded.grey, white_of(coded.grey))
    sheet.text(_LEFT + width / 2, y + height + 0.04, f"the slice, {_shown(look)}", size=SMALL,
               ha="center", va="top", gid="below")  # fmt: skip
    for column, pattern in enumerate(coded.predicted, start=1):
        x = _LEFT + column * (width + _GAP)
        shown = sheet.blank(x, y, width, height).imshow(
            coded.off(pattern).numpy(), cmap="magma", vmin=0, vmax=MOST_LEVELS_OFF, interpolation="nearest",
            aspect="auto",
        )  # fmt: skip
        sheet.text(x + width / 2, y + height + 0.04, f"{coded.right(pattern):.0%} right", size=SMALL,
                   ha="center", va="top", gid="below")  # fmt: skip
    sheet.colour_bar(shown, sheet.width - _RIGHT + 0.08, y, height, "levels")


def _shown(look: Look) -> Modality:
    """The first contrast that the study has."""
    return look.contrasts.present(look.subject.available)[0]


def _caption(coded: Coded, model: ImputationModel, label: str) -> str:
    whole = "the complete set" if coded.complete else (
        f"the contrasts at hand ({', '.join(coded.look.contrasts.present(coded.look.subject.available))}; "
        "the model knows more)"
    )  # fmt: skip
    rows, columns = coded.true.shape[1:]
    return caption_of(
        [
            f"The code of one slice in {label} ({coded.look.title}): predicted from the given contrasts, beside "
            f"the true code, that of {whole}.",
            selection(len(coded.predicted), coded.every),
            f"{len(coded.levels)} channels of {', '.join(map(str, coded.levels))} levels on a grid of "
            f"{rows} x {columns} places around the foreground; three channels are shown as red, green and blue, from "
            "the lowest level (dark) to the highest, without smoothing.",
            "Bottom: mean absolute difference of the levels, and the share of levels in the foreground that are right.",
            "Codes are no images of tissue; the grey image is a true one.",
        ],
        models=[model],
        imputed=[],
    )
