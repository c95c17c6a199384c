from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codebrain.errors import UsageError
from codebrain.models import build_model, load_model, save_model
from codebrain.nn.batch import Batch
from codebrain.nn.patch_gan import least_squares
from codebrain.vocabulary import ModalitySet, Preparation

SWITCHES = {
    "as published": {},
    "no common features": {"common_features": False},
    "classification": {"grading": "classification"},
    "classification, expected level": {"grading": "classification", "decoding": "expected"},
    "L1": {"distance": "l1"},
    "continuous": {"condition": "continuous"},
    "continuous, no common features": {"condition": "continuous", "common_features": False},
    "binary": {"condition": "binary"},
    "few levels": {"levels": (3, 2)},
}


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


def test_judging_both_in_one_pass_is_judging_one_after_the_other() -> None:
    model = small().double()
    one = batch([[1, 1, 1], [1, 1, 0]], [[1, 1, 0], [0, 1, 0]])
    one = Batch(one.images.double(), one.available, one.present)
    candidate = model.reconstruct(one.images, one.present).detach().clamp(0, 1)
    known = torch.where((one.present | ~one.available)[:, :, None, None], one.images, candidate)
    real = least_squares(model.critic(one.images, one.images), 1.0, one.available)
    fake = least_squares(model.critic(known, one.images), one.present, one.available)
    loss = model.loss("critic", one, candidate, stage="reconstruction", progress=0.0)
    weights = list(model.critic.parameters())
    torch.testing.assert_close(loss.total, (real + fake) / 2)
    expected = torch.autograd.grad((real + fake) / 2, weights)
    torch.testing.assert_close(torch.autograd.grad(loss.total, weights), expected)


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


@pytest.fixture(params=SWITCHES)
def switched(request: pytest.FixtureRequest) -> torch.nn.Module:
    return small(**SWITCHES[request.param])


def test_every_switch_completes_and_reconstructs(switched: torch.nn.Module) -> None:
    one = batch([[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [0, 1, 1]])
    completed, grades = switched.eval().complete(one.images, one.present)
    assert torch.equal(completed, switched(one.images, one.present))
    assert torch.equal(completed[one.present], one.images[one.present])
    assert switched.reconstruct(one.images, one.present).shape == one.images.shape
    levels = switched.settings.levels if switched.settings.condition == "code" else ()
    assert [channel.shape for channel in grades] == [(2, count - 1, 4, 4) for count in levels]
    assert all((channel >= 0).all() and (channel <= 1).all() for channel in grades)


def test_every_switch_trains_all_of_its_weights(switched: torch.nn.Module) -> None:
    one = batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    for stage in switched.stages:
        shared = switched.share(one, stage=stage)
        for name, module in reversed(switched.players(stage).items()):
            loss = switched.loss(name, one, shared, stage=stage, progress=0.5)
            loss.total.backward()
            assert all(p.grad is not None for p in module.parameters()), (stage, name)
            assert all(not value.requires_grad for value in loss.parts.values())
    assert all(p.grad is not None for p in switched.parameters()), "no weights that nothing trains"


def test_every_switch_is_saved_and_loaded(switched: torch.nn.Module, tmp_path: Path) -> None:
    save_model(switched, tmp_path, preparation=Preparation(switched.modalities))
    loaded, one = load_model(tmp_path), batch([[1, 1, 1]], [[1, 0, 0]])
    assert loaded.settings == switched.settings
    assert torch.equal(loaded(one.images, one.present), switched.eval()(one.images, one.present))


def test_without_common_features_the_code_is_all_that_the_decoder_sees() -> None:
    model, one = small(common_features=False).eval(), batch([[1, 1, 1]], [[1, 0, 0]])
    assert not hasattr(model, "common_encoder") and model.decoder.fuse.in_features == 6
    other = model.reconstruct(one.images, ~one.present)
    assert torch.equal(model.reconstruct(one.images, one.present), other)


def test_a_binary_condition_says_which_contrasts_are_present_and_needs_no_second_stage() -> None:
    model, one = small(condition="binary").eval(), batch([[1, 1, 1]], [[1, 0, 1]])
    assert not hasattr(model, "posterior_encoder") and not hasattr(model, "prior_encoder")
    seen: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    reconstructed = model.reconstruct(one.images, one.present)
    assert torch.equal(seen[0], torch.tensor([1.0, 0.0, 1.0]).expand(1, 4, 4, 3))
    assert torch.equal(reconstructed[:, 1].clamp(0, 1), model(one.images, one.present)[:, 1])
    assert model.players("grading") == {}
    model.fit([one])


def test_a_continuous_condition_is_bounded_and_regressed() -> None:
    model, one = small(condition="continuous"), batch([[1, 1, 1]], [[1, 0, 0]])
    seen: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.reconstruct(3 * one.images, one.present)
    model(one.images, one.present)
    assert seen[0].abs().max() <= 1 and len(seen[0].unique()) > 50, "bounded, not rounded"
    wanted = model.posterior_encoder(one.images).tanh()
    loss = model.loss("grader", one, None, stage="grading", progress=0.0)
    assert torch.allclose(loss.total, (seen[1] - wanted).square().mean())


@pytest.mark.parametrize("condition", ["binary", "continuous"])
def test_what_has_no_code_says_so(condition: str) -> None:
    model, one = small(condition=condition), batch([[1, 1, 1]], [[1, 0, 0]])
    assert model.grades(one.images, one.present) == []
    for ask in (lambda: model.levels(one.images, one.present), lambda: model.code_levels(one.images)):
        with pytest.raises(UsageError, match="no code"):
            ask()


def test_a_decoder_that_would_see_no_image_is_refused() -> None:
    with pytest.raises(UsageError, match="no image"):
        small(condition="binary", common_features=False)


def test_classes_decode_to_the_likeliest_level_or_to_the_expected_one() -> None:
    likeliest, expected = (small(levels=(3,), grading="classification", decoding=d) for d in ("threshold", "expected"))
    for model in (likeliest, expected):
        last = model.prior_encoder.stages[-1]
        last.weight.data.zero_()
        last.bias.data = torch.tensor([0.4, 0.25, 0.35]).log()
    one = batch([[1, 1, 1]], [[1, 0, 0]])
    assert (likeliest.levels(one.images, one.present) == 0).all()
    codes: list[torch.Tensor] = []
    for model in (likeliest, expected):
        model.decoder.register_forward_pre_hook(lambda _, inputs: codes.append(inputs[0]))
        model(one.images, one.present)
    assert torch.allclose(codes[0], torch.tensor(-1.0))
    assert torch.allclose(codes[1], torch.tensor(0.95 - 1), atol=1e-5)


def test_the_l1_loss_has_the_same_weights() -> None:
    model, one = small(distance="l1"), batch([[1, 1, 1]], [[1, 0, 0]])
    shared = model.share(one, stage="reconstruction")
    loss = model.loss("generator", one, shared, stage="reconstruction", progress=0.0)
    error = (shared - one.images).abs().mean((0, 2, 3))
    assert torch.allclose(loss.total, 20 * error[1:].mean() + 5 * error[0])
    assert torch.allclose(loss.parts["l1_absent"], error[1:].mean())
