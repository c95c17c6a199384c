"""What holds for every head: undo after apply, and nothing but contrast matters."""

from __future__ import annotations

import gzip
import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from codebrain.imaging.frame import Frame
from codebrain.imaging.intensity import fit_normalisation, foreground_mask
from codebrain.imaging.prepared import prepare_study
from codebrain.imaging.study import Study
from codebrain.imaging.volume import read_volume, write_volume
from codebrain.impute import restore
from codebrain.vocabulary import ModalitySet, Preparation

ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)], float)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
shapes = st.tuples(*[st.integers(8, 25)] * 3)
spacings = st.tuples(*[st.floats(0.3, 7.0)] * 3)
seeds = st.integers(0, 2**32 - 1)
dear = settings(max_examples=-(-settings.default.max_examples // 5))
"""For what takes a tenth of a second: a fifth of the profile's examples."""


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


@given(shapes, st.tuples(*[st.floats(1.0, 3.0)] * 3), st.sampled_from(ORIENTATIONS), seeds, st.floats(1.0, 4.0))
def test_the_order_of_the_axes_never_matters(shape, spacing, orientation, seed, pixel):
    data, mask = blobs(shape, seed)
    affine = affine_of(spacing, seed)
    preparation = Preparation(ModalitySet.parse("T1"), pixel_spacing_mm=pixel)
    wanted = Frame.fit(mask, affine, preparation).apply(data)
    where = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    turned_data, turned_mask = (nib.orientations.apply_orientation(a, orientation) for a in (data, mask))
    np.testing.assert_allclose(Frame.fit(turned_mask, where, preparation).apply(turned_data), wanted, atol=1e-4 * 600)


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


@given(seeds, st.sampled_from(["percentile", "min_max"]))
def test_normalised_values_come_back(seed, kind):
    data, mask = blobs((12, 13, 14), seed)
    record = fit_normalisation(Preparation(ModalitySet.parse("T1"), kind), data, mask)
    unit = record.apply(data)
    assert unit.min() >= 0 and unit.max() <= 1
    clipped = data.clip(record.low, record.high)
    np.testing.assert_allclose(record.undo(unit), clipped, atol=1e-3 * (record.high - record.low))


@pytest.mark.row("C9", "B12")
@given(st.sampled_from(ORIENTATIONS), st.floats(0.1, 50.0), st.floats(-2.0, 2.0))
def test_a_whole_study_in_any_order_and_scale(orientation, factor, offset):
    data, _ = blobs((24, 26, 22), 7)
    affine = np.diag([5.0, 5.0, 5.0, 1.0])
    preparation = Preparation(ModalitySet.parse("T1"), pixel_spacing_mm=4.0)
    wanted = prepare_study(Study.read({"T1": nib.Nifti1Image(data, affine)}), preparation).slices
    other = nib.Nifti1Image((data * factor + offset * 600 * factor).astype(np.float32), affine)
    turned = other.as_reoriented(orientation)
    np.testing.assert_allclose(prepare_study(Study.read({"T1": turned}), preparation).slices, wanted, atol=2e-3)


NIFTI_TYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
directions = st.sampled_from("<>")
slopes = st.floats(1e-3, 1e3).filter(lambda slope: slope != 1.0)


def file_bytes(data, affine, dtype, order, version, slope=1.0, intercept=0.0):
    """A plain NIfTI file with these stored voxels, built field by field."""
    cls = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    header = cls(endianness=order)
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(data.shape)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1, strip_shears=False)
    header.set_xyzt_units("mm")
    start = cls.sizeof_hdr + 4
    header["vox_offset"], header["magic"] = start, b"n+1" if version == 1 else b"n+2"
    if version == 2:
        header["eol_check"] = (13, 10, 26, 10)
    header["scl_slope"], header["scl_inter"] = slope, intercept
    return header.binaryblock + bytes(4) + data.astype(np.dtype(order + dtype)).tobytes(order="F")


@given(
    st.sampled_from(NIFTI_TYPES), directions, st.sampled_from([1, 2]), st.booleans(), seeds, slopes,
    st.floats(-100, 100),
)  # fmt: skip
def test_type_order_version_and_scaling_are_how_a_scan_is_stored_and_not_what_it_is(
    tmp_path_factory, dtype, order, version, zipped, seed, slope, intercept
):
    """NIfTI-1 and -2, ten types, both byte orders, packed or not: the voxels are stored value x slope + intercept."""
    stored = np.random.default_rng(seed).integers(0, 120, (12, 10, 9))
    affine = affine_of((12.0, 14.0, 15.0), seed)
    content = file_bytes(stored, affine, dtype, order, version, slope, intercept)
    path = tmp_path_factory.mktemp("scan") / ("x.nii.gz" if zipped else "x.nii")
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    volume = read_volume(path)
    header = np.float32 if version == 1 else np.float64
    wanted = stored.astype(np.float64) * float(header(slope)) + float(header(intercept))
    np.testing.assert_array_equal(volume.data, wanted.astype(np.float32))
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-6, atol=1e-4)


