from __future__ import annotations

import math

import torch

from codebrain.nn.patch_gan import least_squares
from codebrain.nn.psnr_loss import psnr_loss


def test_each_contrast_is_pooled_over_the_samples_in_which_it_counts() -> None:
    truth = torch.zeros(2, 2, 4, 4)
    candidate = torch.stack([torch.full((2, 4, 4), 0.1), torch.full((2, 4, 4), 0.3)])
    counted = torch.tensor([[True, False], [True, True]])
    first = 10 * math.log10((0.01 + 0.09) / 2 + 1e-8)
    second = 10 * math.log10(0.09 + 1e-8)
    assert math.isclose(psnr_loss(candidate, truth, counted).item(), (first + second) / 2, rel_tol=1e-5)


def test_a_contrast_without_truth_has_no_gradient() -> None:
    candidate = torch.rand(2, 3, 4, 4, requires_grad=True)
    counted = torch.tensor([[True, False, False], [True, True, False]])
    psnr_loss(candidate, torch.zeros(2, 3, 4, 4), counted).backward()
    assert candidate.grad is not None
    assert (candidate.grad[:, 2] == 0).all() and (candidate.grad[0, 1] == 0).all()
    assert (candidate.grad[1, 1] != 0).all()


def test_nothing_to_judge_is_zero_loss() -> None:
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    assert psnr_loss(torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4), nothing) == 0


def test_score_maps_aim_at_one_on_present_contrasts() -> None:
    scores = torch.tensor([[1.0, 0.5, 9.0]])[:, :, None, None].expand(1, 3, 2, 2)
    present = torch.tensor([[True, False, False]])
    counted = torch.tensor([[True, True, False]])
    assert math.isclose(least_squares(scores, present, counted).item(), 0.25 / 2)
