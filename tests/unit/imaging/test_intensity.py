"""Head masks and normalisation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from codebrain.errors import CodeBrainError
from codebrain.imaging import intensity
from codebrain.imaging.intensity import (
    MinMax,
    Percentile,
    border_constant,
    fit_normalisation,
    foreground_mask,
    normalisation_from_dict,
)
from codebrain.imaging.study import Study, find_files
from codebrain.imaging.volume import read_volume
from codebrain.vocabulary import ModalitySet, Preparation
from scans import head

EVERYWHERE = np.ones(head().shape, bool)


def preparation(normalisation="percentile"):
    return Preparation(ModalitySet.parse("T1"), normalisation)


def whole_head(noise=8.0, seed=0):
    """A bright ellipsoid with a dark hole (a sinus, open below) in noisy air."""
    chance = np.random.default_rng(seed)
    inside = head() > 0
    data = head() + np.abs(chance.normal(0, noise, inside.shape))
    hole = np.zeros_like(inside)
    hole[12:16, 14:18, 8:16] = True
    return np.where(hole & inside, 3, data).astype(np.float32), inside


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_stripped_is_what_differs_from_the_border():
    mask = foreground_mask(head())
    np.testing.assert_array_equal(mask, head() > 0)
    for shift in (-3.0, 1000.0):
        np.testing.assert_array_equal(foreground_mask(head() + np.float32(shift)), mask)


def test_dark_tissue_inside_belongs_to_the_brain():
    data = head()
    data[14:18, 16:20, 13:17] = 0
    np.testing.assert_array_equal(foreground_mask(data), head() > 0)


def test_crumbs_outside_do_not_count():
    data = head()
    data[1, 1, 1] = 400
    np.testing.assert_array_equal(foreground_mask(data), head() > 0)


def test_a_whole_head_in_noise():
    data, inside = whole_head()
    assert border_constant(data) is None
    assert dice(foreground_mask(data), inside) > 0.97


def test_a_whole_head_whose_air_was_partly_set_to_zero():
    data, inside = whole_head()
    air = ~ndimage.binary_dilation(inside, iterations=4)
    data[air] = 0
    assert border_constant(data) == 0
    assert dice(foreground_mask(data), inside) > 0.97


def test_the_mask_follows_the_axes():
    data, _ = whole_head()
    mask = foreground_mask(data)
    np.testing.assert_array_equal(foreground_mask(data.transpose(2, 0, 1)[::-1]), mask.transpose(2, 0, 1)[::-1])


def test_one_hot_voxel_changes_next_to_nothing():
    data, _ = whole_head()
    hot = data.copy()
    hot[16, 18, 15] = data.max() * 1e6
    np.testing.assert_array_equal(foreground_mask(hot), foreground_mask(data))
    mask = foreground_mask(data)
    clean, spoiled = (fit_normalisation(preparation(), d, mask).apply(d) for d in (data, hot))
    error = np.delete((clean - spoiled).ravel(), np.ravel_multi_index((16, 18, 15), data.shape))
    assert 10 * np.log10(np.mean(clean**2) / max(np.mean(error**2), 1e-30)) > 40


def test_min_max():
    record = MinMax().fit(head(), EVERYWHERE)
    unit = record.apply(head())
    assert (unit.min(), unit.max(), unit.dtype) == (0.0, 1.0, np.float32)
    np.testing.assert_allclose(record.undo(unit), head(), atol=1e-3)


def test_percentiles_clip_what_is_beyond():
    record = Percentile(lower=5, upper=95).fit(head(), head() > 0)
    inside = head()[head() > 0]
    assert (record.low, record.high) == pytest.approx(np.percentile(inside, (5, 95)))
    unit = record.apply(head())
    assert unit.min() == 0 and unit.max() == 1
    between = (head() > record.low) & (head() < record.high)
    np.testing.assert_allclose(record.undo(unit)[between], head()[between], atol=1e-3)


@pytest.mark.parametrize("kind", ["percentile", "min_max"])
def test_records_are_json(kind):
    record = fit_normalisation(preparation(kind), head(), head() > 0)
    again = normalisation_from_dict(json.loads(json.dumps(record.as_dict())))
    assert again == record and record.as_dict()["kind"] == kind


@pytest.mark.parametrize("kind", ["percentile", "min_max"])
@pytest.mark.parametrize("mask", [EVERYWHERE, ~EVERYWHERE])
def test_one_brightness_has_no_range(kind, mask):
    with pytest.raises(CodeBrainError) as caught:
        fit_normalisation(preparation(kind), np.full(head().shape, 7, np.float32), mask)
    assert caught.value.code == "IN_NO_SIGNAL"


@pytest.mark.data
def test_real_heads_have_the_volume_of_heads_and_brains(real_data):
    """Litres: brains 1.0 to 1.7, heads as far as they were scanned 2.0 to 3.5."""
    for name, low, high in (
        ("raw/glioma-fg6692-native/T2", 1.5, 1.6),
        ("raw/ixi-002/T1", 2.5, 3.2),
        ("raw/ixi-002/T2", 2.5, 3.2),
        ("raw/mslong-20-2/FLAIR", 2.2, 2.6),
    ):
        volume = read_volume(real_data / f"{name}.nii.gz")
        litres = foreground_mask(volume.data).sum() * np.prod(volume.spacing) / 1e6
        assert low < litres < high, name


@pytest.mark.data
def test_contrasts_of_one_stripped_study_share_their_mask(real_data):
    study = Study.read({m: p for m, p in find_files(real_data / "studies" / "ms-19").items() if m in ("T1", "T2")})
    first, second = (foreground_mask(v.data) for v in study.volumes.values())
    assert dice(first, second) > 0.995


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_rim_is_that_of_a_binary_erosion(order):
    mask = np.asarray(np.random.default_rng(0).random((9, 7, 5)) > 0.2, order=order)
    assert (intensity._eroded(mask) == ndimage.binary_erosion(mask, border_value=1)).all()
