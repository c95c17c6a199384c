from __future__ import annotations

import copy
import math

import pytest
import torch

from codebrain.errors import UsageError
from codebrain.settings import parse_settings
from codebrain.training.config import OptimiserConfig
from codebrain.training.optimisers import learning_rate, make_optimiser, prepare_step, step_if


def test_the_rate_warms_up_then_falls_to_its_end() -> None:
    config = OptimiserConfig(lr=1.0, lr_end=0.1, warmup_steps=10)
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == 1.0 and rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert learning_rate(OptimiserConfig(lr=0.3), 50, 100) == 0.3


def test_a_warm_up_as_a_share_is_the_same_number_of_steps() -> None:
    steps, share = OptimiserConfig(lr=1.0, lr_end=0.1, warmup_steps=10), OptimiserConfig(lr=1.0, lr_end=0.1, warmup=0.1)
    assert [learning_rate(steps, s, 100) for s in range(100)] == [learning_rate(share, s, 100) for s in range(100)]
    with pytest.raises(UsageError, match="not both"):
        parse_settings(OptimiserConfig, {"warmup_steps": 5, "warmup": 0.1}, where="test")


def test_the_rate_can_hold_and_then_fall_in_a_line() -> None:
    config = OptimiserConfig(lr=1.0, lr_end=0.0, decay="linear", hold=0.5)
    assert [learning_rate(config, step, 100) for step in (0, 50, 75, 100)] == pytest.approx([1.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize("kind", ["adamw", "adamax"])
def test_an_optimiser_descends_and_forgets_when_told(kind: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    config = parse_settings(OptimiserConfig, {"kind": kind, "lr": 0.1, "renew_at": 0.78}, where="test")
    optimiser = make_optimiser([weight], config)
    ages = []
    for step in range(10):
        assert prepare_step(optimiser, config, step, 10) == 0.1
        weight.grad = 2 * weight.detach()
        optimiser.step()
        ages.append(int(optimiser.state[weight]["step"]))
    assert ages == [1, 2, 3, 4, 5, 6, 7, 8, 1, 2], "the running means start anew at 78 % of the stage"
    assert weight.abs().max() < 1


@pytest.mark.parametrize("kind", ["adamw", "adamax"])
def test_a_step_that_must_not_be_changes_nothing(kind: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = make_optimiser([weight], OptimiserConfig(kind=kind, lr=0.1))
    for sound in (True, False, True):
        before, state = weight.detach().clone(), copy.deepcopy(optimiser.state_dict()["state"])
        weight.grad = torch.tensor([1.0, 2.0, 3.0]) if sound else torch.tensor([1.0, math.nan, 3.0])
        step_if(torch.tensor(sound), optimiser)
        assert torch.equal(before, weight) == (not sound)
        if not sound:
            after = optimiser.state_dict()["state"]
            assert all(torch.equal(torch.as_tensor(state[0][k]), torch.as_tensor(after[0][k])) for k in after[0])
    assert optimiser.state_dict()["state"][0]["step"] == 2
