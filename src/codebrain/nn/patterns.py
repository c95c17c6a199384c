"""Which contrasts a training step gives the model, and samples grouped by what they were given."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import comb
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from codebrain.errors import refusal
from codebrain.vocabulary import Pattern, strict_subsets

Choice = Literal["subsets", "cardinality"]


def draw_patterns(
    available: Bool[Tensor, "b m"],
    generator: torch.Generator,
    *,
    per: Literal["sample", "batch"] = "sample",
    choice: Choice = "subsets",
    easiest: float = 1.0,
) -> Bool[Tensor, "b m"]:
    """Draw for every sample which of its available contrasts are present.

    Non-empty strict subsets of what the sample has, so at least one contrast is given and at least one is
    withheld (six patterns for three contrasts, fourteen for four: paper, section 3.1).

    Args:
        available: where ground truth exists.
        generator: source of chance, on the CPU.
        per: ``sample`` draws for each sample; ``batch`` draws one pattern of the batch's contrasts for all,
            with a draw of its own for a sample in which that pattern gives nothing or everything.
        choice: ``subsets`` makes all subsets equally likely (CodeBrain, MM-GAN); ``cardinality`` draws how
            many contrasts are present evenly, then which (MMT).
        easiest: share of the subsets, sorted from most to fewest contrasts present, that may be drawn; below
            1 in the early part of a curriculum (MM-GAN).

    Returns:
        A subset of ``available``, on its device.

    Raises:
        InputRefused: ``DATA_CONTRASTS`` when a sample has fewer than two contrasts.
    """
    here = available.cpu()
    if bool((here.sum(dim=1) < 2).any()):
        raise refusal(
            "DATA_CONTRASTS", "a training sample needs two contrasts, one to give and one to withhold",
            found=int(here.sum(dim=1).min()), expected="two or more",
        )  # fmt: skip
    present = _draw(here, generator, choice, easiest)
    if per == "batch":
        shared = _draw(here.any(dim=0, keepdim=True), generator, choice, easiest) & here
        usable = shared.any(dim=1) & (here & ~shared).any(dim=1)
        present = torch.where(usable[:, None], shared, present)
    return present.to(available.device)


def by_pattern(present: Bool[Tensor, "b m"]) -> Iterator[tuple[Pattern, Int[Tensor, "_k"]]]:
    """The distinct patterns of a batch, and the numbers of the samples that have each."""
    rows = [tuple(bool(here) for here in row) for row in present.tolist()]
    for pattern in sorted(set(rows)):
        numbers = [number for number, row in enumerate(rows) if row == pattern]
        yield pattern, torch.tensor(numbers, device=present.device)


def _draw(
    available: Bool[Tensor, "b m"], generator: torch.Generator, choice: Choice, easiest: float
) -> Bool[Tensor, "b m"]:
    drawn = torch.rand(len(available), generator=generator, dtype=torch.float64)
    present = torch.zeros_like(available)
    for row, here in enumerate(available):
        places = here.nonzero()[:, 0]
        subsets, chances = _subsets(len(places), choice, easiest)
        number = int(torch.searchsorted(chances, drawn[row] * chances[-1], right=True))
        present[row, places] = subsets[min(number, len(subsets) - 1)]
    return present


@cache
def _subsets(count: int, choice: Choice, easiest: float) -> tuple[Bool[Tensor, "n k"], Float[Tensor, "n"]]:
    """Strict subsets of ``count`` contrasts, most contrasts first, with cumulative weights.

    Of equally many the ones that hold the first contrasts come first: the reverse of MM-GAN's sorted list.
    """
    subsets = sorted(strict_subsets((True,) * count), key=lambda subset: (sum(subset), subset), reverse=True)
    subsets = subsets[: max(1, round(easiest * len(subsets)))]
    weights = [1 / comb(count, sum(subset)) if choice == "cardinality" else 1.0 for subset in subsets]
    return torch.tensor(subsets), torch.tensor(weights, dtype=torch.float64).cumsum(0)
