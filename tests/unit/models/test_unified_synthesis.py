from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from codebrain.models import build_model
from codebrain.models.unified_synthesis import FeatureUnification
from codebrain.nn.batch import Batch
from codebrain.vocabulary import ModalitySet


def small(**settings: object) -> Any:
    torch.manual_seed(0)
    settings = {"width": 4, "critic_width": 4, **settings}
    return build_model("unified_synthesis", ModalitySet.parse("T1,T2,PD"), settings)


def batch(available: list[list[int]], present: list[list[int]]) -> Batch:
    there = torch.tensor(available).bool()
    stack = torch.rand(len(available), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(stack * there[:, :, None, None], there, torch.tensor(present).bool())


def generator_loss(model: Any, one: Batch) -> Any:
    return model.loss("generator", one, model.share(one, stage="training"), stage="training", progress=0.0)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("names", "total"), [("T1,T2,PD", 11_803_014), ("FLAIR,T1,T2,T1Gd", 13_795_792)])
def test_it_is_as_large_as_its_layer_list(names: str, total: int) -> None:
    with torch.device("meta"):
        model: Any = build_model("unified_synthesis", ModalitySet.parse(names))
    contrasts = len(names.split(","))
    # A level takes 9 x in x out weights and a residual block 18 x out x out; nothing has a bias before a norm.
    level = lambda inputs, width: 9 * inputs * width + 18 * width**2  # noqa: E731
    encoder = level(1, 32) + level(32, 64) + level(64, 128) + level(128, 256)
    assert count(model.common_encoder) == encoder == 1_954_080
    # Merging takes 2 x width x width; a score the place's width, the whole's width and contrasts, and a bias.
    fusion = sum(2 * width**2 + width + (width + contrasts + 1) for width in (32, 64, 128, 256))
    decoder = level(512, 256) + level(256 + 256, 128) + level(128 + 128, 64) + level(64 + 64, 32)
    head = 2 * 18 * 32**2 + 49 * 32 + 1
    generator = (1 + contrasts) * encoder + 2 * fusion + decoder + contrasts * head + 257 * contrasts
    assert count(model.players("training")["generator"]) == generator == total
    # 70 x 70 patches: 64, 128, 256 and 512 channels, kernels of 4, biases everywhere.
    critic = 16 * (64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 128 + 256 + 512 + 1
    assert count(model.players("training")["critic"]) == contrasts * critic == contrasts * 2_762_689


def test_it_says_that_it_is_a_reconstruction() -> None:
    import codebrain.models.unified_synthesis as module

    for text in (module.__doc__, module.UnifiedSynthesis.__doc__, module.UnifiedSynthesisSettings.__doc__):
        assert "Zhang-style; only partly public" in str(text)
    assert module.UnifiedSynthesis.label == "unified_synthesis (Zhang-style reconstruction)"


def test_hard_integration_is_the_maximum_and_soft_a_mean_over_the_present() -> None:
    torch.manual_seed(0)
    fusion = FeatureUnification(3, 4)
    merged: list[torch.Tensor] = []
    fusion.merge.register_forward_pre_hook(lambda _, arguments: merged.append(arguments[0]))
    features = -torch.rand(2, 3, 4, 8, 8)
    fusion(features, torch.tensor([[True, True, False], [False, False, True]]))
    hard, soft = merged[0].chunk(2, dim=1)
    assert torch.equal(hard[0], features[0, :2].amax(0))
    assert torch.equal(hard[1], features[1, 2]) and torch.allclose(soft[1], features[1, 2])
    assert (soft[0] <= hard[0]).all() and (soft[0] >= features[0, :2].amin(0)).all()


def test_a_weight_depends_on_the_place_the_whole_and_the_contrast() -> None:
    torch.manual_seed(0)
    fusion = FeatureUnification(2, 4)
    features = torch.rand(1, 2, 4, 8, 8)
    names = torch.eye(2)[None, :, :, None, None].expand(1, 2, 2, 8, 8)
    whole = features.mean((3, 4), keepdim=True).expand_as(features)
    weight = torch.cat([fusion.place.weight.flatten(), fusion.whole.weight.flatten()])
    convolved = torch.einsum("bmchw,c->bmhw", torch.cat([features, whole, names], dim=2), weight) + fusion.whole.bias
    assert torch.allclose(fusion._scores(features)[:, :, 0], convolved, atol=1e-6)


def test_features_of_missing_contrasts_are_not_computed() -> None:
    model = small().eval()
    one = batch([[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [1, 1, 0]])
    seen: dict[str, int] = {}
    for name, encoder in [("common", model.common_encoder), *enumerate(model.specific_encoders)]:
        encoder.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: len(given[0])}))
    model(one.images, one.present)
    assert seen == {"common": 3, 0: 2, 1: 1, 2: 0}


