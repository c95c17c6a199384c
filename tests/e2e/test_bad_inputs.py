"""The specification of bad and odd inputs, typed at the command line: every row is one input.

A refused input ends with its code, its exit status and one line on stderr, without a traceback, without a
file in the output folder, and with every input byte unchanged. An accepted one is imputed on its own grid;
what is odd about it is a warning in run.json.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import scans
from scans import affine_of, head, nifti, patch, zipped

nan, inf = float("nan"), float("inf")


@dataclass(frozen=True)
class Row:
    """One input and what it must get."""

    number: str
    what: str
    make: Callable[[], bytes]
    code: str | None = None
    name: str = "t1.nii.gz"
    warning: str | None = None
    says: str = ""
    flags: tuple[str, ...] = ()
    status: int = 3

    def __str__(self) -> str:
        return f"{self.number} {self.what}"


def refused(number, what, make, code, **rest):
    return Row(number, what, make, code, **rest)


def accepted(number, what, make, warning=None, **rest):
    return Row(number, what, make, None, warning=warning, **rest)


def whole():
    return nifti(head())


def gz():
    return zipped(whole())


def forged(field_, value, index=0, *, zip_=True):
    """A whole scan with one header field changed."""

    def make():
        content = patch(whole(), field_, value, index)
        return zipped(content) if zip_ else content

    return make


def voxels(change, **kwargs):
    """A scan whose voxels were changed."""
    return lambda: zipped(nifti(change(head()), **kwargs))


def put(value, where):
    """Voxels set to ``value``: ``inside`` or ``outside`` the head, in one place."""

    def change(data):
        data = data.copy()
        data[(16, 18, 15) if where == "inside" else (0, 0, 0)] = value
        return data

    return change


def outside_to(value):
    return lambda data: np.where(data == 0, np.float32(value), data)


def flipped_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


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


def grid(spacing=5.0, shape=scans.SHAPE, change=None, **kwargs):
    """A scan on another grid; ``change`` edits the affine."""

    def make():
        affine = affine_of(spacing, shape)
        if change is not None:
            affine = change(affine)
        return zipped(nifti(head(shape=shape), affine, **kwargs))

    return make


def with_sform(change):
    """A scan with its qform as it was and another sform."""

    def make():
        content = whole()
        affine = change(affine_of())
        for index, value in enumerate(affine[:3].ravel()):
            content = patch(content, scans.SROW, value, index)
        return zipped(content)

    return make


def turned(degrees):
    def change(affine):
        angle = np.deg2rad(degrees)
        rotation = np.eye(4)
        rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        return rotation @ affine

    return change


def moved(x=0.0, y=0.0, z=0.0):
    def change(affine):
        affine = affine.copy()
        affine[:3, 3] += (x, y, z)
        return affine

    return change


def sheared(amount):
    def change(affine):
        affine = affine.copy()
        affine[0, 1] += amount * affine[1, 1]
        return affine

    return change


def qform_only(*fields):
    """A scan oriented by its qform alone, with fields changed."""

    def make():
        content = patch(whole(), scans.SFORM_CODE, 0)
        for field_, value, index in fields:
            content = patch(content, field_, value, index)
        return zipped(content)

    return make


def no_codes(*codes):
    return lambda: zipped(patch(patch(whole(), scans.QFORM_CODE, codes[0]), scans.SFORM_CODE, codes[1]))


def several_members():
    content = whole()
    return b"".join(zipped(content[at : at + 40_000]) for at in range(0, len(content), 40_000))


def as_is(data):
    return data


def too_fine(data):
    """Integers that float32 rounds."""
    return data * 1e6 + 1


def rgb():
    content = nifti(head().astype(np.uint8), dtype=np.uint8)
    return zipped(patch(patch(content, scans.DATATYPE, 128), scans.BITPIX, 24) + bytes(2 * head().size))


def intercept(value):
    return lambda: zipped(patch(patch(whole(), scans.SLOPE, 1.0), scans.INTERCEPT, value))


def nearly_empty(data):
    """Half a percent of the voxels."""
    data = np.zeros_like(data)
    data.flat[: data.size // 200] = 500
    return data


def twice(data):
    return np.stack([data, data], -1)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"

CONTAINER = [
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
]

INTENSITIES = [
    *(accepted("B1", np.dtype(t).name, voxels(as_is, dtype=t)) for t in (np.int64, np.uint64, np.float64)),
    accepted("B1", "values beyond float32's exact range", voxels(too_fine, dtype=np.int64), "IN_PRECISION"),
    refused("B2", "complex", voxels(as_is, dtype=np.complex64), "IN_DTYPE", says="magnitude"),
    refused("B3", "RGB", rgb, "IN_DTYPE"),
    accepted("B4", "scl_slope 0", forged(scans.SLOPE, 0.0)),
    accepted("B4", "scl_slope NaN", forged(scans.SLOPE, nan)),
    accepted("B4", "scl_slope Inf", forged(scans.SLOPE, inf), "IN_SCALING"),
    refused("B5", "slope fine, intercept NaN", intercept(nan), "IN_HEADER"),
    refused("B5", "slope fine, intercept Inf", intercept(inf), "IN_HEADER"),
    refused("B6", "slope 1e38", forged(scans.SLOPE, 1e38), "IN_NONFINITE"),
    accepted("B7", "negative intensities", voxels(lambda d: d - 100), "IN_NEGATIVE"),
    accepted("B7", "slope -1", forged(scans.SLOPE, -1.0), "IN_NEGATIVE"),
    accepted("B8", "NaN outside the head", voxels(outside_to(nan)), "IN_NAN"),
    refused("B8", "NaN inside the head", voxels(put(nan, "inside")), "IN_NONFINITE"),
    refused("B9", "Inf inside the head", voxels(put(inf, "inside")), "IN_NONFINITE"),
    refused("B9", "-Inf outside the head", voxels(put(-inf, "outside")), "IN_NONFINITE"),
    refused("B10", "all zero", voxels(np.zeros_like), "IN_NO_SIGNAL"),
    refused("B10", "constant", voxels(lambda d: np.full_like(d, 7)), "IN_NO_SIGNAL"),
    refused("B10", "less than 1 % nonzero", voxels(nearly_empty), "IN_NO_SIGNAL"),
]

GEOMETRY = [
    accepted("C1", "four-dimensional with one volume", voxels(lambda d: d[..., None])),
    refused("C1", "four-dimensional with two volumes", voxels(twice), "IN_NDIM", says="--volume"),
    accepted("C1", "one of two volumes chosen", voxels(twice), flags=("--volume", "1")),
    refused("C1", "five-dimensional", voxels(lambda d: twice(twice(d))), "IN_NDIM"),
    refused("C2", "two-dimensional", voxels(lambda d: d[:, :, 15]), "IN_TOO_SMALL"),
    refused("C2", "one voxel", voxels(lambda d: d[16:17, 18:19, 15:16]), "IN_TOO_SMALL"),
    refused("C2", "one slice", voxels(lambda d: d[:, :, 15:16]), "IN_TOO_SMALL"),
    accepted("C3", "prime sizes", grid(shape=(31, 37, 29))),
    refused("C4", "both codes 0", no_codes(0, 0), "GEO_NO_ORIENTATION", says="--accept-no-orientation"),
    refused("C4", "invalid codes", no_codes(99, -7), "GEO_NO_ORIENTATION"),
    accepted("C5", "qform and sform 5 mm apart", with_sform(moved(x=5)), "GEO_FORMS"),
    refused("C6", "impossible quaternion", qform_only((scans.QUATERNION, 2.0, 0)), "GEO_AFFINE"),
    refused("C7", "sform all zero", with_sform(lambda a: a * 0), "GEO_AFFINE"),
    refused("C7", "NaN in the sform", with_sform(lambda a: a + nan), "GEO_AFFINE"),
    refused("C8", "sheared affine", with_sform(sheared(0.05)), "GEO_AFFINE", says="resample"),
    accepted("C9", "oblique by 30 degrees", grid(change=turned(30))),
    refused("C10", "pixdim 0", qform_only((scans.PIXDIM, 0.0, 1)), "GEO_ZOOM"),
    refused("C10", "pixdim NaN", qform_only((scans.PIXDIM, nan, 2)), "GEO_ZOOM"),
    refused("C10", "pixdim 1e30", qform_only((scans.PIXDIM, 1e30, 3)), "GEO_ZOOM"),
    refused("C10", "pixdim negative", qform_only((scans.PIXDIM, -5.0, 1)), "GEO_ZOOM"),
    accepted("C10", "pixdim 0 beside a good sform", forged(scans.PIXDIM, 0.0, 1), "GEO_ZOOM"),
]


@pytest.fixture(scope="module")
def partner(tmp_path_factory):
    """A good FLAIR that goes with every row."""
    return scans.write_scan(tmp_path_factory.mktemp("partner") / "flair.nii.gz", head("FLAIR"))


@pytest.fixture
def scan(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "t1.nii.gz"


def digests(*files):
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def files_in(folder: Path):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) if folder.exists() else []


def is_refused(answer, row_code, status, out):
    assert (answer.code, answer.status) == (row_code, status), answer.err
    assert answer.err.strip().count("\n") == 0, "one line"
    assert "Traceback" not in answer.err + answer.out
    assert files_in(out) == []


@pytest.mark.parametrize("row", [r for r in CONTAINER + INTENSITIES + GEOMETRY if r.code], ids=str)
def test_refused(row, tmp_path, impute):
    path = tmp_path / "in" / row.name
    path.parent.mkdir()
    path.write_bytes(row.make())
    before, out = digests(path), tmp_path / "out"
    answer = impute("--t1", path, "-o", out, "--want", "T2", *row.flags)
    is_refused(answer, row.code, row.status, out)
    assert path.name in answer.err
    assert row.says.lower() in answer.err.lower()
    assert digests(path) == before


@pytest.mark.parametrize("row", [r for r in CONTAINER + INTENSITIES + GEOMETRY if not r.code], ids=str)
def test_accepted(row, tmp_path, impute):
    path = tmp_path / "in" / row.name
    path.parent.mkdir()
    path.write_bytes(row.make())
    before, out = digests(path), tmp_path / "out"
    answer = impute("--t1", path, "-o", out, "--want", "T2", *row.flags)
    assert answer.status == 0, answer.err
    warnings = {warning["code"] for warning in json.loads((out / "run.json").read_text())["warnings"]}
    assert warnings == set((row.warning or "").split())
    assert "Traceback" not in answer.err
    assert digests(path) == before
    on_its_own_grid(out / "study_T2_imputed.nii.gz", path)


def on_its_own_grid(imputed: Path, reference: Path):
    new, old = nib.load(imputed), nib.load(reference)
    assert new.shape[:3] == old.shape[:3]
    assert new.get_data_dtype() == np.float32
    assert np.isfinite(new.get_fdata()).all()
    for name in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(new.header[name], old.header[name], err_msg=name)


def test_a7_annex_link_whose_content_is_not_there(scan, tmp_path, impute):
    scan.symlink_to(".git/annex/objects/aa/bb/SHA256E-s123--00.nii.gz/SHA256E-s123--00.nii.gz")
    answer = impute("--t1", scan, "-o", tmp_path / "out")
    is_refused(answer, "IN_FORMAT", 3, tmp_path / "out")
    assert "annex" in answer.err


@pytest.mark.parametrize("codes", [(0, 0)])
def test_c4_no_orientation_is_accepted_on_request_and_stays_unsaid(codes, scan, tmp_path, impute):
    scan.write_bytes(no_codes(*codes)())
    out = tmp_path / "out"
    answer = impute("--t1", scan, "-o", out, "--want", "T2", "--accept-no-orientation")
    assert answer.status == 0, answer.err
    header = nib.load(out / "study_T2_imputed.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 0)
    assert "GEO_NO_ORIENTATION" in (out / "run.json").read_text()


def test_b10_a_quiet_partner_is_named(scan, partner, tmp_path, impute):
    scan.write_bytes(zipped(nifti(np.zeros(scans.SHAPE, np.float32))))
    answer = impute("--flair", partner, "--t1", scan, "-o", tmp_path / "out")
    is_refused(answer, "IN_NO_SIGNAL", 3, tmp_path / "out")
    assert scan.name in answer.err and partner.name not in answer.err


@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("another shape", grid(shape=(34, 36, 30))),
        ("thicker slices", grid(spacing=(5, 5, 10), shape=(32, 36, 15))),
        ("one voxel off", grid(change=moved(x=5))),
        ("turned by 5 degrees", grid(change=turned(5))),
    ],
)
def test_c14_c15_grids_that_differ(what, make, scan, partner, tmp_path, impute):
    scan.write_bytes(make())
    words = (
        "--t1",
        scan,
        "--flair",
        partner,
        "--want",
        "T2",
        "--ref",
        "FLAIR",
    )
    answer = impute(*words, "-o", tmp_path / "refused", "--align", "none")
    is_refused(answer, "GEO_MISMATCH", 3, tmp_path / "refused")
    for shape in (nib.load(scan).shape, nib.load(partner).shape):
        assert str(shape[0]) in answer.err, "both shapes are printed"
    answer = impute(*words, "-o", tmp_path / "out")
    assert answer.status == 0, answer.err
    on_its_own_grid(tmp_path / "out" / "study_T2_imputed.nii.gz", partner)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    movement = {row["contrast"]: row["alignment"] for row in run["inputs"]}
    assert movement["FLAIR"] is None and movement["T1"] is not None


def test_c15_less_than_a_micrometre_apart_is_the_same_grid(scan, partner, tmp_path, impute):
    scan.write_bytes(grid(change=moved(x=5e-4))())
    answer = impute("--t1", scan, "--flair", partner, "--align", "none", "--want", "T2", "-o", tmp_path / "out")
    assert answer.status == 0, answer.err


# --- D: modalities, paths, options ---


@pytest.fixture
def study(tmp_path):
    return scans.write_study(tmp_path / "in", ("T1", "FLAIR"))


def test_d1_an_unknown_contrast_with_a_guess(study, tmp_path, impute):
    for words in (("--input", f"FLAIRR={study['FLAIR']}"), ("--t1", study["T1"], "--want", "FLAIRR")):
        answer = impute(*words, "-o", tmp_path / "out")
        is_refused(answer, "MOD_UNKNOWN", 2, tmp_path / "out")
        assert "Did you mean FLAIR?" in answer.err


@pytest.mark.parametrize("alias", ["t1ce", "T1C", "t1gd", "T1WKS", "T1Gd"])
def test_d1_aliases_in_any_case(alias, study, tmp_path, impute):
    answer = impute("--input", f"{alias}={study['T1']}", "--want", "t2w", "-o", tmp_path / "out", "--json")
    assert answer.status == 0, answer.err
    assert [row["contrast"] for row in answer.json["inputs"]] == ["T1Gd"]


def test_d2_a_contrast_twice(study, tmp_path, impute):
    for words in (
        ("--t1", study["T1"], "--t1", study["FLAIR"]),
        ("--t1", study["T1"], "--input", f"t1w={study['FLAIR']}"),
    ):
        answer = impute(*words, "-o", tmp_path / "out")
        is_refused(answer, "MOD_DUPLICATE", 2, tmp_path / "out")


@pytest.mark.parametrize("how", ["path", "link", "copy"])
def test_d2_the_same_scan_for_two_contrasts(how, study, tmp_path, impute):
    other = tmp_path / "in" / "other.nii.gz"
    if how == "path":
        other = tmp_path / "in" / ".." / "in" / "T1.nii.gz"
    elif how == "link":
        os.link(study["T1"], other)
    else:
        other.write_bytes(study["T1"].read_bytes())
    answer = impute("--t1", study["T1"], "--t2", other, "-o", tmp_path / "out")
    is_refused(answer, "MOD_SAME_FILE", 3, tmp_path / "out")


def test_d4_nothing_is_missing(tmp_path, impute):
    everything = scans.write_study(tmp_path / "in", ("T1", "T2", "PD", "FLAIR", "T1Gd"))
    words = [word for contrast, path in everything.items() for word in (f"--{contrast.lower()}", path)]
    answer = impute(*words, "-o", tmp_path / "out")
    assert answer.status == 0
    assert "Nothing to impute" in answer.out
    assert not (tmp_path / "out").exists()


def test_d4_nothing_is_given(tmp_path, impute):
    (tmp_path / "in").mkdir()
    for words in ((), (tmp_path / "in",)):
        answer = impute(*words, "-o", tmp_path / "out")
        is_refused(answer, "MOD_NONE", 2, tmp_path / "out")


def test_d5_a_target_that_the_model_does_not_know(study, tmp_path, impute):
    from codebrain.models import build_model, save_model
    from codebrain.vocabulary import ModalitySet, Preparation

    modalities = ModalitySet.parse("T1,T2")
    model = build_model("codebrain", modalities, {"width": 2, "depth": 1})
    save_model(model, tmp_path / "model", preparation=Preparation(modalities))
    words = ("--want", "PD", "-o", tmp_path / "out", "--model", tmp_path / "model")
    answer = impute("--t1", study["T1"], *words)
    is_refused(answer, "MOD_TARGET_UNKNOWN", 3, tmp_path / "out")
    assert "T1, T2" in answer.err


def test_d5_a_target_that_is_also_given(study, tmp_path, impute):
    words = (
        "--t1",
        study["T1"],
        "--flair",
        study["FLAIR"],
        "--want",
        "FLAIR",
    )
    answer = impute(*words, "-o", tmp_path / "refused")
    is_refused(answer, "MOD_TARGET_GIVEN", 3, tmp_path / "refused")
    answer = impute(*words, "-o", tmp_path / "out", "--evaluate", "--json")
    assert answer.status == 0, answer.err
    assert {row["metric"] for row in answer.json["scores"]} >= {"PSNR", "SSIM", "MAE"}


def test_d8_the_output_would_be_among_the_inputs(study, tmp_path, impute):
    before = digests(*study.values())
    for words in (
        ("--t1", study["T1"], "-o", tmp_path / "in"),
        (tmp_path / "in", "-o", tmp_path / "in" / "out"),
    ):
        answer = impute(*words, "--quiet")
        assert (answer.code, answer.status) == ("OUT_CLOBBER", 4)
    assert digests(*study.values()) == before
    assert len(files_in(tmp_path / "in")) == len(study)


# --- E: output ---


def test_e1_an_output_that_cannot_be_written_is_found_first(study, tmp_path, monkeypatch, impute):
    monkeypatch.setattr("codebrain.imaging.study.Study.read", lambda *_, **__: pytest.fail("the input was read"))
    no_parent = tmp_path / "no" / "such" / "parent"
    a_file = tmp_path / "file"
    a_file.write_text("mine")
    for out in (no_parent, a_file, Path("/proc/codebrain-out")):
        answer = impute("--t1", study["T1"], "-o", out)
        assert (answer.code, answer.status) == ("OUT_PERMISSION", 4), answer.err
    assert a_file.read_text() == "mine" and not no_parent.parent.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_e2_a_disk_that_fills_up_keeps_the_older_results(number, study, tmp_path, monkeypatch, impute):
    words = ("--t1", study["T1"], "--want", "T2", "-o", tmp_path / "out")
    assert impute(*words).status == 0
    before = digests(*(tmp_path / "out" / name for name in files_in(tmp_path / "out")))
    real, calls = os.fsync, []

    def fails_later(handle):
        calls.append(handle)
        if len(calls) > 3:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fails_later)
    answer = impute(*words, "--overwrite")
    assert (answer.code, answer.status) == ("OUT_SPACE", 4), answer.err
    assert digests(*(tmp_path / "out" / name for name in files_in(tmp_path / "out"))) == before


def test_e3_results_are_not_overwritten_unasked_and_half_runs_are_redone(study, tmp_path, impute):
    out = tmp_path / "out"
    words = ("--t1", study["T1"], "--want", "T2", "-o", out)
    assert impute(*words).status == 0
    before = digests(*(out / name for name in files_in(out)))
    answer = impute(*words)
    assert (answer.code, answer.status) == ("OUT_EXISTS", 4)
    assert digests(*(out / name for name in files_in(out))) == before
    assert impute(*words, "--overwrite").status == 0

    (out / "run.json").unlink()
    (out / "study_T2_imputed.nii.gz").write_bytes(b"half a fi")
    assert impute(*words).status == 0
    assert nib.load(out / "study_T2_imputed.nii.gz").shape == scans.SHAPE


# --- F: models ---


class Canary:
    """Unpickling this would leave a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def pickled(canary):
    return pickle.dumps(Canary(canary))


