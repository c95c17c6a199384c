"""How sure a model is of the code it predicts.

A model that grades its code (CodeBrain's stage II) gives, for every place of the code and every code
channel, the probabilities of ordered bits, P(level > j). They make a distribution over the levels; its
entropy, divided by the logarithm of the number of levels and averaged over the channels, is the doubt.

The doubt is 0 where one level is certain in every channel and 1 where all levels are equally likely. It is
not calibrated, says nothing about errors of the decoder, and is one map per study: all contrasts that are
imputed together come from the same code.

A slice's doubt is the mean over its head; a study's score is the mean over the slices that show enough head. A model
folder may declare the score above which a result is called LOW CONFIDENCE; how the limit of the bundled model was
measured, and how little it sees, is in docs/how-to/doubt.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.data.slices import LEAST_FOREGROUND
from codebrain.errors import Notice
from codebrain.marks import LOW_CONFIDENCE
from codebrain.models._contract import Graded as Graded  # noqa: PLC0414 (users import it from here)
from codebrain.nn.ordinal import level_distribution


def code_entropy(grades: Sequence[Float[Tensor, "b _ hc wc"]]) -> Float[Tensor, "b hc wc"]:
    """Normalised entropy of the predicted levels, averaged over the code channels, in [0, 1].

    Args:
        grades: per code channel the probabilities P(level > j), j = 0 .. L-2.
    """
    return torch.stack([_normalised_entropy(channel) for channel in grades]).mean(0)


def _normalised_entropy(bits: Float[Tensor, "b n hc wc"]) -> Float[Tensor, "b hc wc"]:
    levels = level_distribution(rearrange(bits.float(), "b n h w -> b h w n"))
    entropy: Tensor = torch.special.entr(levels).sum(-1)
    return entropy / log(levels.shape[-1])


def code_doubt(grades: Sequence[Float[Tensor, "b _ hc wc"]], size: tuple[int, int]) -> Float[Tensor, "b h w"]:
    """:func:`code_entropy` brought to slices of ``size`` (h, w) by bilinear interpolation."""
    coarse = rearrange(code_entropy(grades), "b h w -> b 1 h w")
    fine = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return rearrange(fine, "b 1 h w -> b h w").clamp(0, 1)


def slice_doubts(doubt: Float[np.ndarray, "n h w"], head: Bool[np.ndarray, "n h w"]) -> tuple[float | None, ...]:
    """Mean doubt inside the head of every slice; None where less than one per cent of the slice is head, as in scoring.

    Args:
        doubt: of every pixel, in [0, 1].
        head: which pixels are head.
    """
    count = head.sum(axis=(1, 2))
    enough = count >= LEAST_FOREGROUND * head[0].size
    sums = np.where(head, doubt, 0).sum(axis=(1, 2), dtype=np.float64)
    return tuple(
        round(float(total / size), 4) if kept and size else None
        for total, size, kept in zip(sums, count, enough, strict=True)
    )


@dataclass(frozen=True)
class StudyDoubt:
    """What the doubt of a study says in numbers.

    Attributes:
        per_slice: mean doubt in the head of every axial slice, lowest first; None where there is hardly any head.
        first_slice: which axial slice of the reference grid the first of them is, counted from below.
        score: mean over the slices that count; None without any.
        limit: the score above which the model's own results are not to be trusted; None where it declares none.
    """

    per_slice: tuple[float | None, ...]
    first_slice: int
    score: float | None
    limit: float | None

    @classmethod
    def of(cls, per_slice: Sequence[float | None], first_slice: int, limit: float | None) -> StudyDoubt:
        """With the study's score."""
        known = [value for value in per_slice if value is not None]
        score = round(float(np.mean(known)), 4) if known else None
        return cls(tuple(per_slice), first_slice, score, limit)

    @property
    def low_confidence(self) -> bool:
        """Whether the score is over a declared limit."""
        return self.limit is not None and self.score is not None and self.score > self.limit

    def as_dict(self) -> dict[str, Any]:
        """JSON form, for the run's record."""
        return {
            "per_slice": list(self.per_slice),
            "first_slice": self.first_slice,
            "score": self.score,
            "limit": self.limit,
            "low_confidence": self.low_confidence,
        }

    def sidecar(self) -> dict[str, Any]:
        """The same in the spelling of sidecars."""
        return {key.title().replace("_", ""): value for key, value in self.as_dict().items()}

    @property
    def notices(self) -> tuple[Notice, ...]:
        """``LOW_CONFIDENCE``, where it is."""
        if not self.low_confidence:
            return ()
        found = f"the doubt of this study is {self.score:.3f}, over the model's limit of {self.limit:.3f}"
        message = f"{LOW_CONFIDENCE}: {found} for so many given contrasts; do not trust the result"
        return (Notice("LOW_CONFIDENCE", message),)
