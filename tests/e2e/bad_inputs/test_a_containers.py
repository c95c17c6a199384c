"""Rows A: what a file can be. A damaged, foreign or lying file is refused before a voxel of it is believed."""

from __future__ import annotations

import gzip
import os
import socket
import struct

import nibabel as nib
import numpy as np
import pytest
from inputs import (
    HTML,
    accepted,
    accepts,
    as_parameters,
    files_in,
    flipped_bit,
    forged,
    gz,
    inf,
    is_refused,
    nan,
    refused,
    refuses,
    whole,
)

import scans
from codebrain.errors import CodeBrainError
from codebrain.imaging.volume import read_volume
from scans import affine_of, head, nifti, patch, zipped


def bomb_stream():
    """2000 x 2000 x 2000 zeros, honestly there: 250 gzip members of 32 MB of zeros."""
    header = patch(whole(), scans.DATATYPE, 4)[:352]
    for axis in (1, 2, 3):
        header = patch(header, scans.DIM, 2000, axis)
    return zipped(header) + gzip.compress(bytes(32_000_000), 1, mtime=0) * 500


def dims(*sizes):
    def make():
        content = whole()
        for axis, size in enumerate(sizes, start=1):
            content = patch(content, scans.DIM, size, axis)
        return content

    return make


def several_members():
    content = whole()
    return b"".join(zipped(content[at : at + 40_000]) for at in range(0, len(content), 40_000))


def extended(esize, *, flag=1, content=b"Jane Doe 1961-02-03"):
    """A scan with a header extension of comment type that says its size is ``esize``."""

    def make():
        extension = struct.pack("<ii", esize, 6) + content.ljust(56, b"\0")
        begin = patch(whole()[:348], scans.VOX_OFFSET, 352.0 + len(extension))
        return zipped(begin + bytes([flag, 0, 0, 0]) + extension + whole()[352:])

    return make


def nifti2(dimension=None):
    content = bytearray(nifti(head(), cls=nib.Nifti2Image))
    if dimension is not None:
        content[24:32] = struct.pack("<q", dimension)
    return zipped(bytes(content))


MAGIC, SIZE_OF_HEADER = (344, "4s"), (0, "i")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
NRRD = b"NRRD0005\n# Complete NRRD file format specification at:\n"

