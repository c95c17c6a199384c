"""The reference that imputes nothing: absent contrasts are black.

Its scores say how much of a score the background and the dark parts of an image give away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.models._closed_form import ClosedFormModel
from codebrain.models._contract import keep_present


@dataclass(frozen=True)
class ZerosSettings:
    """Nothing to set."""


class Zeros(ClosedFormModel):
    """Absent contrasts are zero everywhere."""

    Settings = ZerosSettings
    stages: ClassVar[tuple[str, ...]] = ()

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """See :class:`~codebrain.models._contract.ImputationModel`."""
        return keep_present(torch.zeros_like(images), images, present)
