from __future__ import annotations

import pytest
import torch

from codebrain.errors import CodeBrainError
from codebrain.models import build_model
from codebrain.models.mm_gan import MmGan
from codebrain.nn.batch import Batch
from codebrain.vocabulary import ModalitySet


def small(**settings: object) -> MmGan:
    torch.manual_seed(0)
    tiny = {"width": 4, "depth": 4, "critic_width": 2, **settings}
    model = build_model("mm_gan", ModalitySet.parse("T1,T2,PD"), tiny)
    assert isinstance(model, MmGan)
    return model


def published(modalities: str = "FLAIR,T1,T2,T1Gd") -> MmGan:
    with torch.device("meta"):
        model = build_model("mm_gan", ModalitySet.parse(modalities))
    assert isinstance(model, MmGan)
    return model


def batch(available: list[list[int]], present: list[list[int]], size: int = 32) -> Batch:
    there = torch.tensor(available).bool()
    stack = torch.rand(len(available), 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(stack * there[:, :, None, None], there, torch.tensor(present).bool())


def loss_of(model: MmGan, player: str, one: Batch) -> object:
    return model.loss(player, one, model.share(one, stage="training"), stage="training", progress=0.0)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- architecture ---


def test_published_sizes() -> None:
    """54.4 M and 2.8 M for four contrasts.

    Kernels hold 16 numbers. Down: 16 (4*64 + 64*128 + 128*256 + 256*512 + 4 * 512*512) = 19,533,824.
    Up: 16 (512*512 + 3 * 1024*512 + 1024*256 + 512*128 + 256*64) = 34,865,152. Head: 16 * 128*4 + 4 = 8,196.
    Critic: 16 (8*64 + 64*128 + 128*256 + 256*512 + 512*4) and biases 64 + 128 + 256 + 512.
    """
    model = published()
    assert count(model.generator.down) == 19_533_824
    assert count(model.generator.up) == 34_865_152
    assert count(model.generator) == 54_407_172
    assert count(model.critic) == 2_794_432
    assert count(published("T1,T2,PD").generator) == 54_404_099


def test_layers_are_the_published_ones() -> None:
    generator = published().generator
    halvings = [level[0] for level in generator.down]
    doublings = [level[0] for level in generator.up]
    assert [layer.out_channels for layer in halvings] == [64, 128, 256, 512, 512, 512, 512, 512]
    assert [layer.in_channels for layer in doublings] == [512, 1024, 1024, 1024, 1024, 512, 256]
    assert [layer.out_channels for layer in doublings] == [512, 512, 512, 512, 256, 128, 64]
    assert all(layer.bias is None for layer in halvings + doublings)
    normalised = [any(isinstance(layer, torch.nn.InstanceNorm2d) for layer in level) for level in generator.down]
    assert normalised == [False, True, True, True, True, True, True, False]
    assert [level[-1].p for level in generator.down] == [0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2]
    assert [level[-1].p for level in generator.up] == [0.2, 0.2, 0.2, 0.2, 0, 0, 0]


def test_shapes_at_256_and_one_pixel_at_the_bottom() -> None:
    model = published()
    images = torch.empty(2, 4, 256, 256, device="meta")
    bottom = images
    for halve in model.generator.down:
        bottom = halve(bottom)
    assert bottom.shape == (2, 512, 1, 1)
    assert model.generator(images).shape == images.shape
    assert model.critic(images, images).shape == (2, 4, 16, 16)


def test_convolutions_start_small() -> None:
    model = small(width=16, critic_width=16)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            assert abs(module.weight.std().item() - 0.02) < 0.003
            assert abs(module.weight.mean().item()) < 0.003


def test_one_halving_is_refused() -> None:
    with pytest.raises(CodeBrainError, match="depth"):
        small(depth=1)


# --- imputation ---


def test_sizes_that_eight_halvings_do_not_divide() -> None:
    model = small(width=2, depth=8).eval()
    one = batch([[1, 1, 1]], [[1, 0, 0]], size=24)
    assert model(one.images, one.present).shape == one.images.shape


def test_dropout_is_off_in_evaluation() -> None:
    model, one = small(), batch([[1, 1, 1]], [[1, 0, 0]])
    assert not torch.equal(*(model.train()._candidate(one.images, one.present) for _ in range(2)))
    assert torch.equal(*(model.eval()(one.images, one.present) for _ in range(2)))


def test_only_the_given_contrasts_are_seen_and_they_are() -> None:
    model, one = small().eval(), batch([[1, 1, 1]], [[1, 0, 0]])
    completed = model(one.images, one.present)
    withheld, given = one.images.clone(), one.images.clone()
    withheld[:, 1:] = 0.5
    given[:, 0] = 0.5
    assert torch.equal(model(withheld, one.present), completed)
    assert not torch.equal(model(given, one.present)[:, 1:], completed[:, 1:])


def test_the_pattern_reaches_the_generator_only_as_zeros() -> None:
    model, one = small().eval(), batch([[1, 1, 1]], [[1, 0, 0]])
    alone = model(one.images, one.present)
    blank = one.images * one.present[:, :, None, None]
    everything = model._candidate(blank, torch.ones_like(one.present))
    assert torch.equal(alone[:, 1:], everything[:, 1:].clamp(0, 1))


# --- training ---


def test_generator_first_then_critic() -> None:
    model = small()
    assert list(model.players("training")) == ["generator", "critic"]
    assert model.training_only == ("critic",)


def test_pixels_count_only_where_a_contrast_is_missing() -> None:
    model = small().eval()
    one = batch([[1, 1, 1], [1, 1, 1], [1, 1, 1]], [[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    error = (model._candidate(one.images, one.present) - one.images).abs().mean((2, 3))
    expected = (error[1:, 0].mean() + error[0, 1] + error[:2, 2].mean()) / 3
    loss = loss_of(model, "generator", one)
    assert torch.allclose(loss.parts["pixel"], expected)
    assert torch.allclose(loss.total, 0.9 * loss.parts["pixel"] + 0.1 * loss.parts["adversarial"])


def test_given_contrasts_are_copied_before_the_critic_sees_them() -> None:
    model, one = small().eval(), batch([[1, 1, 1]], [[1, 1, 0]])
    candidate = model._candidate(one.images, one.present)
    mixed = torch.cat([one.images[:, :2], candidate[:, 2:]], dim=1)
    expected = (model.critic(mixed, one.images) - 1).square().mean()
    assert torch.allclose(loss_of(model, "generator", one).parts["adversarial"], expected)


def test_given_contrasts_get_no_gradient() -> None:
    model, one = small(), batch([[1, 1, 1]], [[1, 1, 0]])
    loss_of(model, "generator", one).total.backward()
    head = model.generator.head[2].weight.grad
    assert (head[:2] == 0).all() and (head[2] != 0).any()


def test_the_critic_aims_at_one_on_given_and_zero_on_missing_contrasts() -> None:
    model, one = small().eval(), batch([[1, 1, 1]], [[1, 1, 0]])
    candidate = model._candidate(one.images, one.present)
    mixed = torch.cat([one.images[:, :2], candidate[:, 2:]], dim=1)
    goal = torch.tensor([1.0, 1.0, 0.0])[None, :, None, None]
    fake = (model.critic(mixed, one.images) - goal).square().mean()
    real = (model.critic(one.images, one.images) - 1).square().mean()
    assert torch.allclose(loss_of(model, "critic", one).total, (real + fake) / 2, atol=1e-6)


def test_the_critic_leaves_the_generator_alone() -> None:
    model, one = small(), batch([[1, 1, 1]], [[1, 0, 0]])
    loss_of(model, "critic", one).total.backward()
    assert all(parameter.grad is None for parameter in model.generator.parameters())
    assert all(parameter.grad is not None for parameter in model.critic.parameters())


def test_the_critic_judges_what_the_generator_makes_after_its_step() -> None:
    model, one = small(dropout=0.0), batch([[1, 1, 1]], [[1, 0, 0]])
    before = loss_of(model, "critic", one).parts["fake"]
    parameters = list(model.generator.parameters())
    gradients = torch.autograd.grad(loss_of(model, "generator", one).total, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= gradient.sign() * 0.01
    assert loss_of(model, "critic", one).parts["fake"] != before


def test_a_contrast_without_truth_trains_nothing() -> None:
    model, one = small().eval(), batch([[1, 1, 0], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    loss = loss_of(model, "generator", one)
    loss.total.backward()
    head = model.generator.head[2].weight.grad
    assert (head[2] == 0).all() and (head[:2] != 0).any()
    scores = model.critic(one.images, one.images)[:, :2]
    assert torch.allclose(loss_of(model, "critic", one).parts["real"], (scores - 1).square().mean())


def test_nothing_missing_is_no_pixel_loss() -> None:
    model, one = small(), batch([[1, 1, 1]], [[1, 1, 1]])
    assert loss_of(model, "generator", one).parts["pixel"] == 0


def test_training_lowers_the_pixel_loss() -> None:
    model = small(width=8, dropout=0.0)
    one = batch([[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [0, 1, 1]])
    optimiser = torch.optim.Adam(model.generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    errors = []
    for _ in range(20):
        loss = loss_of(model, "generator", one)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        errors.append(loss.parts["pixel"].item())
    assert errors[-1] < 0.8 * errors[0]


def test_bfloat16_losses_are_float32_and_close() -> None:
    model, one = small().eval(), batch([[1, 1, 1]], [[1, 0, 0]])
    for player in ("generator", "critic"):
        exact = loss_of(model, player, one).total
        with torch.autocast("cpu", torch.bfloat16):
            short = loss_of(model, player, one).total
        assert short.dtype == torch.float32
        assert torch.allclose(exact, short, rtol=0.02)
