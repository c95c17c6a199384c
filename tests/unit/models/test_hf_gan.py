from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from codebrain.models import build_model
from codebrain.models.hf_gan import HybridEncoder
from codebrain.nn.batch import Batch
from codebrain.vocabulary import ModalitySet

SMALL = {
    "width": 8, "multipliers": [1, 1, 2], "layers": 1, "heads": 2, "grid": 4,
    "critic_width": 8, "critic_halvings": 2,
}  # fmt: skip


def small(**settings: object) -> Any:
    torch.manual_seed(0)
    return build_model("hf_gan", ModalitySet.parse("T1,T2,PD"), {**SMALL, **settings}).eval()


def batch(available: list[list[int]], present: list[list[int]], size: int = 16) -> Batch:
    there = torch.tensor(available).bool()
    stack = torch.rand(len(available), 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(stack * there[:, :, None, None], there, torch.tensor(present).bool())


def shared_of(model: Any, one: Batch, seed: int = 0) -> Any:
    return model.share(one, stage="training", generator=torch.Generator().manual_seed(seed))


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> int:
    return inputs * outputs * kernel**2 + bias * outputs


def block(inputs: int, outputs: int) -> int:
    return 2 * inputs + conv(inputs, outputs, 3) + (conv(inputs, outputs, 1) if inputs != outputs else 0)


def expected_sizes(contrasts: int) -> dict[str, int]:
    """The published sizes added up layer by layer; positions on a grid of 16 x 16."""
    widths = [64, 128, 256, 512, 640]
    steps = list(pairwise(widths))
    levels = block(64, 64) + sum(block(a, b) + conv(a, a, 3) for a, b in steps)
    encoders = conv(contrasts, 64, 3) + contrasts * conv(1, 64, 3) + (contrasts + 1) * levels
    gates = (contrasts + 1) * 2 * conv(640, 640, 1)
    up = sum(block(2 * b, a) + conv(a, a, 3) for a, b in steps)
    layer = 4 * conv(640, 640, 1) + conv(640, 2560, 1) + conv(2560, 640, 1) + 4 * 640
    told = conv(contrasts, 640, 1) + 2 * conv(640, 640, 1)
    critic = conv(1, 64, 4) + sum(conv(a, b, 4, bias=False) + 2 * b for a, b in steps[:3])
    return {
        "encoder": encoders + gates + conv(1280, 640, 1),
        "infuser": conv(640, 640, 1) + 640 * 16**2 + told + 4 * layer + 2 * 640,
        "decoder": up + block(64, 64) + 2 * 64 + conv(64, 1, 1),
        "critic": critic + conv(512, 1 + contrasts, 4, bias=False),
    }


@pytest.mark.parametrize(("contrasts", "generator"), [("T1,T2,PD", 71_066_177), ("FLAIR,T1,T2,T1Gd", 80_062_081)])
def test_the_published_size(contrasts: str, generator: int) -> None:
    with torch.device("meta"):
        model = build_model("hf_gan", ModalitySet.parse(contrasts))
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == expected_sizes(len(model.modalities))
    assert sum(counts.values()) - counts["critic"] == generator


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (8, 40)])
def test_any_image_size_and_a_pattern_per_sample(size: tuple[int, int]) -> None:
    model, images = small(multipliers=[1, 1, 2, 2, 2]), torch.rand(3, 3, *size)
    present = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 1]]).bool()
    completed = model(images, present)
    assert completed.shape == images.shape and completed.min() >= 0 and completed.max() <= 1
    assert torch.equal(completed[2], images[2])


def test_one_contrast_is_encoded_by_its_own_encoder_alone() -> None:
    torch.manual_seed(0)
    encoder = HybridEncoder(3, [8, 16]).eval()
    images, present = torch.rand(2, 3, 16, 16), torch.tensor([[0, 1, 0], [1, 1, 0]]).bool()
    before, skips = encoder(images, present)
    alone = encoder.single[1](images[:, 1:2])[1]
    assert torch.allclose(skips[0][0], alone[0], atol=1e-6), "its features, not a mean with zeros"
    together = encoder.early(images)[1]
    both = (encoder.single[0](images[:, :1])[1] + alone) / 2
    assert torch.allclose(skips[0][1], (together + both)[1], atol=1e-6)
    for parameter in [*encoder.early.parameters(), *encoder.single[2].parameters()]:
        torch.nn.init.normal_(parameter)
    after, _ = encoder(images, present)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_the_two_fused_variants() -> None:
    torch.manual_seed(0)
    encoder = HybridEncoder(3, [8]).eval()
    features, early = torch.rand(1, 3, 8, 4, 4), torch.rand(1, 8, 4, 4)
    a, c = features[:, 0], features[:, 2]
    gate_a, gate_c = encoder.single_gates[0](a), encoder.single_gates[2](c)
    features[:, 1] = 0
    gated = gate_a * a + gate_c * c + encoder.early_gate(early) * early
    share = gate_a.exp() / (gate_a.exp() + gate_c.exp())
    weighed = share * a + (1 - share) * c + early
    fused = encoder._fuse(early, features, torch.tensor([[True, False, True]]))
    assert torch.allclose(fused, encoder.fuse(torch.cat([gated, weighed], dim=1)), atol=1e-5)


