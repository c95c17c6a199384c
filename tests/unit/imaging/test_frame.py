"""Grid to slices and back."""

from __future__ import annotations

import itertools
import json

import nibabel as nib
import numpy as np
import pytest

from codebrain.errors import CodeBrainError
from codebrain.imaging.frame import Frame
from codebrain.imaging.prepared import prepare_study
from codebrain.imaging.study import Study
from codebrain.vocabulary import ModalitySet, Preparation
from scans import affine_of

SHAPE = (19, 23, 15)


def preparation(spacing=None, multiple=8):
    return Preparation(ModalitySet.parse("T1"), pixel_spacing_mm=spacing, multiple=multiple)


def ball(shape=SHAPE, radius=0.6):
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return sum(axis**2 for axis in axes) < radius


def smooth(shape=SHAPE):
    axes = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return (0.5 + 0.2 * np.sin(4 * axes[0]) + 0.2 * np.cos(5 * axes[1]) * axes[2]).astype(np.float32)


def all_orientations():
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            yield np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)], float)


def turned(data, affine, orientation):
    """The same voxels in another order of the axes, with the affine that says so."""
    back = nib.orientations.inv_ornt_aff(orientation, data.shape)
    return nib.orientations.apply_orientation(data, orientation), affine @ back


def test_there_are_48():
    assert len(list(all_orientations())) == 48


def test_rows_begin_anterior_and_columns_left():
    data = np.zeros(SHAPE, np.float32)
    mask = np.ones(SHAPE, bool)
    data[-1], data[:, -1, 0] = 2, 1  # right; anterior in the lowest slice
    slices = Frame.fit(mask, affine_of(5, SHAPE), preparation(multiple=1)).apply(data)
    assert slices.shape == (15, 23, 19)
    assert (slices[:, 1:, -1] == 2).all() and (slices[0, 0] == 1).all() and (slices[1, 0, :-1] == 0).all()


@pytest.mark.parametrize("spacing", [None, 4.0])
@pytest.mark.parametrize("mm", [5.0, (4.0, 5.0, 7.0)])
def test_48_orders_of_the_axes_give_the_same_slices(spacing, mm):
    data, mask, affine = smooth(), ball(), affine_of(mm, SHAPE)
    wanted = Frame.fit(mask, affine, preparation(spacing)).apply(data)
    for orientation in all_orientations():
        other, where = turned(data, affine, orientation)
        frame = Frame.fit(turned(mask, affine, orientation)[0], where, preparation(spacing))
        slices = frame.apply(other)
        np.testing.assert_array_equal(slices, wanted)
        back = frame.undo(slices)
        assert back.shape == other.shape
        inside = turned(mask, affine, orientation)[0]
        np.testing.assert_allclose(back[inside], other[inside], atol=0 if spacing is None else 0.02)


def test_background_is_cut_away_and_comes_back_as_the_fill():
    data, mask = smooth(), ball(radius=0.2)
    frame = Frame.fit(mask, affine_of(5, SHAPE), preparation())
    n, h, w = frame.slice_shape
    assert (n, h % 8, w % 8) == (int(mask.any(axis=(0, 1)).sum()), 0, 0)
    back = frame.undo(frame.apply(data), fill=-7.0)
    np.testing.assert_array_equal(back[mask], data[mask])
    outside = back == -7
    assert outside[0].all() and outside[:, :, 0].all() and not outside[mask].any()


def test_the_slice_lies_in_the_full_one():
    data, mask = smooth((40, 50, 12)), ball((40, 50, 12), 0.2)
    for spacing, mm in ((None, 5.0), (4.0, 5.0), (8.0, 5.0)):
        frame = Frame.fit(mask, affine_of(mm, (40, 50, 12)), preparation(spacing))
        (h, w), (y, x) = frame.full_slice, frame.offset
        whole = Frame.fit(np.ones_like(mask), affine_of(mm, (40, 50, 12)), preparation(spacing, multiple=1))
        full = whole.apply(data)[slice(*frame.slices)]
        assert full.shape[1:] == (h, w)
        cut = frame.apply(data)
        np.testing.assert_allclose(full[:, y : y + cut.shape[1], x : x + cut.shape[2]], cut, atol=1e-5)


