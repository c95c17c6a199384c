"""Which contrasts a training step gives the model."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from codebrain.errors import refusal


def draw_patterns(
    available: Bool[Tensor, "b m"], generator: torch.Generator, *, per: Literal["sample", "batch"] = "sample"
) -> Bool[Tensor, "b m"]:
    """Draw for every sample which of its available contrasts are present.

    Uniform over the non-empty strict subsets of what the sample has, so at least one contrast is given and at
    least one is withheld (six patterns for three contrasts, fourteen for four: paper, section 3.1).

    Args:
        available: where ground truth exists.
        generator: source of chance, on the CPU.
        per: ``sample`` draws for each sample; ``batch`` draws one pattern of the batch's contrasts for all,
            with a draw of its own for a sample in which that pattern gives nothing or everything.

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
    present = _uniform(here, generator)
    if per == "batch":
        shared = _uniform(here.any(dim=0, keepdim=True), generator) & here
        usable = shared.any(dim=1) & (here & ~shared).any(dim=1)
        present = torch.where(usable[:, None], shared, present)
    return present.to(available.device)


def _uniform(available: Bool[Tensor, "b m"], generator: torch.Generator) -> Bool[Tensor, "b m"]:
    """A subset is a number from 1 to 2^k - 2 whose bits say which of the k available contrasts are in it."""
    choices = 2 ** available.sum(dim=1) - 2
    drawn = torch.rand(len(available), generator=generator, dtype=torch.float64)
    number: Int[Tensor, "b"] = 1 + (drawn * choices).long().clamp(max=choices - 1)
    bit = available.long().cumsum(dim=1) - 1
    return available & ((number[:, None] >> bit.clamp(min=0)) & 1).bool()
