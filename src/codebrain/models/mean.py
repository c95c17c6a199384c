"""The reference that averages: every absent contrast is the voxelwise mean of the present ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.models._closed_form import ClosedFormModel
from codebrain.models._contract import keep_present, withheld


@dataclass(frozen=True)
class MeanSettings:
    """Nothing to set."""


class Mean(ClosedFormModel):
    """Absent contrasts are the mean of the present ones; with one present contrast, a copy of it."""

    Settings = MeanSettings
    stages: ClassVar[tuple[str, ...]] = ()

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """See :class:`~codebrain.models._contract.ImputationModel`."""
        given = withheld(images, present).sum(1, keepdim=True)
        mean = given / present.sum(1).clamp_min(1)[:, None, None, None]
        return keep_present(mean.expand_as(images), images, present)
