"""A step waits for its device once, at its end: nothing on the way asks what a number is or copies one over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from codebrain.models import build_model
from codebrain.nn.batch import Batch
from codebrain.training import step as module
from codebrain.training.config import OptimiserConfig, StageConfig
from codebrain.training.optimisers import make_optimiser
from codebrain.training.step import Place, take_step
from codebrain.vocabulary import ModalitySet

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "lift_fresh")
"""A GPU would be waited for: numbers asked for (item, bool, float), shapes that depend on values, and tensors made of
Python numbers (``torch.tensor``, ``new_tensor``), which are copied from memory that is not pinned."""


class Refusing(TorchDispatchMode):
    """Raises where a GPU would be waited for."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = operation.overloadpacket.__name__
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        chosen = name.startswith("index") and any(isinstance(a, Tensor) and a.dtype == torch.bool for a in flat[1:])
        if chosen or any(name.lstrip("_").startswith(word.lstrip("_")) for word in WAITING):
            raise AssertionError(f"{operation} would wait for a GPU")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: torch.tensor(2.0) * x,
        lambda x: x.new_tensor(1.0), lambda x: x.nonzero(), lambda x: x.masked_fill_(x > 0, float(x[0])),
        lambda x: x.index_put_((x > 0,), x[:1]),
    ],
)  # fmt: skip
def test_waiting_is_noticed(wait: Any) -> None:
    with pytest.raises(AssertionError, match="would wait"), Refusing():
        wait(torch.arange(3.0))


@pytest.mark.parametrize("settings", [{}, {"distance": "l1", "grading": "classification"}, {"condition": "continuous"}])
@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_waits(settings: dict[str, Any], autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("codebrain", ModalitySet.parse("T1,T2,PD"), {"width": 4, "depth": 1, **settings}).train()
    read: list[Mapping[str, Tensor]] = []
    monkeypatch.setattr(module, "_read", lambda numbers: read.append(numbers) or {})
    there = torch.tensor([[True, True, True], [True, True, False]])
    batch = Batch(torch.rand(2, 3, 32, 32), there, there & torch.tensor([[True, False, False]]))
    around = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    fabric = SimpleNamespace(device=torch.device("cpu"), world_size=1, autocast=lambda: around)
    for stage in model.stages:
        players = model.players(stage)
        descents = {
            name: make_optimiser([p for p in player.parameters() if p.requires_grad], OptimiserConfig())
            for name, player in players.items()
        }
        with Refusing():
            for number in (50, 51):
                place = Place(stage, StageConfig(batch_size=2, clip=1.0), number, 100)
                take_step(model, batch, descents, place, fabric=fabric)
        assert set(players) <= set(read[-1]) and all(value.isfinite() for value in read[-1].values())
    assert len(read) == 2 * len(model.stages)
