from __future__ import annotations

from typing import Any

import pytest
import torch

from codebrain.models import build_model
from codebrain.nn.batch import Batch
from codebrain.vocabulary import ModalitySet

TINY = {"dim": 16, "heads": [1, 2, 2, 4], "window": 2, "critic_width": 2}


def small(**settings: object) -> Any:
    torch.manual_seed(0)
    return build_model("mmt", ModalitySet.parse("T1,T2,PD"), {**TINY, **settings})


def batch(available: list[list[int]], present: list[list[int]], size: int = 32) -> Batch:
    there = torch.tensor(available).bool()
    stack = torch.rand(len(available), 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(stack * there[:, :, None, None], there, torch.tensor(present).bool())


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_sizes() -> None:
    """68.0 M for four contrasts, 33.1 M for the critics; every term from the layer list."""
    with torch.device("meta"):
        model: Any = build_model("mmt", ModalitySet.parse("FLAIR,T1,T2,T1Gd"))
    grids = [(96, 3), (192, 6), (384, 12), (768, 24)]
    table = 15 * 15  # a bias per displacement within a window of 8
    square = sum(d * d for d, _ in grids)
    marks = 4 * sum(d for d, _ in grids)
    halvings = [96, 192, 384]
    # Four projections and an MLP of ratio 4 with biases, two norms, one bias table; two blocks a grid.
    joint = sum(2 * (12 * d * d + 13 * d + table * k) for d, k in grids)
    merging = sum(8 * d * d + 8 * d for d in halvings)
    expanding = sum(8 * d * d + 2 * d for d in halvings)
    joining = sum(2 * d * d + d for d in halvings)
    # A second attention: four more projections, one more norm, one more table; two marks instead of one.
    query = sum(2 * (16 * d * d + 19 * d + 2 * table * k) for d, k in grids)
    residual = 2 * (25 * 36 + 6)
    heads = 4 * (49 * 6 + 6 + 2 * residual)
    tails = 4 * (12 + 2 * residual + 49 * 6 + 1)
    assert square == 783_360
    down, up = joint + merging + marks, joint + expanding + joining + marks
    decoder = query + expanding + 2 * marks
    assert (down, up, decoder, heads + tails) == (20_417_754, 20_801_466, 26_723_892, 31_420)
    assert count(model.encoder.down) + count(model.encoder.merge) == down
    assert count(model.encoder) == down + up
    assert count(model.decoder) == decoder
    assert count(model.players("training")["generator"]) == down + up + decoder + heads + tails == 67_974_532
    convolutions = 16 * 64 + 64 + sum(16 * 2 * d * d + 2 * d for d in (64, 128, 256)) + 513
    assert count(model.critics) == 4 * 3 * (convolutions + 2 * (128 + 256 + 512)) == 33_081_612


def test_dim_need_not_be_a_multiple_of_sixteen() -> None:
    model = small(dim=24, heads=[3, 6, 12, 24])
    one = batch([[1, 1, 1]], [[1, 0, 0]])
    assert model.heads[0][0].out_channels == 2, "24 / 16, rounded up"
    assert model(one.images, one.present).shape == one.images.shape
    assert not any(isinstance(layer, torch.nn.Linear) for layer in small().heads[0]), "published: no such layer"


@pytest.mark.parametrize("settings", [{"depths": [2, 2]}, {"dim": 20, "heads": [3, 6, 12, 24]}])
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(Exception, match="heads"):
        small(**settings)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (96, 96), (40, 72)])
def test_small_and_odd_images_work_with_the_published_window(height: int, width: int) -> None:
    model = small(window=8).eval()
    images = torch.rand(1, 3, height, width, generator=drawn())
    with torch.no_grad():
        completed = model(images, torch.tensor([[True, False, True]]))
    assert completed.shape == images.shape and torch.isfinite(completed).all()


def test_240_pixels_are_padded_to_256_and_the_window_fills_the_coarsest_grid() -> None:
    model = small(window=8, depths=[1, 1, 1, 1], decoder_depth=1).eval()
    seen = []
    model.encoder.up[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[2:4]))
    with torch.no_grad():
        model(torch.rand(1, 3, 240, 240, generator=drawn()), torch.tensor([[True, False, True]]))
    assert seen == [(8, 8)]


def test_the_order_of_the_set_has_no_influence() -> None:
    model = small().eval()
    tokens = torch.randn(2, 3, 16, 16, 16, generator=drawn())
    order = [2, 0, 1]
    with torch.no_grad():
        scales = model.encoder(tokens, [0, 1, 2])
        shuffled = model.encoder(tokens[:, order], order)
        decoded = model.decoder(scales, [0, 1, 2], [1, 2])
        assert torch.allclose(model.decoder(shuffled, order, [1, 2]), decoded, atol=1e-5)
    for one, other in zip(scales, shuffled, strict=True):
        assert torch.allclose(one[:, order], other, atol=1e-5)


def test_which_contrast_it_is_does_have_influence() -> None:
    model = small().eval()
    tokens = torch.randn(1, 1, 16, 16, 16, generator=drawn())
    with torch.no_grad():
        for part in model.modules():  # as training does: weights that start at 0.02 say little
            if isinstance(part, torch.nn.Linear):
                part.weight.mul_(10)
        assert not torch.allclose(model.encoder(tokens, [0])[-1], model.encoder(tokens, [1])[-1], atol=1e-4)


