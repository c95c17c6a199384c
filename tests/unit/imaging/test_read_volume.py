"""The checked read: what a file can be, and the code that it gets."""

from __future__ import annotations

import gzip
import os
import resource
import socket
import struct
import time

import nibabel as nib
import numpy as np
import pytest

import scans
from codebrain.errors import CodeBrainError
from codebrain.imaging._geometry import judge_geometry
from codebrain.imaging.volume import read_volume, same_grid
from scans import affine_of, head, nifti, patch, zipped

nan, inf = float("nan"), float("inf")
WHOLE = nifti(head())
ZIPPED = zipped(WHOLE)


def read(tmp_path, content, name="t1.nii.gz", **options):
    path = tmp_path / name
    path.write_bytes(content)
    return read_volume(path, **options)


def refused(tmp_path, content, name="t1.nii.gz", **options):
    begun = time.perf_counter()
    with pytest.raises(CodeBrainError) as caught:
        read(tmp_path, content, name, **options)
    assert time.perf_counter() - begun < 5
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    return caught.value


def codes(volume):
    return [notice.code for notice in volume.notices]


# --- A good scan ---


def test_a_good_scan(tmp_path):
    volume = read(tmp_path, ZIPPED)
    np.testing.assert_array_equal(volume.data, head())
    np.testing.assert_allclose(volume.affine, affine_of())
    assert volume.data.dtype == np.float32 and volume.affine.dtype == np.float64
    assert (volume.spacing, volume.orientation) == ((5.0, 5.0, 5.0), "RAS")
    assert (volume.name, volume.file) == ("t1.nii.gz", tmp_path / "t1.nii.gz")
    assert (volume.shape_on_disk, volume.notices) == (scans.SHAPE, ())
    import hashlib

    assert volume.sha256 == hashlib.sha256(ZIPPED).hexdigest()


def test_plain_zipped_and_in_memory_are_one(tmp_path):
    plain, packed = read(tmp_path, WHOLE, "t1.nii"), read(tmp_path, ZIPPED)
    image = read_volume(nib.Nifti1Image.from_bytes(WHOLE))
    for other in (packed, image):
        np.testing.assert_array_equal(plain.data, other.data)
        assert same_grid(plain, other)
    assert image.file is None and image.name == "image"


def test_a_scan_is_not_changed_and_not_shared():
    image = nib.Nifti1Image.from_bytes(nifti(np.where(head() == 0, np.float32(nan), head())))
    volume = read_volume(image)
    assert codes(volume) == ["IN_NAN"]
    assert np.isnan(np.asanyarray(image.dataobj)).any() and not np.isnan(volume.data).any()


# --- The container ---


def test_any_cut_of_the_stream_is_found(tmp_path):
    for end in np.linspace(20, len(ZIPPED) - 1, 25).astype(int):
        assert refused(tmp_path, ZIPPED[:end]).code == "IN_TRUNCATED"


def test_any_flipped_bit_behind_the_header_is_found(tmp_path):
    chance = np.random.default_rng(0)
    found = {}
    for _ in range(40):
        place, bit = int(chance.integers(10, len(ZIPPED))), int(chance.integers(8))
        content = bytearray(ZIPPED)
        content[place] ^= 1 << bit
        try:
            volume = read(tmp_path, bytes(content))
        except CodeBrainError as error:
            found[error.code] = found.get(error.code, 0) + 1
        else:  # a bit that means nothing, such as padding at the end of a deflate block
            np.testing.assert_array_equal(volume.data, head())
    assert set(found) <= {"IN_CHECKSUM", "IN_TRUNCATED"} and found["IN_CHECKSUM"] > 30


def test_trailing_bytes(tmp_path):
    assert codes(read(tmp_path, ZIPPED + b"garbage")) == ["IN_TRAILING"]
    assert codes(read(tmp_path, ZIPPED + b"\x1f")) == ["IN_TRAILING"]
    assert codes(read(tmp_path, ZIPPED + bytes(5000))) == []