def test_positions_are_those_learned_at_their_own_size_and_between_them_elsewhere() -> None:
    model = small().eval()
    torch.nn.init.normal_(model.infuser.positions)
    features, target = torch.rand(1, 16, 4, 4), torch.tensor([1])
    seen: list[torch.Tensor] = []
    model.infuser.dropout.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    model.infuser(features, target)
    assert torch.allclose(seen[0], model.infuser.embed(features) + model.infuser.positions, atol=1e-6)
    assert model.infuser(torch.rand(1, 16, 7, 5), target).shape == (1, 16, 7, 5)


def test_the_target_decides_the_image() -> None:
    model = small()
    features = torch.rand(1, 16, 4, 4).expand(2, -1, -1, -1)
    infused = model.infuser(features, torch.tensor([0, 2]))
    assert not torch.allclose(infused[0], infused[1])


def test_targets_are_drawn_evenly_among_the_absent() -> None:
    model = small()
    one = batch([[1, 1, 1]] * 2 + [[1, 1, 0]], [[1, 0, 0], [0, 1, 1], [0, 1, 0]])
    drawn = [shared_of(model, one, seed) for seed in range(24)]
    targets, sources = (torch.stack([getattr(s, name) for s in drawn]) for name in ("target", "source"))
    assert set(targets[:, 0].tolist()) == {1, 2} and set(targets[:, 1].tolist()) == {0}
    assert set(targets[:, 2].tolist()) == {0}, "without truth there is no target"
    assert set(sources[:, 0].tolist()) == {0} and set(sources[:, 1].tolist()) == {1, 2}


def test_the_cycle_goes_back_from_the_candidate() -> None:
    model = small()
    one = batch([[1, 1, 1], [1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 1], [0, 1, 0]])
    encoded: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.encoder.register_forward_pre_hook(lambda _module, inputs: encoded.append(inputs))
    shared = shared_of(model, one)
    images, present = encoded[1]
    rows = torch.arange(3)
    assert torch.equal(images[rows, shared.target], shared.candidate[:, 0])
    assert not present[rows, shared.source].any() and present[rows, shared.target].all()
    assert present.sum(dim=1).tolist() == [1, 2, 1], "from one contrast back from the candidate alone"
    assert (images[~present] == -1).all()


def test_the_generators_loss_is_the_published_sum() -> None:
    model, one = small(), batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 1], [0, 1, 0]])
    shared = shared_of(model, one)
    loss = model.loss("generator", one, shared, stage="training", progress=0.0)
    parts = loss.parts
    total = 10 * parts["pixel"] + 0.25 * (parts["adversarial"] + parts["modality"]) + parts["consistency"]
    assert torch.allclose(loss.total, total + parts["cycle"])
    truth = 2 * one.images[torch.arange(2), shared.target] - 1
    assert torch.allclose(parts["pixel"], (shared.candidate[:, 0] - truth).abs().mean(), atol=1e-6)
    scores, classes = model.critic(shared.candidate)
    fooled = torch.nn.functional.softplus(-scores).mean()
    assert torch.allclose(parts["adversarial"], fooled, atol=1e-6)
    named = -classes.log_softmax(1)[torch.arange(2), shared.target].mean()
    assert torch.allclose(parts["modality"], named, atol=1e-6)


def test_the_critic_learns_from_candidates_and_inputs_without_moving_the_generator() -> None:
    model, one = small(), batch([[1, 1, 1]], [[1, 0, 0]])
    shared = shared_of(model, one)
    loss = model.loss("critic", one, shared, stage="training", progress=0.0)
    assert torch.allclose(loss.total, 0.25 * sum(loss.parts.values()))
    inputs = [*model.decoder.parameters()]
    assert all(g is None for g in torch.autograd.grad(loss.total, inputs, allow_unused=True, retain_graph=True))
    assert all(g is not None for g in torch.autograd.grad(loss.total, list(model.critic.parameters())))


def test_a_step_of_both_players_gives_every_parameter_a_gradient() -> None:
    model, one = small().train(), batch([[1, 1, 1]], [[1, 0, 0]])
    shared = shared_of(model, one)
    for name, module in model.players("training").items():
        parameters = list(module.parameters())
        loss = model.loss(name, one, shared, stage="training", progress=0.0)
        gradients = torch.autograd.grad(loss.total, parameters, allow_unused=True)
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients), name
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.01 * gradient


def test_a_sample_with_nothing_to_impute_trains_nothing() -> None:
    model = small()
    one = batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 1, 0]])
    shared = shared_of(model, one)
    shared.candidate.retain_grad()
    model.loss("generator", one, shared, stage="training", progress=0.0).total.backward()
    assert (shared.candidate.grad[1] == 0).all() and (shared.candidate.grad[0] != 0).any()
    nothing = batch([[1, 1, 0]], [[1, 1, 0]])
    shared = shared_of(model, nothing)
    for player in ("critic", "generator"):
        assert model.loss(player, nothing, shared, stage="training", progress=0.0).total == 0


def test_autocast_keeps_losses_in_single_precision() -> None:
    model, one = small().train(), batch([[1, 1, 1]] * 2, [[1, 0, 0], [0, 1, 1]])
    with torch.autocast("cpu", torch.bfloat16):
        shared = shared_of(model, one)
        losses = [model.loss(name, one, shared, stage="training", progress=0.0) for name in ("critic", "generator")]
    assert all(loss.total.dtype == torch.float32 and torch.isfinite(loss.total) for loss in losses)
