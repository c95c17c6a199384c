"""What figures show: which patients, which slice, which patterns, and what a model makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.benchmark.figures.drawing import white_of
from codebrain.benchmark.scoring import Subject, Wiring, completions, scored_slices, suitable_patterns
from codebrain.data.slices import SliceStore, SubjectRecord
from codebrain.data.splits import Split
from codebrain.errors import refusal
from codebrain.metrics import psnr
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import ModalitySet, Pattern

T = TypeVar("T")

MOST_SCENARIOS = 6
"""Rows of a figure: all patterns of three contrasts; of more, a selection."""


@dataclass(frozen=True)
class Look:
    """One slice of one study, as a model sees it and as it is.

    Attributes:
        subject: of this slice alone.
        number: the slice's number in the store.
        box: rows and columns around the foreground of the full frame.
    """

    subject: Subject
    number: int
    box: tuple[slice, slice]

    @classmethod
    def read(cls, store: SliceStore, name: str, wiring: Wiring, *, device: torch.device | str = "cpu") -> Look:
        """The slice of :func:`clearest_slice`."""
        record = store.record(name)
        every, chosen = scored_slices(record), clearest_slice(record)
        subject = Subject.read(store, name, wiring, device=device)
        here = slice(every.index(chosen), every.index(chosen) + 1)
        alone = replace(
            subject, images=subject.images[here], truth=subject.truth[here], brain=subject.brain[here]
        )  # fmt: skip
        return cls(alone, chosen, box_around(alone.brain[0]))

    @property
    def contrasts(self) -> ModalitySet:
        """The judged contrasts."""
        return self.subject.wiring.shared

    @property
    def title(self) -> str:
        """Whose slice it is."""
        return f"{self.subject.record.patient}, slice {self.number}"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what is shown, in pixels."""
        height, width = self.truth(0).shape
        return height, width

    def truth(self, place: int) -> Float[Tensor, "h w"]:
        """The true image of a contrast, cut around the foreground."""
        return self.cut(self.subject.truth[0, place])

    def cut(self, pixels: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        """The part of the full frame that is shown."""
        return pixels[self.box].cpu()

    def white(self, place: int) -> float:
        """The value of a contrast that is shown as white."""
        return white_of(self.truth(place))

    @torch.inference_mode()
    def completed(self, model: ImputationModel, pattern: Pattern) -> Float[Tensor, "s h w"]:
        """The judged contrasts in the full frame, imputed where the pattern has none."""
        completed: Tensor = next(completions(model, self.subject, pattern))[1][0]
        return completed

    def psnr(self, completed: Float[Tensor, "s h w"], place: int) -> float:
        """Of one contrast of this slice, over the full frame as in the tables."""
        return float(psnr(completed[place], self.subject.truth[0, place]))

    def error(self, completed: Float[Tensor, "s h w"], place: int) -> Float[Tensor, "h w"]:
        """Absolute error of one contrast, cut around the foreground."""
        return self.cut((completed[place] - self.subject.truth[0, place]).abs())


def clearest_slice(record: SubjectRecord) -> int:
    """Of the middle third of the scored slices the one with the most foreground; of equals the first."""
    kept = scored_slices(record)
    middle = scored_slices(record, max(1, len(kept) // 3))
    return max(middle, key=lambda z: record.foreground_pixels[z])


def box_around(brain: Bool[Tensor, "h w"], margin: int = 8) -> tuple[slice, slice]:
    """Rows and columns around the foreground, so that pictures show brain and not background."""
    rows, columns = (brain.any(axis).nonzero()[:, 0].tolist() or [0, size - 1]
                     for axis, size in ((1, brain.shape[0]), (0, brain.shape[1])))  # fmt: skip
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )


def subjects_to_show(store: SliceStore, split: Split, wiring: Wiring, count: int = 1) -> list[str]:
    """The first study of each of ``count`` patients, those with the most judged contrasts first.

    Raises:
        InputRefused: ``DATA_SPLIT`` for an empty split, ``DATA_CONTRASTS`` when no study has two of the contrasts.
    """
    names = [
        name for name in store.subjects(split)
        if scored_slices(store.record(name)) and suitable_patterns("all", store.record(name).available, wiring)
    ]  # fmt: skip
    if not names:
        raise refusal("DATA_CONTRASTS", f"no subject of {split} has two of the contrasts",
                      found=str(store.preparation.modalities), expected=str(wiring.shared))  # fmt: skip
    here = [store.preparation.modalities.index(m) for m in wiring.shared]
    names.sort(key=lambda name: -sum(store.record(name).available[i] for i in here))
    first = {store.patient(name): name for name in reversed(names)}
    return [name for name in names if first[store.patient(name)] == name][:count]


def scenarios_to_show(look: Look, most: int = MOST_SCENARIOS) -> tuple[list[Pattern], int]:
    """Patterns, fewest contrasts first, and of how many they were chosen.

    When there are too many, every number of present contrasts has its equal share, evenly picked.
    """
    every = suitable_patterns("all", look.subject.record.available, look.subject.wiring)
    if len(every) <= most:
        return every, len(every)
    sizes = sorted({sum(pattern) for pattern in every})
    shares = [len(part) for part in np.array_split(np.arange(most), min(len(sizes), most))]
    found = []
    for size, share in zip(_spread(sizes, most), shares, strict=True):
        found += _spread([pattern for pattern in every if sum(pattern) == size], share)
    return found, len(every)


def _spread(values: Sequence[T], most: int) -> list[T]:
    """At most so many of the values, evenly from first to last."""
    if len(values) <= most:
        return list(values)
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, most)]


def common(models: Mapping[str, ImputationModel], store: SliceStore, judged: ModalitySet | None) -> ModalitySet:
    """The judged contrasts that the store has and every model knows.

    Raises:
        ModelRefused: ``CKPT_MISMATCH`` when they are fewer than two.
    """
    known = [m for m in store.preparation.modalities if judged is None or m in judged]
    shared = tuple(m for m in known if all(m in model.modalities for model in models.values()))
    if len(shared) < 2:
        raise refusal("CKPT_MISMATCH", "the models and the slice store share too few contrasts", field="modalities",
                      found="; ".join(f"{label}: {model.modalities}" for label, model in models.items()),
                      expected=f"at least two of {', '.join(known)}")  # fmt: skip
    return ModalitySet(shared)


def selection(shown: int, every: int) -> str:
    """A sentence that says which scenarios are shown."""
    if shown == every:
        return f"All {every} scenarios."
    return f"{shown} of {every} scenarios, evenly picked for every number of given contrasts."


def given_label(contrasts: ModalitySet, pattern: Pattern) -> str:
    """For example ``from T1 + T2``."""
    return "from " + " + ".join(contrasts.present(pattern))