@pytest.mark.parametrize("size", [1, 200, 348, 5000, 65_280])
def test_many_members_are_read_as_one(size, tmp_path):
    packed = b"".join(zipped(WHOLE[at : at + size]) for at in range(0, 6 * size, size)) + zipped(WHOLE[6 * size :])
    np.testing.assert_array_equal(read(tmp_path, packed).data, head())


def test_a_broken_second_member(tmp_path):
    second = zipped(WHOLE[1000:])
    assert refused(tmp_path, zipped(WHOLE[:1000]) + second[:-1]).code == "IN_TRUNCATED"
    assert refused(tmp_path, zipped(WHOLE[:1000]) + second[:-8] + bytes(8)).code == "IN_CHECKSUM"


def test_the_stream_goes_on_beyond_the_voxels(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, zipped(WHOLE + bytes(1000))).data, head())
    bomb = ZIPPED + gzip.compress(bytes(8 << 20), 1, mtime=0) * 10
    assert refused(tmp_path, bomb).code == "IN_TOO_BIG"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS pointer"),
        (b"/annex/objects/SHA256E-s1--0.nii.gz\n", "annex"),
        (b"../.git/annex/objects/aa/bb/x.nii.gz", "annex"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><p>404", "HTML"),
        (b"<html>", "HTML"),
        (b"NRRD0005\n", "NRRD"),
        (b"CDF\x01" + bytes(500), "MINC"),
        (b"\x89HDF\r\n\x1a\n" + bytes(500), "MINC"),
        (b"PK\x03\x04" + bytes(500), "zip"),
    ],
)
@pytest.mark.parametrize("name", ["t1.nii.gz", "t1.nii"])
def test_what_is_no_scan_is_named(content, word, name, tmp_path):
    error = refused(tmp_path, content, name)
    assert error.code == "IN_FORMAT" and word in str(error)


@pytest.mark.parametrize("name", ["t1.mgz", "t1.mnc", "t1.nrrd", "t1.dcm"])
def test_formats_that_are_not_read_name_a_converter(name, tmp_path):
    error = refused(tmp_path, bytes(4000), name)
    assert error.code == "IN_FORMAT" and error.hint


def test_a_name_that_says_otherwise_gets_the_right_one(tmp_path):
    assert "Rename it to t1.nii.gz" in str(refused(tmp_path, ZIPPED, "t1.nii"))
    assert "rename it to t1.nii" in str(refused(tmp_path, WHOLE, "t1.nii.gz"))


@pytest.mark.parametrize("content", [b"", b"\x5c\x01\0\0", WHOLE[:347], WHOLE[:348], WHOLE[:400], WHOLE[:-1]])
def test_plain_files_that_end_too_early(content, tmp_path):
    assert refused(tmp_path, content, "t1.nii").code == ("IN_TRUNCATED" if content else "IN_EMPTY")


@pytest.mark.parametrize("length", [0, 4, 347, 348, 352, len(WHOLE) - 1])
def test_whole_streams_with_too_little_in_them(length, tmp_path):
    assert refused(tmp_path, zipped(WHOLE[:length])).code == "IN_TRUNCATED"


def test_what_is_not_a_file(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    os.mkfifo(tmp_path / "fifo.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s.nii"))
    listener.close()
    for name in ("folder.nii", "fifo.nii", "loop.nii", "s.nii", "absent.nii", "/dev/zero"):
        with pytest.raises(CodeBrainError) as caught:
            read_volume(tmp_path / name)
        assert caught.value.code == "IN_NOT_A_FILE", name


def test_a_file_that_must_not_be_read(tmp_path, monkeypatch):
    from codebrain.imaging import _container

    path = tmp_path / "t1.nii"
    path.write_bytes(WHOLE)

    def forbidden(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(_container.Path, "open", forbidden)
    with pytest.raises(CodeBrainError) as caught:
        read_volume(path)
    assert caught.value.code == "IN_PERMISSION"


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    from codebrain.imaging import volume as module

    path = tmp_path / "t1.nii.gz"
    path.write_bytes(ZIPPED)
    real = module.judge_header

    def meanwhile(*args, **kwargs):
        with path.open("ab") as stream:
            stream.write(b"more")
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "judge_header", meanwhile)
    with pytest.raises(CodeBrainError) as caught:
        read_volume(path)
    assert caught.value.code == "IN_CHANGED"


