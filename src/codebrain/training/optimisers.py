"""What descends for a player, and how fast at each step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codebrain.training.config import OptimiserConfig

_FUSED = ("cpu", "cuda")
"""Devices for which PyTorch has AdamW in one pass over the weights."""


def make_optimiser(parameters: Sequence[nn.Parameter], config: OptimiserConfig) -> torch.optim.Optimizer:
    """The optimiser of one player.

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019 (AdamW; Adam where nothing
    decays); Kingma & Ba, "Adam", ICLR 2015, section 7.1 (Adamax, whose decay is not decoupled).
    """
    if config.kind == "adamax":
        return torch.optim.Adamax(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay,
        fused=all(parameter.device.type in _FUSED for parameter in parameters),
    )  # fmt: skip


def step_if(sound: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """Step, unless ``sound``, one truth on the device, is false.

    Fused optimisers look at it on the device, where gradient scaling would put it; for others it is waited for.
    """
    if all(group.get("fused") for group in optimiser.param_groups):
        optimiser.found_inf = (~sound).float()  # type: ignore[attr-defined]
        optimiser.step()
    elif bool(sound):
        optimiser.step()


def prepare_step(optimiser: torch.optim.Optimizer, config: OptimiserConfig, step: int, steps: int) -> float:
    """Set the rate of a step and forget the past where the recipe says so; returns the rate."""
    if config.renew_at is not None and step == math.ceil(config.renew_at * steps):
        optimiser.state = defaultdict(dict)
    rate = learning_rate(config, step, steps)
    for group in optimiser.param_groups:
        group["lr"] = rate
    return rate


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """The rate of a step: warm-up, then constant for a while, then a cosine or a line to ``lr_end``.

    Source: Loshchilov & Hutter, "SGDR", ICLR 2017, equation 5, one period (the cosine).
    """
    rising = config.warmup_steps or round(config.warmup * steps)
    if step < rising:
        return config.lr * (step + 1) / rising
    if config.lr_end is None:
        return config.lr
    first = max(rising, round(config.hold * steps))
    done = max(step - first, 0) / max(steps - first, 1)
    left = (1 + math.cos(math.pi * done)) / 2 if config.decay == "cosine" else 1 - done
    return config.lr_end + (config.lr - config.lr_end) * left
