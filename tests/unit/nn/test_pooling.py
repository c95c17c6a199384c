"""Two halves of a batch, each with the sums of both, have the loss and, averaged, the gradient of the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from codebrain.nn.l1_loss import l1_loss
from codebrain.nn.patch_gan import least_squares
from codebrain.nn.pooling import over_processes, pooled
from codebrain.nn.psnr_loss import psnr_loss

LOSSES = {
    "psnr": psnr_loss,
    "l1": l1_loss,
    "critic": lambda candidate, truth, counted: least_squares(candidate, counted, counted),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_halves_are_the_whole(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    truth, counted = torch.rand(4, 3, 4, 4), torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0]]).bool()
    candidate = torch.rand(4, 3, 4, 4, requires_grad=True)
    whole = loss(candidate, truth, counted)
    (wanted,) = torch.autograd.grad(whole, candidate)
    sums: list[Tensor] = []  # of each half, as the other process would have sent them
    for half in (slice(0, 2), slice(2, 4)):
        with over_processes(lambda mine: sums.append(mine.clone()) or mine, 2):
            loss(candidate[half], truth[half], counted[half])
    parts = []
    for half in (slice(0, 2), slice(2, 4)):
        with over_processes(lambda mine: sums[0] + sums[1], 2):
            value = loss(candidate[half], truth[half], counted[half])
        torch.testing.assert_close(value, whole)
        parts.append(torch.autograd.grad(value, candidate)[0])
    torch.testing.assert_close((parts[0] + parts[1]) / 2, wanted)


def test_one_process_is_left_alone() -> None:
    sums = torch.ones(2)
    with over_processes(lambda mine: mine + 1, 1):
        assert pooled(sums) is sums
    assert pooled(sums) is sums
