"""An imputed contrast as a DICOM series on the slices of the series that it was imputed on.

Classic single-frame MR images, because every archive and viewer takes them, even where the source is enhanced.
Each slice has the position, orientation and spacing of a slice of the source, the examination's and the frame of
reference's UID, and says in every way that DICOM knows that it is synthetic: Synthetic Data, Image Type, series
description, derivation, contributing equipment. The pixels carry no text: burned-in text would be measured.

Of the patient nothing is copied unless it is asked for. The UIDs of examination, frame of reference and source
images are: they are numbers that mean something only inside the archive that holds the source, and without them
no viewer could lay the series over it.

Source: DICOM PS3.3, C.7 and C.8.3 (MR Image), C.12.1 (SOP Common), C.7.6.1.1.2 (Image Type); CP-2348 (Synthetic Data).
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import codebrain
from codebrain import marks
from codebrain.errors import refusal
from codebrain.imaging import safe_files
from codebrain.imaging.dicom.header import CLASSIC_MR, EXPLICIT, quiet
from codebrain.imaging.dicom.instance import Plane
from codebrain.imaging.dicom.series import Layout, Series
from codebrain.imaging.dicom.values import IDENTITY
from codebrain.imaging.volume import Volume
from codebrain.vocabulary import Modality

_IMPLEMENTATION = "2.25.158438110871459270823105137290711"
_LEVELS = 65535
_LONGEST_LO = 64
_NUMBERS_FROM = 9000
"""Series numbers of imputed contrasts: after anything that a scanner counts to."""

_WHOLE_VOXELS = 1e-2


@dataclass(frozen=True)
class Provenance:
    """What a derived series says about where it comes from.

    Attributes:
        model: its name.
        model_sha256: of its weights.
        used: the contrasts that were given to the model, with their series; None for one that was no DICOM.
        low_confidence: whether the doubt of the study is over the limit of the model.
    """

    model: str
    model_sha256: str
    used: Mapping[Modality, Series | None]
    low_confidence: bool = False


def write_derived(
    folder: Path,
    data: NDArray[np.float32],
    modality: Modality,
    *,
    like: Volume,
    provenance: Provenance,
    space: Modality | None = None,
    keep_patient: bool = False,
) -> list[Path]:
    """Write ``data`` ``(i, j, k)`` as a series of DICOM files, ``0001.dcm`` and so on, in the order of the source.

    Values are stored in 16 bits: they are within half of Rescale Slope of ``data``.

    Args:
        folder: empty; filled.
        data: on the grid of ``like``.
        modality: which contrast it is.
        like: the scan whose grid it is; converted from DICOM.
        provenance: of the imputation.
        space: the contrast in whose native space it is; None on the reference grid.
        keep_patient: copy whose examination it is from the source.

    Raises:
        InputRefused: ``DCM_SOURCE`` when ``like`` is not a DICOM series, or was put on another grid.
        EnvironmentRefused: ``OUT_SPACE``, ``OUT_PERMISSION``.
    """
    series, layout = _source(like)
    stack = _on_slices(data, like, layout)
    stored, slope, intercept = _in_sixteen_bits(stack)
    common = _Common(series, modality, provenance, space, keep_patient, stored, slope, intercept)
    paths = []
    for number, plane in enumerate(layout.planes, start=1):
        with quiet():  # a patient's data are copied as they are, valid or not
            content = _encoded(common.image(number, plane))
        paths.append(folder / f"{number:04d}.dcm")
        safe_files.write_scratch(paths[-1], [content])
    return paths


def _source(like: Volume) -> tuple[Series, Layout]:
    if like.series is None:
        raise refusal(
            "DCM_SOURCE", "a DICOM series can only be written on the slices of a DICOM series", field="--output-type",
            found=f"results on the grid of {like.name}", expected="a reference that was read from DICOM",
            hint="Give the reference contrast as DICOM, or another one that is with --ref, or write NIfTI only.",
        )  # fmt: skip
    return like.series, like.series.layout


def _on_slices(data: NDArray[np.float32], like: Volume, layout: Layout) -> NDArray[np.float32]:
    """``data`` as slices, rows, columns of the source: axes in another order and turned round, nothing else."""
    between = np.linalg.inv(like.affine) @ layout.affine  # column, row, slice -> i, j, k
    turns = np.rint(between[:3, :3])
    axes = np.abs(turns).argmax(axis=0)
    stack = data.transpose(axes)
    backwards = [axis for axis in range(3) if turns[axes[axis], axis] < 0]
    start = [data.shape[axes[axis]] - 1 if axis in backwards else 0 for axis in range(3)]
    expected = np.zeros(3)
    expected[axes] = start
    off = max(np.abs(between[:3, :3] - turns).max() * max(data.shape), np.abs(between[:3, 3] - expected).max())
    if sorted(axes) != [0, 1, 2] or off > _WHOLE_VOXELS or stack.shape[2] != len(layout.planes):
        raise refusal("DCM_SOURCE", "the results do not lie on the slices of the source series", field="--output-type",
                      found=f"{off:.3g} voxels off", hint="Write them on the grid of a DICOM input.")  # fmt: skip
    return np.ascontiguousarray(np.flip(stack, backwards).transpose(2, 1, 0))


def _in_sixteen_bits(stack: NDArray[np.float32]) -> tuple[NDArray[np.uint16], float, float]:
    """Stored values, slope and intercept: ``value = stored x slope + intercept``, with both as DICOM writes them."""
    low, high = min(0.0, float(stack.min())), float(stack.max())
    slope, intercept = float(_decimal((high - low) / _LEVELS or 1.0)), float(_decimal(low))
    stored = np.rint((stack.astype(np.float64) - intercept) / slope).clip(0, _LEVELS)
    return stored.astype("<u2"), slope, intercept


def _decimal(value: float) -> str:
    """A decimal string of at most sixteen characters."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


