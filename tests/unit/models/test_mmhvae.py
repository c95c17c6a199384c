from __future__ import annotations

import pytest
import torch

from codebrain.errors import CodeBrainError
from codebrain.models import build_model
from codebrain.nn.batch import Batch
from codebrain.nn.hvae import BottomVector, Gaussian, product_of_experts, sample
from codebrain.vocabulary import ModalitySet

SMALL = {"size": 16, "levels": [4, 8], "head_width": 4, "head_blocks": 1, "critic_width": 4, "critic_layers": 2}


def small(**settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("mmhvae", ModalitySet.parse("T1,T2,PD"), {**SMALL, **settings})


def stack(count: int = 2, height: int = 16, width: int = 16) -> torch.Tensor:
    return 0.1 + 0.9 * torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def batch(available: list[list[int]], present: list[list[int]]) -> Batch:
    there = torch.tensor(available).bool()
    return Batch(stack(len(available)) * there[:, :, None, None], there, torch.tensor(present).bool())


def loss(model: torch.nn.Module, player: str, one: Batch, shared: object, progress: float) -> object:
    return model.loss(player, one, shared, stage="training", progress=progress)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("contrasts", "size", "expected"),
    [("FLAIR,T1,T2,T1Gd", 192, 13_774_770), ("FLAIR,T1,T2,T1Gd", 256, 14_464_690), ("T1,T2,PD", 256, 12_626_821)],
)
def test_the_defaults_have_the_published_size(contrasts: str, size: int, expected: int) -> None:
    with torch.device("meta"):
        model = build_model("mmhvae", ModalitySet.parse(contrasts), {"size": size})
        scores = model.critic[0](torch.empty(1, 1, size, size))
    assert count(model.players("training")["generator"]) == expected
    assert [count(critic) for critic in model.critic] == [4_856_257] * len(contrasts.split(","))
    assert scores.shape[2] == size // 64 - 2, "four scores at 256, one at 192"
    assert [level.widen.out_channels // 2 for level in model.ladder.levels] == [64, 64, 64, 32, 16, 8]
    assert model.ladder.bottom.write.in_features == 256


def test_precisions_are_inverse_deviations_and_add() -> None:
    draw = torch.Generator().manual_seed(0)
    prior, first, second = (Gaussian(*torch.randn(2, 3, 5, generator=draw)) for _ in range(3))
    present = torch.tensor([[True, True], [True, False], [False, True]])
    fused = product_of_experts(prior, {0: first, 1: second}, present)
    for row, (one, two) in enumerate(present.tolist()):
        known = [prior] + [first] * one + [second] * two
        precision = sum((-gaussian.log_scale[row]).exp() for gaussian in known)
        mean = sum((-gaussian.log_scale[row]).exp() * gaussian.mean[row] for gaussian in known) / precision
        assert torch.allclose(fused.mean[row], mean, atol=1e-6)
        assert torch.allclose(fused.log_scale[row].exp(), 1 / precision, atol=1e-6)


def test_means_and_scales_stay_between_plus_and_minus_ten() -> None:
    gaussian = Gaussian.of(torch.tensor([[1e9, 1.0, -1e9, 0.0]], dtype=torch.bfloat16))
    assert gaussian.mean.dtype == torch.float32
    assert torch.allclose(gaussian.mean, torch.tensor([[10.0, 10 * torch.tensor(0.1).tanh()]]))
    assert torch.equal(gaussian.log_scale, torch.tensor([[-10.0, 0.0]]))


def test_the_divergence_is_kullback_and_leiblers_on_average() -> None:
    prior = Gaussian(torch.full((20_000, 1), 0.5), torch.full((20_000, 1), 0.2))
    posterior = Gaussian(torch.full((20_000, 1), -0.3), torch.full((20_000, 1), -0.4))
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    draws, surprise = sample(prior, posterior, noise, 1.0)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(-0.3, torch.tensor(-0.4).exp()),
        torch.distributions.Normal(0.5, torch.tensor(0.2).exp()),
    )
    assert torch.allclose(surprise.mean(), exact, atol=0.02)
    assert torch.allclose(draws.std(), torch.tensor(-0.4).exp(), atol=0.01)


