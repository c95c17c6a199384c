"""What models without gradient descent share: no players, hence no loss."""

from __future__ import annotations

from abc import ABC
from typing import Any

from torch import nn

from codebrain.models._contract import ImputationModel, Loss
from codebrain.nn.batch import Batch


class ClosedFormModel(ImputationModel, ABC):
    """Base of models that need no training, or whose only stage is one call of ``fit``."""

    def players(self, stage: str) -> dict[str, nn.Module]:
        """None: nothing is trained step by step."""
        return {}

    def loss(self, player: str, batch: Batch, shared: Any, *, stage: str, progress: float) -> Loss:
        """Never called, since there are no players.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{self.architecture} has no players, so {player!r} has no loss")