def _uid(*parts: str) -> str:
    """A UID that equal parts give again and nothing else does.

    Source: DICOM PS3.5, B.2 (UUID-derived UIDs); RFC 9562, version 8.
    """
    digest = bytearray(hashlib.sha256("\0".join(parts).encode()).digest()[:16])
    digest[6], digest[8] = 0x80 | digest[6] & 0x0F, 0x80 | digest[8] & 0x3F
    return f"2.25.{uuid.UUID(bytes=bytes(digest)).int}"


class _Common:
    """What all images of a derived series share."""

    def __init__(
        self, series: Series, modality: Modality, provenance: Provenance, space: Modality | None, keep_patient: bool,
        stored: NDArray[np.uint16], slope: float, intercept: float,
    ) -> None:  # fmt: skip
        self.series, self.modality, self.provenance, self.space = series, modality, provenance, space
        self.model = provenance.model.encode("ascii", "replace").decode()[:64]
        self.keep_patient, self.stored, self.slope, self.intercept = keep_patient, stored, slope, intercept
        content = safe_files.sha256_bytes(stored.tobytes() + f"{slope} {intercept} {keep_patient}".encode())
        self.uid = _uid(series.first.series, str(modality), provenance.model_sha256, content)
        self.thickness = _thickness(series.layout)
        self.window = max(1.0, float(np.percentile(stored, 99.5)) * slope)
        others = [other for other in provenance.used.values() if other is not None and other is not series]
        self.others = [(o, np.array([_centre(p, o.first.shape) for p in o.layout.planes])) for o in others]

    def image(self, number: int, plane: Plane) -> Any:
        """One slice as a data set.

        Args:
            number: from 1.
            plane: the source's slice at its place.
        """
        from pydicom.dataset import Dataset

        ds = Dataset()
        for part in (self._marks(), self._patient(), self._names(number), self._place(plane), self._acquisition()):
            for keyword, value in part:
                setattr(ds, keyword, value)
        if self.keep_patient:
            for keyword in ("SpecificCharacterSet", *IDENTITY):
                if keyword in self.series.first.identity:
                    ds.add(self.series.first.identity[keyword])
        self._references(ds, plane)
        self._pixels(ds, self.stored[number - 1])
        return ds

    def _marks(self) -> Iterator[tuple[str, Any]]:
        used = ", ".join(self.provenance.used)
        notes = [marks.RESEARCH_USE_ONLY + "."]
        if self.modality is Modality.T1GD:
            notes.append(marks.ENHANCEMENT_UNKNOWN)
        yield "ImageType", ["DERIVED", "SECONDARY", "OTHER", marks.SYNTHETIC]
        yield "SyntheticData", "YES"
        where = "" if self.space is None else f", on the grid of {self.space}"
        mark = marks.synthetic_mark(low_confidence=self.provenance.low_confidence)
        yield "SeriesDescription", f"{mark} {self.modality}{where}, imputed by codebrain"[:_LONGEST_LO]
        yield (
            "DerivationDescription",
            (
                f"{mark} {self.modality}: computed by a model from {used}; no scanner measured it. "
                f"codebrain {codebrain.__version__}, model {self.model}, weights {self.provenance.model_sha256}."
            )[:1024],
        )
        yield "ImageComments", " ".join(notes)
        yield "BurnedInAnnotation", "NO"
        yield "LossyImageCompression", "00"

    def _patient(self) -> Iterator[tuple[str, Any]]:
        for keyword in IDENTITY:
            if keyword not in ("IssuerOfPatientID", "StudyDescription"):  # the others must be there, if empty
                yield keyword, ""
        if not self.keep_patient:
            yield "SpecificCharacterSet", "ISO_IR 192"
            yield "PatientIdentityRemoved", "YES"
            yield "DeidentificationMethod", "No patient data copied; study, frame and source UIDs kept"

    def _names(self, number: int) -> Iterator[tuple[str, Any]]:
        first = self.series.first
        yield "SOPClassUID", CLASSIC_MR
        yield "SOPInstanceUID", _uid(self.uid, str(number))
        yield "StudyInstanceUID", first.study or _uid(first.series, "study")
        yield "SeriesInstanceUID", self.uid
        yield "FrameOfReferenceUID", first.frame_of_reference or _uid(first.series, "frame of reference")
        yield "PositionReferenceIndicator", ""
        yield "Modality", "MR"
        order = [*Modality]
        grid = 0 if self.space is None else order.index(self.space) + 1
        yield "SeriesNumber", _NUMBERS_FROM + 10 * grid + order.index(self.modality) + 1
        yield "InstanceNumber", number
        yield "Manufacturer", "codebrain"
        yield "ManufacturerModelName", self.model
        yield "SoftwareVersions", codebrain.__version__
        if first.patient_position:
            yield "PatientPosition", first.patient_position

    def _place(self, plane: Plane) -> Iterator[tuple[str, Any]]:
        yield "ImagePositionPatient", [_decimal(v) for v in plane.position or ()]
        yield "ImageOrientationPatient", [_decimal(v) for v in plane.orientation or ()]
        yield "PixelSpacing", [_decimal(v) for v in plane.spacing or ()]
        yield "SliceThickness", _decimal(plane.thickness or self.thickness)
        yield "SpacingBetweenSlices", _decimal(self.thickness)

    def _acquisition(self) -> Iterator[tuple[str, Any]]:
        """What an MR image must say and a computed one cannot."""
        yield "ScanningSequence", "RM"
        yield "SequenceVariant", "NONE"
        for keyword in ("ScanOptions", "MRAcquisitionType", "EchoTime", "RepetitionTime", "EchoTrainLength"):
            yield keyword, None

    def _references(self, ds: Any, plane: Plane) -> None:
        near = self._near(plane)
        sources = [_reference(self.series, plane), *(_reference(other, its) for other, its in near)]
        ds.SourceImageSequence = sources
        ds.ContributingEquipmentSequence = [_item(
            Manufacturer="codebrain",
            ManufacturerModelName=self.model,
            SoftwareVersions=codebrain.__version__,
            ContributionDescription=f"{marks.SYNTHETIC} {self.modality} from {', '.join(self.provenance.used)}",
            PurposeOfReferenceCodeSequence=[_code("109102", "Processing Equipment")],
        )]  # fmt: skip
        series = {self.series.first.series: [sources[0]]}
        for (other, _), item in zip(near, sources[1:], strict=True):
            series.setdefault(other.first.series, []).append(item)
        ds.ReferencedSeriesSequence = [
            _item(
                SeriesInstanceUID=uid,
                ReferencedInstanceSequence=[
                    _item(
                        ReferencedSOPClassUID=i.ReferencedSOPClassUID,
                        ReferencedSOPInstanceUID=i.ReferencedSOPInstanceUID,
                    )
                    for i in items
                ],
            )
            for uid, items in series.items()
        ]

    def _near(self, plane: Plane) -> list[tuple[Series, Plane]]:
        """Of every other DICOM series that the model was given, the slice nearest to ``plane``."""
        here = _centre(plane, self.series.first.shape)
        return [
            (other, other.layout.planes[int(np.linalg.norm(centres - here, axis=1).argmin())])
            for other, centres in self.others
        ]

    def _pixels(self, ds: Any, plane: NDArray[np.uint16]) -> None:
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = _decimal(self.slope), _decimal(self.intercept), "US"
        ds.WindowCenter, ds.WindowWidth = _decimal(self.intercept + self.window / 2), _decimal(self.window)
        ds.PixelData = plane.tobytes()
        ds["PixelData"].VR = "OW"