@example(np.array([[1.0, 1.0], [0.0, 1.0], [2.0, 1.0]]), (4.0, 4.0, 4.0), 600)  # holes were filled axis by axis, once
@given(st.sampled_from(ORIENTATIONS), st.tuples(*[st.floats(4.0, 9.0)] * 3), seeds)
def test_any_orientation_gives_the_same_head_and_its_own_grid_back(tmp_path_factory, orientation, spacing, seed):
    """48 orders x oblique x anisotropic, from file to file: equal slices in between, the input's grid at the end."""
    shape = (24, 26, 22)
    data, _ = blobs(shape, seed)
    affine = affine_of(spacing, seed)
    preparation = Preparation(ModalitySet.parse("T1"), pixel_spacing_mm=6.0)
    folder = tmp_path_factory.mktemp("turned")
    turned = nib.orientations.apply_orientation(data, orientation)
    where = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    pairs = {"straight": (data, affine), "turned": (turned, where)}
    slices = {}
    for name, (voxels, place) in pairs.items():
        path = folder / f"{name}.nii"
        path.write_bytes(file_bytes(voxels, place, "f4", "<", 1))
        study = Study.read({"T1": path})
        prepared = prepare_study(study, preparation)
        slices[name] = prepared.slices
        back = restore(prepared, prepared.slices[:, 0])
        write_volume(folder / f"{name}-out.nii.gz", back, like=prepared.reference, description="x", intent_name="x")
        written, given_ = nib.load(folder / f"{name}-out.nii.gz"), nib.load(path)
        assert written.shape == given_.shape
        np.testing.assert_allclose(written.affine, given_.affine, atol=1e-6)
        assert written.header["sform_code"] == given_.header["sform_code"]
        assert np.array_equal(written.header.get_qform(), given_.header.get_qform())
    np.testing.assert_allclose(slices["turned"], slices["straight"], atol=1e-4)


@pytest.fixture(scope="module")
def imputer():
    import torch

    from codebrain.impute import Imputer
    from codebrain.models import build_model

    torch.manual_seed(0)
    modalities = ModalitySet.parse("T1,FLAIR,T2")
    model = build_model("codebrain", modalities, {"width": 2, "depth": 1, "critic_width": 1})
    model.preparation = Preparation(modalities, pixel_spacing_mm=None)
    return Imputer(model.eval())


@dear
@given(seeds, st.floats(1e-3, 1e3), st.floats(-2.0, 2.0), st.floats(1e-3, 1e3))
def test_imputing_does_not_know_the_scanners_scale(imputer, seed, factor, offset, other):
    """f(a x + b) = f(x) to 1e-3, from scans to imputed contrast, each given contrast with a scale of its own."""
    shape = (16, 18, 14)
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    t1, flair = (blobs(shape, seed + n)[0] for n in (0, 1))
    given_ = {"T1": t1, "FLAIR": flair}
    changed = {
        "T1": (t1.astype(np.float64) * factor + offset * 600 * factor).astype(np.float32),
        "FLAIR": (flair.astype(np.float64) * other).astype(np.float32),
    }
    first, second = (
        imputer({m: nib.Nifti1Image(d, affine) for m, d in scans.items()}, ["T2"]).unit for scans in (given_, changed)
    )
    (one,), (two,) = first.values(), second.values()
    np.testing.assert_allclose(two, one, atol=1e-3)