def test_what_absent_contrasts_hold_does_not_matter() -> None:
    model, given = small(), stack()
    present = torch.tensor([[True, False, True], [False, True, False]])
    completed = model(given, present)
    for value in (float("nan"), float("inf"), 0.7):
        dirty = torch.where(present[:, :, None, None], given, torch.full_like(given, value))
        assert torch.equal(model(dirty, present)[~present], completed[~present])


def test_every_given_contrast_matters() -> None:
    model, given = small(), stack(1)
    full = torch.tensor([[True, True, False]])
    both = model(given, full)[0, 2]
    for alone in ([[True, False, False]], [[False, True, False]]):
        assert not torch.allclose(model(given, torch.tensor(alone))[0, 2], both, atol=1e-4)


def test_slices_of_a_batch_share_their_noise() -> None:
    model, present = small(), torch.tensor([[True, False, False]] * 2)
    completed = model(stack(1).repeat(2, 1, 1, 1), present)
    assert torch.allclose(completed[0], completed[1], atol=1e-6)


def test_temperature_scales_the_chance() -> None:
    present = torch.tensor([[True, False, False]] * 2)
    first, second = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    cold, warm = small(temperature=0.0), small()
    assert torch.equal(cold(stack(), present, first), cold(stack(), present, second))
    assert not torch.equal(warm(stack(), present, first), warm(stack(), present, second))


def test_several_samples_are_averaged() -> None:
    present, one, three = torch.tensor([[True, False, False]] * 2), small(), small(samples=3)
    chance = torch.Generator().manual_seed(5)
    separate = torch.stack([one(stack(), present, chance) for _ in range(3)]).mean(0)
    together = three(stack(), present, torch.Generator().manual_seed(5))
    assert torch.allclose(together[~present], separate[~present], atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (24, 40), (64, 8), (48, 48)])
@pytest.mark.parametrize("levels", [[4, 8], [4, 4, 4, 4]])
def test_images_of_any_size_are_completed(size: tuple[int, int], levels: list[int]) -> None:
    present = torch.tensor([[True, False, False], [False, True, True]])
    completed = small(levels=levels)(stack(2, *size), present)
    assert completed.shape == (2, 3, *size) and torch.isfinite(completed).all()


def test_a_bottom_of_another_size_is_averaged_and_interpolated() -> None:
    bottom = BottomVector(4, 2)
    there = torch.rand(1, 4, 2, 2)
    larger = there.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(bottom.expert(there).mean, bottom.expert(larger).mean, atol=1e-6)
    vector = torch.rand(1, 8)
    expected = torch.nn.functional.interpolate(bottom.decode(vector, (2, 2)), (3, 5), mode="bilinear")
    assert torch.equal(bottom.decode(vector, (3, 5)), expected)


def test_what_is_background_in_every_given_contrast_is_zero() -> None:
    given, present = stack(), torch.tensor([[True, True, False]] * 2)
    given[:, 0, :8], given[:, 1, :, :8] = 0.0, 0.0
    masked, whole = small()(given, present)[:, 2], small(mask_background=False)(given, present)[:, 2]
    assert (masked[:, :8, :8] == 0).all() and (whole[:, :8, :8] > 0).all()
    assert torch.equal(masked[:, 8:], whole[:, 8:]) and torch.equal(masked[:, :, 8:], whole[:, :, 8:])