def test_symlinks_are_followed(tmp_path):
    (tmp_path / "real.nii.gz").write_bytes(ZIPPED)
    (tmp_path / "t1.nii.gz").symlink_to("real.nii.gz")
    assert read_volume(tmp_path / "t1.nii.gz").name == "t1.nii.gz"


def test_bombs_are_refused_from_the_header_with_little_memory(tmp_path):
    content = WHOLE
    for axis in (1, 2, 3):
        content = patch(content, scans.DIM, 32767, axis)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, bomb in (("t1.nii", content), ("t1.nii.gz", zipped(content))):
        error = refused(tmp_path, bomb, name)
        assert error.code == "IN_TOO_BIG" and "--max-voxels" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_the_cap_can_be_raised_and_lowered(tmp_path):
    assert refused(tmp_path, ZIPPED, max_voxels=1000).code == "IN_TOO_BIG"
    assert read(tmp_path, ZIPPED, max_voxels=head().size).data.size == head().size


# --- The header ---


@pytest.mark.parametrize(
    ("field", "index", "value", "code", "names"),
    [
        *((scans.DIM, 0, value, "IN_HEADER", "dim") for value in (0, -1, 8, 200)),
        *((scans.DIM, 1, value, "IN_HEADER", "dim[1]") for value in (0, -32)),
        *((scans.VOX_OFFSET, 0, v, "IN_HEADER", "vox_offset") for v in (0.0, 100.0, -400.0, 1e9, nan, inf, 352.5)),
        (scans.SLOPE, 0, 1e38, "IN_NONFINITE", ""),
        *((scans.DATATYPE, 0, value, "IN_DTYPE", "datatype") for value in (0, 1, 32, 128, 1792, 2304, 9999)),
        ((344, "4s"), 0, b"abc\0", "IN_FORMAT", "magic"),
        ((344, "4s"), 0, b"ni1\0", "IN_FORMAT", "pair"),
    ],
)
def test_impossible_fields_are_named(field, index, value, code, names, tmp_path):
    error = refused(tmp_path, zipped(patch(WHOLE, field, value, index)))
    assert error.code == code and names in str(error)


def test_small_lies_are_noticed(tmp_path):
    assert codes(read(tmp_path, zipped(patch(WHOLE, (0, "i"), 12345)))) == ["IN_HEADER_SIZE"]
    assert codes(read(tmp_path, zipped(patch(WHOLE, scans.BITPIX, 8)))) == ["IN_BITPIX"]
    assert codes(read(tmp_path, zipped(patch(WHOLE, scans.SLOPE, inf)))) == ["IN_SCALING"]


def extended(*sizes, flag=1, content=b"secret"):
    extension = b"".join(
        struct.pack("<ii", size, 6) + content.ljust(min(max(size, 8), 64) - 8, b"\0") for size in sizes
    )
    extension = extension.ljust(64, b"\0")[:64]
    moved = patch(WHOLE[:348], scans.VOX_OFFSET, 352.0 + len(extension))
    return moved + bytes([flag, 0, 0, 0]) + extension + WHOLE[352:]


def test_extensions(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, zipped(extended(64))).data, head())
    np.testing.assert_array_equal(read(tmp_path, zipped(extended(32, 32))).data, head())
    np.testing.assert_array_equal(read(tmp_path, zipped(patch(WHOLE, (348, "B"), 1))).data, head())
    np.testing.assert_array_equal(read(tmp_path, zipped(extended(0, flag=0))).data, head())
    for size in (0, -16, 4, 2**31 - 1):
        error = refused(tmp_path, zipped(extended(size)))
        assert error.code == "IN_HEADER" and "esize" in str(error)


