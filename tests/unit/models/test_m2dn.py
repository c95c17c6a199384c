from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from codebrain.errors import CodeBrainError
from codebrain.models import build_model
from codebrain.models.m2dn import ResBlock, _groups
from codebrain.nn.batch import Batch
from codebrain.vocabulary import ModalitySet


def small(names: str = "T1,T2,PD", **settings: object) -> Any:
    torch.manual_seed(0)
    built = build_model("m2dn", ModalitySet.parse(names), {"width": 4, "sampling_steps": 4, **settings})
    return built.eval()


def stack(count: int = 2, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def batch(available: list[list[int]], present: list[list[int]]) -> Batch:
    there = torch.tensor(available).bool()
    return Batch(stack(len(available)) * there[:, :, None, None], there, torch.tensor(present).bool())


def listen(model: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, noise level and mask of every pass of the network."""
    heard: list[tuple[Tensor, Tensor, Tensor]] = []
    model.network.register_forward_pre_hook(lambda _, inputs: heard.append(tuple(i.clone() for i in inputs[:3])))
    return heard


def derived_count(contrasts: int, width: int) -> int:
    """Parameters of figure 3 as we read it, from the sizes alone."""

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return kernel**2 * inputs * outputs + outputs

    def normed(inputs: int, outputs: int) -> int:
        return 2 * inputs + conv(inputs, outputs)

    def residual(inputs: int, outputs: int) -> int:
        skip = conv(inputs, outputs, 1) if inputs != outputs else 0
        return normed(inputs, outputs) + conv(4 * width, outputs, 1) + normed(outputs, outputs) + skip

    wide, middle = contrasts * width, contrasts * width // 2
    entry = conv(1, width) + 2 * normed(width, width)
    leave = normed(width, width) + normed(width, 1)
    encoder = residual(wide, wide) + residual(wide, middle) + residual(middle, middle) + residual(middle, width)
    decoder = residual(width, middle) + residual(middle, middle) + residual(middle, wide) + residual(wide, wide)
    bottom = 4 * residual(width, width) + 2 * (conv(width, width // 16, 1) + conv(width // 16, width, 1))
    told = conv(width + contrasts, width, 1)
    return contrasts * (entry + leave) + encoder + decoder + bottom + told + conv(width, 4 * width, 1)


@pytest.mark.parametrize(("names", "count"), [("T1,T2,PD", 14_674_835), ("FLAIR,T1,T2,T1Gd", 23_473_556)])
def test_published_size(names: str, count: int) -> None:
    # Estimated before from the figure: about 14.6 M and 23.4 M, without the shared layer of the time embedding
    # (66,048). Nothing was published.
    with torch.device("meta"):
        model = build_model("m2dn", ModalitySet.parse(names))
    assert sum(p.numel() for p in model.parameters()) == count == derived_count(len(names.split(",")), 128)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {32}
    blocks = [m for m in model.modules() if isinstance(m, ResBlock)]
    assert len(blocks) == 12, "two in each of six stages, and the noise level in all of them"


def test_sizes_inside_are_those_of_the_figure() -> None:
    model = small(width=8)
    shapes = []
    for part in [*model.network.entries, *model.network.encoder, model.network.told, *model.network.decoder]:
        part.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    model.network(torch.zeros(1, 3, 32, 32), torch.tensor([5]), torch.tensor([[True, False, False]]))
    assert shapes == [
        *[(8, 16, 16)] * 3, (12, 8, 8), (8, 4, 4), (8, 2, 2), (8, 2, 2), (8, 4, 4), (12, 8, 8), (24, 16, 16)
    ]  # fmt: skip


def test_the_mask_says_one_for_missing() -> None:
    model = small()
    heard: list[Tensor] = []
    model.network.told.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    model(stack(), torch.tensor([[True, False, True], [False, True, False]]))
    assert heard[0].shape[1] == 4 + 3
    assert torch.equal(heard[0][:, 4:, 0, 0], torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("rows", [[[1, 0, 1], [0, 1, 0]], [[1, 0, 0], [1, 0, 0]]])
def test_given_contrasts_are_clean_in_every_step(rows: list[list[int]], eta: float) -> None:
    model, images, present = small(eta=eta), stack(), torch.tensor(rows).bool()
    heard = listen(model)
    completed = model(images, present)
    assert [int(level[0]) for _, level, _ in heard] == [1000, 750, 500, 250]
    for noisy, _, missing in heard:
        assert torch.equal(noisy[present], (2 * images - 1)[present]) and torch.equal(missing, ~present)
    assert torch.equal(completed[present], images[present])
    assert len({noisy[~present].sum().item() for noisy, _, _ in heard}) == 4


def test_features_kept_over_the_steps_change_nothing() -> None:
    model, images, present = small(), stack(), torch.tensor([[True, False, False]] * 2)
    kept = model(images, present)
    model.network.enter = lambda images, wanted: {}
    assert torch.equal(model(images, present), kept)


def test_one_noise_field_for_all_samples_of_a_call() -> None:
    model, present = small(eta=0.5), torch.tensor([[True, False, False]] * 2)
    heard = listen(model)
    images = stack(1).repeat(2, 1, 1, 1)
    completed = model(images, present)
    assert all(torch.equal(noisy[0], noisy[1]) for noisy, _, _ in heard)
    assert torch.equal(heard[0][0][0], model_input(model, images[:1], present[:1])[0])
    assert torch.allclose(model(images[:1], present[:1]), completed[:1], atol=1e-5)


def model_input(model: Any, images: Tensor, present: Tensor) -> Tensor:
    heard = listen(model)
    model(images, present)
    return heard[0][0]


def test_without_a_generator_the_seed_decides() -> None:
    present = torch.tensor([[True, False, False]] * 2)
    model, other = small(eta=1.0), small(eta=1.0, seed=1)
    assert torch.equal(model(stack(), present), model(stack(), present))
    assert torch.equal(model(stack(), present), model(stack(), present, torch.Generator().manual_seed(0)))
    assert not torch.equal(model(stack(), present), other(stack(), present))


def test_one_step_is_the_first_prediction() -> None:
    model, present = small(), torch.tensor([[True, False, True]] * 2)
    heard = listen(model)
    completed = model.sample(stack(), present, steps=1)
    assert len(heard) == 1 and (heard[0][1] == 1000).all()
    predicted = model.network(*heard[0])
    assert torch.allclose(completed[~present], ((predicted + 1) / 2).clamp(0, 1)[~present], atol=1e-6)


@pytest.mark.parametrize(("steps", "first", "last"), [(50, (1000, 980), (20, 0)), (1000, (1000, 999), (1, 0))])
def test_levels_are_even_and_end_clean(steps: int, first: tuple[int, int], last: tuple[int, int]) -> None:
    levels = list(small()._levels(steps))
    assert len(levels) == steps and levels[0] == first and levels[-1] == last


def test_noise_levels_multiply() -> None:
    signal = small().signal_levels
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = (1 - betas).cumprod(0)
    assert signal[0] == 1.0 and torch.allclose(torch.tensor(signal[1:], dtype=torch.float64), expected)


def test_a_full_stochastic_step_is_the_posterior_of_ho_et_al() -> None:
    """Mean and variance of q(x_{t-1} | x_t, x_0), equation 7, which eta = 1 and neighbouring levels must give."""
    model, level = small(eta=1.0), 400
    noisy, clean = stack(1) - 0.5, stack(1) * 2 - 1
    now, then = model.signal_levels[level], model.signal_levels[level - 1]
    beta = 1 - now / then
    mean = then**0.5 * beta / (1 - now) * clean + (now / then) ** 0.5 * (1 - then) / (1 - now) * noisy
    drawn = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    step = model._less_noisy(noisy, clean, level, level - 1, torch.Generator().manual_seed(7))
    assert torch.allclose(step, mean + ((1 - then) / (1 - now) * beta) ** 0.5 * drawn, atol=1e-5)


def test_a_deterministic_step_keeps_the_noise() -> None:
    model, clean, noise = small(), stack(1) * 2 - 1, torch.randn(1, 3, 16, 16)
    a, b = model.signal_levels[800], model.signal_levels[600]
    step = model._less_noisy(a**0.5 * clean + (1 - a) ** 0.5 * noise, clean, 800, 600, torch.Generator())
    assert torch.allclose(step, b**0.5 * clean + (1 - b) ** 0.5 * noise, atol=1e-5)


def test_training_noises_what_is_missing_and_only_that() -> None:
    model, one = small(), batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    heard = listen(model)
    model.share(one, stage="training", generator=torch.Generator().manual_seed(5))
    chance = torch.Generator().manual_seed(5)
    level = torch.randint(1, 1001, (2,), generator=chance)
    noise = torch.randn(one.images.shape, generator=chance)
    (noisy, told, missing), images = heard[0], 2 * one.images - 1
    assert torch.equal(told, level) and torch.equal(missing, ~one.present)
    assert torch.equal(noisy[one.present], images[one.present])
    signal = torch.tensor(model.signal_levels, dtype=torch.float32)[level][:, None, None, None]
    expected = signal.sqrt() * images + (1 - signal).sqrt() * noise
    assert torch.allclose(noisy[one.absent], expected[one.absent], atol=1e-6)
    assert torch.equal(noisy[1, 2], noise[1, 2]), "nothing to hide in the noise where there is no truth"


def test_the_loss_counts_every_contrast_with_truth_alike() -> None:
    model, one = small(), batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    shared = model.share(one, stage="training").detach().requires_grad_()
    loss = model.loss("generator", one, shared, stage="training", progress=0.0)
    error = (shared - (2 * one.images - 1)).square()
    assert torch.allclose(loss.total, error[one.available].mean())
    assert torch.allclose(loss.parts["mse_absent"], error[one.absent].mean())
    loss.total.backward()
    assert shared.grad is not None and (shared.grad[1, 2] == 0).all()
    assert all((shared.grad[i, j] != 0).any() for i, j in one.available.nonzero().tolist())


def test_nothing_to_count_is_no_loss() -> None:
    model, one = small(), batch([[0, 0, 0]], [[0, 0, 0]])
    loss = model.loss("generator", one, model.share(one, stage="training"), stage="training", progress=0.0)
    assert loss.total == 0


def test_every_parameter_learns() -> None:
    model, one = small(), batch([[1, 1, 1]] * 2, [[1, 0, 0], [0, 1, 1]])
    shared = model.share(one, stage="training", generator=torch.Generator().manual_seed(0))
    model.loss("generator", one, shared, stage="training", progress=0.0).total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.network.parameters())
    assert model.network.time.weight.grad.abs().sum() > 0 and model.network.told.weight.grad[:, 4:].abs().sum() > 0


@pytest.mark.parametrize("size", [(24, 40), (16, 16)])
def test_sides_need_not_be_multiples_of_sixteen(size: tuple[int, int]) -> None:
    model, images, present = small(), stack(2, *size), torch.tensor([[True, False, False], [False, True, True]])
    completed = model(images, present)
    assert completed.shape == images.shape and torch.equal(completed[present], images[present])
    one = Batch(images, torch.ones_like(present), present)
    assert model.share(one, stage="training").shape == images.shape


def test_bfloat16_stays_close_to_float32() -> None:
    model, images, present = small(width=8), stack(), torch.tensor([[True, False, False], [False, True, True]])
    exact = model(images, present)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(images, present)
        shared = model.share(Batch(images, torch.ones_like(present), present), stage="training")
    assert rounded.dtype == shared.dtype == torch.float32 and torch.equal(rounded[present], images[present])
    assert (rounded - exact).abs().max() < 0.05


def test_validation_takes_its_own_number_of_steps() -> None:
    model, one = small(validation_steps=2), batch([[1, 1, 1]], [[1, 0, 0]])
    heard = listen(model)
    model.validate(one, stage="training")
    assert len(heard) == 2


def test_groups_divide_and_leave_four_channels() -> None:
    assert [_groups(n) for n in (384, 192, 128, 512, 256, 32, 48, 12, 6, 2)] == [32, 32, 32, 32, 32, 8, 12, 3, 1, 1]


@pytest.mark.parametrize(
    "settings", [{"sampling_steps": 1001}, {"sampling_steps": 0}, {"width": 3}, {"eta": 1.5}, {"betas": [0.1, 0.01]}]
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(CodeBrainError) as caught:
        small(**settings)
    assert caught.value.code == "CONFIG"
