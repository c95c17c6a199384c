"""Rows B: types and intensities. What the numbers of a scan can be, and what the scanner's scale must not change."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from inputs import (
    accepted,
    accepts,
    as_is,
    as_parameters,
    forged,
    inf,
    is_refused,
    nan,
    refused,
    refuses,
    voxels,
    whole,
)

import scans
from scans import head, nifti, patch, zipped


def put(value, where):
    """Voxels set to ``value``: ``inside`` or ``outside`` the head, in one place."""

    def change(data):
        data = data.copy()
        data[(16, 18, 15) if where == "inside" else (0, 0, 0)] = value
        return data

    return change


def outside_to(value):
    return lambda data: np.where(data == 0, np.float32(value), data)


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


def float128():
    """The head in IEEE quadruple precision, put together bit by bit: 1 + n / 1024 times 2^9 for grey value n."""
    inside = head() > 0
    grey = np.round(head()).astype(np.uint64)
    stored = np.zeros(head().shape, np.dtype([("low", "<u8"), ("high", "<u8")]))
    stored["high"] = np.where(inside, np.uint64((0x3FFF + 9) << 48) + (grey << np.uint64(38)), np.uint64(0))
    content = patch(patch(whole()[:352], scans.DATATYPE, 1536), scans.BITPIX, 128)
    return zipped(content + stored.tobytes("F"))


def labels(data):
    return np.digitize(data, [1, 300, 500])


def z_scored(data):
    inside = data[data > 0]
    return np.where(data > 0, (data - inside.mean()) / inside.std(), 0)


ROWS = [
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
    accepted("B12", "z-scored", voxels(z_scored), "IN_NEGATIVE"),
    accepted("B12", "scaled to [0, 1]", voxels(lambda d: d / d.max())),
    accepted("B12", "uint8", voxels(lambda d: d / d.max() * 255, dtype=np.uint8)),
    accepted("B12", "saturated in a twentieth of the head", voxels(lambda d: np.minimum(d, 500)), "IN_SATURATED"),
    refused("B13", "a label map", voxels(labels, dtype=np.int16), "IN_NOT_MRI"),
    refused("B13", "a label map of floats", voxels(labels), "IN_NOT_MRI"),
]


@pytest.mark.parametrize("row", as_parameters(row for row in ROWS if row.code))
def test_refused(row, tmp_path, impute):
    refuses(row, tmp_path, impute)


@pytest.mark.parametrize("row", as_parameters(row for row in ROWS if not row.code))
def test_accepted(row, tmp_path, impute):
    accepts(row, tmp_path, impute)


@pytest.mark.row("B10")
def test_a_quiet_partner_is_named(tmp_path, impute):
    partner = scans.write_scan(tmp_path / "flair.nii.gz", head("FLAIR"))
    scan = tmp_path / "t1.nii.gz"
    scan.write_bytes(zipped(nifti(np.zeros(scans.SHAPE, np.float32))))
    answer = impute("--flair", partner, "--t1", scan, "-o", tmp_path / "out")
    is_refused(answer, "IN_NO_SIGNAL", 3, tmp_path / "out")
    assert scan.name in answer.err and partner.name not in answer.err


@pytest.mark.row("B1")
def test_float128_which_nibabel_cannot_read_everywhere(tmp_path, impute):
    (tmp_path / "t1.nii.gz").write_bytes(float128())
    answer = impute("--t1", tmp_path / "t1.nii.gz", "--want", "T2", "-o", tmp_path / "out")
    assert answer.status == 0, answer.err
    assert nib.load(tmp_path / "out" / "study_T2_imputed.nii.gz").shape == scans.SHAPE


def imputed(data, place, impute, *flags):
    """T2 in [0, 1] from a T1."""
    place.mkdir()
    scans.write_scan(place / "t1.nii.gz", data.astype(np.float32))
    out = place / "out"
    answer = impute("--t1", place / "t1.nii.gz", "--want", "T2", "--intensity", "unit", "-o", out, *flags)
    assert answer.status == 0, answer.err
    return nib.load(out / "study_T2_imputed.nii.gz").get_fdata()


@pytest.mark.row("B12")
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("another unit", lambda d: 37.5 * d),
        ("[0, 1]", lambda d: d / d.max()),
        ("an offset inside", lambda d: 2 * d + 100),
        ("z-scored, air moved too", lambda d: (d - d.mean()) / d.std()),
    ],
)
def test_the_scanner_s_scale_does_not_matter(what, change, tmp_path, impute):
    before, after = (imputed(d, tmp_path / n, impute) for n, d in (("a", head()), ("b", change(head()))))
    assert np.abs(before - after).max() < 1e-3


@pytest.mark.row("B11")
def test_one_hot_voxel_changes_the_score_by_less_than_a_tenth_of_a_decibel(tmp_path, impute):
    """One voxel 10^6 times the rest, in the T1 that is imputed from and in the T2 that is scored against."""
    scores = {}
    for name in ("clean", "hot"):
        (tmp_path / name).mkdir()
        words = []
        for contrast in ("T1", "T2"):
            data = head(contrast)
            if name == "hot":
                data[16, 18, 15] = 1e6 * data.max()
            path = scans.write_scan(tmp_path / name / f"{contrast}.nii.gz", data)
            words += [f"--{contrast.lower()}", path]
        answer = impute(*words, "--want", "T2", "--evaluate", "-o", tmp_path / name / "out", "--json")
        assert answer.status == 0, answer.err
        scores[name] = next(row["value"] for row in answer.json["scores"] if row["metric"] == "PSNR")
    assert abs(scores["clean"] - scores["hot"]) < 0.1, json.dumps(scores)