def head_of_whole_numbers():
    """More than 64 grey values that fit every type."""
    texture = np.random.default_rng(0).integers(0, 45, scans.SHAPE)
    return np.where(head() > 0, np.rint(head() / 9) + texture, 0).astype(np.int64)


@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", "i8", "u8", "i1", "u4"])
def test_types_byte_orders_and_versions(cls, order, dtype, tmp_path):
    data = head_of_whole_numbers().astype(dtype)
    header = cls.header_class(endianness=order)
    image = cls(data, affine_of(), header, dtype=data.dtype)
    image.set_sform(affine_of(), 1)
    image.header.set_xyzt_units("mm")
    volume = read(tmp_path, zipped(image.to_bytes()))
    np.testing.assert_array_equal(volume.data, data.astype(np.float32))
    assert codes(volume) == []


def test_nifti2_of_impossible_size(tmp_path):
    content = bytearray(nifti(head(), cls=nib.Nifti2Image))
    content[24:32] = struct.pack("<q", 2**40)
    assert refused(tmp_path, zipped(bytes(content))).code == "IN_TOO_BIG"


def test_an_analyze_header_is_named(tmp_path):
    assert "Analyze" in str(refused(tmp_path, patch(WHOLE, (344, "4s"), bytes(4)), "t1.nii"))


@pytest.mark.parametrize("order", "<>")
def test_float128(order, tmp_path):
    """Quadruple precision, put together bit by bit; 0.1 and -3 are known from IEEE 754 calculators."""
    numbers = {0.0: (0, 0), 1.0: (0x3FFF << 48, 0), -3.0: (0xC000800000000000, 0), nan: (0x7FFF800000000000, 0)}
    numbers |= {0.1: (0x3FFB999999999999, 0x999999999999999A), inf: (0x7FFF << 48, 0)}
    from codebrain.imaging._header import binary128
    from codebrain.imaging._voxels import scanner_units

    stored = np.empty((len(numbers), 1, 1), binary128(order))
    for place, (high, low) in enumerate(numbers.values()):
        stored["high"][place], stored["low"][place] = high, low
    data, _ = scanner_units(stored, 1.0, 0.0, None, "t1")
    np.testing.assert_array_equal(data.ravel(), np.array(list(numbers), np.float32))
    ones = np.where(head() > 0, np.uint64(0x3FFF << 48) + np.round(head()).astype(np.uint64), np.uint64(0))
    voxels = np.zeros(scans.SHAPE, binary128("<"))
    voxels["high"] = ones + (np.round(head()).astype(np.uint64) << np.uint64(38)) * (head() > 0)
    content = patch(patch(WHOLE[:352], scans.DATATYPE, 1536), scans.BITPIX, 128) + voxels.tobytes("F")
    volume = read(tmp_path, zipped(content))
    np.testing.assert_allclose(volume.data, np.where(head() > 0, 1 + np.round(head()) / 1024, 0), rtol=1e-6)


def test_scaling(tmp_path):
    scaled = patch(patch(WHOLE, scans.SLOPE, 0.5), scans.INTERCEPT, 3.0)
    np.testing.assert_allclose(read(tmp_path, zipped(scaled)).data, head() * 0.5 + 3)
    for slope in (0.0, nan):
        unscaled = patch(patch(WHOLE, scans.SLOPE, slope), scans.INTERCEPT, nan)
        np.testing.assert_array_equal(read(tmp_path, zipped(unscaled)).data, head())
    for intercept in (nan, inf):
        assert refused(tmp_path, zipped(patch(patch(WHOLE, scans.SLOPE, 1.0), scans.INTERCEPT, intercept))).code == (
            "IN_HEADER"
        )


# --- Pairs and FreeSurfer's files ---


def pair(folder, cls=nib.Nifti1Pair, order="<", name="t1.img"):
    image = cls(head(), affine_of(), cls.header_class(endianness=order))
    image.set_sform(affine_of(), 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, folder / name)
    return folder