ROWS = [
    refused("A1", "gzip cut in half", lambda: gz()[: len(gz()) // 2], "IN_TRUNCATED"),
    refused("A2", "the last 8 bytes missing", lambda: gz()[:-8], "IN_TRUNCATED"),
    refused("A2", "wrong CRC", lambda: gz()[:-8] + b"\0\0\0\0" + gz()[-4:], "IN_CHECKSUM"),
    refused("A2", "wrong length in the trailer", lambda: gz()[:-4] + b"\1\0\0\0", "IN_CHECKSUM"),
    refused("A3", "one bit flipped mid-stream", lambda: flipped_bit(gz()), "IN_CHECKSUM"),
    accepted("A4", "garbage after the gzip member", lambda: gz() + b"garbage", "IN_TRAILING"),
    accepted("A4", "several gzip members", several_members),
    refused("A5", "0 bytes", lambda: b"", "IN_EMPTY"),
    refused("A5", "0 bytes, plain", lambda: b"", "IN_EMPTY", name="t1.nii"),
    refused("A5", "header only", lambda: whole()[:348], "IN_TRUNCATED", name="t1.nii"),
    refused("A5", "plain file cut", lambda: whole()[:-5000], "IN_TRUNCATED", name="t1.nii"),
    refused("A6", "plain NIfTI named .nii.gz", whole, "IN_FORMAT", says="rename"),
    refused("A6", "gzip named .nii", gz, "IN_FORMAT", name="t1.nii", says="rename"),
    refused("A7", "an HTML error page", lambda: HTML, "IN_FORMAT"),
    refused("A7", "a git-LFS pointer", lambda: LFS, "IN_FORMAT", says="LFS pointer"),
    refused("A8", "32767 voxels a side, plain", dims(32767, 32767, 32767), "IN_TOO_BIG", name="t1.nii"),
    refused("A8", "32767 voxels a side, zipped", lambda: zipped(dims(32767, 32767, 32767)()), "IN_TOO_BIG"),
    refused("A10", "8 GB of zeros in a few MB", bomb_stream, "IN_TOO_BIG", says="max-voxels"),
    *(refused("A11", f"dim[0] = {n}", forged(scans.DIM, n), "IN_HEADER", says="dim") for n in (0, -1, 200)),
    *(refused("A11", f"dim[1] = {n}", forged(scans.DIM, n, 1), "IN_HEADER", says="dim") for n in (0, -32)),
    refused("A12", "vox_offset 0", forged(scans.VOX_OFFSET, 0.0), "IN_HEADER", says="vox_offset"),
    *(
        refused("A13", f"vox_offset {value}", forged(scans.VOX_OFFSET, value), "IN_HEADER", says="vox_offset")
        for value in (nan, inf, 1e9, -400.0, 100.0)
    ),
    refused("A9", "NIfTI-2, 2^40 voxels along an axis", lambda: nifti2(2**40), "IN_TOO_BIG"),
    refused("A9", "NIfTI-2, 2^62 voxels along an axis", lambda: nifti2(2**62), "IN_TOO_BIG"),
    refused("A9", "dim[0] = 200", forged(scans.DIM, 200), "IN_HEADER", says="dim"),
    accepted("A14", "sizeof_hdr wrong", forged(SIZE_OF_HEADER, 12345), "IN_HEADER_SIZE"),
    accepted("A14", "bitpix does not fit datatype", forged(scans.BITPIX, 8), "IN_BITPIX"),
    refused("A15", "magic wrong", forged(MAGIC, b"abc\0"), "IN_FORMAT", says="magic"),
    refused("A15", "datatype 9999", forged(scans.DATATYPE, 9999), "IN_DTYPE"),
    refused("A15", "datatype 1, bits", forged(scans.DATATYPE, 1), "IN_DTYPE"),
    *(refused("A16", f"esize {n}", extended(n), "IN_HEADER", says="esize") for n in (0, -16, 2**31 - 1)),
    accepted("A16", "a flag without an extension", forged((348, "B"), 1)),
    accepted("A17", "an extension with comments", extended(64)),
    accepted("A18", "NIfTI-2", nifti2),
    refused("A19", "NRRD", lambda: NRRD, "IN_FORMAT", name="t1.nrrd", says="SimpleITK"),
    refused("A19", "MINC", lambda: b"CDF\x01" + bytes(500), "IN_FORMAT", name="t1.mnc", says="mnc2nii"),
    refused("A19", "MINC 2", lambda: b"\x89HDF\r\n\x1a\n" + bytes(500), "IN_FORMAT", name="t1.mnc", says="mnc2nii"),
    refused(
        "A19",
        "Analyze 7.5 in one file",
        forged(MAGIC, bytes(4), zip_=False),
        "IN_FORMAT",
        name="t1.nii",
        says="Analyze",
    ),
]


@pytest.mark.parametrize("row", as_parameters(row for row in ROWS if row.code))
def test_refused(row, tmp_path, impute):
    refuses(row, tmp_path, impute)


@pytest.mark.parametrize("row", as_parameters(row for row in ROWS if not row.code))
def test_accepted(row, tmp_path, impute):
    accepts(row, tmp_path, impute)


@pytest.mark.row("A7")
def test_an_annex_link_whose_content_is_not_there(tmp_path, impute):
    scan = tmp_path / "t1.nii.gz"
    scan.symlink_to(".git/annex/objects/aa/bb/SHA256E-s123--00.nii.gz/SHA256E-s123--00.nii.gz")
    answer = impute("--t1", scan, "-o", tmp_path / "out")
    is_refused(answer, "IN_FORMAT", 3, tmp_path / "out")
    assert "annex" in answer.err


@pytest.mark.row("A17")
def test_nobody_s_name_reaches_an_output(tmp_path, impute):
    content = bytearray(gzip.decompress(extended(64)()))
    content[14 : 14 + 8] = b"Jane Doe"  # db_name
    content[148 : 148 + 19] = b"Jane Doe 1961-02-03"  # descrip
    (tmp_path / "t1.nii.gz").write_bytes(zipped(bytes(content)))
    out = tmp_path / "out"
    assert impute("--t1", tmp_path / "t1.nii.gz", "--want", "T2", "-o", out).status == 0
    for name in files_in(out):
        written = (out / name).read_bytes()
        assert b"Jane" not in (gzip.decompress(written) if name.suffix == ".gz" else written), name


def image_of(make, tmp_path, impute, name):
    """The imputed voxels of a scan under a name; ``make`` writes it to a path."""
    (tmp_path / name).mkdir()
    make(tmp_path / name / name)
    out = tmp_path / f"out {name}"
    answer = impute("--t1", tmp_path / name / name, "--want", "T2", "-o", out)
    assert answer.status == 0, answer.err
    return nib.load(out / "study_T2_imputed.nii.gz")


def as_pair(path, cls=nib.Nifti1Pair, order="<"):
    image = cls(head(), affine_of(), cls.header_class(endianness=order))
    image.set_sform(affine_of(), 1)
    image.set_qform(affine_of(), 1)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


@pytest.mark.row("A18")
@pytest.mark.row("A19")
def test_the_same_scan_in_any_container_gives_the_same_image(tmp_path, impute):
    twin = image_of(scans.write_scan, tmp_path, impute, "twin.nii.gz")
    for name, make in (
        ("big.nii", lambda path: as_pair(path, nib.Nifti1Image, ">")),
        ("two.nii.gz", lambda path: path.write_bytes(nifti2())),
        ("pair.img", as_pair),
        ("pair.hdr", lambda path: as_pair(path.with_suffix(".img"), nib.Nifti2Pair, ">")),
        ("free.mgz", lambda path: nib.save(nib.MGHImage(head(), affine_of()), path)),
    ):
        other = image_of(make, tmp_path, impute, name)
        np.testing.assert_array_equal(other.get_fdata(), twin.get_fdata(), err_msg=name)
        np.testing.assert_allclose(other.affine, twin.affine)


@pytest.mark.row("A19")
@pytest.mark.parametrize("name", ["t1.img", "t1.hdr"])
def test_an_analyze_pair_is_named(name, tmp_path, impute):
    nib.save(nib.Spm99AnalyzeImage(head(), affine_of()), tmp_path / "t1.img")
    answer = impute("--t1", tmp_path / name, "-o", tmp_path / "out")
    is_refused(answer, "IN_FORMAT", 3, tmp_path / "out")
    assert "Analyze" in answer.err


@pytest.mark.row("A20")
@pytest.mark.parametrize("kind", ["FIFO", "folder", "socket", "/dev/zero", "nothing"])
def test_what_is_not_a_file_is_refused_and_never_waited_for(kind, tmp_path, impute):
    path = tmp_path / "t1.nii"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind.startswith("/"):
        path = kind
    answer = impute("--t1", path, "-o", tmp_path / "out")
    is_refused(answer, "IN_NOT_A_FILE", 3, tmp_path / "out")


@pytest.mark.row("A20")
def test_a_file_that_must_not_be_read(tmp_path, monkeypatch):
    from codebrain.imaging import _container

    path = scans.write_scan(tmp_path / "t1.nii.gz")

    def forbidden(*_):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as machine:
        machine.setattr(_container.Path, "open", forbidden)
        with pytest.raises(CodeBrainError) as caught:
            read_volume(path)
    assert (caught.value.code, caught.value.exit_code) == ("IN_PERMISSION", 3)


@pytest.mark.row("A21")
def test_a_file_that_grows_while_it_is_read(tmp_path, monkeypatch, impute):
    from codebrain.imaging import volume

    path, real = scans.write_scan(tmp_path / "t1.nii.gz"), volume.judge_header

    def meanwhile(*args, **kwargs):
        with path.open("ab") as stream:
            stream.write(b"more")
        return real(*args, **kwargs)

    monkeypatch.setattr(volume, "judge_header", meanwhile)
    is_refused(impute("--t1", path, "-o", tmp_path / "out"), "IN_CHANGED", 3, tmp_path / "out")


@pytest.mark.row("A5")
def test_json_says_the_same(tmp_path, impute):
    scan = tmp_path / "t1.nii.gz"
    scan.write_bytes(b"")
    answer = impute("--t1", scan, "-o", tmp_path / "out", "--json")
    error = answer.json["error"]
    assert (error["code"], error["exit"]) == ("IN_EMPTY", 3)
    assert error["message"] in answer.err
