"""What holds for every head: undo after apply, and nothing but contrast matters."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from codebrain.imaging.frame import Frame
from codebrain.imaging.intensity import fit_normalisation, foreground_mask
from codebrain.imaging.prepared import prepare_study
from codebrain.imaging.study import Study
from codebrain.vocabulary import ModalitySet, Preparation

ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)], float)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
shapes = st.tuples(*[st.integers(8, 25)] * 3)
spacings = st.tuples(*[st.floats(0.3, 7.0)] * 3)
seeds = st.integers(0, 2**32 - 1)
unhurried = settings(deadline=None, max_examples=40, derandomize=True)


def blobs(shape, seed):
    """A random smooth head somewhere on the grid."""
    chance = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(chance.random(shape), 2.0)
    mask = field > np.quantile(field, chance.uniform(0.3, 0.9))
    data = np.where(mask, chance.random(shape) * 500 + 100, 0)
    return data.astype(np.float32), mask


def rotation(seed, degrees=20.0):
    """A small oblique turn, well under the 45 degrees at which axes change names."""
    chance = np.random.default_rng(seed)
    axis = chance.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    angle = np.deg2rad(chance.uniform(-degrees, degrees))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_of(spacing, seed):
    affine = np.eye(4)
    affine[:3, :3] = rotation(seed) @ np.diag(spacing)
    affine[:3, 3] = np.random.default_rng(seed).uniform(-100, 100, 3)
    return affine


@unhurried
@given(shapes, spacings, st.sampled_from(ORIENTATIONS), seeds, st.sampled_from([1, 2, 8, 16]))
def test_undo_after_apply_gives_back_every_voxel_of_the_head(shape, spacing, orientation, seed, multiple):
    data, mask = blobs(shape, seed)
    affine = affine_of(spacing, seed)
    where = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    data, mask = (nib.orientations.apply_orientation(a, orientation) for a in (data, mask))
    frame = Frame.fit(mask, where, Preparation(ModalitySet.parse("T1"), pixel_spacing_mm=None, multiple=multiple))
    slices = frame.apply(data)
    assert slices.shape == frame.slice_shape
    assert slices.shape[1] % multiple == slices.shape[2] % multiple == 0
    back = frame.undo(slices, fill=-1.0)
    assert back.shape == data.shape
    np.testing.assert_array_equal(back[mask], data[mask])
    np.testing.assert_array_equal(frame.apply(back)[slices > 0], slices[slices > 0])


@unhurried
@given(shapes, st.tuples(*[st.floats(1.0, 3.0)] * 3), st.sampled_from(ORIENTATIONS), seeds, st.floats(1.0, 4.0))
def test_the_order_of_the_axes_never_matters(shape, spacing, orientation, seed, pixel):
    data, mask = blobs(shape, seed)
    affine = affine_of(spacing, seed)
    preparation = Preparation(ModalitySet.parse("T1"), pixel_spacing_mm=pixel)
    wanted = Frame.fit(mask, affine, preparation).apply(data)
    where = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    turned_data, turned_mask = (nib.orientations.apply_orientation(a, orientation) for a in (data, mask))
    np.testing.assert_allclose(Frame.fit(turned_mask, where, preparation).apply(turned_data), wanted, atol=1e-4 * 600)


@unhurried
@given(shapes, seeds, st.floats(0.4, 2.5))
def test_resampling_keeps_smooth_images_and_their_place(shape, seed, ratio):
    shape = tuple(size + 8 for size in shape)
    chance = np.random.default_rng(seed)
    waves = chance.uniform(-0.12, 0.12, 3)
    voxels = np.indices(shape)
    data = (1 + 0.5 * np.sin(np.tensordot(waves, voxels, 1) + chance.uniform(0, 6))).astype(np.float32)
    frame = Frame.fit(
        np.ones(shape, bool), np.diag([1, 1, 1, 1.0]), Preparation(ModalitySet.parse("T1"), pixel_spacing_mm=ratio)
    )
    back = frame.undo(frame.apply(data))
    middle = tuple(slice(4, -4) for _ in shape[:2])
    assert np.abs(back - data)[middle].max() < 0.06


@unhurried
@given(seeds, st.floats(1e-3, 1e3), st.floats(-5.0, 5.0), st.sampled_from(["percentile", "min_max"]))
def test_scale_and_offset_of_the_scanner_do_not_matter(seed, factor, offset, kind):
    """f(a x + b) = f(x); the offset is a few times the signal, as in real data, so that float32 holds it."""
    data, _ = blobs((16, 18, 14), seed)
    other = (data.astype(np.float64) * factor + offset * 600 * factor).astype(np.float32)
    preparation = Preparation(ModalitySet.parse("T1"), kind)
    mask = foreground_mask(data)
    np.testing.assert_array_equal(foreground_mask(other), mask)
    one, two = (fit_normalisation(preparation, d, mask).apply(d) for d in (data, other))
    np.testing.assert_allclose(two[mask], one[mask], atol=1e-3)


@unhurried
@given(seeds, st.sampled_from(["percentile", "min_max"]))
def test_normalised_values_come_back(seed, kind):
    data, mask = blobs((12, 13, 14), seed)
    record = fit_normalisation(Preparation(ModalitySet.parse("T1"), kind), data, mask)
    unit = record.apply(data)
    assert unit.min() >= 0 and unit.max() <= 1
    clipped = data.clip(record.low, record.high)
    np.testing.assert_allclose(record.undo(unit), clipped, atol=1e-3 * (record.high - record.low))


@pytest.mark.row("C9", "B12")
@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.sampled_from(ORIENTATIONS), st.floats(0.1, 50.0), st.floats(-2.0, 2.0))
def test_a_whole_study_in_any_order_and_scale(orientation, factor, offset):
    data, _ = blobs((24, 26, 22), 7)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    preparation = Preparation(ModalitySet.parse("T1"), pixel_spacing_mm=4.0)
    wanted = prepare_study(Study.read({"T1": nib.Nifti1Image(data, affine)}), preparation).slices
    other = nib.Nifti1Image((data * factor + offset * 600 * factor).astype(np.float32), affine)
    turned = other.as_reoriented(orientation)
    np.testing.assert_allclose(prepare_study(Study.read({"T1": turned}), preparation).slices, wanted, atol=2e-3)
