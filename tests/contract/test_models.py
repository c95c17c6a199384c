"""What every file in codebrain/models must keep, whatever the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codebrain.models import build_model, load_model, model_names, save_model
from codebrain.models._contract import ImputationModel
from codebrain.nn.batch import Batch
from codebrain.vocabulary import ModalitySet, Preparation, strict_subsets

MODALITIES = ModalitySet.parse("T1,T2,FLAIR")
SMALL: dict[str, list[dict[str, object]]] = {
    "codebrain": [
        {"width": 2, "depth": 1, **switch}
        for switch in (
            {},
            {"common_features": False},
            {"grading": "classification"},
            {"grading": "classification", "decoding": "expected"},
            {"distance": "l1"},
            {"condition": "continuous"},
            {"condition": "binary"},
            {"levels": (3, 2)},
        )
    ],
    "hf_gan": [
        {"width": 8, "multipliers": [1, 1, 2], "layers": 1, "heads": 2, "grid": 4, "critic_width": 8,
         "critic_halvings": 2}
    ],
    "m2dn": [{"width": 4, "sampling_steps": 3, "validation_steps": 2}],
    "mm_gan": [{"width": 4, "depth": 3, "critic_width": 2}],
    "mmhvae": [
        {"size": 16, "levels": [4, 8], "head_width": 4, "head_blocks": 1, "critic_width": 4, "critic_layers": 2}
    ],
    "mmt": [{"dim": 16, "heads": [1, 2, 2, 4], "window": 2, "critic_width": 2}],
    "nafnet": [{"width": 2, "depth": 1}],
    "unified_synthesis": [{"width": 4, "critic_width": 4}],
}  # fmt: skip
"""Sizes that fit the test images; one entry for each variant. A model that is not here is tested as it is."""

CASES = [(name, settings) for name in model_names() for settings in SMALL.get(name, [{}])]


def images(count: int = 2, size: int = 16) -> torch.Tensor:
    smooth = torch.rand(count, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(smooth, scale_factor=4, mode="bilinear")


def batch() -> Batch:
    available = torch.ones(4, 3, dtype=torch.bool)
    available[1, 2] = False
    given = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 0]]).bool()
    return Batch(images(4) * available[:, :, None, None], available, given, ("a/0", "b/0", "c/0", "d/0"))


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())])[:60])
def model(request: pytest.FixtureRequest) -> ImputationModel:
    torch.manual_seed(0)
    name, settings = request.param
    built = build_model(name, MODALITIES, settings)
    for stage in built.stages:
        if not built.players(stage):
            built.fit([batch()])
    return built.eval()


def test_any_subset_in_complete_set_out(model: ImputationModel) -> None:
    given = images()
    for pattern in strict_subsets((True,) * 3):
        present = torch.tensor([pattern] * 2)
        completed = model(given, present)
        assert completed.shape == given.shape and completed.dtype == given.dtype
        assert torch.isfinite(completed).all() and completed.min() >= 0 and completed.max() <= 1
        assert torch.equal(completed[present], given[present]), "present contrasts come back untouched"


def test_what_an_absent_channel_holds_has_no_influence(model: ImputationModel) -> None:
    present = torch.tensor([[True, False, True], [False, True, False]])
    clean = images() * present[:, :, None, None]
    dirty = torch.where(present[:, :, None, None], clean, torch.full_like(clean, float("nan")))
    assert torch.equal(model(clean, present), model(dirty, present))


def test_a_study_is_completed_alike_alone_and_in_a_batch(model: ImputationModel) -> None:
    given, present = images(), torch.tensor([[True, False, False], [False, True, True]])
    together = model(given, present)
    assert torch.allclose(model(given[:1], present[:1]), together[:1], atol=1e-5)


def test_evaluation_repeats_with_the_same_generator(model: ImputationModel) -> None:
    given, present = images(), torch.tensor([[True, False, False]] * 2)
    first = model(given, present, torch.Generator().manual_seed(3))
    assert torch.equal(first, model(given, present, torch.Generator().manual_seed(3)))


def test_saved_and_loaded_is_the_same_model(model: ImputationModel, tmp_path: Path) -> None:
    digest = save_model(model, tmp_path, preparation=Preparation(MODALITIES))
    loaded = load_model(tmp_path)
    present = torch.tensor([[True, False, False]] * 2)
    assert torch.equal(loaded(images(), present), model(images(), present))
    assert loaded.sha256 == digest and loaded.architecture == model.architecture
    assert not any(path.suffix in {".pt", ".pth", ".pkl"} for path in tmp_path.iterdir())


def test_a_few_steps_lower_every_generator_loss(model: ImputationModel) -> None:
    trained = batch()
    model.train()
    for stage in model.stages:
        players = model.players(stage)
        if not players:
            continue
        name = next(player for player in players if player != "critic")
        optimiser = torch.optim.AdamW(players[name].parameters(), lr=1e-2)
        losses = []
        for _ in range(12):
            shared = model.share(trained, stage=stage)
            loss = model.loss(name, trained, shared, stage=stage, progress=0.0)
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
            losses.append(loss.total.item())
        assert losses[-1] < losses[0], (stage, losses)
        assert all(not value.requires_grad for value in loss.parts.values())


def test_the_sources_are_named(model: ImputationModel) -> None:
    import sys

    documentation = sys.modules[type(model).__module__].__doc__ or ""
    assert "Source" in documentation or "reference" in documentation.lower()
