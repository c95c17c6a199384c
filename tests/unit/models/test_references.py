"""Zeros, mean and polynomial: what they promise, and the polynomial against a direct least-squares fit."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codebrain.errors import CodeBrainError
from codebrain.models import build_model, load_model, save_model
from codebrain.models.polynomial import Polynomial, monomials, pattern_number, powers
from codebrain.nn.batch import Batch
from codebrain.vocabulary import ModalitySet, Preparation, strict_subsets

THREE = ModalitySet.parse("T1,T2,FLAIR")
NAMES = ["zeros", "mean", "polynomial"]


def slices(count: int, available: tuple[bool, ...], seed: int = 0, size: int = 16) -> Batch:
    """Random foreground in the middle, exact polynomial relations between the contrasts, nothing outside."""
    chance = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, count, size, size, generator=chance)
    third = 0.1 + 0.3 * first * second + 0.4 * second**3
    images = torch.stack([first, second, third][: len(available)], dim=1)
    images[..., : size // 4, :] = 0
    here = torch.tensor(available).expand(count, -1)
    return Batch(images * here[:, :, None, None], here, here)


def every_pattern(m: int) -> Tensor:
    return torch.tensor(strict_subsets((True,) * m))


@pytest.fixture(scope="module")
def fitted() -> Polynomial:
    model = build_model("polynomial", THREE)
    assert isinstance(model, Polynomial)
    model.fit(slices(4, (True, True, True), seed) for seed in range(3))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_present_contrasts_come_back_untouched_and_absent_ones_have_no_influence(name, fitted) -> None:
    model = fitted if name == "polynomial" else build_model(name, THREE)
    present = every_pattern(3)
    images = slices(len(present), (True, True, True), seed=9).images
    out = model(images, present)
    assert torch.equal(out[present], images[present])
    assert out.min() >= 0
    assert out.max() <= 1
    spoiled = torch.where(present[:, :, None, None], images, torch.nan)
    assert torch.equal(model(spoiled, present), out)


def test_zeros_are_zero() -> None:
    present = every_pattern(3)
    images = slices(len(present), (True, True, True)).images
    assert build_model("zeros", THREE)(images, present)[~present].abs().max() == 0


def test_mean_is_the_mean_of_what_is_present() -> None:
    images = slices(2, (True, True, True)).images
    present = torch.tensor([[True, True, False], [False, True, False]])
    out = build_model("mean", THREE)(images, present)
    torch.testing.assert_close(out[0, 2], (images[0, 0] + images[0, 1]) / 2)
    assert torch.equal(out[1, 0], images[1, 1])


@pytest.mark.parametrize("name", NAMES)
def test_references_have_no_players(name: str) -> None:
    model = build_model(name, THREE)
    assert model.stages == (("fit",) if name == "polynomial" else ())
    assert all(model.players(stage) == {} for stage in model.stages)
    with pytest.raises(NotImplementedError, match=name):
        model.loss("generator", slices(1, (True,) * 3), None, stage="fit", progress=0.0)


def test_monomials_are_all_products_up_to_the_degree() -> None:
    assert monomials(2, 2) == ((), (0,), (1,), (0, 0), (0, 1), (1, 1))
    assert len(monomials(5, 3)) == 56
    values = torch.rand(3, 7, generator=torch.Generator().manual_seed(1))
    for row, monomial in zip(powers(values, monomials(3, 3)), monomials(3, 3), strict=True):
        torch.testing.assert_close(row, values[list(monomial)].prod(0))


def test_a_relation_that_is_a_polynomial_is_found(fitted: Polynomial) -> None:
    batch = slices(2, (True, True, True), seed=7)
    present = torch.tensor([[True, True, False]]).expand(2, -1)
    out = fitted(batch.images, present)
    # The ridge of 1e-6 costs a little: without it the relation is found exactly.
    torch.testing.assert_close(out[:, 2], batch.images[:, 2], atol=2e-3, rtol=0)
    exact = build_model("polynomial", THREE, {"ridge": 0.0})
    exact.fit([slices(4, (True, True, True))])
    torch.testing.assert_close(exact(batch.images, present)[:, 2], batch.images[:, 2], atol=1e-4, rtol=0)


def test_every_pattern_agrees_with_a_direct_least_squares_fit() -> None:
    model = build_model("polynomial", THREE, {"degree": 2, "ridge": 0.0})
    batches = [slices(3, (True, True, True), seed) for seed in range(2)]
    model.fit(batches)
    pixels = torch.cat([b.images for b in batches]).movedim(1, 0).flatten(1)
    pixels = pixels[:, (pixels > 0).any(0)].double()
    for given in strict_subsets((True, True, True)):
        places = [i for i, here in enumerate(given) if here]
        names = [(), *((i,) for i in places), *itertools.combinations_with_replacement(places, 2)]
        design = torch.stack([pixels[list(name)].prod(0) for name in names], dim=1)
        for target in (i for i, here in enumerate(given) if not here):
            direct = torch.linalg.lstsq(design, pixels[target]).solution
            ours = model.coefficients[pattern_number(given), target]
            torch.testing.assert_close(
                ours[[model.monomials.index(name) for name in names]].double(), direct, atol=1e-3, rtol=1e-3
            )
            assert ours.count_nonzero() == len(names)


def test_background_stays_black(fitted: Polynomial) -> None:
    batch = slices(1, (True, True, True))
    out = fitted(batch.images, torch.tensor([[True, False, False]]))
    assert out[..., :4, :].abs().max() == 0
    assert out[0, 2, 4:].min() > 0


def test_absent_ground_truth_is_not_learned_from() -> None:
    full, gap = slices(4, (True, True, True)), slices(4, (True, True, False), seed=5)
    spoiled = Batch(gap.images + ~gap.available[:, :, None, None] * 0.9, gap.available, gap.present)
    one, other = (build_model("polynomial", THREE) for _ in range(2))
    one.fit([full])
    other.fit([full, spoiled])
    for given, target in (((True, True, False), 2), ((True, False, False), 2)):
        number = pattern_number(given)
        assert torch.equal(one.coefficients[number, target], other.coefficients[number, target])
    number = pattern_number((True, False, False))
    assert not torch.equal(one.coefficients[number, 1], other.coefficients[number, 1])


def test_contrasts_never_seen_together_use_what_was_seen(caplog) -> None:
    model = build_model("polynomial", THREE)
    model.fit([slices(4, (True, True, False)), slices(4, (True, False, True), seed=3)])
    both = model.coefficients[pattern_number((True, True, False)), 2]
    alone = model.coefficients[pattern_number((True, False, False)), 2]
    assert torch.equal(both, alone)
    assert alone.abs().sum() > 0
    assert not caplog.records
    model.fit([slices(4, (True, True, False))])
    assert "FLAIR" in caplog.text
    assert model.coefficients[:, 2].abs().max() == 0


def test_fitting_needs_foreground() -> None:
    empty = Batch(torch.zeros(2, 3, 16, 16), *(torch.ones(2, 3, dtype=torch.bool),) * 2)
    with pytest.raises(CodeBrainError, match="no foreground") as caught:
        build_model("polynomial", THREE).fit([empty])
    assert caught.value.code == "DATA_NONE"


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(CodeBrainError, match="degree 0"):
        build_model("polynomial", THREE, {"degree": 0})


def test_a_fitted_polynomial_survives_its_folder(tmp_path: Path, fitted: Polynomial) -> None:
    save_model(fitted, tmp_path / "p", preparation=Preparation(THREE))
    loaded = load_model(tmp_path / "p")
    present = every_pattern(3)
    images = slices(len(present), (True,) * 3, seed=4).images
    assert torch.equal(loaded(images, present), fitted(images, present))
