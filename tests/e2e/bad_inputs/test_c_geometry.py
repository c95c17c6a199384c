"""Rows C: shape and geometry. Where the voxels lie in the head, and scans on different grids."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from inputs import (
    accepted,
    accepts,
    as_parameters,
    forged,
    grid,
    is_refused,
    moved,
    nan,
    on_its_own_grid,
    refused,
    refuses,
    turned,
    voxels,
    whole,
)

import scans
from scans import affine_of, head, nifti, patch, zipped


def twice(data):
    return np.stack([data, data], -1)


def with_sform(change):
    """A scan with its qform as it was and another sform."""

    def make():
        content = whole()
        affine = change(affine_of())
        for index, value in enumerate(affine[:3].ravel()):
            content = patch(content, scans.SROW, value, index)
        return zipped(content)

    return make


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


def in_unit(unit, factor):
    """The same grid in another unit of length."""
    return lambda: zipped(nifti(head(), affine_of() * [[factor], [factor], [factor], [1]], units=unit))


ROWS = [
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
    accepted("C11", "no unit of length", forged(scans.XYZT_UNITS, 0), "GEO_UNITS"),
    accepted("C11", "metres", in_unit("meter", 1e-3), "GEO_UNITS"),
    accepted("C11", "micrometres", in_unit("micron", 1e3), "GEO_UNITS"),
    refused("C11", "a field of view of 8 mm", grid(spacing=0.25), "GEO_FOV"),
    refused("C11", "a field of view of 3 m", grid(spacing=100.0), "GEO_FOV"),
    accepted("C12", "qfac 0", qform_only((scans.PIXDIM, 0.0, 0)), "GEO_QFAC"),
    accepted("C12", "the origin a kilometre off", grid(change=moved(x=1e6)), "GEO_ORIGIN"),
]


@pytest.mark.parametrize("row", as_parameters(row for row in ROWS if row.code))
def test_refused(row, tmp_path, impute):
    refuses(row, tmp_path, impute)


@pytest.mark.parametrize("row", as_parameters(row for row in ROWS if not row.code))
def test_accepted(row, tmp_path, impute):
    accepts(row, tmp_path, impute)


@pytest.fixture(scope="module")
def partner(tmp_path_factory):
    """A good FLAIR that goes with every row."""
    return scans.write_scan(tmp_path_factory.mktemp("partner") / "flair.nii.gz", head("FLAIR"))


@pytest.fixture
def scan(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in" / "t1.nii.gz"


@pytest.mark.row("C4")
def test_no_orientation_is_accepted_on_request_and_stays_unsaid(scan, tmp_path, impute):
    scan.write_bytes(no_codes(0, 0)())
    out = tmp_path / "out"
    answer = impute("--t1", scan, "-o", out, "--want", "T2", "--accept-no-orientation")
    assert answer.status == 0, answer.err
    header = nib.load(out / "study_T2_imputed.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 0)
    assert "GEO_NO_ORIENTATION" in (out / "run.json").read_text()


@pytest.mark.row("C14")
@pytest.mark.row("C15")
@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("another shape", grid(shape=(34, 36, 30))),
        ("thicker slices", grid(spacing=(5, 5, 10), shape=(32, 36, 15))),
        ("one voxel off", grid(change=moved(x=5))),
        ("turned by 5 degrees", grid(change=turned(5))),
    ],
)
def test_grids_that_differ(what, make, scan, partner, tmp_path, impute):
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


@pytest.mark.row("C15")
def test_less_than_a_micrometre_apart_is_the_same_grid(scan, partner, tmp_path, impute):
    scan.write_bytes(grid(change=moved(x=5e-4))())
    answer = impute("--t1", scan, "--flair", partner, "--align", "none", "--want", "T2", "-o", tmp_path / "out")
    assert answer.status == 0, answer.err