def test_weights_follow_the_published_shares_of_training() -> None:
    model, one = small(), batch([[1, 1, 1]] * 2, [[1, 0, 0], [0, 1, 1]])
    shared = model.share(one, stage="training")
    start, half, ramped, late = (loss(model, "generator", one, shared, at) for at in (0.0, 0.025, 0.05, 0.8))
    errors = 0.5 * (start.parts["error_full"] + start.parts["error_subset"])
    assert torch.allclose(start.total, errors)
    assert torch.allclose(half.total - errors, 0.5e-3 * start.parts["divergence"], atol=1e-6)
    assert torch.allclose(ramped.total - errors, 1e-3 * start.parts["divergence"], atol=1e-6)
    assert "adversarial" not in loss(model, "generator", one, shared, 0.79).parts
    assert torch.allclose(late.total - ramped.total, 0.025 * late.parts["adversarial"], atol=1e-5)
    assert loss(model, "critic", one, shared, 0.789) is None
    assert loss(model, "critic", one, shared, 0.79) is not None


def test_the_error_is_of_both_passes_on_the_doubled_range() -> None:
    model, one = small(), batch([[1, 1, 1]] * 2, [[1, 0, 0], [0, 1, 1]])
    shared = model.share(one, stage="training")
    parts = loss(model, "generator", one, shared, 0.0).parts
    assert torch.allclose(parts["error_full"], (shared.full - (2 * one.images - 1)).abs().mean())
    assert torch.allclose(parts["error_subset"], (shared.subset - (2 * one.images - 1)).abs().mean())


def test_the_critics_fakes_are_the_contrasts_that_were_withheld() -> None:
    model, one = small(), batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    subset = model.share(one, stage="training").subset.detach().requires_grad_()
    model._critic_loss(one, subset).total.backward()
    moved = subset.grad.abs().sum((2, 3)) > 0
    assert torch.equal(moved, one.absent)


def test_a_contrast_without_truth_trains_nothing() -> None:
    model, one = small(), batch([[1, 1, 0]] * 2, [[1, 0, 0], [0, 1, 0]])
    shared = model.share(one, stage="training")
    shared.full.retain_grad(), shared.subset.retain_grad()
    loss(model, "generator", one, shared, 0.9).total.backward()
    for decoded in (shared.full, shared.subset):
        assert (decoded.grad[:, 2] == 0).all() and (decoded.grad[:, 0] != 0).any()
    assert all(parameter.grad is None for parameter in model.encoders[2].parameters())


def test_nothing_withheld_or_nothing_known_divides_by_zero_nowhere() -> None:
    model, one = small(), batch([[1, 1, 1]], [[1, 1, 1]])
    shared = model.share(one, stage="training")
    assert loss(model, "critic", one, shared, 0.9) is None
    assert torch.isfinite(loss(model, "generator", one, shared, 0.9).total)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_step_of_both_players(precision: torch.dtype) -> None:
    model, one = small().train(), batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    players = model.players("training")
    assert list(players) == ["critic", "generator"]
    with torch.autocast("cpu", dtype=precision, enabled=precision is torch.bfloat16):
        shared = model.share(one, stage="training", generator=torch.Generator().manual_seed(0))
    assert shared.divergence.dtype == torch.float32
    for name, module in players.items():
        with torch.autocast("cpu", dtype=precision, enabled=precision is torch.bfloat16):
            total = loss(model, name, one, shared, 0.9).total
        gradients = torch.autograd.grad(total, list(module.parameters()), allow_unused=True)
        assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)
        with torch.no_grad():
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.sub_(0.01 * (0 if gradient is None else gradient))


def test_bfloat16_stays_close_to_float32() -> None:
    model, present = small(), torch.tensor([[True, False, False]] * 2)
    exact = model(stack(), present)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(stack(), present)
    assert rough.dtype == exact.dtype
    assert (rough - exact).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"size": 18}, "size"),
        ({"critic_layers": 3}, "critic_layers"),
        ({"levels": []}, "levels"),
        ({"levels": [1, 4]}, "levels"),
        ({"samples": 0}, "samples"),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings: dict[str, object], field: str) -> None:
    with pytest.raises(CodeBrainError) as refused:
        small(**settings)
    assert refused.value.code == "CONFIG" and refused.value.field == field
