"""A scan on the doctor's table: all that can be known of one file, and of several together.

What :func:`codebrain.imaging.volume.read_volume` refuses is refused here with the same code and sentence, because it
is the same read; what it accepts with a warning is a warning here. The header of a refused file is told as far as it
can be read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from codebrain.errors import CodeBrainError, Notice, as_refusal, refusal
from codebrain.imaging._container import ScanBytes, is_dicom, pair_of
from codebrain.imaging._geometry import claimed_affine, forms_apart
from codebrain.imaging._header import read_header
from codebrain.imaging._mgh import is_mgh
from codebrain.imaging.contrast import LikelyContrast, likely_contrast
from codebrain.imaging.dicom.convert import read_series
from codebrain.imaging.dicom.find import find_examination
from codebrain.imaging.domain import HeadKind, defaced, skull_stripped
from codebrain.imaging.intensity import border_constant, foreground_mask
from codebrain.imaging.mending import Mending, Patient, mendings
from codebrain.imaging.study import modality_of
from codebrain.imaging.volume import Volume, read_volume
from codebrain.marks import SYNTHETIC
from codebrain.vocabulary import Modality

Severity = Literal["refused", "warning"]

_CODES = {1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI 152", 5: "template"}
_PERCENTILES = (1.0, 25.0, 50.0, 75.0, 99.0)


@dataclass(frozen=True)
class Finding:
    """One problem of a scan.

    Attributes:
        code: stable identifier.
        severity: whether ``impute`` refuses the scan or only warns.
        message: one sentence, without the file.
        mendings: what to type.
        advice: what to do, where that is more than a command.
    """

    code: str
    severity: Severity
    message: str
    mendings: tuple[Mending, ...] = ()
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "advice": self.advice or None,
            "mend": [mending.as_dict() for mending in self.mendings],
        }


@dataclass(frozen=True)
class HeaderFacts:
    """What a header says, believed or not.

    Attributes:
        format: for example ``NIfTI-1, gzip, little-endian``.
        bytes: size of the file on disk.
        shape: every axis.
        dtype: of the stored voxels.
        scaling: ``(slope, intercept)`` where the voxels are scaled.
        qform: its code; 0 is unset.
        sform: likewise.
        forms_apart: how far the two place a corner from each other, in voxels; ``None`` without both.
        spacing: voxel edges in millimetres; empty where they cannot be known.
        orientation: where the axes grow to; empty where it cannot be known.
        texts: whether it holds words (which may name a patient, and are never copied to an output).
        synthetic: whether it says that the image is SYNTHETIC.
    """

    format: str
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    scaling: tuple[float, float] | None
    qform: int
    sform: int
    forms_apart: float | None
    spacing: tuple[float, ...]
    orientation: str
    texts: bool
    synthetic: bool

    @property
    def field_of_view(self) -> tuple[float, ...]:
        """Edges of the whole grid in millimetres."""
        return tuple(mm * size for mm, size in zip(self.spacing, self.shape, strict=False))

    def as_dict(self) -> dict[str, Any]:
        """JSON form; what is not a number is ``None``."""
        return {
            "format": self.format,
            "bytes": self.bytes,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "scaling": None if self.scaling is None else [_finite(value) for value in self.scaling],
            "qform_code": self.qform,
            "sform_code": self.sform,
            "forms_apart_voxels": _finite(self.forms_apart),
            "spacing_mm": [_finite(mm) for mm in self.spacing],
            "field_of_view_mm": [_finite(mm) for mm in self.field_of_view],
            "orientation": self.orientation or None,
            "texts": self.texts,
            "synthetic": self.synthetic,
        }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


@dataclass(frozen=True)
class ImageFacts:
    """What the voxels say.

    Attributes:
        least: the smallest value.
        most: the largest value.
        percentiles: of the values inside the head, by percentage.
        background: the value that fills the border; ``None`` where the air is noise.
        air: median outside the head.
        head_share: part of the image that is head.
        head_litres: its volume.
        kind: ``stripped``, ``whole``, ``defaced`` or ``unclear``; see :mod:`codebrain.imaging.domain`.
        kind_reason: what was measured, in a few words.
        looks_like: the likely contrast.
        named: the contrast that the file's name, or a DICOM header, says, if any.
    """

    least: float
    most: float
    percentiles: Mapping[float, float]
    background: float | None
    air: float
    head_share: float
    head_litres: float
    kind: HeadKind
    kind_reason: str
    looks_like: LikelyContrast
    named: str | None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "range": [self.least, self.most],
            "head_percentiles": {f"{p:g}": round(value, 6) for p, value in self.percentiles.items()},
            "background": self.background,
            "air_median": self.air,
            "head_share": round(self.head_share, 4),
            "head_litres": round(self.head_litres, 3),
            "head_kind": self.kind,
            "head_kind_reason": self.kind_reason,
            "contrast": self.looks_like.as_dict(),
            "contrast_in_name": self.named,
        }


@dataclass(frozen=True, eq=False)
class Examination:
    """All that was found out about one file.

    Attributes:
        path: as typed.
        header: ``None`` where not even that can be read.
        image: ``None`` for a refused scan.
        findings: the refusal first.
        volume: the scan, for comparisons; ``None`` when refused.
    """

    path: Path
    header: HeaderFacts | None
    image: ImageFacts | None
    findings: tuple[Finding, ...]
    volume: Volume | None = None

    @property
    def usable(self) -> bool:
        """Whether ``impute`` would take the file."""
        return not any(finding.severity == "refused" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "file": str(self.path),
            "usable": self.usable,
            "header": None if self.header is None else self.header.as_dict(),
            "image": None if self.image is None else self.image.as_dict(),
            "findings": [finding.as_dict() for finding in self.findings],
        }


def examine(path: Path, **reading: Any) -> Examination:
    """Examine one file; never raises for what can be wrong with it.

    Args:
        path: a file.
        **reading: of :func:`codebrain.imaging.volume.read_volume`.
    """
    return _examine(path, read_facts(path), lambda: read_volume(path, **reading), modality_of(path.name))


def examine_dicom(path: Path, **reading: Any) -> tuple[list[Examination], list[str]] | None:
    """Examine the series of a folder, archive or file that ``impute`` would take as contrasts.

    Returns:
        The examinations, named ``path/DICOM series 3``, and a line for each series that is there; ``None`` where
        there is no DICOM file.
    """
    try:
        found = find_examination(path)
    except CodeBrainError as error:
        return [Examination(path, None, None, (_refused(path, error, None),))], []
    if found is None:
        return None
    examined = []
    for modality, series in found.chosen.items():
        one = _examine(path / series.name, None, partial(read_series, series, **reading), modality)
        if one.volume is not None:
            kind = f"DICOM, {len(series.planes)} slices"
            size = sum(instance.size for instance in series.instances)
            facts = replace(_facts(path, one.volume.header, size, packed=False, pair=False), format=kind, texts=True)
            one = replace(one, header=facts)
        examined.append(one)
    return examined, found.lines()


def _examine(path: Path, header: HeaderFacts | None, read: Callable[[], Volume], named: Modality | None) -> Examination:
    try:
        volume = read()
        image = _image_facts(volume, named)
    except (CodeBrainError, OSError, MemoryError) as error:
        return Examination(path, header, None, (_refused(path, error, header),))
    warnings = (*(_warned(path, notice, header) for notice in volume.notices), *_own_warnings(image))
    return Examination(path, header, image, warnings, volume)


def _refused(path: Path, error: Exception, header: HeaderFacts | None) -> Finding:
    known = as_refusal(error) or refusal("IN_NOT_A_FILE", f"the file cannot be read: {error}", file=path)
    patient = _patient(path, known.code, known.message, header, field=known.field or "")
    hint = known.hint or ""
    sentence = known.brief.removesuffix(hint).strip()
    return Finding(known.code, "refused", sentence, mendings(patient), hint)


def _warned(path: Path, notice: Notice, header: HeaderFacts | None) -> Finding:
    patient = _patient(path, notice.code, notice.message, header)
    return Finding(notice.code, "warning", notice.message, mendings(patient))


def _patient(path: Path, code: str, message: str, header: HeaderFacts | None, *, field: str = "") -> Patient:
    if header is None:
        return Patient(path, code, message, field)
    return Patient(path, code, message, field, header.shape, header.spacing, header.qform in _CODES)


def _own_warnings(image: ImageFacts) -> Iterable[Finding]:
    """What ``impute`` accepts in silence and a person should still know."""
    looks = image.looks_like
    if image.named is not None and looks.candidates and image.named not in looks.candidates:
        message = (
            f"the name or header says {image.named}, the image looks like {_choice(looks.candidates)}: {looks.reason}"
        )
        yield Finding("MOD_NAME", "warning", message)


def _choice(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def read_facts(path: Path) -> HeaderFacts | None:
    """What the header says, as far as there is one; nothing is judged."""
    try:
        pair = pair_of(path)
        with ScanBytes(path if pair is None else pair[0]) as stream:
            header = read_header(stream, pair=pair is not None).header
            packed = stream.compressed
        size = sum(part.stat().st_size for part in pair or (path,))
    except (CodeBrainError, OSError, ValueError):
        return None
    return _facts(path, header, size, packed=packed, pair=pair is not None)


def _facts(path: Path, header: Any, size: int, *, packed: bool, pair: bool) -> HeaderFacts:
    axes = min(max(int(header["dim"][0]), 0), 7)
    shape = tuple(int(n) for n in header["dim"][1 : axes + 1])
    spacing, orientation = _place(header, shape)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    scaled = slope != 0 and not math.isnan(slope) and (slope, intercept) != (1.0, 0.0)
    texts = [bytes(header[name].item()).strip(b"\0 ") for name in _TEXTS if name in header.keys()]  # noqa: SIM118
    return HeaderFacts(
        format=_format(path, header, packed=packed, pair=pair),
        bytes=size,
        shape=shape,
        dtype=_dtype(header),
        scaling=(slope, intercept) if scaled else None,
        qform=int(header["qform_code"]),
        sform=int(header["sform_code"]),
        forms_apart=forms_apart(header, shape) if len(shape) >= 3 else None,
        spacing=spacing,
        orientation=orientation,
        texts=any(texts),
        synthetic=any(text.startswith(SYNTHETIC.encode()) for text in texts),
    )


_TEXTS = ("descrip", "intent_name", "aux_file", "db_name", "data_type")


def _format(path: Path, header: Any, *, packed: bool, pair: bool) -> str:
    version = "MGH" if is_mgh(path) else f"NIfTI-{2 if isinstance(header, nib.Nifti2Header) else 1}"
    order = "big-endian" if header.endianness == ">" else "little-endian"
    return ", ".join([version, *(["two files"] if pair else []), "gzip" if packed else "plain", order])


def _dtype(header: Any) -> str:
    code = int(header["datatype"])
    try:
        return str(nib.nifti1.data_type_codes.label[code])
    except KeyError:
        return f"unknown ({code})"


def _place(header: Any, shape: tuple[int, ...]) -> tuple[tuple[float, ...], str]:
    """Spacing and orientation that a header claims, however odd they are."""
    affine = claimed_affine(header)
    if affine is None:
        return tuple(float(mm) for mm in header["pixdim"][1 : 1 + min(3, len(shape))]), ""
    edges = np.linalg.norm(affine[:3, :3], axis=0)[: max(1, min(3, len(shape)))]
    return tuple(float(mm) for mm in edges), "".join(code or "?" for code in nib.aff2axcodes(affine))


def code_name(code: int) -> str:
    """For example ``1 (scanner)``."""
    return f"{code} ({'unset' if code == 0 else _CODES.get(code, 'invalid')})"


def _image_facts(volume: Volume, named: Modality | None) -> ImageFacts:
    head = foreground_mask(volume.data)
    inside, outside = volume.data[head], volume.data[~head]
    values = np.percentile(inside, _PERCENTILES) if inside.size else np.zeros(len(_PERCENTILES))
    kind, reason = _kind(volume)
    return ImageFacts(
        least=float(volume.data.min()),
        most=float(volume.data.max()),
        percentiles={p: float(v) for p, v in zip(_PERCENTILES, values, strict=True)},
        background=border_constant(volume.data),
        air=float(np.median(outside)) if outside.size else 0.0,
        head_share=float(head.mean()),
        head_litres=float(head.sum()) * math.prod(volume.spacing) / 1e6,
        kind=kind,
        kind_reason=reason,
        looks_like=likely_contrast(volume, head, stripped=kind == "stripped"),
        named=None if named is None else str(named),
    )


def _kind(volume: Volume) -> tuple[HeadKind, str]:
    """Whether skull and face are there, with the measure that says so."""
    skull = skull_stripped(volume)
    reason = f"{'a' if skull.verdict == 'whole' else 'no'} dark layer of skull under the surface, {skull.score:.2f}"
    if skull.verdict != "whole":
        return skull.verdict, reason
    face = defaced(volume)
    if face.score is None:
        return "whole", f"{reason}; the face is out of view"
    reason = f"{reason}; face behind the forehead by {face.score:.2f} of the head's length"
    return ("defaced" if face.verdict == "defaced" else "whole"), reason


_SCANS = (".nii", ".nii.gz", ".mgz", ".mgh", ".mgh.gz", ".img", ".img.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".mnc")


def find_scans(folder: Path) -> tuple[list[Path], bool]:
    """The scans below a folder by name, and whether there are DICOM files, too; what is hidden is passed over.

    A ``.hdr`` counts only where its ``.img`` is missing.
    """
    scans: list[Path] = []
    dicom = False
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(place) / name for name in sorted(names) if not name.startswith(".")]
        scans += [path for path in paths if _is_scan(path)]
        dicom = dicom or any(is_dicom(path) for path in paths if not _is_scan(path))
    return scans, dicom


def _is_scan(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith((".hdr", ".hdr.gz")):
        stem = path.name[: name.rindex(".hdr")]
        return not any(path.with_name(stem + end).exists() for end in (".img", ".IMG", ".img.gz"))
    return name.endswith(_SCANS)


def empty_folder(folder: Path) -> Examination:
    """What there is to say of a folder without a scan."""
    message = "there is no scan in this folder (expected .nii, .nii.gz, .mgz, .hdr with .img, or DICOM files)"
    return Examination(folder, None, None, (Finding("IN_NOT_A_FILE", "refused", message),))
