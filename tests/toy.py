"""A model that trains in milliseconds and has all that can go wrong: two stages, a critic, chance of both kinds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from codebrain.models._contract import ImputationModel, Loss, keep_present


@dataclass(frozen=True)
class ToySettings:
    width: int = 4


class Toy(ImputationModel):
    Settings = ToySettings
    stages = ("reconstruction", "grading")
    training_only = ("critic",)

    def __init__(self, modalities, settings):
        super().__init__(modalities, settings)
        m, width = len(modalities), settings.width
        self.first = nn.Conv2d(m, width, 3, padding=1)
        self.drop = nn.Dropout(0.1)  # draws from torch's global generator
        self.last = nn.Conv2d(width, m, 1)
        self.refine = nn.Conv2d(m, m, 1)
        self.critic = nn.Conv2d(m, 1, 3)

    def forward(self, images, present, generator=None):
        candidate = self._candidate(images * present[:, :, None, None])
        return keep_present((candidate + self.refine(candidate)).clamp(0, 1), images, present)

    def players(self, stage):
        if stage == "grading":
            return {"grader": self.refine}
        return {"critic": self.critic, "generator": nn.ModuleList([self.first, self.last])}

    def share(self, batch, *, stage, progress=0.0, generator=None):
        candidate = self._candidate(batch.incomplete)
        return candidate + 0.01 * torch.randn(candidate.shape, generator=generator)

    def loss(self, player, batch, shared, *, stage, progress):
        if player == "critic":
            return Loss((self.critic(batch.images) - 1).square().mean() + self.critic(shared.detach()).square().mean())
        if player == "grader":
            shared = shared.detach()
            return Loss((shared + self.refine(shared) - batch.images).square().mean())
        distance = (shared - batch.images).square().mean()
        return Loss(distance + 0.1 * (self.critic(shared) - 1).square().mean(), {"distance": distance.detach()})

    def validate(self, batch, *, stage):
        if stage == "reconstruction":
            return self._candidate(batch.incomplete)
        return self(batch.incomplete, batch.present)

    def _candidate(self, images):
        return self.last(self.drop(self.first(images)).relu())


def build_toy(name, modalities, settings):
    """Stands in for :func:`codebrain.models.build_model`."""
    return Toy(modalities, ToySettings(**settings))
