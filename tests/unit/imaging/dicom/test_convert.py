"""A series becomes a volume: the voxels that were stored, where the headers say."""

from __future__ import annotations

import io
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate

import scans
import series
from codebrain.errors import CodeBrainError
from codebrain.imaging.dicom import convert
from codebrain.imaging.dicom.convert import read_series
from codebrain.imaging.dicom.find import only_series
from codebrain.imaging.study import Study
from codebrain.imaging.volume import read_volume

pytest.importorskip("dcm2niix", reason="DICOM needs the extra 'dicom'")

HEAD = np.round(scans.head())


def sagittal():
    return series.turned(*series.flipped(scans.head(), scans.affine_of(), (1, 2)), (1, 2, 0))


def coronal():
    return series.turned(*series.flipped(scans.head(), scans.affine_of(), (0, 2)), (0, 2, 1))


def each(change, **kwargs):
    """The axial series with its stored planes changed."""
    made = series.slices()
    for k, ds in enumerate(made):
        plane = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)
        series.put_pixels(ds, change(plane, k), **kwargs)
    return made


def scaled():
    return series.slices(RescaleSlope="2.5", RescaleIntercept="-8")


def rescaled():
    made = series.slices()
    for k, ds in enumerate(made):
        ds.RescaleSlope, ds.RescaleIntercept = f"{1 + k / 8}", "0"
    return made


def rescaled_frames():
    whole = series.enhanced(series.slices())
    for k, frame in enumerate(whole.PerFrameFunctionalGroupsSequence):
        frame.PixelValueTransformationSequence = [
            series.item(RescaleSlope=f"{1 + k / 8}", RescaleIntercept="0", RescaleType="US")
        ]
    return whole


def shuffled():
    return series.enhanced(series.slices(), order=np.random.default_rng(1).permutation(scans.SHAPE[2]))


def compressed(encode):
    made = series.slices()
    for ds in made:
        ds.PixelData = encapsulate([encode(np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns))])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return made


def jpeg2000(plane):
    stream = io.BytesIO()
    Image.fromarray(plane).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    return stream.getvalue()


SCALE = 1 + np.arange(scans.SHAPE[2]) / 8


@pytest.mark.row("G4", "G11")
@pytest.mark.parametrize(
    ("make", "expected", "syntax"),
    [
        (series.slices, HEAD, series.ExplicitVRLittleEndian),
        (series.slices, HEAD, "1.2.840.10008.1.2"),
        (lambda: series.slices(*sagittal()), HEAD, series.ExplicitVRLittleEndian),
        (lambda: series.slices(*coronal()), HEAD, series.ExplicitVRLittleEndian),
        (lambda: series.slices(*series.flipped(*series.axial(), (2,))), HEAD, series.ExplicitVRLittleEndian),
        (lambda: each(lambda plane, _: plane, photometric="MONOCHROME1"), HEAD, series.ExplicitVRLittleEndian),
        (lambda: each(lambda plane, _: plane.astype("i2") - 100, stored=12), HEAD - 100, series.ExplicitVRLittleEndian),
        (lambda: each(lambda plane, _: plane | 0x4000, stored=12), HEAD, series.ExplicitVRLittleEndian),
        (scaled, HEAD * 2.5 - 8, series.ExplicitVRLittleEndian),
        (rescaled, HEAD * SCALE, series.ExplicitVRLittleEndian),
        (lambda: series.enhanced(series.slices()), HEAD, series.ExplicitVRLittleEndian),
        (shuffled, HEAD, series.ExplicitVRLittleEndian),
        (rescaled_frames, HEAD * SCALE, series.ExplicitVRLittleEndian),
        (lambda: compressed(jpeg2000), HEAD, "1.2.840.10008.1.2.4.90"),
    ],
    ids=["axial", "implicit", "sagittal", "coronal", "reversed", "MONOCHROME1", "signed 12 in 16", "junk bits",
         "scaled", "scaled by slice", "enhanced", "enhanced, shuffled", "enhanced, scaled by frame", "JPEG 2000"],
)  # fmt: skip
def test_g4_g11_the_voxels_and_the_place(make, expected, syntax, tmp_path):
    volume = read_series(only_series(series.write(tmp_path, make(), syntax=syntax)))
    upright = nib.as_closest_canonical(nib.Nifti1Image(volume.data, volume.affine))
    np.testing.assert_allclose(upright.get_fdata(), expected, rtol=1e-6)
    np.testing.assert_allclose(upright.affine, scans.affine_of(), atol=1e-4)


