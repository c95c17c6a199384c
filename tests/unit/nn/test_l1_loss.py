from __future__ import annotations

import torch

from codebrain.nn.l1_loss import l1_loss


def test_each_contrast_is_pooled_over_its_own_samples() -> None:
    candidate, truth = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    truth[0, 0], truth[1, 1] = 3.0, 100.0
    counted = torch.tensor([[True, True, False], [True, False, False]])
    assert l1_loss(candidate, truth, counted) == ((3 + 1) / 2 + 1) / 2


def test_nothing_counted_is_zero() -> None:
    assert l1_loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4), torch.zeros(1, 2, dtype=torch.bool)) == 0
