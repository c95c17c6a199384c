"""DICOM series that tests write from a head: classic and enhanced MR, whole and spoiled, with pydicom."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import scans

MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
PATIENT, STUDY, FRAME = "patient-7", "1.2.826.0.1.3680043.8.498.7.1", "1.2.826.0.1.3680043.8.498.7.2"

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS+ world to DICOM's, and back."""

PARAMETERS = {
    "T1": {"RepetitionTime": 2300, "EchoTime": 2.98, "InversionTime": 900, "FlipAngle": 9,
           "ScanningSequence": ["GR", "IR"], "SequenceVariant": ["SK", "SP", "MP"], "MRAcquisitionType": "3D"},
    "T1Gd": {"RepetitionTime": 500, "EchoTime": 10, "FlipAngle": 90, "ScanningSequence": "SE",
             "SequenceVariant": "SK", "MRAcquisitionType": "2D", "ContrastBolusAgent": "Gadobutrol"},
    "T2": {"RepetitionTime": 4500, "EchoTime": 95, "FlipAngle": 150, "ScanningSequence": "SE",
           "SequenceVariant": "SK", "MRAcquisitionType": "2D"},
    "PD": {"RepetitionTime": 3000, "EchoTime": 14, "FlipAngle": 150, "ScanningSequence": "SE",
           "SequenceVariant": "SK", "MRAcquisitionType": "2D"},
    "FLAIR": {"RepetitionTime": 9000, "EchoTime": 90, "InversionTime": 2500, "FlipAngle": 150,
              "ScanningSequence": ["SE", "IR"], "SequenceVariant": "SK", "MRAcquisitionType": "2D"},
}  # fmt: skip


def axial(data=None, affine=None):
    """A scan ``(i, j, k)`` as scanners store axial slices: columns to the left, rows to the back."""
    data = scans.head() if data is None else data
    affine = scans.affine_of(shape=data.shape) if affine is None else affine
    return flipped(data, affine, (0, 1))


def flipped(data, affine, axes):
    """The same scan with its array turned round along ``axes``."""
    affine = affine.copy()
    for axis in axes:
        affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
        affine[:3, axis] *= -1
    return np.flip(data, axes), affine


def turned(data, affine, axes):
    """The same scan with its array axes in another order."""
    return data.transpose(axes), affine[:, [*axes, 3]]


def oblique(affine, degrees=(12.0, 7.0, -9.0)):
    """The scan turned about the scanner's three axes."""
    rotation = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        p, q = [a for a in range(3) if a != axis]
        turn[p, p] = turn[q, q] = np.cos(angle)
        turn[p, q], turn[q, p] = -np.sin(angle), np.sin(angle)
        rotation[:3, :3] = turn @ rotation[:3, :3]
    return rotation @ affine


def ds_text(value):
    """A decimal string of DICOM: sixteen characters at most."""
    return f"{value:.10g}"[:16]


def slices(data=None, affine=None, *, contrast="T1", number=1, study=STUDY, frame=FRAME, **tags):
    """A classic series: one data set per slice of ``data[:, :, k]``, columns along i, rows along j.

    Args:
        data: stored values ``(i, j, k)``; the head by default.
        affine: RAS+ of the array.
        contrast: whose parameters it has.
        number: of the series.
        study: instance UID.
        frame: of reference.
        **tags: added to every data set; None deletes.
    """
    if data is None:
        data, affine = axial(scans.head(contrast))
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    series = generate_uid(entropy_srcs=[study, str(number), "series"])
    made = []
    for k in range(data.shape[2]):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = MR, generate_uid(entropy_srcs=[series, str(k)])
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]
        ds.Modality, ds.Manufacturer, ds.MagneticFieldStrength = "MR", "Phantom", 3
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jo", PATIENT, "19700101", "O"
        ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20250102", "101112", "A7", "7"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.SeriesNumber, ds.InstanceNumber, ds.SeriesDescription = number, k + 1, ""
        for keyword, value in PARAMETERS[contrast].items():
            setattr(ds, keyword, value)
        ds.ImagePositionPatient = [ds_text(v) for v in (lps @ (0, 0, k, 1))[:3]]
        ds.ImageOrientationPatient = [ds_text(v) for v in (*directions[:, 0], *directions[:, 1])]
        ds.PixelSpacing = [ds_text(spacing[1]), ds_text(spacing[0])]
        ds.SliceThickness = ds.SpacingBetweenSlices = ds_text(spacing[2])
        put_pixels(ds, np.round(data[:, :, k]).T.astype(np.uint16))
        for keyword, value in tags.items():
            put(ds, keyword, value)
        made.append(ds)
    return made


def put(ds, keyword, value):
    """Set an element, or delete it with None."""
    if value is not None:
        setattr(ds, keyword, value)
    elif keyword in ds:
        delattr(ds, keyword)