def spoiled(what, code, spoil):
    """``spoil`` gets the model folder and a path that must stay free."""
    return pytest.param(spoil, code, id=what)


SHORT, PERMUTED = ["T1", "T2", "PD", "FLAIR"], ["T2", "T1", "PD", "FLAIR", "T1Gd"]
WIDER = {"width": 3, "depth": 1}
JPEG = b"\xff\xd8\xff\xe0" + bytes(999)


def weights_of(folder):
    return folder / "model.safetensors"


def rewrite(folder, change):
    weights_of(folder).write_bytes(change(weights_of(folder).read_bytes()))


def reconfigure(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def prepare_otherwise(folder):
    text = (folder / "preparation.json").read_text()
    (folder / "preparation.json").write_text(text.replace('"percentile"', '"min_max"'))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        spoiled("F1 cut", "CKPT_CORRUPT", lambda f, c: rewrite(f, lambda b: b[: len(b) // 2])),
        spoiled("F1 bit flipped", "CKPT_CORRUPT", lambda f, c: rewrite(f, flipped_bit)),
        spoiled("F1 empty", "CKPT_CORRUPT", lambda f, c: rewrite(f, lambda b: b"")),
        spoiled("F1 a JPEG", "CKPT_CORRUPT", lambda f, c: rewrite(f, lambda b: JPEG)),
        spoiled("F2 pickle under another name", "CKPT_UNSAFE", lambda f, c: rewrite(f, lambda b: pickled(c))),
        spoiled("F5 other modalities", "CKPT_MISMATCH", lambda f, c: reconfigure(f, modalities=SHORT)),
        spoiled("F5 permuted modalities", "CKPT_MISMATCH", lambda f, c: reconfigure(f, modalities=PERMUTED)),
        spoiled("F5 other normalisation", "CKPT_MISMATCH", lambda f, c: prepare_otherwise(f)),
        spoiled("F5 other sizes", "CKPT_MISMATCH", lambda f, c: reconfigure(f, settings=WIDER)),
    ],
)
def test_f1_f2_f5_model_folders(spoil, code, study, tmp_path, tiny_model, impute):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spoil(folder, tmp_path / "canary")
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--model", folder)
    is_refused(answer, code, 5, tmp_path / "out")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.ckpt", "m.pkl", "m.npz", "m.safetensors", "m.bin"])
def test_f2_a_pickle_is_never_loaded(name, study, tmp_path, impute):
    (tmp_path / name).write_bytes(pickled(tmp_path / "canary"))
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--model", tmp_path / name)
    is_refused(answer, "CKPT_UNSAFE", 5, tmp_path / "out")
    assert not (tmp_path / "canary").exists()


def test_f5_permuted_modalities_are_named(study, tmp_path, tiny_model, impute):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    reconfigure(folder, modalities=PERMUTED)
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--model", folder)
    assert "modalities" in answer.err and "T2,T1,PD" in answer.err


def test_json_says_the_same(tmp_path, scan, impute):
    scan.write_bytes(b"")
    answer = impute("--t1", scan, "-o", tmp_path / "out", "--json")
    error = answer.json["error"]
    assert (error["code"], error["exit"]) == ("IN_EMPTY", 3)
    assert error["message"] in answer.err