@pytest.mark.parametrize("cls", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_pair_is_read_by_either_name(cls, order, end, tmp_path):
    pair(tmp_path, cls, order, f"t1.img{end}")
    volumes = [read_volume(tmp_path / f"t1.{part}{end}") for part in ("hdr", "img")]
    for volume in volumes:
        np.testing.assert_array_equal(volume.data, head())
        np.testing.assert_allclose(volume.affine, affine_of())
        assert codes(volume) == []
    assert volumes[0].sha256 == volumes[1].sha256


def test_either_file_of_a_pair_counts(tmp_path):
    pair(tmp_path)
    before = read_volume(tmp_path / "t1.img").sha256
    header = (tmp_path / "t1.hdr").read_bytes()
    (tmp_path / "t1.hdr").write_bytes(patch(header, (148, "B"), 65))
    assert read_volume(tmp_path / "t1.img").sha256 != before
    (tmp_path / "t1.hdr").write_bytes(patch(header, scans.VOX_OFFSET, 16.0))
    assert refused_file(tmp_path / "t1.img") == "IN_TRUNCATED"
    (tmp_path / "t1.hdr").write_bytes(header)
    (tmp_path / "t1.img").write_bytes((tmp_path / "t1.img").read_bytes()[:-1])
    assert refused_file(tmp_path / "t1.hdr") == "IN_TRUNCATED"
    (tmp_path / "t1.hdr").write_bytes(WHOLE[:352])
    assert refused_file(tmp_path / "t1.img") == "IN_FORMAT"
    (tmp_path / "t1.hdr").unlink()
    assert refused_file(tmp_path / "t1.img") == "IN_NOT_A_FILE"
    assert refused_file(tmp_path / "t1.hdr") == "IN_NOT_A_FILE"


def refused_file(path):
    with pytest.raises(CodeBrainError) as caught:
        read_volume(path)
    return caught.value.code


def mgh(data=None, affine=None, *fields):
    """The bytes of an MGH file; ``fields`` are (offset, struct code, value)."""
    content = bytearray(nib.MGHImage(head() if data is None else data, affine_of() if affine is None else affine)
                        .to_bytes())  # fmt: skip
    for offset, code, value in fields:
        struct.pack_into(f">{code}", content, offset, value)
    return bytes(content)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_freesurfer_files_are_read(dtype, tmp_path):
    turned = affine_of()
    turned[:3, :3] = [[0, 4.33, 2.5], [0, -2.5, 4.33], [-5, 0, 0]]
    data = head_of_whole_numbers().astype(dtype)
    for content, name in ((mgh(data, turned), "t1.mgh"), (zipped(mgh(data, turned)), "t1.mgz")):
        volume = read(tmp_path, content, name)
        np.testing.assert_array_equal(volume.data, data)
        np.testing.assert_allclose(volume.affine, nib.MGHImage.from_bytes(mgh(data, turned)).affine)
        assert codes(volume) == [] and volume.orientation == "IRA"
        assert volume.shape_on_disk == scans.SHAPE


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ([(0, "i", 2)], "IN_FORMAT"),
        ([(4, "i", 0)], "IN_HEADER"),
        ([(4, "i", -5)], "IN_HEADER"),
        ([(4, "i", 2**30)], "IN_TOO_BIG"),
        ([(16, "i", 3)], "IN_NDIM"),
        ([(20, "i", 7)], "IN_DTYPE"),
        ([(28, "h", 0)], "GEO_NO_ORIENTATION"),
        ([(30, "f", nan)], "GEO_AFFINE"),
        ([(42, "f", nan)], "GEO_AFFINE"),
        ([(30, "f", 0.5)], "GEO_FOV"),
    ],
)
def test_broken_freesurfer_headers(fields, code, tmp_path):
    assert refused(tmp_path, zipped(mgh(None, None, *fields)), "t1.mgz").code == code


def test_freesurfer_files_that_are_cut_or_misnamed(tmp_path):
    content = mgh()
    assert refused(tmp_path, zipped(content)[:-9], "t1.mgz").code == "IN_TRUNCATED"
    assert refused(tmp_path, zipped(content[:200]), "t1.mgz").code == "IN_TRUNCATED"
    assert refused(tmp_path, content[:5000], "t1.mgh").code == "IN_TRUNCATED"
    assert "t1.mgh" in str(refused(tmp_path, content, "t1.mgz").hint)
    assert "t1.mgz" in str(refused(tmp_path, zipped(content), "t1.mgh").hint)


