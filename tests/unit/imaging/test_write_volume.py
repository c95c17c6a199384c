"""Writing on the grid of a scan: its header's grid fields bit for bit, and nothing else of it."""

from __future__ import annotations

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

import scans
from codebrain.errors import CodeBrainError
from codebrain.imaging.volume import on_grid_of, read_volume, same_grid, volume_image, write_volume
from scans import affine_of, head, nifti, patch, zipped

# dim; pixdim; xyzt_units; codes, quaternion, offsets, srow.
GRID = [slice(40, 56), slice(76, 108), slice(123, 124), slice(252, 328)]
MARKS = {"description": "SYNTHETIC T2; research use only", "intent_name": "SYNTHETIC T2"}


def grid_bytes(path):
    """The raw bytes of the fields that say where voxels lie, little-endian."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    return [raw[part] for part in GRID]


def written(tmp_path, volume, name="out.nii.gz", data=None):
    target = tmp_path / name
    write_volume(target, volume.data if data is None else data, like=volume, **MARKS)
    return target


def scan(tmp_path, content, name="t1.nii.gz", **options):
    path = tmp_path / name
    path.write_bytes(content)
    return read_volume(path, **options)


def codes_of(path):
    header = nib.load(path).header
    return int(header["qform_code"]), int(header["sform_code"])


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1), (4, 2), (0, 0)])
@pytest.mark.parametrize("mirror", [1, -1])
def test_the_grid_of_the_reference_is_kept_bit_for_bit(codes, mirror, tmp_path):
    affine = affine_of() @ np.diag([mirror, 1, 1, 1])
    content = nifti(head(), affine)
    content = patch(patch(content, scans.QFORM_CODE, codes[0]), scans.SFORM_CODE, codes[1])
    content = patch(content, scans.PIXDIM, 1.25, 4)  # a repetition time that nothing needs
    content = patch(content, scans.XYZT_UNITS, 10)
    volume = scan(tmp_path, zipped(content), accept_no_orientation=True)
    target = written(tmp_path, volume)
    assert grid_bytes(target) == grid_bytes(tmp_path / "t1.nii.gz")
    assert codes_of(target) == codes
    again = read_volume(target, accept_no_orientation=True, accept_synthetic=True)
    assert same_grid(again, volume)
    np.testing.assert_array_equal(again.data, volume.data)


@pytest.mark.parametrize(
    ("field", "index", "value"),
    [(scans.PIXDIM, 1, float("nan")), (scans.PIXDIM, 2, 0.0), (scans.PIXDIM, 0, 0.0), (scans.XYZT_UNITS, 0, 0)],
)
def test_odd_fields_that_were_accepted_are_written_back(field, index, value, tmp_path):
    volume = scan(tmp_path, zipped(patch(nifti(head()), field, value, index)))
    assert grid_bytes(written(tmp_path, volume)) == grid_bytes(tmp_path / "t1.nii.gz")


def test_trailing_axes_stay_on_disk(tmp_path):
    for data in (head()[..., None], head()[..., None, None]):
        volume = scan(tmp_path, zipped(nifti(data)))
        target = written(tmp_path, volume)
        assert nib.load(target).shape == data.shape
        assert grid_bytes(target) == grid_bytes(tmp_path / "t1.nii.gz")


def test_big_endian_and_nifti2_references(tmp_path):
    for cls, order in ((nib.Nifti1Image, ">"), (nib.Nifti2Image, "<"), (nib.Nifti2Image, ">")):
        image = cls(head(), affine_of(), cls.header_class(endianness=order))
        image.set_sform(affine_of(), 2)
        volume = scan(tmp_path, zipped(image.to_bytes()))
        back = nib.load(written(tmp_path, volume))
        assert isinstance(back, nib.Nifti2Image) == (cls is nib.Nifti2Image)
        np.testing.assert_array_equal(back.affine, image.affine)
        np.testing.assert_array_equal(back.get_fdata(), head())


def test_units_other_than_millimetres_are_kept(tmp_path):
    metres = affine_of() * [[0.001], [0.001], [0.001], [1]]
    volume = scan(tmp_path, zipped(nifti(head(), metres, units="meter")))
    assert volume.spacing == pytest.approx((5, 5, 5))
    assert grid_bytes(written(tmp_path, volume)) == grid_bytes(tmp_path / "t1.nii.gz")


def test_nothing_private_is_copied(tmp_path):
    content = bytearray(nifti(head()))
    content[14:32] = b"SECRET db_name\0\0\0\0"
    content[148:228] = b"SECRET patient".ljust(80, b"\0")
    content[228:252] = b"SECRET aux".ljust(24, b"\0")
    content[328:344] = b"SECRET intent".ljust(16, b"\0")
    extension = struct.pack("<ii", 64, 6) + b"SECRET comment".ljust(56, b"\0")
    content = patch(bytes(content[:348]), scans.VOX_OFFSET, 416.0) + b"\1\0\0\0" + extension + bytes(content[352:])
    volume = scan(tmp_path, zipped(content))
    np.testing.assert_array_equal(volume.data, head())
    raw = gzip.decompress(written(tmp_path, volume).read_bytes())
    assert b"SECRET" not in raw
    header = nib.Nifti1Image.from_bytes(raw).header
    assert header["descrip"].item() == MARKS["description"].encode()
    assert header["intent_name"].item() == b"SYNTHETIC T2"
    assert len(header.extensions) == 0


def test_equal_data_give_equal_bytes_without_name_or_time(tmp_path):
    volume = scan(tmp_path, zipped(nifti(head())))
    first, second = (written(tmp_path, volume, name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert first == second
    assert first[3] == 0 and first[4:8] == bytes(4), "no name, no time"


def test_plain_files_hold_the_same(tmp_path):
    volume = scan(tmp_path, zipped(nifti(head())))
    packed, plain = written(tmp_path, volume), written(tmp_path, volume, "out.nii")
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()


def test_in_memory_is_what_is_written(tmp_path):
    volume = scan(tmp_path, zipped(nifti(head()[..., None])))
    data = volume.data[::-1] * 0.5
    image = volume_image(data, like=volume, **MARKS)
    back = nib.load(written(tmp_path, volume, data=data))
    np.testing.assert_array_equal(image.get_fdata(), back.get_fdata())
    np.testing.assert_array_equal(image.affine, back.affine)
    assert image.get_data_dtype() == back.get_data_dtype() == np.float32
    assert image.shape == back.shape == (*scans.SHAPE, 1)


def test_long_marks_are_cut_to_the_header(tmp_path):
    volume = scan(tmp_path, zipped(nifti(head())))
    image = volume_image(volume.data, like=volume, description="x" * 200, intent_name="y" * 50)
    assert image.header["descrip"].item() == b"x" * 79
    assert image.header["intent_name"].item() == b"y" * 15


def test_data_of_another_shape_are_our_own_bug(tmp_path):
    volume = scan(tmp_path, zipped(nifti(head())))
    with pytest.raises(ValueError, match="shape"):
        volume_image(volume.data[1:], like=volume, **MARKS)


def test_a_place_that_cannot_be_written(tmp_path):
    volume = scan(tmp_path, zipped(nifti(head())))
    with pytest.raises(CodeBrainError) as caught:
        written(tmp_path, volume, "no/such/out.nii.gz")
    assert caught.value.code == "OUT_PERMISSION"


def test_same_grid_within_a_micrometre(tmp_path):
    volume = scan(tmp_path, zipped(nifti(head())))
    for move, same in ((5e-4, True), (2e-3, False)):
        affine = affine_of()
        affine[0, 3] += move
        assert same_grid(volume, read_volume(nib.Nifti1Image(head(), affine))) is same
    other = read_volume(nib.Nifti1Image(head(shape=(33, 36, 30)), affine_of()))
    assert not same_grid(volume, other)


def test_a_volume_on_the_grid_of_another(tmp_path):
    here = scan(tmp_path, zipped(nifti(head()[..., None])))
    there = scan(tmp_path, zipped(nifti(head("T2"), affine_of(6), codes=(2, 0))), "t2.nii.gz")
    moved = on_grid_of(there, here, here.data * 2)
    assert same_grid(moved, here) and moved.name == "t2.nii.gz" and moved.sha256 == there.sha256
    assert grid_bytes(written(tmp_path, moved)) == grid_bytes(tmp_path / "t1.nii.gz")


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "raw/mslong-01-1/T2", "raw/glioma-fg6692-native/T1", "raw/glioma-fg6692-native/FLAIR", "raw/ixi-002/PD",
        "studies/ms-19/T1", "studies/sri24/T1", "odd/orientations/IPL",
    ],
)  # fmt: skip
def test_the_grids_of_real_scans(name, real_data, tmp_path):
    path = real_data / f"{name}.nii.gz"
    volume = read_volume(path)
    target = written(tmp_path, volume, "out.nii", data=np.zeros_like(volume.data))
    assert grid_bytes(target) == grid_bytes(path)
    np.testing.assert_array_equal(nib.load(target).affine, nib.load(path).affine)
