"""Where voxels lie in the head: one affine in millimetres from a header's several claims, or a refusal."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.quaternions import quat2mat
from numpy.typing import NDArray

from codebrain.errors import CodeBrainError, Notice, refusal

Affine = NDArray[np.float64]
"""Voxel index to scanner millimetres, RAS+, ``(4, 4)``."""

SMALLEST_VIEW_MM, LARGEST_VIEW_MM = 80.0, 400.0
_VALID_CODES = (1, 2, 3, 4, 5)
_UNITS = {1: (1000.0, "metres"), 2: (1.0, "millimetres"), 3: (0.001, "micrometres")}
_SHEAR = 1e-3
_FORMS_VOXELS = 0.1
_FAR_MM = 1e4
_QUATERNION = -3.6e-7
"""1 minus the squares of a unit quaternion in float32, at the least; nibabel draws the line here, too."""

_SANE_ZOOM = (1e-6, 1e6)
_RESAMPLE = "Resample the scan onto a grid with right angles and give that."


def corners(affine: Affine, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """World positions of the eight corner voxels' centres, ``(8, 3)``."""
    places = np.array(list(itertools.product(*((0, size - 1) for size in shape[:3]))), float)
    return np.asarray(places @ affine[:3, :3].T + affine[:3, 3])


def judge_geometry(
    header: Any, shape: tuple[int, ...], path: Path | None, name: str, *, accept_no_orientation: bool
) -> tuple[Affine, list[Notice]]:
    """The affine of a scan in millimetres.

    Raises:
        InputRefused: ``GEO_NO_ORIENTATION``, ``GEO_AFFINE``, ``GEO_ZOOM``, ``GEO_FOV``.
    """
    notices: list[Notice] = []
    affine = _choose(header, shape, path, name, notices, accept_no_orientation)
    affine = _in_millimetres(header, affine, name, notices)
    _judge_affine(affine, path, name, notices)
    _judge_view(affine, shape, path)
    return affine, notices


def _choose(
    header: Any, shape: tuple[int, ...], path: Path | None, name: str, notices: list[Notice], accept: bool
) -> Affine:
    """The sform where there is one, else the qform, else a guess that the caller must have allowed."""
    qform, sform = (int(header[field]) in _VALID_CODES for field in ("qform_code", "sform_code"))
    bad_zoom = _bad_zoom(header)
    if sform:
        affine = _sform(header)
        _require_invertible(affine, path, "sform")
        _compare_zooms(header, affine, bad_zoom, path, name, notices)
        if qform and bad_zoom is None:
            _compare_forms(header, shape, name, notices)
        return affine
    if bad_zoom is not None:
        raise _zoom_refusal(header, bad_zoom, path)
    if qform:
        if abs(float(header["pixdim"][0])) != 1:
            message = f"qfac is {float(header['pixdim'][0]):g} instead of 1 or -1; it was read as its sign, 0 as 1"
            notices.append(Notice("GEO_QFAC", message, name))
        affine = _qform(header, path)
        _require_invertible(affine, path, "qform")
        return affine
    return _no_orientation(header, shape, path, name, notices, accept)


def _sform(header: Any) -> Affine:
    return np.array([*(header[f"srow_{axis}"] for axis in "xyz"), (0, 0, 0, 1)], np.float64)


def _qform(header: Any, path: Path | None) -> Affine:
    """Source: NIfTI-1 standard, method 2 (quaternion, pixdim, offset, handedness)."""
    quaternion = np.array([header[f"quatern_{part}"] for part in "bcd"], np.float64)
    offset = np.array([header[f"qoffset_{axis}"] for axis in "xyz"], np.float64)
    rest = 1.0 - float(quaternion @ quaternion)
    if not (np.isfinite(quaternion).all() and np.isfinite(offset).all() and rest > _QUATERNION):
        raise refusal(
            "GEO_AFFINE", "the quaternion is not a rotation", file=path, field="quatern_b, quatern_c, quatern_d",
            found=quaternion.tolist(), expected="squares that sum to 1 or less",
            hint="The header is damaged; convert the scan again, for example with dcm2niix.",
        )  # fmt: skip
    if rest < 1e-7:  # half a turn, as near as float32 tells: rounding is not to become a small rotation
        quaternion, rest = quaternion / np.linalg.norm(quaternion), 0.0
    rotation = quat2mat([np.sqrt(rest), *quaternion])
    zooms = np.array(header["pixdim"][1:4], np.float64)
    if header["pixdim"][0] < 0:
        zooms[2] = -zooms[2]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * zooms, offset
    return affine


def _no_orientation(
    header: Any, shape: tuple[int, ...], path: Path | None, name: str, notices: list[Notice], accept: bool
) -> Affine:
    if not accept:
        raise refusal(
            "GEO_NO_ORIENTATION", "the header does not say how the scan lies in space", file=path,
            field="qform_code, sform_code", found=f"{int(header['qform_code'])}, {int(header['sform_code'])}",
            expected="a code of 1 or more",
            hint="Convert the scan again with its orientation; or, if every contrast is in the order"
            " left, anterior, superior, use --accept-no-orientation.",
        )  # fmt: skip
    message = "the header has no orientation; left-anterior-superior order was assumed, as asked for"
    notices.append(Notice("GEO_NO_ORIENTATION", message, name))
    zooms = np.array(header["pixdim"][1:4], np.float64) * (-1, 1, 1)
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = -zooms * (np.array(shape[:3]) - 1) / 2
    return affine