# --- Values ---


def test_nan_outside_the_head_is_filled_and_counted(tmp_path):
    data = np.where(head() == 0, np.float32(nan), head())
    volume = read(tmp_path, zipped(nifti(data)))
    np.testing.assert_array_equal(volume.data, head())
    (notice,) = volume.notices
    assert notice.code == "IN_NAN" and str(int((head() == 0).sum())) in notice.message


def test_a_loose_nan_in_the_air_is_outside(tmp_path):
    data = head().copy()
    data[3, 3, 3] = nan
    assert codes(read(tmp_path, zipped(nifti(data)))) == ["IN_NAN"]


@pytest.mark.parametrize("place", [(16, 18, 15), (8, 18, 15)])
def test_nan_inside_the_head_is_refused_even_when_the_air_is_nan(place, tmp_path):
    for base in (head(), np.where(head() == 0, np.float32(nan), head())):
        data = base.copy()
        data[place] = nan
        assert refused(tmp_path, zipped(nifti(data))).code == "IN_NONFINITE"


def test_values(tmp_path):
    for value in (inf, -inf):
        data = head().copy()
        data[0, 0, 0] = value
        assert refused(tmp_path, zipped(nifti(data))).code == "IN_NONFINITE"
    assert refused(tmp_path, zipped(nifti(np.full(scans.SHAPE, nan, np.float32)))).code == "IN_NO_SIGNAL"
    assert codes(read(tmp_path, zipped(nifti(head() - 100)))) == ["IN_NEGATIVE"]
    assert codes(read(tmp_path, zipped(nifti(np.minimum(head(), 500))))) == ["IN_SATURATED"]
    assert codes(read(tmp_path, zipped(nifti(head() * 1e6 + 1, dtype=np.int64)))) == ["IN_PRECISION"]
    assert refused(tmp_path, zipped(nifti(head().astype(float) * 1e200, dtype=np.float64))).code == "IN_NONFINITE"


def test_no_signal_and_label_maps(tmp_path):
    quiet = np.zeros(scans.SHAPE, np.float32)
    quiet[16, 18] = 500
    for data in (quiet, np.zeros_like(quiet), np.full_like(quiet, -3)):
        assert refused(tmp_path, zipped(nifti(data))).code == "IN_NO_SIGNAL"
    labels = np.digitize(head(), [1, 300, 500]).astype(np.float32)
    assert refused(tmp_path, zipped(nifti(labels))).code == "IN_NOT_MRI"
    assert refused(tmp_path, zipped(nifti(np.rint(head() / 20)))).code == "IN_NOT_MRI"
    assert codes(read(tmp_path, zipped(nifti(labels + 0.25 * (head() > 300) + 1e-3 * head())))) == []


# --- Axes ---


def test_axes(tmp_path):
    four = head()[..., None]
    volume = read(tmp_path, zipped(nifti(four)))
    assert volume.data.shape == scans.SHAPE and volume.shape_on_disk == (*scans.SHAPE, 1)
    assert read(tmp_path, zipped(nifti(four[..., None, None]))).shape_on_disk == (*scans.SHAPE, 1, 1, 1)
    many = np.stack([head("T1"), head("T2")], -1)
    assert "--volume 0 to --volume 1" in str(refused(tmp_path, zipped(nifti(many))))
    for index, contrast in enumerate(("T1", "T2")):
        volume = read(tmp_path, zipped(nifti(many)), volume_index=index)
        np.testing.assert_array_equal(volume.data, head(contrast))
        assert volume.shape_on_disk == scans.SHAPE
        image = read_volume(nib.Nifti1Image.from_bytes(nifti(many)), volume_index=index)
        np.testing.assert_array_equal(image.data, head(contrast))
    for index in (-1, 2):
        assert refused(tmp_path, zipped(nifti(many)), volume_index=index).code == "IN_NDIM"
    assert refused(tmp_path, zipped(nifti(np.stack([many] * 2, -1)))).code == "IN_NDIM"