def test_only_absent_contrasts_are_decoded() -> None:
    model = small().eval()
    calls: list[int] = []
    for number, tail in enumerate(model.tails):
        tail.register_forward_hook(lambda *_, number=number: calls.append(number))
    one = batch([[1, 1, 1]] * 3, [[1, 0, 1], [1, 0, 1], [1, 1, 0]])
    with torch.no_grad():
        model(one.images, one.present)
    assert sorted(calls) == [1, 2], "once per pattern and absent contrast"


def test_a_complete_sample_comes_back() -> None:
    one = batch([[1, 1, 1]], [[1, 1, 1]])
    assert torch.equal(small()(one.images, one.present), one.images)


def test_absent_contrasts_weigh_twenty_present_five_and_the_critics_a_tenth() -> None:
    model, one = small(), batch([[1, 1, 1]] * 2, [[1, 0, 0]] * 2)
    shared = model.share(one, stage="training", generator=drawn())
    loss = model.loss("generator", one, shared, stage="training", progress=0.0)
    parts = loss.parts
    expected = 20 * parts["l1_absent"] + 5 * parts["l1_present"] + 0.1 * parts["adversarial"]
    assert torch.allclose(loss.total, expected)
    error = (shared.candidate - one.images).abs().mean((0, 2, 3))
    assert torch.allclose(parts["l1_absent"], error[1:].mean()) and torch.allclose(parts["l1_present"], error[0])
    scores = [model.critics[number](shared.candidate[:, number : number + 1]) for number in (1, 2)]
    fooled = sum((scale - 1).square().mean() for contrast in scores for scale in contrast) / 2
    assert torch.allclose(parts["adversarial"], fooled)


def test_the_critics_judge_absent_contrasts_against_smoothed_targets() -> None:
    model, one = small(), batch([[1, 1, 1]] * 2, [[1, 1, 0]] * 2, size=64)
    shared = model.share(one, stage="training", generator=drawn())
    assert shared.smoothing.shape == (2, 3, 3) and shared.smoothing.min() >= 0 and shared.smoothing.max() <= 0.1
    loss = model.loss("critic", one, shared, stage="training", progress=0.0)
    low, high = shared.smoothing[:, 2]
    fake = model.critics[2](shared.candidate[:, 2:].detach())
    real = model.critics[2](one.images[:, 2:])
    assert len(fake) == len(real) == 3
    expected = sum((s - t).square().mean() for s, t in zip([*fake, *real], [*low, *(1 - high)], strict=True))
    assert torch.allclose(loss.total, 0.1 * expected)
    again = model.share(one, stage="training", generator=drawn())
    assert torch.equal(again.smoothing, shared.smoothing), "chance comes from the step's generator"


def test_a_contrast_without_truth_trains_nothing() -> None:
    model, one = small(), batch([[1, 1, 0]] * 2, [[1, 0, 0]] * 2)
    shared = model.share(one, stage="training", generator=drawn())
    model.loss("generator", one, shared, stage="training", progress=0.0).total.backward()
    critic = model.loss("critic", one, shared, stage="training", progress=0.0)
    critic.total.backward()
    for part in (model.tails[2], model.heads[1], model.heads[2], model.critics[0], model.critics[2]):
        assert all(parameter.grad is None for parameter in part.parameters())
    assert all(parameter.grad is not None for parameter in model.critics[1].scales[0].parameters())


def test_a_step_of_both_players_with_a_pattern_per_sample() -> None:
    model = small().train()
    one = batch([[1, 1, 1], [1, 1, 0], [1, 1, 1]], [[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    shared = model.share(one, stage="training", generator=drawn())
    for name, module in model.players("training").items():
        loss = model.loss(name, one, shared, stage="training", progress=0.0)
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
        assert all(gradient is None or torch.isfinite(gradient).all() for gradient in gradients)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(0.01 * gradient if gradient is not None else 0)
        assert not any(part.requires_grad for part in loss.parts.values())


def test_every_generator_weight_is_trained() -> None:
    model, one = small(), batch([[1, 1, 1]] * 2, [[1, 1, 0], [0, 0, 1]])
    shared = model.share(one, stage="training", generator=drawn())
    model.loss("generator", one, shared, stage="training", progress=0.0).total.backward()
    idle = [name for name, value in model.named_parameters() if value.grad is None and not name.startswith("critics")]
    assert not idle


def test_a_critic_that_cannot_normalise_sits_out() -> None:
    model, one = small(), batch([[1, 1, 1]], [[1, 1, 0]], size=16)
    shared = model.share(one, stage="training", generator=drawn())
    assert model.loss("critic", one, shared, stage="training", progress=0.0) is None
    assert model.loss("generator", one, shared, stage="training", progress=0.0).parts["adversarial"] == 0


def test_the_critics_have_no_state_besides_their_weights() -> None:
    assert not [name for name, _ in small().named_buffers()]


def test_bfloat16_stays_close_to_float32() -> None:
    model, one = small().eval(), batch([[1, 1, 1]], [[1, 0, 0]])
    with torch.no_grad():
        exact = model(one.images, one.present)
        with torch.autocast("cpu", torch.bfloat16):
            short = model(one.images, one.present)
    assert short.dtype == torch.float32
    assert (exact - short).abs().max() < 0.02
