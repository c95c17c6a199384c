from __future__ import annotations

import torch

from codebrain.models import build_model
from codebrain.nn.batch import Batch
from codebrain.vocabulary import ModalitySet


def small(**settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("codebrain", ModalitySet.parse("T1,T2,PD"), {"width": 2, "depth": 1, **settings})


def batch(available: list[list[int]], present: list[list[int]]) -> Batch:
    there = torch.tensor(available).bool()
    stack = torch.rand(len(available), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(stack * there[:, :, None, None], there, torch.tensor(present).bool())


def test_absent_contrasts_weigh_twenty_and_present_five() -> None:
    model = small()
    one = batch([[1, 1, 1]], [[1, 0, 0]])
    shared = model.share(one, stage="reconstruction")
    loss = model.loss("generator", one, shared, stage="reconstruction", progress=0.0)
    expected = -20 * loss.parts["psnr_absent"] - 5 * loss.parts["psnr_present"]
    assert torch.allclose(loss.total, expected)
    error = (shared - one.images).square().mean((0, 2, 3))
    assert torch.allclose(-loss.parts["psnr_absent"], 10 * (error[1:] + 1e-8).log10().mean(), atol=1e-4)


def test_the_adversarial_part_starts_after_a_fifth() -> None:
    model = small()
    one = batch([[1, 1, 1]], [[1, 0, 0]])
    shared = model.share(one, stage="reconstruction")
    before = model.loss("generator", one, shared, stage="reconstruction", progress=0.19)
    after = model.loss("generator", one, shared, stage="reconstruction", progress=0.2)
    assert "adversarial" not in before.parts
    assert torch.allclose(after.total - before.total, 0.1 * after.parts["adversarial"], atol=1e-4)


def test_a_contrast_without_truth_trains_nothing() -> None:
    model = small()
    one = batch([[1, 1, 0]], [[1, 0, 0]])
    shared = model.share(one, stage="reconstruction")
    shared.retain_grad()
    model.loss("generator", one, shared, stage="reconstruction", progress=0.5).total.backward()
    assert (shared.grad[:, 2] == 0).all() and (shared.grad[:, 1] != 0).any()


def test_the_critic_aims_at_the_present_contrasts() -> None:
    model = small()
    one = batch([[1, 1, 1]], [[1, 1, 0]])
    scores = model.critic(one.images, one.images)
    loss = model.loss("critic", one, one.images, stage="reconstruction", progress=0.0)
    real = (scores - 1).square().mean()
    fake = torch.stack([(scores[:, :2] - 1).square().mean((2, 3)).sum(), scores[:, 2].square().mean()]).sum() / 3
    assert torch.allclose(loss.total, (real + fake) / 2, atol=1e-6)


def test_grading_leaves_stage_one_alone() -> None:
    model = small()
    one = batch([[1, 1, 1]], [[1, 0, 0]])
    assert list(model.players("grading")) == ["grader"]
    model.loss("grader", one, None, stage="grading", progress=0.0).total.backward()
    for part in (model.posterior_encoder, model.common_encoder, model.decoder, model.critic):
        assert all(parameter.grad is None for parameter in part.parameters())


def test_both_decodings_agree_where_the_grades_are_certain() -> None:
    threshold, expected = small(), small(decoding="expected")
    for model in (threshold, expected):
        last = model.prior_encoder.stages[-1]
        last.weight.data.zero_()
        last.bias.data = torch.where(torch.arange(33) % 2 == 0, 40.0, -40.0)
    one = batch([[1, 1, 1]], [[1, 0, 0]])
    assert torch.allclose(threshold(one.images, one.present), expected(one.images, one.present), atol=1e-6)


def test_bfloat16_stays_close_to_float32() -> None:
    model = small().eval()
    one = batch([[1, 1, 1]], [[1, 0, 0]])
    with torch.no_grad():
        exact = model.reconstruct(one.images, one.present)
        with torch.autocast("cpu", torch.bfloat16):
            short = model.reconstruct(one.images, one.present)
    assert short.dtype == torch.float32
    assert (exact - short).abs().max() < 0.02