@pytest.mark.parametrize("shape", [(64, 64), (1, 1, 1), (64, 64, 1), (1, 64, 64), (7, 64, 64), (64,)])
def test_what_is_no_volume(shape, tmp_path):
    data = np.random.default_rng(0).random(shape, np.float32)
    error = refused(tmp_path, zipped(nib.Nifti1Image(data, np.eye(4)).to_bytes()))
    assert error.code == "IN_TOO_SMALL" and "8 voxels" in str(error)


def test_eight_voxels_are_enough(tmp_path):
    data = np.random.default_rng(0).random((8, 9, 11), np.float32)
    assert read(tmp_path, zipped(nifti(data, affine_of(20, data.shape)))).data.shape == (8, 9, 11)


# --- Geometry ---


def oriented(qform=1, sform=1, **fields):
    content = patch(patch(WHOLE, scans.QFORM_CODE, qform), scans.SFORM_CODE, sform)
    for name, (index, value) in fields.items():
        content = patch(content, getattr(scans, name), value, index)
    return zipped(content)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (oriented(0, 0), "GEO_NO_ORIENTATION"),
        (oriented(99, -7), "GEO_NO_ORIENTATION"),
        (oriented(1, 0, QUATERNION=(0, 2.0)), "GEO_AFFINE"),
        (oriented(1, 0, QUATERNION=(1, nan)), "GEO_AFFINE"),
        (oriented(0, 1, SROW=(0, nan)), "GEO_AFFINE"),
        (oriented(0, 1, SROW=(0, 0.0)), "GEO_AFFINE"),
        (oriented(0, 1, SROW=(1, 0.1)), "GEO_AFFINE"),
        *((oriented(1, 0, PIXDIM=(2, value)), "GEO_ZOOM") for value in (0.0, -5.0, nan, inf, 1e30)),
        (oriented(0, 1, SROW=(0, 50.0)), "GEO_FOV"),
        (oriented(0, 1, SROW=(0, 0.5)), "GEO_FOV"),
    ],
)
def test_impossible_geometry(content, code, tmp_path):
    error = refused(tmp_path, content)
    assert error.code == code and error.hint


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (oriented(1, 1, SROW=(3, -60.0)), "GEO_FORMS"),
        (oriented(1, 1, QUATERNION=(0, 2.0)), "GEO_FORMS"),
        *((oriented(1, 1, PIXDIM=(2, value)), "GEO_ZOOM") for value in (0.0, -5.0, nan, 1e30)),
        (oriented(0, 1, PIXDIM=(2, 4.0)), "GEO_ZOOM"),
        (oriented(0, 1, SROW=(3, 1e6)), "GEO_ORIGIN"),
        (zipped(patch(WHOLE, scans.XYZT_UNITS, 0)), "GEO_UNITS"),
        (zipped(nifti(head(), affine_of() * [[0.001], [0.001], [0.001], [1]], units="meter")), "GEO_UNITS"),
        (zipped(nifti(head(), affine_of() * [[1000], [1000], [1000], [1]], units="micron")), "GEO_UNITS"),
    ],
)
def test_odd_geometry_is_accepted_with_a_notice(content, code, tmp_path):
    volume = read(tmp_path, content)
    assert codes(volume) == [code]
    np.testing.assert_allclose(volume.spacing, 5.0, rtol=1e-6)


def test_a_small_difference_of_the_forms_is_none(tmp_path):
    assert codes(read(tmp_path, oriented(1, 1, SROW=(3, float(affine_of()[0, 3]) + 0.4)))) == []


def test_the_qform_serves_where_there_is_no_sform(tmp_path):
    for degrees in (0, 30, 75):
        angle = np.deg2rad(degrees)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        for mirror in (1, -1):
            affine = affine_of()
            affine[:3, :3] = turn @ affine[:3, :3] @ np.diag([mirror, 1, 1])
            volume = read(tmp_path, zipped(nifti(head(), affine, codes=(1, 0))))
            np.testing.assert_allclose(volume.affine, affine, atol=2e-5)


