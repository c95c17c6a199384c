"""Stacks of slices: what belongs together, and what is missing, twice, mixed or nowhere."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import scans
import series
from codebrain.errors import CodeBrainError
from codebrain.imaging.dicom.find import only_series
from codebrain.imaging.dicom.series import find_series, judge_series
from codebrain.imaging.dicom.store import open_store


def stacks(folder):
    return find_series(open_store(folder))


def judged(made, folder):
    found = only_series(series.write(folder, made))
    return found, judge_series(found, max_voxels=2**28)


def refused(made, folder):
    with pytest.raises(CodeBrainError) as caught:
        judged(made, folder)
    return caught.value


def test_the_layout_is_where_the_array_lay(tmp_path):
    data, affine = series.axial()
    for n, oblique in enumerate((affine, series.oblique(affine))):
        found, notices = judged(series.slices(data, oblique), tmp_path / str(n))
        np.testing.assert_allclose(found.layout.affine, oblique, atol=1e-4)
        assert [plane.file for plane in found.layout.planes] == [f"{k:04d}.dcm" for k in range(30)]
        assert notices == ()


@pytest.mark.row("G1")
def test_g1_a_missing_slice_is_named_by_its_place(tmp_path):
    made = series.slices()
    del made[10]
    error = refused(made, tmp_path)
    assert error.code == "DCM_GAP"
    assert "-27.50 to -17.50 mm" in str(error) and "5.000 mm" in str(error)


@pytest.mark.row("G1")
def test_g1_uneven_spacing(tmp_path):
    made = series.slices()
    made[10].ImagePositionPatient[2] = float(made[10].ImagePositionPatient[2]) + 1.5
    error = refused(made, tmp_path)
    assert error.code == "DCM_GAP" and "not evenly spaced" in str(error)


def test_rounded_positions_are_even_enough(tmp_path):
    """Three decimals, as some scanners write them, of slices 1.2 mm apart at an angle."""
    affine = scans.affine_of((5, 5, 1.23456))
    data, affine = series.axial(scans.head(), series.oblique(affine, (1, 2, 3)))
    made = series.slices(data, affine)
    for ds in made:
        ds.ImagePositionPatient = [f"{float(v):.3f}" for v in ds.ImagePositionPatient]
    assert judged(made, tmp_path)[1] == ()


def test_angles_that_jitter_are_one_orientation(tmp_path):
    """Around any value to which one could round."""
    data, affine = series.axial()
    made = series.slices(data, series.oblique(affine, (5.7392, 0, 0)))  # its cosine is 0.99499
    for k, ds in enumerate(made):
        ds.ImageOrientationPatient = [float(v) + (k % 2) * 1e-5 for v in ds.ImageOrientationPatient]
    assert len(judged(made, tmp_path)[0].layout.planes) == 30


@pytest.mark.row("G1")
def test_g1_a_duplicate_with_the_same_pixels_is_left_out(tmp_path):
    made = series.slices()
    again = copy.deepcopy(made[7])
    again.SOPInstanceUID = "1.2.3.4"
    found, notices = judged([*made, again], tmp_path)
    assert len(found.layout.planes) == 30
    assert [notice.code for notice in notices] == ["DCM_DUPLICATE"] and "left out (1)" in notices[0].message


@pytest.mark.row("G1")
def test_g1_a_duplicate_with_other_pixels_is_refused(tmp_path):
    made = series.slices()
    again = copy.deepcopy(made[7])
    again.SOPInstanceUID, again.PixelData = "1.2.3.4", made[8].PixelData
    error = refused([*made, again], tmp_path)
    assert error.code == "DCM_DUPLICATE" and "-37.50 mm" in str(error)


def test_a_time_series_is_refused(tmp_path):
    later = series.slices(series.axial()[0] + 1, series.axial()[1])
    for k, ds in enumerate(later):
        ds.SOPInstanceUID = f"1.2.3.{k + 1}"
    error = refused([*series.slices(), *later], tmp_path)
    assert error.code == "DCM_DUPLICATE" and "30 slices" in str(error)


@pytest.mark.row("G3")
@pytest.mark.parametrize("keyword", ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"])
@pytest.mark.parametrize("places", [slice(None), slice(3, 4)])
def test_g3_no_geometry(keyword, places, tmp_path):
    made = series.slices()
    for ds in made[places]:
        delattr(ds, keyword)
    with pytest.raises(CodeBrainError) as caught:
        for found in stacks(series.write(tmp_path, made)):
            judge_series(found, max_voxels=2**28)
    assert caught.value.code in ("DCM_GEOMETRY", "DCM_GAP", "IN_TOO_SMALL")
    if places == slice(None):
        assert (caught.value.code, caught.value.field) == ("DCM_GEOMETRY", keyword)


@pytest.mark.row("G3")
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("ImageOrientationPatient", [2, 0, 0, 0, 1, 0]),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        ("PixelSpacing", [0, 5]),
        ("PixelSpacing", [5, -5]),
    ],
)
def test_g3_impossible_geometry(keyword, value, tmp_path):
    error = refused(series.slices(**{keyword: value}), tmp_path)
    assert (error.code, error.field) == ("DCM_GEOMETRY", keyword)


def test_slices_that_are_shifted_against_each_other(tmp_path):
    made = series.slices()
    for k, ds in enumerate(made):
        ds.ImagePositionPatient[0] = float(ds.ImagePositionPatient[0]) + k
    error = refused(made, tmp_path)
    assert error.code == "DCM_GEOMETRY" and "29.00 mm" in str(error)


def test_one_slice(tmp_path):
    assert refused(series.slices()[:1], tmp_path).code == "IN_TOO_SMALL"


def two_phases():
    made = series.slices()
    other = series.slices(ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])
    for k, ds in enumerate(other):
        ds.SOPInstanceUID = f"1.2.3.{k + 1}"
    return [*made, *other]


def two_orientations():
    made = series.slices()
    turned = series.slices(*series.turned(*series.axial(), (0, 2, 1)))
    for k, ds in enumerate(turned):
        ds.SeriesInstanceUID, ds.SOPInstanceUID = made[0].SeriesInstanceUID, f"1.2.3.{k + 1}"
    return [*made, *turned]


@pytest.mark.row("G2")
@pytest.mark.parametrize("make", [series.two_echoes, two_phases, two_orientations])
def test_g2_a_series_of_several_stacks(make, tmp_path):
    error = refused(make(), tmp_path)
    assert error.code == "DCM_MIXED"
    assert ".1: " in str(error) and ".2: " in str(error)


def test_handles_tell_stacks_apart(tmp_path):
    series.write(tmp_path / "a", series.two_echoes())
    series.write(tmp_path / "b", series.slices(number=4, study="1.2.3"))  # another examination's number 4
    series.write(tmp_path / "c", series.slices(number=11))
    series.write(tmp_path / "d", series.slices(SeriesNumber=None, study="1.9"))
    found = stacks(tmp_path)
    assert [s.handle for s in found] == ["4.1", "4.2", "4.3", "11", "none"]
    assert [s.alone for s in found].count(False) == 2
    assert all(len(s.planes) == 30 and len(s.instances) == 30 for s in found)


def test_order_and_names_of_files_do_not_count(tmp_path):
    made = series.slices()
    series.write(tmp_path / "a", made)
    series.write(tmp_path / "b", [made[k] for k in np.random.default_rng(0).permutation(30)])
    a, b = (only_series(tmp_path / name).layout for name in "ab")
    assert [p.instance for p in a.planes] == [p.instance for p in b.planes]
    np.testing.assert_array_equal(a.affine, b.affine)


@pytest.mark.row("G13")
def test_burned_in_text_is_a_warning(tmp_path):
    _, notices = judged(series.slices(BurnedInAnnotation="YES"), tmp_path)
    assert [notice.code for notice in notices] == ["DCM_BURNED_IN"]


@pytest.mark.row("G14")
def test_synthetic_on_request(tmp_path):
    found = only_series(series.write(tmp_path, series.slices(SyntheticData="YES")))
    notices = judge_series(found, max_voxels=2**28, accept_synthetic=True)
    assert [notice.code for notice in notices] == ["IN_SYNTHETIC"]