def test_an_oblique_series(tmp_path):
    data, affine = series.axial()
    volume = read_series(only_series(series.write(tmp_path, series.slices(data, series.oblique(affine)))))
    upright = nib.as_closest_canonical(nib.Nifti1Image(volume.data, volume.affine))
    np.testing.assert_array_equal(upright.get_fdata(), HEAD)
    np.testing.assert_allclose(upright.affine, series.oblique(scans.affine_of()), atol=1e-4)


@pytest.mark.row("G11")
def test_the_volume_is_dcm2niix_s_to_the_voxel(tmp_path):
    """What a user gets by running the program by hand."""
    import dcm2niix

    folder = series.write(tmp_path / "in", series.slices(*sagittal()))
    (tmp_path / "by hand").mkdir()
    subprocess.run([dcm2niix.bin, "-f", "a", "-z", "n", "-x", "i", "-o", tmp_path / "by hand", folder], check=True,
                   capture_output=True)  # fmt: skip
    by_hand, volume = nib.load(tmp_path / "by hand" / "a.nii"), read_series(only_series(folder))
    np.testing.assert_array_equal(by_hand.get_fdata(), volume.data)
    np.testing.assert_array_equal(by_hand.affine, volume.affine)


def test_the_name_and_the_hash_say_nothing_about_files(tmp_path):
    made = series.slices(number=12)
    one = read_series(only_series(series.write(tmp_path / "Doe^Jo", made)))
    for k, ds in enumerate(reversed(made)):
        series.save(ds, tmp_path / "other" / "deep" / f"Doe-{k}")
    other = read_series(only_series(tmp_path / "other"))
    assert one.name == other.name == "DICOM series 12"
    assert one.sha256 == other.sha256
    made[3].PatientID = "another"
    assert read_series(only_series(series.write(tmp_path / "third", made))).sha256 != one.sha256


def test_a_volume_elsewhere_than_the_headers_say_is_refused(tmp_path, monkeypatch):
    """dcm2niix is believed only where it agrees."""
    found = only_series(series.write(tmp_path / "in", series.slices()))
    other = scans.write_scan(tmp_path / "moved.nii", affine=scans.affine_of() + np.eye(4, k=3) * 0.02)
    monkeypatch.setattr(convert, "_convert", lambda *_: (other, []))
    with pytest.raises(CodeBrainError) as caught:
        read_series(found)
    assert caught.value.code == "DCM_GEOMETRY"


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("exit 0", "DCM_UNSUPPORTED", "could not convert it (status 0)"),
        ("kill -SEGV $$", "DCM_UNSUPPORTED", "could not convert it (status -11)"),
        ("sleep 60", "DCM_UNSUPPORTED", "did not end within"),
    ],
)
def test_a_converter_that_fails(script, code, says, tmp_path, monkeypatch):
    program = tmp_path / "dcm2niix"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(convert, "_program", lambda: str(program))
    monkeypatch.setattr(convert, "TIME_LIMIT_S", 1)
    with pytest.raises(CodeBrainError) as caught:
        read_series(only_series(series.write(tmp_path / "in", series.slices())))
    assert caught.value.code == code and says in str(caught.value)