def _require_invertible(affine: Affine, path: Path | None, which: str) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise refusal(
            "GEO_AFFINE", f"the {which} does not describe a volume", file=path, field=which,
            found=np.array2string(affine[:3], precision=3, separator=",").replace("\n", ""),
            expected="a finite, invertible matrix",
            hint="The header is damaged; convert the scan again, for example with dcm2niix.",
        )  # fmt: skip


def _bad_zoom(header: Any) -> int | None:
    """The first of pixdim[1..3] that cannot be a voxel size."""
    for axis in (1, 2, 3):
        zoom = float(header["pixdim"][axis])
        if not _SANE_ZOOM[0] <= zoom <= _SANE_ZOOM[1]:
            return axis
    return None


def _zoom_refusal(header: Any, axis: int, path: Path | None) -> CodeBrainError:
    return refusal(
        "GEO_ZOOM", "this cannot be a voxel size", file=path, field=f"pixdim[{axis}]",
        found=float(header["pixdim"][axis]), expected="a positive number of millimetres",
        hint="The header is damaged; convert the scan again, for example with dcm2niix.",
    )  # fmt: skip


def _compare_zooms(
    header: Any, affine: Affine, bad: int | None, path: Path | None, name: str, notices: list[Notice]
) -> None:
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    zooms = np.array(header["pixdim"][1:4], np.float64)
    if bad is not None and not (_SANE_ZOOM[0] <= norms.min() and norms.max() <= _SANE_ZOOM[1]):
        raise _zoom_refusal(header, bad, path)
    if bad is not None or not np.allclose(zooms, norms, rtol=0.01):
        told, used = (", ".join(f"{size:.4g}" for size in sizes) for sizes in (zooms, norms))
        message = f"pixdim gives voxels of {told} but the sform of {used}; the sform was used"
        notices.append(Notice("GEO_ZOOM", message, name))


def claimed_affine(header: Any) -> Affine | None:
    """The affine that a header claims, in millimetres, of sform or qform; not judged but for being a matrix."""
    for field, form in (("sform_code", _sform), ("qform_code", lambda h: _qform(h, None))):
        if int(header[field]) not in _VALID_CODES:
            continue
        try:
            affine = form(header)
        except CodeBrainError:
            continue
        if np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12:
            return _in_millimetres(header, affine, "", [])
    return None


def forms_apart(header: Any, shape: tuple[int, ...]) -> float | None:
    """How far qform and sform place a corner from each other, in voxels.

    ``None`` where one of them is unset or cannot be used; infinite where only the qform cannot.
    """
    if not all(int(header[field]) in _VALID_CODES for field in ("qform_code", "sform_code")):
        return None
    affine = _sform(header)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return None
    try:
        other = _qform(header, None)
    except CodeBrainError:
        return float("inf")
    apart = (corners(other, shape) - corners(affine, shape)) @ np.linalg.inv(affine[:3, :3]).T
    return float(np.abs(apart).max())


def _compare_forms(header: Any, shape: tuple[int, ...], name: str, notices: list[Notice]) -> None:
    worst = forms_apart(header, shape) or 0.0
    if np.isinf(worst):
        notices.append(Notice("GEO_FORMS", "the qform is impossible; the sform was used", name))
    elif worst > _FORMS_VOXELS:
        message = f"qform and sform differ by up to {worst:.2f} voxels; the sform was used"
        notices.append(Notice("GEO_FORMS", message, name))


def _in_millimetres(header: Any, affine: Affine, name: str, notices: list[Notice]) -> Affine:
    code = int(header["xyzt_units"]) & 7
    if code not in _UNITS:
        notices.append(Notice("GEO_UNITS", "the header names no unit of length; millimetres were assumed", name))
        return affine
    factor, unit = _UNITS[code]
    if factor != 1:
        notices.append(Notice("GEO_UNITS", f"the header is in {unit}; it was read as such", name))
    return np.diag([factor, factor, factor, 1.0]) @ affine


def _judge_affine(affine: Affine, path: Path | None, name: str, notices: list[Notice]) -> None:
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    shear = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if shear > _SHEAR:
        raise refusal(
            "GEO_AFFINE", "the axes of the grid are not at right angles", file=path, field="sform",
            found=f"a cosine of {shear:.4f} between two axes", expected=f"at most {_SHEAR}", hint=_RESAMPLE,
        )  # fmt: skip
    far = float(np.abs(affine[:3, 3]).max())
    if far > _FAR_MM:
        notices.append(Notice("GEO_ORIGIN", f"the scan lies {far / 1000:.0f} m from the scanner's centre", name))


def _judge_view(affine: Affine, shape: tuple[int, ...], path: Path | None) -> None:
    view = np.linalg.norm(affine[:3, :3], axis=0) * shape[:3]
    if view.min() < SMALLEST_VIEW_MM or view.max() > LARGEST_VIEW_MM:
        raise refusal(
            "GEO_FOV", "the field of view cannot be a head's", file=path, field="pixdim, dim",
            found=" x ".join(f"{size:.4g}" for size in view) + " mm",
            expected=f"{SMALLEST_VIEW_MM:.0f} to {LARGEST_VIEW_MM:.0f} mm along each axis",
            hint="If the voxel size in the header is false, correct it; else give a scan of the whole head.",
        )  # fmt: skip
