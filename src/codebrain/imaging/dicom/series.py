"""Series: the files of one acquisition, split into stacks of parallel slices and judged before conversion."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codebrain.errors import CodeBrainError, Notice, refusal
from codebrain.imaging._geometry import Affine
from codebrain.imaging.dicom.header import CLASSIC_MR, ENHANCED_MR, LEGACY_MR, frames_end, read_instance
from codebrain.imaging.dicom.instance import Instance, Parameters, Plane, Vector
from codebrain.imaging.dicom.store import Store

DECODED = {
    f"1.2.840.10008.1.2{tail}"
    for tail in ("", ".1", ".2", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91", ".5")
}
"""Transfer syntaxes that dcm2niix decodes: uncompressed, JPEG, JPEG-LS, JPEG 2000, run lengths."""

_UNCOMPRESSED = {f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".2")}
MR_IMAGES = (CLASSIC_MR, ENHANCED_MR, LEGACY_MR)
_SAME_PLACE_MM = 0.01
_UNEVEN, _UNEVEN_MM = 0.01, 0.02
"""How far a step between slices may be from the middle one: a part of it, and the rounding of decimal strings."""

_MISSING = 1.5
_SHIFTED_MM = 0.1
_RIGHT_ANGLES = 1e-3
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM counts millimetres to the patient's left and back, NIfTI to the right and front."""


@dataclass(frozen=True, eq=False)
class Series:
    """One stack of parallel slices that were acquired alike.

    Attributes:
        store: where its files are.
        handle: how a user names it: the series' number, with ``.1``, ``.2`` where a number says too little.
        instances: the objects that its slices are in.
        planes: its slices, in no order yet.
        alone: False where the DICOM series holds other stacks, too.
    """

    store: Store = field(repr=False)
    handle: str
    instances: tuple[Instance, ...] = field(repr=False)
    planes: tuple[Plane, ...] = field(repr=False)
    alone: bool = True

    @property
    def name(self) -> str:
        """For messages and records: says nothing about a patient."""
        return f"DICOM series {self.handle}"

    @property
    def first(self) -> Instance:
        """An object of the series, for what they have in common."""
        return self.instances[0]

    @property
    def parameters(self) -> Parameters:
        """Of its first slice."""
        return self.planes[0].parameters

    @property
    def file(self) -> Path:
        """One of its files, or the archive that they are in; for the terminal only."""
        return self.store.place(self.first.file)

    @cached_property
    def layout(self) -> Layout:
        """Its slices in order.

        Raises:
            InputRefused: see :func:`lay_out`.
        """
        return lay_out(self)


@dataclass(frozen=True, eq=False)
class Layout:
    """Slices in the order of their positions.

    Attributes:
        planes: from the lowest position along the slices' normal to the highest, without repeats.
        affine: column, row, slice to scanner millimetres, RAS+, ``(4, 4)``.
        notices: repeats that were left out.
    """

    planes: tuple[Plane, ...]
    affine: Affine
    notices: tuple[Notice, ...] = ()


def find_series(store: Store) -> list[Series]:
    """Every stack in ``store``, by series number; headers are read, pixels are not.

    Raises:
        InputRefused: ``IN_*`` and ``DCM_MALFORMED`` of a file that cannot be read.
        EnvironmentRefused: ``ENV_EXTRA`` without pydicom.
    """
    read = (read_instance(store, name, size) for name, size in store.sizes())
    found = sorted((instance for instance in read if instance is not None), key=_series_key)
    stacks = [
        (instances[0].number, instances, planes, len(parts) == 1)
        for instances in (tuple(group) for _, group in groupby(found, key=_series_key))
        for parts in [_stacks(instances)]
        for planes in parts
    ]
    numbers = [number for number, *_ in stacks]
    seen: dict[int | None, int] = {}
    series = []
    for number, instances, planes, alone in stacks:
        seen[number] = seen.get(number, 0) + 1
        handle = "none" if number is None else str(number)
        handle += f".{seen[number]}" if numbers.count(number) > 1 else ""
        files = {plane.file for plane in planes}
        series.append(Series(store, handle, tuple(i for i in instances if i.file in files), planes, alone))
    return series


def _series_key(instance: Instance) -> tuple[int, str, str]:
    return (instance.number if instance.number is not None else 1 << 31, instance.study, instance.series)


def _stacks(instances: Sequence[Instance]) -> list[tuple[Plane, ...]]:
    """The slices of a series, apart where orientation, grid, echo or kind of image differ."""
    stacks: list[tuple[tuple[int, int], list[Plane]]] = []
    for instance in sorted(instances, key=lambda i: (i.order or 0, i.uid, i.file)):
        size = instance.shape[:2]
        for plane in instance.planes:
            home = next((planes for its, planes in stacks if its == size and _alike(plane, planes[0])), None)
            if home is None:
                home = []
                stacks.append((size, home))
            home.append(plane)
    return sorted((tuple(planes) for _, planes in stacks), key=lambda planes: planes[0].parameters.echo or 0.0)


