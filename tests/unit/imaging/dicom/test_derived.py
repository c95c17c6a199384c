"""An imputed contrast as a DICOM series: on the source's slices, marked, and about nobody."""

from __future__ import annotations

import json
import subprocess

import nibabel as nib
import numpy as np
import pydicom
import pytest

import scans
import series
from codebrain import marks
from codebrain.errors import CodeBrainError
from codebrain.imaging.dicom.convert import read_series
from codebrain.imaging.dicom.derived import Provenance, write_derived
from codebrain.imaging.dicom.find import only_series
from codebrain.imaging.volume import read_volume
from codebrain.vocabulary import Modality

pytest.importorskip("dcm2niix", reason="DICOM needs the extra 'dicom'")


def sagittal():
    return series.turned(*series.flipped(scans.head(), scans.affine_of(), (1, 2)), (1, 2, 0))


def oblique():
    data, affine = series.axial()
    return data, series.oblique(affine)


def written(folder, source, data=None, modality=Modality.T2, others=None, **keep):
    """The source as a volume, imputed data on its grid, and the data sets of the derived series."""
    volume = read_series(only_series(source))
    if data is None:
        data = np.random.default_rng(0).gamma(2, 90, volume.data.shape).astype(np.float32)
    folder.mkdir()
    used = {Modality.T1: volume.series, Modality.FLAIR: None, **(others or {})}
    paths = write_derived(
        folder, data, modality, like=volume, provenance=Provenance("starter", "ab" * 32, used), **keep
    )
    return volume, data, [pydicom.dcmread(path) for path in paths]


@pytest.mark.parametrize(
    "make",
    [
        series.slices,
        lambda: series.slices(*sagittal()),
        lambda: series.slices(*oblique()),
        lambda: series.slices(*series.flipped(*series.axial(), (2,))),
        lambda: series.enhanced(series.slices(*oblique()), order=[int(k) for k in reversed(range(30))]),
    ],
    ids=["axial", "sagittal", "oblique", "from above", "enhanced"],
)
def test_there_and_back(make, tmp_path):
    """dcm2niix reads from the derived series what was imputed, where it was imputed."""
    source = series.write(tmp_path / "in", make())
    volume, data, made = written(tmp_path / "out", source)
    back = read_series(only_series(tmp_path / "out"), accept_synthetic=True)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-3)
    step = float(made[0].RescaleSlope)
    assert step < 0.05
    np.testing.assert_allclose(back.data, data, atol=0.51 * step + 1e-4)


def test_another_reader_sees_the_same(tmp_path):
    """GDCM, by SimpleITK: the same values at the same places."""
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra 'align'")
    source = series.write(tmp_path / "in", series.slices(*oblique()))
    volume, data, made = written(tmp_path / "out", source)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(series.LPS @ affine, volume.series.layout.affine, atol=1e-3)
    upright = [
        nib.as_closest_canonical(nib.Nifti1Image(values, grid)).get_fdata()
        for values, grid in ((sitk.GetArrayFromImage(image).T, series.LPS @ affine), (data, volume.affine))
    ]
    np.testing.assert_allclose(*upright, atol=0.51 * float(made[0].RescaleSlope) + 1e-4)


@pytest.mark.row("J5")
def test_j5_what_dcm2niix_keeps_of_the_marks(tmp_path):
    """The sidecar that it writes; its NIfTI header says nothing."""
    import dcm2niix

    written(tmp_path / "out", series.write(tmp_path / "in", series.slices()))
    subprocess.run([dcm2niix.bin, "-f", "a", "-o", tmp_path, tmp_path / "out"], check=True, capture_output=True)
    kept = json.loads((tmp_path / "a.json").read_text())
    assert kept["SeriesDescription"].startswith("SYNTHETIC") and "SYNTHETIC" in kept["ImageType"]


@pytest.mark.row("J3")
@pytest.mark.parametrize("make", [series.slices, lambda: series.slices(*oblique()), lambda: series.slices(*sagittal())])
def test_each_slice_lies_on_one_of_the_source(make, tmp_path):
    source = make()
    _, _, made = written(tmp_path / "out", series.write(tmp_path / "in", source))
    by_uid = {ds.SOPInstanceUID: ds for ds in source}
    for ds in made:
        home = by_uid[ds.SourceImageSequence[0].ReferencedSOPInstanceUID]
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert [float(v) for v in ds[keyword].value] == [float(v) for v in home[keyword].value], keyword
        assert (ds.Rows, ds.Columns) == (home.Rows, home.Columns)
    assert len({ds.SourceImageSequence[0].ReferencedSOPInstanceUID for ds in made}) == len(source)


@pytest.mark.row("J3")
def test_j3_the_marks(tmp_path):
    source = series.slices()
    _, _, made = written(tmp_path / "out", series.write(tmp_path / "in", source), modality=Modality.T1GD)
    for number, ds in enumerate(made, start=1):
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
        assert ds.SyntheticData == "YES" and ds.BurnedInAnnotation == "NO"
        assert ds.SeriesDescription.startswith("SYNTHETIC T1Gd")
        assert "starter" in ds.DerivationDescription and "from T1, FLAIR" in ds.DerivationDescription
        assert marks.RESEARCH_USE_ONLY in ds.ImageComments and marks.ENHANCEMENT_UNKNOWN in ds.ImageComments
        assert ds.ContributingEquipmentSequence[0].Manufacturer == "codebrain"
        assert ds.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == series.MR
        assert ds.InstanceNumber == number
    assert len({ds.SOPInstanceUID for ds in made}) == len(made)
    assert {ds.SeriesInstanceUID for ds in made}.isdisjoint({source[0].SeriesInstanceUID})
    assert len({ds.SeriesInstanceUID for ds in made}) == 1
    assert {ds.SOPInstanceUID for ds in made}.isdisjoint({ds.SOPInstanceUID for ds in source})
    assert {(ds.StudyInstanceUID, ds.FrameOfReferenceUID) for ds in made} == {(series.STUDY, series.FRAME)}