def _thickness(layout: Layout) -> float:
    """From one slice to the next, mm."""
    return float(np.linalg.norm(layout.affine[:3, 2]))


def _centre(plane: Plane, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """The middle of a slice, mm, LPS+."""
    axes = np.array(plane.orientation, float).reshape(2, 3)
    rows, columns, _ = shape
    down, right = plane.spacing or (0.0, 0.0)
    middle = axes[0] * right * (columns - 1) / 2 + axes[1] * down * (rows - 1) / 2
    return np.asarray(np.array(plane.position, float) + middle)


def _reference(series: Series, plane: Plane) -> Any:
    item = _item(
        ReferencedSOPClassUID=series.first.sop_class,
        ReferencedSOPInstanceUID=plane.instance,
        PurposeOfReferenceCodeSequence=[_code("121322", "Source image for image processing operation")],
    )
    if plane.frame is not None:
        item.ReferencedFrameNumber = plane.frame
    return item


def _code(value: str, meaning: str) -> Any:
    return _item(CodeValue=value, CodingSchemeDesignator="DCM", CodeMeaning=meaning)


def _item(**values: str | Sequence[Any]) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _encoded(ds: Any) -> bytes:
    """The bytes of a DICOM file; equal data sets give equal bytes."""
    import pydicom
    from pydicom.dataset import FileMetaDataset

    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.ImplementationClassUID, ds.file_meta.ImplementationVersionName = _IMPLEMENTATION, "CODEBRAIN"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True, little_endian=True, implicit_vr=False)
    return stream.getvalue()