def _alike(plane: Plane, other: Plane) -> bool:
    """Whether two slices of one size may be of one stack; scanners write the same angle a little differently."""
    a, b = plane.parameters, other.parameters
    return (
        _near(plane.orientation, other.orientation, 0.01)
        and _near(plane.spacing, other.spacing, 1e-3)
        and _near(None if a.echo is None else (a.echo,), None if b.echo is None else (b.echo,), 0.1)
        and component(a) == component(b)
    )


def _near(one: Vector | None, other: Vector | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return all(abs(p - q) <= tolerance for p, q in zip(one, other, strict=True))


def component(told: Parameters) -> str:
    """MAGNITUDE, PHASE, REAL or IMAGINARY."""
    words = {*told.kind[2:], told.component}
    for name, signs in (
        ("PHASE", {"P", "PHASE", "PHASE MAP"}),
        ("REAL", {"R", "REAL"}),
        ("IMAGINARY", {"I", "IMAGINARY"}),
    ):
        if words & signs:
            return name
    return "MAGNITUDE"


def judge_series(series: Series, *, max_voxels: int, accept_synthetic: bool = False) -> tuple[Notice, ...]:
    """Everything that can be judged without decoding a pixel.

    Returns:
        What is accepted with a warning.

    Raises:
        InputRefused: ``DCM_MODALITY``, ``DCM_UNSUPPORTED``, ``IN_SYNTHETIC``, ``IN_TOO_BIG``, ``DCM_CODEC``,
            ``IN_TRUNCATED``, ``IN_TOO_SMALL``, and those of :func:`lay_out`.
    """
    _judge_kind(series)
    notices = [*_judge_marks(series, accept_synthetic)]
    _judge_size(series, max_voxels)
    for instance in series.instances:
        _judge_pixels(instance, series)
    return (*notices, *series.layout.notices)


def _refusal(series: Series, code: str, message: str, **facts: object) -> CodeBrainError:
    return refusal(code, f"series {series.handle}: {message}", file=series.file, **facts)  # type: ignore[arg-type]


def _judge_kind(series: Series) -> None:
    first = series.first
    if first.modality != "MR":
        raise _refusal(series, "DCM_MODALITY", "not an MR image", field="Modality", found=code_string(first.modality),
                       expected="MR", hint="Give MR series only.")  # fmt: skip
    if first.sop_class not in MR_IMAGES:
        raise _refusal(series, "DCM_UNSUPPORTED", "this kind of DICOM object is not read", field="SOPClassUID",
                       found=_uid(first.sop_class), expected="MR Image or Enhanced MR Image",
                       hint="Give the original MR series.")  # fmt: skip
    if first.pixels is None:
        raise _refusal(series, "IN_TRUNCATED", "there are no pixels", hint="Export the series again.")
    if first.pixels.samples != 1:
        raise _refusal(series, "DCM_UNSUPPORTED", "the pixels are colours", field="SamplesPerPixel",
                       found=first.pixels.samples, expected=1, hint="Give the scan itself.")  # fmt: skip
    if not series.alone and first.shape[2] > 1:
        raise _refusal(series, "DCM_UNSUPPORTED", "one multi-frame object holds several stacks of slices",
                       hint="Convert it with dcm2niix and give the NIfTI file of one stack.")  # fmt: skip


def _judge_marks(series: Series, accept_synthetic: bool) -> Iterator[Notice]:
    if any(instance.synthetic for instance in series.instances):
        if not accept_synthetic:
            raise _refusal(
                series, "IN_SYNTHETIC", "this image was computed, not measured", field="SyntheticData", found="YES",
                hint="Give the measured series; --accept-synthetic imputes from it none the less and says so.",
            )  # fmt: skip
        yield Notice("IN_SYNTHETIC", "this image was itself computed; it was accepted as asked for", series.name)
    if any(instance.burned_in for instance in series.instances):
        yield Notice("DCM_BURNED_IN", "the pixels hold burned-in text, which may name the patient", series.name)
    if series.first.photometric == "MONOCHROME1":
        yield Notice("DCM_MONOCHROME1", "low values are bright in this series; values are as dcm2niix gives them",
                     series.name)  # fmt: skip


def _judge_size(series: Series, max_voxels: int) -> None:
    rows, columns, _ = series.first.shape
    frames = sum(max(1, instance.shape[2]) for instance in series.instances)
    if rows * columns * frames > max_voxels or min(rows, columns) < 1:
        code = "IN_TOO_BIG" if rows * columns else "DCM_GEOMETRY"
        raise _refusal(
            series, code, "the size is impossible or more than allowed", field="Rows, Columns, NumberOfFrames",
            found=f"{rows} x {columns} x {frames}", expected=f"1 to {max_voxels} voxels",
            hint="If the scan really is this large, raise the limit with --max-voxels.",
        )  # fmt: skip
    frames_told = [(i.shape[2], len(i.planes)) for i in series.instances if i.sop_class != CLASSIC_MR]
    if series.alone and any(told != found for told, found in frames_told):
        raise _refusal(series, "DCM_MALFORMED", "the frames are not all described", field="NumberOfFrames",
                       found=frames_told[0][0], expected=frames_told[0][1], hint="Export it again.")  # fmt: skip
    if series.first.sop_class == CLASSIC_MR and any(i.shape[2] > 1 for i in series.instances):
        raise _refusal(series, "DCM_UNSUPPORTED", "classic MR images have one frame each", field="NumberOfFrames",
                       found=max(i.shape[2] for i in series.instances), expected=1,
                       hint="Export the series again, as MR Image or Enhanced MR Image.")  # fmt: skip


def _judge_pixels(instance: Instance, series: Series) -> None:
    """The pixels are all there, in a form that dcm2niix decodes."""
    if instance.syntax not in DECODED:
        raise _refusal(
            series, "DCM_CODEC", "the pixels are compressed in a way that dcm2niix does not decode",
            field="TransferSyntaxUID", found=_uid(instance.syntax), expected="JPEG, JPEG-LS, JPEG 2000, RLE or none",
            hint="Decompress the series first, for example with: gdcmconv --raw IN OUT.",
        )  # fmt: skip
    pixels = instance.pixels
    if pixels is None:
        raise _refusal(series, "IN_TRUNCATED", "a file has no pixels", hint="Export the series again.")
    if instance.syntax in _UNCOMPRESSED:
        needed = math.prod(instance.shape) * pixels.samples * ((pixels.bits + 7) // 8)
        length = pixels.length if pixels.length is not None else 0
        whole = pixels.bits > 0 and min(length, instance.size - pixels.offset) >= needed
        found: object = f"{max(0, min(length, instance.size - pixels.offset))} bytes"
        expected: object = f"{needed} bytes"
    else:
        with series.store.stream(instance.file) as stream:
            whole = frames_end(stream, pixels.offset)
        found, expected = None, None
    if not whole:
        raise _refusal(series, "IN_TRUNCATED", "a file ends before its last pixel", found=found, expected=expected,
                       hint="The file was cut; copy or export it again.")  # fmt: skip


def _uid(text: str) -> str:
    """A UID from a file, if it is one; anything else is not repeated."""
    return text if re.fullmatch(r"[0-9.]{1,64}", text) else "no UID"


def code_string(text: str) -> str:
    """A code such as a modality from a file, if it can be one; anything else is not repeated."""
    return text if re.fullmatch(r"[A-Z]{2,8}", text) else "unknown"


def lay_out(series: Series) -> Layout:
    """Order the slices by where they lie.

    Raises:
        InputRefused: ``DCM_GEOMETRY`` (no or impossible position, orientation, spacing; slices shifted against
            each other), ``DCM_DUPLICATE`` (several images at one place), ``DCM_GAP`` (a slice is missing, or
            spacing is uneven), ``IN_TOO_SMALL`` (one slice).
    """
    axes, spacing = _axes(series)
    normal = np.cross(axes[0], axes[1])
    heights = [float(np.dot(normal, _position(plane, series))) for plane in series.planes]
    order = sorted(range(len(heights)), key=lambda n: (round(heights[n], 3), series.planes[n].file))
    planes, notices = _without_repeats(series, [(heights[n], series.planes[n]) for n in order])
    if len(planes) < 2:
        raise _refusal(series, "IN_TOO_SMALL", "this is a single slice", expected="a stack of slices",
                       hint="Give the folder with all files of the series.")  # fmt: skip
    positions = np.array([plane.position for plane in planes], float)
    _judge_steps(series, positions, normal)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * spacing[1], axes[1] * spacing[0]
    affine[:3, 2], affine[:3, 3] = (positions[-1] - positions[0]) / (len(planes) - 1), positions[0]
    return Layout(tuple(planes), _TO_RAS @ affine, notices)


def _axes(series: Series) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """Unit vectors along a row and along a column, and the spacing between rows and columns."""
    plane = series.planes[0]
    for keyword, value in (("ImageOrientationPatient", plane.orientation), ("PixelSpacing", plane.spacing)):
        if value is None:
            raise _lacks(series, keyword)
    axes = np.array(plane.orientation, float).reshape(2, 3)
    crooked = float(np.abs(axes @ axes.T - np.eye(2)).max())
    spacing = plane.spacing or ()
    if crooked > _RIGHT_ANGLES or not all(1e-3 < edge < 1e3 for edge in spacing):
        field_, found = ("ImageOrientationPatient", axes) if crooked > _RIGHT_ANGLES else ("PixelSpacing", spacing)
        raise _refusal(series, "DCM_GEOMETRY", "this cannot be how a slice lies in space", field=field_,
                       found=np.round(found, 4).tolist(), expected="two unit vectors at right angles, positive spacing",
                       hint="The headers are damaged; export the series again.")  # fmt: skip
    return axes / np.linalg.norm(axes, axis=1, keepdims=True), spacing


def _lacks(series: Series, keyword: str) -> CodeBrainError:
    return _refusal(series, "DCM_GEOMETRY", "the files do not say how the slices lie in space", field=keyword,
                    found="nothing", expected="a value in every file",
                    hint="Export the original series, not a screen capture of it.")  # fmt: skip


def _position(plane: Plane, series: Series) -> NDArray[np.float64]:
    if plane.position is None:
        raise _lacks(series, "ImagePositionPatient")
    return np.array(plane.position, float)


def _without_repeats(series: Series, placed: list[tuple[float, Plane]]) -> tuple[list[Plane], tuple[Notice, ...]]:
    """One slice a place; repeats with the same pixels are left out."""
    kept: list[tuple[float, Plane]] = []
    repeats, clashes = 0, []
    for height, plane in placed:
        if not kept or height - kept[-1][0] > _SAME_PLACE_MM:
            kept.append((height, plane))
        elif pixel_digest(series, plane) == pixel_digest(series, kept[-1][1]):
            repeats += 1
        else:
            clashes.append(height)
    if clashes:
        raise _refusal(
            series, "DCM_DUPLICATE", f"{len(clashes)} slices lie where another one does, with other pixels",
            found=f"at {_millimetres(clashes)} along the slices' normal", expected="one image at each position",
            hint="It may be a time series or a series exported twice; give one volume of it.",
        )  # fmt: skip
    note = f"repeated slices with the same pixels were left out ({repeats})"
    return [plane for _, plane in kept], (Notice("DCM_DUPLICATE", note, series.name),) if repeats else ()


def _judge_steps(series: Series, positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    heights = positions @ normal
    steps = np.diff(heights)
    middle = float(np.median(steps))
    gaps = [n for n, step in enumerate(steps) if step > _MISSING * middle]
    uneven = [n for n, step in enumerate(steps) if abs(step - middle) > max(_UNEVEN * middle, _UNEVEN_MM)]
    if gaps or uneven:
        what = "slices are missing" if gaps else "the slices are not evenly spaced"
        places = "; ".join(f"{heights[n]:.2f} to {heights[n + 1]:.2f} mm" for n in (gaps or uneven)[:5])
        raise _refusal(series, "DCM_GAP", what, found=f"steps from {places}", expected=f"steps of {middle:.3f} mm",
                       hint="Export the series again, whole.")  # fmt: skip
    sideways = positions - positions[0] - np.outer(heights - heights[0], normal)
    furthest = float(np.linalg.norm(sideways, axis=1).max())
    if furthest > _SHIFTED_MM:
        raise _refusal(series, "DCM_GEOMETRY", "slices are shifted against each other", field="ImagePositionPatient",
                       found=f"{furthest:.2f} mm", expected=f"at most {_SHIFTED_MM} mm",
                       hint="Resample the scan onto a grid with right angles and give that.")  # fmt: skip


def _millimetres(heights: Sequence[float]) -> str:
    return ", ".join(f"{height:.2f} mm" for height in heights[:5]) + (" and more" if len(heights) > 5 else "")


def pixel_digest(series: Series, plane: Plane) -> str:
    """SHA-256 of a slice's stored pixels; of compressed frames no part is told from another."""
    instance = next(i for i in series.instances if i.file == plane.file)
    pixels = instance.pixels
    if pixels is None or (plane.frame is not None and pixels.length is None):
        return f"{plane.file} {plane.frame}"
    length = pixels.length if pixels.length is not None else instance.size - pixels.offset
    offset = pixels.offset
    if plane.frame is not None:
        length //= instance.shape[2]
        offset += length * (plane.frame - 1)
    digest = hashlib.sha256()
    with series.store.stream(plane.file) as stream:
        stream.seek(offset)
        for chunk in stream.chunks(length):
            digest.update(chunk)
    return digest.hexdigest()