def test_no_orientation_is_accepted_on_request(tmp_path):
    volume = read(tmp_path, oriented(0, 0), accept_no_orientation=True)
    assert codes(volume) == ["GEO_NO_ORIENTATION"] and volume.orientation == "LAS"
    header = nib.Nifti1Image.from_bytes(gzip.decompress(oriented(0, 0))).header
    np.testing.assert_allclose(volume.affine, header.get_best_affine())


def test_a_little_shear_is_rounding(tmp_path):
    affine = affine_of()
    affine[0, 1] = 5e-4 * affine[1, 1]
    assert codes(read(tmp_path, zipped(nifti(head(), affine, codes=(0, 1))))) == []


def test_images_in_memory_get_the_same_checks():
    def image(data=None, affine=None, **kwargs):
        return nib.Nifti1Image(head() if data is None else data, affine_of() if affine is None else affine, **kwargs)

    bad = head().copy()
    bad[16, 18, 15] = nan
    for source, code in (
        (image(bad), "IN_NONFINITE"),
        (image(affine=np.diag([0.5, 5, 5, 1])), "GEO_FOV"),
        (image(head().astype(np.complex64)), "IN_DTYPE"),
        (image(head()[:, :, :1]), "IN_TOO_SMALL"),
        (image(np.zeros(scans.SHAPE, np.float32)), "IN_NO_SIGNAL"),
        (nib.Nifti1Image(head(), None), "GEO_NO_ORIENTATION"),
    ):
        with pytest.raises(CodeBrainError) as caught:
            read_volume(source)
        assert caught.value.code == code
    with pytest.raises(CodeBrainError) as caught:
        read_volume(head())
    assert caught.value.code == "CONFIG"


def test_an_image_of_another_format_in_memory():
    volume = read_volume(nib.MGHImage(head(), affine_of()))
    np.testing.assert_array_equal(volume.data, head())
    np.testing.assert_allclose(volume.affine, affine_of(), atol=1e-4)
    assert int(volume.header["sform_code"]) == 1


def test_geometry_of_hand_made_headers_never_crashes():
    """Any bytes in the geometry fields are judged or refused."""
    chance = np.random.default_rng(1)
    for _ in range(300):
        raw = bytearray(WHOLE[:348])
        for place in chance.integers(252, 328, 4):
            raw[place] = chance.integers(256)
        header = nib.Nifti1Header(bytes(raw), check=False)
        try:
            affine, _ = judge_geometry(header, scans.SHAPE, None, "t1", accept_no_orientation=True)
        except CodeBrainError as error:
            assert error.code.startswith("GEO_")
        else:
            assert np.isfinite(affine).all()


# --- Real scans ---


@pytest.mark.data
def test_real_scans_are_judged_sensibly(real_data):
    for path in sorted(real_data.glob("odd/*.nii.gz")):
        with pytest.raises(CodeBrainError) as caught:
            read_volume(path)
        assert caught.value.code == ("GEO_FOV" if "false-spacing" in path.name else "IN_TOO_SMALL")
    expected = {"lesion": "IN_NO_SIGNAL", "tissues": "IN_NOT_MRI"}
    for name, code in (("ms-19/lesion", "IN_NO_SIGNAL"), ("sri24/tissues", "IN_NOT_MRI")):
        with pytest.raises(CodeBrainError) as caught:
            read_volume(real_data / "studies" / f"{name}.nii.gz")
        assert caught.value.code == code == expected[name.split("/")[1]]


@pytest.mark.data
def test_real_scans_equal_what_nibabel_reads(real_data):
    for name in ("raw/ixi-002/PD", "raw/glioma-fg6692-native/T1", "odd/orientations/PIR"):
        path = real_data / f"{name}.nii.gz"
        volume, image = read_volume(path), nib.load(path)
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-6)
        np.testing.assert_allclose(volume.data, image.get_fdata(), rtol=1e-6)
