"""One optimiser step of every player, without waiting for the device before its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codebrain.faults import fault
from codebrain.models._contract import ImputationModel
from codebrain.nn.batch import Batch
from codebrain.nn.naf import NafBlock
from codebrain.training.config import OptimiserConfig, StageConfig
from codebrain.training.optimisers import prepare_step, step_if


@dataclass(frozen=True)
class Place:
    """Where in a run a step is.

    Attributes:
        stage: its name.
        settings: of the stage.
        step, steps: steps done in it, and how many there are.
    """

    stage: str
    settings: StageConfig
    step: int
    steps: int

    @property
    def progress(self) -> float:
        """Fraction of the stage that is done."""
        return self.step / self.steps


def take_step(
    model: ImputationModel,
    batch: Batch,
    optimisers: Mapping[str, torch.optim.Optimizer],
    place: Place,
    *,
    fabric: Any,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """One step of every player of a stage; nothing is updated with a number that is not finite.

    The device is waited for once, at the end: until then nothing asks what a number is, and an update that must not be
    is left out by the optimiser itself.

    Returns:
        By name: losses, their parts, gradient norms and rates. The caller looks whether all are finite.
    """
    numbers: dict[str, Tensor] = {}
    rates: dict[str, float] = {}
    sound = torch.ones((), dtype=torch.bool, device=fabric.device)
    with fabric.autocast():
        shared = model.share(batch, stage=place.stage, progress=place.progress, generator=generator)
    for name, module in model.players(place.stage).items():
        with fabric.autocast():
            loss = model.loss(name, batch, shared, stage=place.stage, progress=place.progress)
        if loss is None:
            continue
        parameters = [p for p in module.parameters() if p.requires_grad]
        # grad(), not backward(): the generator's loss passes through the critic without filling its gradients.
        norm = _apply(parameters, torch.autograd.grad(loss.total, parameters, allow_unused=True), fabric)
        sound = sound & loss.total.isfinite() & norm.isfinite()
        optimiser, config = optimisers[name], place.settings.optimisers.get(name, OptimiserConfig())
        rates[f"{name} rate"] = prepare_step(optimiser, config, place.step, place.steps)
        if place.settings.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, place.settings.clip, norm)
        step_if(sound, optimiser)
        optimiser.zero_grad(set_to_none=True)
        numbers |= {name: loss.total, f"{name} gradient": norm, **loss.parts}
        fault("step.between_players")
    return _read(numbers) | rates


def _apply(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], fabric: Any) -> Tensor:
    """Set the gradients, averaged over processes, and return their norm."""
    # A weight that this process did not use has no gradient; a zero keeps the buckets of all processes alike.
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    if fault("step.gradient"):
        parts[0] = parts[0] * math.nan
    if fabric.world_size > 1:
        flat = fabric.all_reduce(torch.cat([part.reshape(-1) for part in parts]), reduce_op="mean")
        parts = list(torch.split(flat, [p.numel() for p in parameters]))
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.reshape(parameter.shape).contiguous()  # fused optimisers read memory as it lies
    return torch.nn.utils.get_total_norm(parts)


def _read(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars of the device as numbers, all with one wait."""
    if not numbers:
        return {}
    stacked = torch.stack([value.detach().float().reshape(()) for value in numbers.values()])
    return dict(zip(numbers, stacked.tolist(), strict=True))


def compile_blocks(model: nn.Module) -> None:
    """Compile every NAF block where it stands; weights keep their names.

    The blocks, and not the model, because a dozen shapes of one block take a minute where the whole takes many.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)  # one per shape and mode
    for module in model.modules():
        if isinstance(module, NafBlock):
            module.compile(dynamic=False)