def put_pixels(ds, plane, *, stored=None, photometric="MONOCHROME2"):
    """``plane`` ``(rows, columns)`` or ``(frames, rows, columns)`` as uncompressed pixel data."""
    ds.Rows, ds.Columns = plane.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric
    ds.BitsAllocated = 8 * plane.dtype.itemsize
    ds.BitsStored = stored or ds.BitsAllocated
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(plane.dtype.kind == "i")
    ds.PixelData = plane.astype(plane.dtype.newbyteorder("<")).tobytes()
    ds["PixelData"].VR = "OW"


def enhanced(made, *, order=None):
    """The same series as one enhanced multi-frame MR object; ``order`` is that of the frames."""
    order = range(len(made)) if order is None else order
    first, whole = made[0], Dataset()
    for element in first:
        if element.keyword not in {
            "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "PixelData",
            "SpacingBetweenSlices", "EchoTime", "RepetitionTime", "FlipAngle", "InversionTime", "SequenceVariant",
            "ScanningSequence",
        }:  # fmt: skip
            whole.add(copy.deepcopy(element))
    whole.SOPClassUID, whole.SOPInstanceUID = ENHANCED_MR, generate_uid(entropy_srcs=[first.SOPInstanceUID, "e"])
    whole.InstanceNumber, whole.NumberOfFrames = 1, len(made)
    whole.AcquisitionDateTime, whole.ContentDate, whole.ContentTime = "20250102101112", "20250102", "101112"
    whole.PixelPresentation, whole.ComplexImageComponent, whole.AcquisitionContrast = "MONOCHROME", "MAGNITUDE", "T1"
    whole.DimensionOrganizationSequence = [item(DimensionOrganizationUID=generate_uid())]
    uid = whole.DimensionOrganizationSequence[0].DimensionOrganizationUID
    whole.DimensionIndexSequence = [
        item(DimensionOrganizationUID=uid, DimensionIndexPointer=pointer, FunctionalGroupPointer=0x00209111)
        for pointer in (0x00209056, 0x00209057)
    ]
    ir = "IR" in np.atleast_1d(first.ScanningSequence)
    whole.EchoPulseSequence = "GRADIENT" if "GR" in np.atleast_1d(first.ScanningSequence) else "SPIN"
    whole.InversionRecovery = "YES" if ir else "NO"
    modifier = item(InversionRecovery="YES" if ir else "NO", Spoiling="RF")
    if ir:
        modifier.InversionTimes = [float(first.InversionTime)]
    whole.SharedFunctionalGroupsSequence = [item(
        MRTimingAndRelatedParametersSequence=[item(RepetitionTime=first.RepetitionTime, FlipAngle=first.FlipAngle,
                                                  EchoTrainLength=1)],
        MREchoSequence=[item(EffectiveEchoTime=float(first.EchoTime))],
        MRModifierSequence=[modifier],
        PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
        PixelMeasuresSequence=[item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness,
                                    SpacingBetweenSlices=first.SpacingBetweenSlices)],
    )]  # fmt: skip
    whole.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[
                item(StackID="1", InStackPositionNumber=int(k) + 1, DimensionIndexValues=[1, int(k) + 1])
            ],
            PlanePositionSequence=[item(ImagePositionPatient=made[k].ImagePositionPatient)],
        )
        for k in order
    ]
    whole.PixelData = b"".join(made[k].PixelData for k in order)
    whole["PixelData"].VR = "OW"
    return whole


def two_echoes():
    """A proton-density and a T2 stack that were acquired together: one series, number 4."""
    made = slices(contrast="PD", number=4)
    late = slices(contrast="T2", number=4)
    for k, ds in enumerate(late):
        ds.SeriesInstanceUID, ds.SOPInstanceUID = made[0].SeriesInstanceUID, f"1.2.3.{k + 1}"
    return [*made, *late]


def item(**tags):
    """A sequence item."""
    ds = Dataset()
    for keyword, value in tags.items():
        setattr(ds, keyword, Sequence(value) if isinstance(value, list) and value and isinstance(value[0], Dataset)
                else value)  # fmt: skip
    return ds


def save(ds, path: Path, *, syntax=ExplicitVRLittleEndian) -> Path:
    """One DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    pydicom.dcmwrite(path, ds, enforce_file_format=True, implicit_vr=syntax == "1.2.840.10008.1.2",
                     little_endian=syntax != "1.2.840.10008.1.2.2")  # fmt: skip
    return path


def write(folder: Path, made, **saving) -> Path:
    """A series as files ``0000.dcm`` and so on; gives the folder."""
    for k, ds in enumerate(made if isinstance(made, list) else [made]):
        save(ds, folder / f"{k:04d}.dcm", **saving)
    return folder


def write_study(folder: Path, contrasts=("T1", "FLAIR"), **tags) -> Path:
    """A series per contrast in folders of their own, numbered from 1."""
    for number, contrast in enumerate(contrasts, start=1):
        write(folder / f"{number}", slices(contrast=contrast, number=number, **tags))
    return folder