def test_training_and_imputing_draw_the_same_images() -> None:
    model = small()
    one = batch([[1, 1, 1], [1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 1], [0, 1, 0]])
    candidate = model.share(one, stage="training").candidate
    drawn = model(one.images, one.present)
    assert torch.allclose(drawn[~one.present], candidate[~one.present], atol=1e-6)


def test_its_parts_are_weighed_as_proposed() -> None:
    model = small()
    one = batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    shared = model.share(one, stage="training")
    loss = model.loss("generator", one, shared, stage="training", progress=0.0)
    weights = {"l1_absent": 20, "l1_present": 5, "adversarial": 0.1, "commonality": 1, "discrepancy": 0.1}
    assert set(loss.parts) == set(weights)
    assert torch.allclose(loss.total, sum(weight * loss.parts[name] for name, weight in weights.items()))
    error = (shared.candidate - one.images).abs().mean((2, 3))
    assert torch.allclose(loss.parts["l1_absent"], (error[0, 1] + error[0, 2] + error[1, 0]) / 3)
    assert torch.allclose(loss.parts["l1_present"], (error[0, 0] + error[1, 1]) / 2)


def test_commonality_compares_the_real_contrasts_pair_by_pair() -> None:
    model = small()
    one = batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    features = [model.common_encoder(one.images[:, m, None])[-1] for m in range(3)]
    pairs = [(0, 0, 1), (0, 0, 2), (0, 1, 2), (1, 0, 1)]
    expected = sum((features[a][n] - features[b][n]).abs().mean() for n, a, b in pairs) / 4
    assert torch.allclose(generator_loss(model, one).parts["commonality"], expected, atol=1e-6)


def test_discrepancy_is_that_of_guessing_when_features_say_nothing() -> None:
    model = small()
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.zero_()
    one = batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    assert math.isclose(generator_loss(model, one).parts["discrepancy"].item(), math.log(3), rel_tol=1e-5)


def test_each_critic_judges_its_contrast_where_that_is_absent() -> None:
    model = small()
    one = batch([[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    shared = model.share(one, stage="training")
    loss = model.loss("critic", one, shared, stage="training", progress=0.0)
    judged = [(0, 1), (0, 2), (1, 0)]
    real = [(model.critic[m](one.images[n, m][None, None]) - 1).square().mean() for n, m in judged]
    fake = [model.critic[m](shared.candidate[n, m][None, None]).square().mean() for n, m in judged]
    assert torch.allclose(loss.total, (sum(real) + sum(fake)) / 6, atol=1e-6)
    assert model.critic[0](one.images[:, :1]).shape[2:] == (2, 2)


def test_a_contrast_without_truth_trains_nothing() -> None:
    model = small()
    one = batch([[1, 1, 0]], [[1, 0, 0]])
    shared = model.share(one, stage="training")
    shared.candidate.retain_grad()
    model.loss("generator", one, shared, stage="training", progress=0.0).total.backward()
    assert (shared.candidate.grad[:, 2] == 0).all() and (shared.candidate.grad[:, 1] != 0).any()
    assert all((parameter.grad == 0).all() for parameter in model.critic[2].parameters())
    assert all((parameter.grad == 0).all() for parameter in model.specific_encoders[2].parameters())


def test_every_parameter_has_a_gradient_whatever_the_pattern() -> None:
    # Processes average one flat bucket per player, so all of them must have the same parameters in it.
    model = small()
    one = batch([[1, 1, 1]], [[1, 0, 0]])
    shared = model.share(one, stage="training")
    for name, player in model.players("training").items():
        loss = model.loss(name, one, shared, stage="training", progress=0.0)
        gradients = torch.autograd.grad(loss.total, list(player.parameters()), allow_unused=True, retain_graph=True)
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_losses_stay_finite_when_nothing_counts() -> None:
    model = small()
    one = batch([[1, 1, 1]], [[1, 1, 1]])
    shared = model.share(one, stage="training")
    for name in model.players("training"):
        assert model.loss(name, one, shared, stage="training", progress=0.0).total.isfinite()
    alone = replace(one, available=torch.tensor([[True, False, False]]), present=torch.tensor([[True, False, False]]))
    assert generator_loss(model, alone).total.isfinite()


def test_common_features_cannot_come_closer_by_shrinking() -> None:
    model = small()
    one = batch([[1, 1, 1]], [[1, 0, 0]])
    before = generator_loss(model, one).parts["commonality"]
    for module in model.common_encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data /= 10
    assert torch.allclose(generator_loss(model, one).parts["commonality"], before, rtol=0.05)


def test_bfloat16_stays_close_to_float32() -> None:
    model = small().eval()
    one = batch([[1, 1, 1]], [[1, 0, 0]])
    with torch.no_grad():
        exact = model(one.images, one.present)
        with torch.autocast("cpu", torch.bfloat16):
            short = model(one.images, one.present)
            loss = generator_loss(model, one)
    assert short.dtype == loss.total.dtype == torch.float32 and loss.total.isfinite()
    assert (exact - short).abs().mean() < 0.01