def test_grids_smaller_than_the_multiple_are_padded_with_zeros():
    data = np.ones((9, 10, 8), np.float32)
    frame = Frame.fit(np.ones_like(data, bool), affine_of(20, data.shape), preparation(multiple=16))
    slices = frame.apply(data)
    assert slices.shape == (8, 16, 16) and frame.full_slice == (16, 16) and frame.offset == (0, 0)
    assert slices.sum() == data.sum()
    np.testing.assert_array_equal(frame.undo(slices), data)


@pytest.mark.parametrize(("mm", "scale"), [(1.04, 1.0), (0.96, 1.0), (1.06, 1.06), (0.5, 0.5), (2.0, 2.0)])
def test_close_spacings_are_left_alone(mm, scale):
    frame = Frame.fit(ball(), affine_of((1.0, mm, 3.0), SHAPE), preparation(1.0))
    assert (frame.rows.scale, frame.columns.scale) == (scale, 1.0)


def test_a_constant_stays_constant_at_any_spacing():
    for spacing in (2.0, 3.7, 5.2, 11.0):
        frame = Frame.fit(ball(), affine_of(5, SHAPE), preparation(spacing))
        data = np.full(SHAPE, 0.7, np.float32)
        slices = frame.apply(data)
        inside = slices[:, 3:-3, 3:-3] if min(slices.shape[1:]) > 8 else slices[slices > 0]
        np.testing.assert_allclose(inside[inside > 0], 0.7, atol=1e-5)
        np.testing.assert_allclose(frame.undo(np.full_like(slices, 0.7))[ball()], 0.7, atol=1e-5)


def test_fine_detail_does_not_alias():
    """Stripes of one voxel vanish at a quarter of the resolution; a plain sampling would keep them."""
    shape = (64, 64, 8)
    data = np.zeros(shape, np.float32)
    data[::2] = 1
    frame = Frame.fit(np.ones(shape, bool), affine_of(5, shape), preparation(20.0))
    assert frame.apply(data)[:, 2:-2, 2:-2].std() < 0.02


def test_values_stay_within_the_range_of_the_data():
    data = (np.random.default_rng(0).random(SHAPE) > 0.5).astype(np.float32)
    frame = Frame.fit(ball(), affine_of(5, SHAPE), preparation(3.0))
    slices = frame.apply(data)
    assert slices.min() >= 0 and slices.max() <= 1
    back = frame.undo(slices)
    assert back.min() >= 0 and back.max() <= 1


def test_the_record_is_json():
    frame = Frame.fit(ball(), affine_of(5, SHAPE), preparation(4.0))
    again = Frame.from_dict(json.loads(json.dumps(frame.as_dict())))
    assert again == frame
    np.testing.assert_array_equal(again.apply(smooth()), frame.apply(smooth()))


def test_wrong_shapes_are_our_own_bugs():
    frame = Frame.fit(ball(), affine_of(5, SHAPE), preparation())
    with pytest.raises(ValueError, match="grid"):
        frame.apply(np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match="slices"):
        frame.undo(np.zeros((3, 3, 3)))


def test_no_head():
    with pytest.raises(CodeBrainError) as caught:
        Frame.fit(np.zeros(SHAPE, bool), affine_of(5, SHAPE), preparation())
    assert caught.value.code == "IN_NO_SIGNAL"


@pytest.mark.data
def test_one_real_head_in_48_orders_is_one_array(real_data):
    paths = sorted((real_data / "odd" / "orientations").glob("*.nii.gz"))
    assert len(paths) == 48
    first = {}
    for number, path in enumerate(paths):
        study = Study.read({"T1": path})
        for spacing in (None, 1.0)[: 2 if number % 8 == 0 else 1]:  # resampling is the slower part
            prepared = prepare_study(study, preparation(spacing))
            np.testing.assert_allclose(prepared.slices, first.setdefault(spacing, prepared.slices), atol=1e-4)
            assert prepared.frame.undo(prepared.slices[:, 0]).shape == prepared.reference.data.shape


# A fixed frame


def framed(frame, spacing=None, multiple=8):
    return Preparation(ModalitySet.parse("T1"), pixel_spacing_mm=spacing, multiple=multiple, frame=frame)


