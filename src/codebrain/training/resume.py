"""Whether a checkpoint belongs to the run that wants to go on from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from codebrain.errors import refusal
from codebrain.settings import flat
from codebrain.training.checkpoint import Checkpoint

_log = logging.getLogger(__name__)

_WITHOUT_EFFECT = {"checkpoint_steps", "checkpoint_minutes", "compile"}
"""Settings that change nothing in what is learnt beyond rounding, so a resumed run may have others."""


def restore_optimiser(optimiser: torch.optim.Optimizer, player: str, tensors: Mapping[str, Tensor]) -> None:
    """Give a player's optimiser the state that a checkpoint holds for it."""
    content = optimiser.state_dict()
    for name, value in tensors.items():
        owner, index, quantity = name.rsplit("/", 2)
        if owner == player:
            content["state"].setdefault(int(index), {})[quantity] = value
    optimiser.load_state_dict(content)


def refuse_changes(found: Checkpoint, now: Mapping[str, Any], *, accept: bool) -> None:
    """Resume only the run that was begun.

    Raises:
        ModelRefused: ``CKPT_MISMATCH`` with every setting that differs, unless that is accepted.
    """
    before, older, newer = found.state, flat(found.state["config"]), flat(now["config"])
    changes = [
        f"{key}: {older.get(key)!r} is now {newer.get(key)!r}"
        for key in {**older, **newer}
        if older.get(key) != newer.get(key) and key not in _WITHOUT_EFFECT
    ]
    if before["data"] != now["data"]:
        changes.append("the training data are others (fingerprint)")
    if not changes:
        return
    if not accept:
        raise refusal("CKPT_MISMATCH", "configuration or data changed since this run: " + "; ".join(changes),
                      file=found.path.parent.parent, hint="Use --accept-changes to go on all the same.")  # fmt: skip
    _log.warning("going on with changes: %s", "; ".join(changes))


def refuse_other_weights(found: Checkpoint, model: nn.Module) -> None:
    """Resume only a model of the same shapes.

    Raises:
        ModelRefused: ``CKPT_MISMATCH`` naming the first tensor that differs.
    """
    theirs = {name: tuple(value.shape) for name, value in found.model.items()}
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    changed = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if changed:
        raise refusal(
            "CKPT_MISMATCH", "the checkpoint holds the weights of a model with another architecture or contrasts: "
            f"{len(changed)} differ, {changed[0]} first", file=found.path,
            found=theirs.get(changed[0]), expected=ours.get(changed[0]), hint="Start a new run in another folder.",
        )  # fmt: skip
