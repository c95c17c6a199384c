"""FreeSurfer's MGH and MGZ: their header as a NIfTI header, so that one set of checks judges both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from numpy.typing import NDArray

from codebrain.errors import refusal
from codebrain.imaging._container import ScanBytes

HEADER_BYTES = 284
_FIELDS_BYTES = 90
_FLAG_AT = 28
_TYPES = {0: ("u1", 2), 1: ("i4", 8), 3: ("f4", 16), 4: ("i2", 4), 10: ("u2", 512)}
_NIFTI1_MOST = 2**15 - 1


def is_mgh(path: Path) -> bool:
    """By the name: the format has no magic."""
    return path.name.lower().endswith((".mgz", ".mgh", ".mgh.gz"))


def read_mgh_header(stream: ScanBytes) -> Any:
    """The header as a big-endian NIfTI header, neither checked nor mended; 284 bytes are taken from ``stream``.

    Without a valid orientation both codes are 0.

    Raises:
        InputRefused: ``IN_TRUNCATED``, ``IN_FORMAT`` (another version, or no MGH file), ``IN_DTYPE``.
    """
    head = stream.take(HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        raise refusal(
            "IN_TRUNCATED", "the file ends inside its header", file=stream.path,
            found=f"{len(head)} bytes", expected=f"{HEADER_BYTES} bytes or more", hint="Copy or download it again.",
        )  # fmt: skip
    footer = MGHHeader.template_dtype.itemsize - _FIELDS_BYTES
    mgh = MGHHeader(head[:_FIELDS_BYTES] + bytes(footer), check=False)
    if int(mgh["version"]) != 1:
        raise refusal(
            "IN_FORMAT", "this is not an MGH file", file=stream.path, field="version", found=int(mgh["version"]),
            expected=1, hint="Convert the scan again with mri_convert.",
        )  # fmt: skip
    # nibabel sets the flag itself where it is missing, together with an orientation that nobody measured.
    oriented = int(np.frombuffer(head, ">i2", 1, _FLAG_AT)[0]) == 1
    return _as_nifti(mgh, stream.path, oriented=oriented)


def _as_nifti(mgh: Any, path: Path, *, oriented: bool) -> Any:
    kind = int(mgh["type"])
    if kind not in _TYPES:
        raise refusal("IN_DTYPE", "this voxel type is not read", file=path, field="type", found=kind,
                      expected="0, 1, 3, 4 or 10", hint="Save the scan as float: mri_convert -odt float.")  # fmt: skip
    sizes = [int(size) for size in mgh["dims"]]
    cls = nib.Nifti1Header if max(sizes) <= _NIFTI1_MOST else nib.Nifti2Header
    header = cls(endianness=">")
    header["dim"][:5] = (3 if sizes[3] == 1 else 4, *sizes)
    header["datatype"], header["bitpix"] = _TYPES[kind][1], 8 * np.dtype(_TYPES[kind][0]).itemsize
    header["vox_offset"] = HEADER_BYTES
    header["pixdim"][1:4] = mgh["delta"]
    header.set_xyzt_units("mm")
    if oriented:
        _orient(header, mgh.get_affine())
    return header


def _orient(header: Any, affine: NDArray[np.float64]) -> None:
    for row, name in zip(affine, ("srow_x", "srow_y", "srow_z"), strict=False):
        header[name] = row
    header["sform_code"] = 1
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not edges.all():
        return  # the checks of the sform say what is wrong
    directions = affine[:3, :3] / edges
    if np.abs(directions.T @ directions - np.eye(3)).max() < 1e-4:
        header.set_qform(affine, code=1)