def test_two_volumes_of_one_series_are_refused_and_warnings_are_passed_on(tmp_path, monkeypatch):
    program = tmp_path / "dcm2niix"
    scan = scans.write_scan(tmp_path / "scan.nii", HEAD.astype(np.float32))
    monkeypatch.setattr(convert, "_program", lambda: str(program))
    for copies, warned in ((1, 1), (2, 0)):
        lines = "".join(f'cp "{scan}" "$out/volume{n}.nii"\n' for n in range(copies))
        program.write_text(
            "#!/bin/sh\necho 'Warning: Empty protocol name(s) (0018,1030)'\necho 'Warning: Doe^Jo looks odd'\n"
            'while [ "$1" != -o ]; do shift; done\nout=$2\n' + lines
        )
        program.chmod(0o755)
        found = only_series(series.write(tmp_path / f"in{copies}", series.slices()))
        if copies == 1:
            notices = read_series(found).notices
            assert [notice.code for notice in notices] == ["DCM_CONVERTER"] * warned
            assert "1 warning" in notices[0].message and "Doe" not in notices[0].message
        else:
            with pytest.raises(CodeBrainError) as caught:
                read_series(found)
            assert caught.value.code == "DCM_MIXED"


@pytest.mark.parametrize("package", ["pydicom", "dcm2niix"])
def test_a_package_that_is_not_installed_is_named_with_its_extra(package, tmp_path, monkeypatch):
    folder = series.write(tmp_path, series.slices())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CodeBrainError) as caught:
        read_series(only_series(folder))
    assert (caught.value.code, caught.value.exit_code) == ("ENV_EXTRA", 4)
    assert "codebrain-mri[dicom]" in str(caught.value)


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    read_series(only_series(series.write(tmp_path / "in", series.slices())))
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.row("G12")
@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ({}, []),
        ({"frame": "1.2.3"}, []),  # the grids agree
        ({"frame": "1.2.3", "moved": True}, ["DCM_FRAME"]),
        ({"study": "1.2.3.4"}, ["DCM_STUDY"]),
    ],
)
def test_g12_frames_of_reference(change, codes, tmp_path):
    data, affine = series.axial(scans.head("FLAIR"))
    change = dict(change)
    if change.pop("moved", False):
        affine = affine.copy()
        affine[2, 3] += 3
    one = series.write(tmp_path / "1", series.slices())
    two = series.write(tmp_path / "2", series.slices(data, affine, contrast="FLAIR", number=2, **change))
    study = Study.read({"T1": one, "FLAIR": two})
    assert [notice.code for volume in study.volumes.values() for notice in volume.notices] == codes


def test_a_series_given_for_another_contrast_is_a_warning(tmp_path):
    study = Study.read({"T1": series.write(tmp_path, series.slices(contrast="T2"))})
    (notice,) = next(iter(study.volumes.values())).notices
    assert notice.code == "DCM_LABEL" and "given as T1, but it looks like T2" in notice.message


def test_series_of_two_patients_are_no_study(tmp_path):
    one = series.write(tmp_path / "1", series.slices())
    two = series.write(tmp_path / "2", series.slices(contrast="FLAIR", number=2, PatientID="patient-8"))
    with pytest.raises(CodeBrainError) as caught:
        Study.read({"T1": one, "FLAIR": two})
    assert caught.value.code == "DCM_MIXED" and "patient-8" not in str(caught.value)


@pytest.mark.data
@pytest.mark.parametrize("scan", ["ixi-002/T1", "ixi-002/PD", "glioma-fg6692-native/FLAIR"])
def test_real_grids_there_and_back(scan, real_data, tmp_path):
    """Oblique grids of real scanners, through DICOM, to the voxel."""
    volume = read_volume(real_data / "raw" / f"{scan}.nii.gz")
    stored = np.round(volume.data / volume.data.max() * 4000)
    back = read_series(only_series(series.write(tmp_path, series.slices(stored, volume.affine))))
    one, other = (
        nib.as_closest_canonical(nib.Nifti1Image(data, affine))
        for data, affine in ((stored, volume.affine), (back.data, back.affine))
    )
    np.testing.assert_array_equal(one.get_fdata(), other.get_fdata())
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