@pytest.mark.row("G13")
def test_no_words_of_the_patient(tmp_path):
    _, _, made = written(tmp_path / "out", series.write(tmp_path / "in", series.slices()))
    for ds in made:
        assert (ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.StudyDate, ds.AccessionNumber) == ("",) * 5
        assert ds.PatientIdentityRemoved == "YES"
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert not any(word in content for word in (b"Doe", b"patient-7", b"19700101", b"20250102", b"A7 "))


def test_the_patient_on_request(tmp_path):
    source = series.slices(PatientName="Müller^Jö", SpecificCharacterSet="ISO_IR 100")
    _, _, made = written(tmp_path / "out", series.write(tmp_path / "in", source), keep_patient=True)
    for ds in made:
        assert (ds.PatientName, ds.PatientID, ds.StudyID) == ("Müller^Jö", "patient-7", "7")
        assert (ds.PatientBirthDate, ds.StudyDate, ds.AccessionNumber) == ("19700101", "20250102", "A7")
        assert "PatientIdentityRemoved" not in ds
        assert ds.SyntheticData == "YES" and ds.SeriesDescription.startswith("SYNTHETIC")


MUST = """PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime StudyID
    ReferringPhysicianName AccessionNumber Modality SeriesInstanceUID SeriesNumber FrameOfReferenceUID
    PositionReferenceIndicator Manufacturer InstanceNumber ImageType ImagePositionPatient ImageOrientationPatient
    PixelSpacing SliceThickness SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored
    HighBit PixelRepresentation PixelData ScanningSequence SequenceVariant ScanOptions MRAcquisitionType EchoTime
    EchoTrainLength SOPClassUID SOPInstanceUID"""
"""Types 1 and 2 of the MR Image module table (DICOM PS3.3, A.4)."""


def test_the_images_are_valid_dicom(tmp_path, monkeypatch):
    """Every value fits its representation, and the elements that an MR image must have are there."""
    written(tmp_path / "out", series.write(tmp_path / "in", series.slices()))
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    ds = pydicom.dcmread(tmp_path / "out" / "0003.dcm")
    assert [keyword for keyword in MUST.split() if keyword not in ds] == []
    for element in ds.iterall():
        assert element.value is not ...
        if element.VR == "DS" and element.value is not None:
            assert all(len(str(value)) <= 16 for value in np.atleast_1d(element.value))


def test_equal_results_are_equal_files_and_others_have_other_uids(tmp_path):
    source = series.write(tmp_path / "in", series.slices())
    _, data, one = written(tmp_path / "1", source)
    _, _, _ = written(tmp_path / "2", source)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
    changed = data.copy()
    changed[3, 4, 5] += 10
    for n, (other, modality) in enumerate(((changed, Modality.T2), (data, Modality.PD))):
        _, _, made = written(tmp_path / f"other{n}", source, other, modality)
        assert made[0].SeriesInstanceUID != one[0].SeriesInstanceUID
        assert {ds.SOPInstanceUID for ds in made}.isdisjoint({ds.SOPInstanceUID for ds in one})


def test_other_series_are_named_by_their_nearest_slice(tmp_path):
    flair = series.slices(*sagittal(), contrast="FLAIR", number=2)
    other = only_series(series.write(tmp_path / "flair", flair))
    source = series.write(tmp_path / "in", series.slices())
    volume, _, made = written(tmp_path / "out", source, others={Modality.FLAIR: other})
    uids = {ds.SOPInstanceUID for ds in flair}
    for ds in made:
        assert len(ds.SourceImageSequence) == 2
        assert ds.SourceImageSequence[1].ReferencedSOPInstanceUID in uids
        named = {item.SeriesInstanceUID for item in ds.ReferencedSeriesSequence}
        assert named == {other.first.series, volume.series.first.series}


def test_values_below_zero_and_a_flat_image(tmp_path):
    source = series.write(tmp_path / "in", series.slices())
    shape = read_series(only_series(source)).data.shape
    for n, data in enumerate((np.zeros(shape, np.float32), np.linspace(-50, 200, np.prod(shape)).reshape(shape))):
        _, _, made = written(tmp_path / f"out{n}", source, data.astype(np.float32))
        values = np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in made])
        assert abs(values.min() - data.min()) < 0.01 and abs(values.max() - data.max()) < 0.01


def test_a_reference_that_is_no_dicom(tmp_path):
    volume = read_volume(scans.write_scan(tmp_path / "t1.nii.gz"))
    with pytest.raises(CodeBrainError) as caught:
        write_derived(tmp_path, volume.data, Modality.T2, like=volume, provenance=Provenance("m", "a", {}))
    assert caught.value.code == "DCM_SOURCE"


def test_results_that_lie_elsewhere_than_the_slices(tmp_path):
    """A volume that was put on another grid keeps its series, but no series can be written on it."""
    from dataclasses import replace

    volume = read_series(only_series(series.write(tmp_path / "in", series.slices())))
    moved = replace(volume, affine=volume.affine + np.eye(4, k=3) * 2)
    with pytest.raises(CodeBrainError) as caught:
        write_derived(tmp_path, volume.data, Modality.T2, like=moved, provenance=Provenance("m", "a", {}))
    assert caught.value.code == "DCM_SOURCE" and nib.aff2axcodes(moved.affine)
