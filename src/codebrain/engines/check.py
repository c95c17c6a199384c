"""Which precision computes a study: the fastest whose answer on two of its slices is close to the exact one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, log10
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.engines._contract import Engine
from codebrain.vocabulary import Precision

LIMIT_DB = 50.0
"""PSNR to the float32 answer, inside the head, data range 1. At 50 dB the difference adds less than 0.02 dB to an
error of 26 dB."""


@dataclass(frozen=True)
class PrecisionCheck:
    """What was chosen, and by which numbers.

    Attributes:
        asked: ``auto``, or the precision that the user chose.
        used: ``fp32``, ``bf16`` or ``int8``.
        decibels: PSNR of each precision that was tried, against float32.
        slices: the slices it was measured on, by their place in the stack; none when the user chose.
    """

    asked: str
    used: Precision
    decibels: Mapping[str, float] = field(default_factory=dict)
    slices: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For ``run.json``."""
        found = {name: round(value, 2) if isfinite(value) else None for name, value in self.decibels.items()}
        return {"asked": self.asked, "psnr_to_fp32_db": found, "limit_db": LIMIT_DB, "slices": list(self.slices)}


def choose_precision(
    engine: Callable[[Precision], Engine],
    candidates: Iterable[Precision],
    slices: Float[Tensor, "n m h w"],
    present: Bool[Tensor, "m"],
    *,
    head: Bool[Tensor, "n h w"],
    targets: Sequence[int],
) -> PrecisionCheck:
    """Try the candidates, fastest first, on the slice with most head and on one with a quarter as much.

    Args:
        engine: by precision.
        candidates: below ``fp32``, which needs no check.
        slices: of the study.
        present: which contrasts are given.
        head: where answers count.
        targets: the channels that count.
    """
    tried: dict[str, float] = {}
    where = _telling(head)
    picked, there = slices[list(where)], present.expand(len(where), -1)
    exact: Tensor | None = None
    for name in candidates:
        exact = engine("fp32")(picked, there)[0][:, targets] if exact is None else exact
        error = (engine(name)(picked, there)[0][:, targets] - exact).float().square()
        mean = float(error.movedim(1, -1)[head[list(where)]].mean())
        tried[name] = -10 * log10(max(mean, 1e-20))
        if tried[name] >= LIMIT_DB:
            return PrecisionCheck("auto", name, tried, where)
    return PrecisionCheck("auto", "fp32", tried, where if tried else ())


def _telling(head: Bool[Tensor, "n h w"]) -> tuple[int, ...]:
    area = head.flatten(1).sum(1)
    small = torch.where(area > 0, (area - area.max() / 4).abs(), torch.inf)
    return tuple(dict.fromkeys((int(area.argmax()), int(small.argmin()))))