@pytest.mark.parametrize("frame", [(32, 24), (40, 32)], ids=["padded", "padded more"])
def test_a_fixed_frame_is_the_middle_of_the_grid_wherever_the_head_lies(frame):
    data, affine = smooth(), affine_of(5, SHAPE)
    off_centre = np.zeros(SHAPE, bool)
    off_centre[12:17, 3:9, 4:8] = True
    frames = [Frame.fit(mask, affine, framed(frame)) for mask in (ball(), off_centre, np.ones(SHAPE, bool))]
    assert {f.slice_shape[1:] for f in frames} == {frame} == {f.full_slice for f in frames}
    assert {f.offset for f in frames} == {(0, 0)}
    assert len({(f.rows.offset, f.columns.offset) for f in frames}) == 1
    slices = frames[2].apply(data)
    top, left = (frame[0] - SHAPE[1]) // 2, (frame[1] - SHAPE[0]) // 2
    np.testing.assert_array_equal(slices[0, top : top + SHAPE[1], left : left + SHAPE[0]], data[:, ::-1, 0].T)
    np.testing.assert_array_equal(frames[2].undo(slices), data)


def test_a_fixed_frame_cuts_a_larger_grid_in_the_middle():
    mask = ball(radius=0.2)
    frame = Frame.fit(mask, affine_of(5, SHAPE), framed((16, 16)))
    data = smooth()
    # Odd edges around an even frame: of 23 rows 3 go at the front and 4 at the back, of 19 columns 1 and 2.
    np.testing.assert_array_equal(frame.apply(data)[0], data[1:17, ::-1, frame.slices[0]].T[3:19])
    back = frame.undo(frame.apply(data), fill=-7)
    np.testing.assert_array_equal(back[mask], data[mask])


@pytest.mark.parametrize("spacing", [None, 4.0])
@pytest.mark.parametrize("size", [8, 16, 24])
def test_no_fixed_frame_ever_cuts_a_head(spacing, size):
    for corner in itertools.product((0, 7), (0, 9), (0, 5)):
        mask = np.zeros(SHAPE, bool)
        mask[tuple(slice(c, c + 10) for c in corner)] = True
        frame = Frame.fit(mask, affine_of(5, SHAPE), framed((size, size), spacing))
        _, h, w = frame.slice_shape
        assert (h % 8, w % 8) == (0, 0) and h >= size and w >= size
        back = frame.undo(frame.apply(smooth()))
        np.testing.assert_allclose(back[mask], smooth()[mask], atol=0 if spacing is None else 0.03)


def test_slices_are_counted_from_below_in_every_order_of_the_axes():
    data, mask, affine = smooth(), ball(), affine_of(5, SHAPE)
    wanted = data[:, ::-1, 4:9].transpose(2, 1, 0)
    for orientation in all_orientations():
        other, where = turned(data, affine, orientation)
        frame = Frame.fit(turned(mask, affine, orientation)[0], where, framed((24, 24)), slices=(4, 9))
        assert frame.slices == (4, 9)
        np.testing.assert_array_equal(frame.apply(other)[:, : SHAPE[1], 2 : 2 + SHAPE[0]], wanted)


@pytest.mark.parametrize("slices", [(0, 16), (-1, 4), (5, 5), (9, 4), 16, 0])
def test_slices_that_the_grid_lacks(slices):
    with pytest.raises(CodeBrainError, match="15 slices") as caught:
        Frame.fit(ball(), affine_of(5, SHAPE), framed((24, 24)), slices=slices)
    assert caught.value.code == "DATA_SLICES"


@pytest.mark.parametrize(("count", "wanted"), [(15, (0, 15)), (5, (5, 10)), (6, (4, 10)), (1, (7, 8))])
def test_the_middle_slices(count, wanted):
    assert Frame.fit(ball(), affine_of(5, SHAPE), framed((24, 24)), slices=count).slices == wanted


def test_a_fixed_frame_survives_json_and_older_records_have_none():
    frame = Frame.fit(ball(), affine_of(5, SHAPE), framed((32, 32)), slices=(2, 5))
    raw = json.loads(json.dumps(frame.as_dict()))
    assert Frame.from_dict(raw) == frame
    del raw["fixed"]
    assert not Frame.from_dict(raw).fixed
