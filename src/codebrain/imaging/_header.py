"""What a NIfTI header promises, judged before a single voxel is allocated."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from codebrain.errors import CodeBrainError, Notice, refusal
from codebrain.imaging._container import ScanBytes
from codebrain.imaging._mgh import HEADER_BYTES, is_mgh, read_mgh_header

NiftiHeader = nib.Nifti1Header  # Nifti2Header derives from it

LEAST_VOXELS = 8
"""Along each axis: the network halves three times."""

_LARGEST_OFFSET = 64 << 20
_MAGIC = {b"n+1\0": 1, b"n+2\0": 2}
_PAIR_MAGIC = {b"ni1\0": 1, b"ni2\0": 2}
_TYPES: dict[int, str] = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_COMPLEX = (32, 1792, 2048)
_COLOUR = (128, 2304)
_FLOAT128 = 1536


def binary128(order: str) -> np.dtype[Any]:
    """IEEE quadruple precision as two words; ``numpy.longdouble`` is another format on most machines."""
    words = ("low", "high") if order == "<" else ("high", "low")
    return np.dtype([(word, f"{order}u8") for word in words])


@dataclass(frozen=True)
class Preamble:
    """A header before it is judged, and where voxels may begin.

    Attributes:
        header: as it is on disk, or a NIfTI header that says the same.
        notices: what was accepted with a warning.
        taken: bytes of the file that held it; 0 where the voxels are in a file of their own.
        least_offset: before which no voxel can begin.
    """

    header: Any
    notices: tuple[Notice, ...]
    taken: int
    least_offset: int


@dataclass(frozen=True)
class Promise:
    """What a header says about the voxels that follow.

    Attributes:
        header: the header as it is on disk.
        dtype: type of the stored voxels, in the file's byte order.
        shape: every axis on disk.
        offset: bytes before the first voxel.
        slope: factor from stored values to scanner units; 1 when unscaled.
        intercept: added after ``slope``.
        notices: what was accepted with a warning.
    """

    header: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    slope: float
    intercept: float
    notices: tuple[Notice, ...]


def read_header(stream: ScanBytes, *, pair: bool = False) -> Preamble:
    """The header, neither checked nor mended, and the bytes up to its end taken from ``stream``.

    Args:
        stream: of the file, or of the ``.hdr`` of a pair.
        pair: whether the voxels are in a file of their own.

    Raises:
        InputRefused: ``IN_TRUNCATED`` (not even a header), ``IN_FORMAT`` (not NIfTI), ``IN_HEADER``.
    """
    if is_mgh(stream.path):
        return Preamble(read_mgh_header(stream), (), HEADER_BYTES, HEADER_BYTES)
    header, notices = _read_nifti_header(stream, _PAIR_MAGIC if pair else _MAGIC)
    if pair:
        return Preamble(header, tuple(notices), 0, 0)
    return Preamble(header, tuple(notices), int(header.template_dtype.itemsize), int(header.sizeof_hdr) + 4)


def _read_nifti_header(stream: ScanBytes, magics: dict[bytes, int]) -> tuple[Any, list[Notice]]:
    path, notices = stream.path, []
    head = stream.take(348)
    if len(head) < 348 and (head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") or stream.compressed):
        raise refusal(
            "IN_TRUNCATED", "the file ends inside its header", file=path,
            found=f"{len(head)} bytes", expected="348 bytes or more", hint="Copy or download it again.",
        )  # fmt: skip
    version = magics.get(head[344:348]) or magics.get(head[4:8])
    if version is None:
        raise _not_nifti(head, path)
    cls = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    head += stream.take(cls.template_dtype.itemsize - len(head))
    if len(head) < cls.template_dtype.itemsize:
        raise refusal("IN_TRUNCATED", "the file ends inside its header", file=path, hint="Copy it again.")
    order = _byte_order(head, cls)
    if order is None:
        raise refusal("IN_HEADER", "neither byte order gives 1 to 7 axes", file=path, field="dim[0]",
                      found=_dimensions(head, cls, "<"), expected="1 to 7", hint=_BROKEN)  # fmt: skip
    header = cls(head, endianness=order, check=False)
    if int(header["sizeof_hdr"]) != cls.sizeof_hdr:
        message = f"sizeof_hdr is {int(header['sizeof_hdr'])} instead of {cls.sizeof_hdr}; it was ignored"
        notices.append(Notice("IN_HEADER_SIZE", message, path.name))
    return header, notices


_BROKEN = "The header is damaged; export the scan again."


def _not_nifti(head: bytes, path: Path) -> CodeBrainError:
    if head[344:348] in _PAIR_MAGIC or head[4:8] in _PAIR_MAGIC:
        return refusal(
            "IN_FORMAT", "this is the header of a .hdr/.img pair under another name", file=path,
            expected="a name that ends in .hdr, with its .img beside it", hint="Rename both files of the pair.",
        )  # fmt: skip
    if head[344:348] in _MAGIC or head[4:8] in _MAGIC:
        return refusal(
            "IN_FORMAT", "this is a single-file NIfTI under the name of a .hdr/.img pair", file=path,
            expected="a name that ends in .nii or .nii.gz", hint="Rename it.",
        )  # fmt: skip
    if head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return refusal(
            "IN_FORMAT", "the magic is not NIfTI's; this looks like an Analyze 7.5 header", file=path,
            field="magic", found=head[344:348], expected="n+1", hint="Convert it to NIfTI with its orientation.",
        )  # fmt: skip
    return refusal(
        "IN_FORMAT", "this is not a NIfTI file", file=path, expected=".nii or .nii.gz",
        hint="Convert the scan to NIfTI, for example with dcm2niix.",
    )  # fmt: skip


def _dimensions(head: bytes, cls: Any, order: str) -> int:
    return int(np.frombuffer(head, cls.template_dtype.newbyteorder(order))[0]["dim"][0])


def _byte_order(head: bytes, cls: Any) -> str | None:
    """``<`` or ``>``: by the header's size, else by which order gives 1 to 7 axes; either may be damaged."""
    for order in "<>":
        if int(np.frombuffer(head[:4], f"{order}i4")[0]) == cls.sizeof_hdr:
            return order
    return next((order for order in "<>" if 1 <= _dimensions(head, cls, order) <= 7), None)


def judge_header(
    preamble: Preamble, path: Path | None, *, max_voxels: int, volume_index: int | None, name: str
) -> Promise:
    """Check everything that decides how many bytes are read and what they mean.

    Raises:
        InputRefused: ``IN_HEADER`` naming the field, ``IN_DTYPE``, ``IN_TOO_BIG``, ``IN_NDIM``,
            ``IN_TOO_SMALL``.
    """
    header = preamble.header
    shape = judge_shape(_shape(header, path), path, max_voxels=max_voxels, volume_index=volume_index)
    dtype, notices = _dtype(header, path, name)
    slope, intercept, scaling = _scaling(header, path, name)
    offset = _offset(header, path, preamble.least_offset)
    return Promise(header, dtype, shape, offset, slope, intercept, (*notices, *scaling))


def _shape(header: Any, path: Path | None) -> tuple[int, ...]:
    dim = [int(size) for size in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise refusal("IN_HEADER", "the number of axes is impossible", file=path, field="dim[0]",
                      found=dim[0], expected="1 to 7", hint=_BROKEN)  # fmt: skip
    for axis in range(1, dim[0] + 1):
        if dim[axis] < 1:
            raise refusal("IN_HEADER", "an axis has no voxels", file=path, field=f"dim[{axis}]",
                          found=dim[axis], expected="1 or more", hint=_BROKEN)  # fmt: skip
    return tuple(dim[1 : dim[0] + 1])


def judge_shape(
    shape: tuple[int, ...], path: Path | None, *, max_voxels: int, volume_index: int | None
) -> tuple[int, ...]:
    """Check the size of an array; gives it back.

    Raises:
        InputRefused: ``IN_TOO_BIG``, ``IN_TOO_SMALL``, ``IN_NDIM``, ``CONFIG`` for an impossible volume.
    """
    count = math.prod(shape)
    if count > max_voxels:
        raise refusal(
            "IN_TOO_BIG", "the scan has more voxels than allowed", file=path, field="dim",
            found=f"{count} ({' x '.join(map(str, shape))})", expected=f"at most {max_voxels}",
            hint="If the scan really is this large, raise the limit with --max-voxels.",
        )  # fmt: skip
    if len(shape) < 3 or min(shape[:3]) < LEAST_VOXELS:
        raise refusal(
            "IN_TOO_SMALL", "this is not a volume", file=path, field="dim",
            found=" x ".join(map(str, shape)), expected=f"at least {LEAST_VOXELS} voxels along three axes",
            hint="Give the whole three-dimensional scan.",
        )  # fmt: skip
    if math.prod(shape[4:]) > 1:
        raise refusal("IN_NDIM", "the scan has five or more axes", file=path, field="dim",
                      found=" x ".join(map(str, shape)), expected="three axes, or four with --volume",
                      hint="Give one three-dimensional volume.")  # fmt: skip
    volumes = shape[3] if len(shape) > 3 else 1
    if volumes > 1 and volume_index is None:
        raise refusal(
            "IN_NDIM", f"the scan holds {volumes} volumes", file=path, field="dim[4]", found=volumes, expected=1,
            hint=f"Choose one with --volume 0 to --volume {volumes - 1}.",
        )  # fmt: skip
    if volumes > 1 and not 0 <= (volume_index or 0) < volumes:
        raise refusal("IN_NDIM", "there is no such volume", file=path, field="--volume", found=volume_index,
                      expected=f"0 to {volumes - 1}", hint="Count volumes from 0.")  # fmt: skip
    return shape


def _dtype(header: Any, path: Path | None, name: str) -> tuple[np.dtype[Any], list[Notice]]:
    code = int(header["datatype"])
    if code in _COMPLEX:
        raise refusal("IN_DTYPE", "the voxels are complex numbers", file=path, field="datatype", found=code,
                      expected="real numbers", hint="Give the magnitude image.")  # fmt: skip
    if code in _COLOUR:
        raise refusal("IN_DTYPE", "the voxels are colours", file=path, field="datatype", found=code,
                      expected="one number per voxel", hint="Give the scan, not a rendering of it.")  # fmt: skip
    if code == _FLOAT128:
        dtype = binary128(header.endianness)
    elif code in _TYPES:
        dtype = np.dtype(header.endianness + _TYPES[code])
    else:
        raise refusal("IN_DTYPE", "this voxel type is not read", file=path, field="datatype", found=code,
                      expected="an integer or floating-point type", hint="Save the scan as float32.")  # fmt: skip
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        message = f"bitpix is {int(header['bitpix'])} but datatype {code} has {8 * dtype.itemsize}; datatype was used"
        return dtype, [Notice("IN_BITPIX", message, name)]
    return dtype, []


def _scaling(header: Any, path: Path | None, name: str) -> tuple[float, float, list[Notice]]:
    """NIfTI: a slope of 0 means unscaled; NaN is written by tools that mean the same."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0, []
    if math.isinf(slope):
        notice = Notice("IN_SCALING", "scl_slope is infinite; the stored values were used unscaled", name)
        return 1.0, 0.0, [notice]
    if not math.isfinite(intercept):
        raise refusal("IN_HEADER", "the intercept is not a number", file=path, field="scl_inter",
                      found=intercept, expected="a finite number", hint=_BROKEN)  # fmt: skip
    return slope, intercept, []


def _offset(header: Any, path: Path | None, least: int) -> int:
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and offset == int(offset) and least <= offset <= _LARGEST_OFFSET):
        raise refusal(
            "IN_HEADER", "the voxels cannot begin there", file=path, field="vox_offset",
            found=offset, expected=f"{least} to {_LARGEST_OFFSET}", hint=_BROKEN,
        )  # fmt: skip
    return int(offset)


def judge_extensions(between: bytes, order: str, path: Path) -> None:
    """Walk the header extensions in the bytes between header and voxels; their content is never kept.

    Raises:
        InputRefused: ``IN_HEADER`` when a size leads nowhere.
    """
    if len(between) < 4 or between[0] == 0:
        return
    place = 4
    size_at = struct.Struct(f"{order}i").unpack_from
    while place + 8 <= len(between):
        (size,) = size_at(between, place)
        if size < 8 or place + size > len(between):
            raise refusal(
                "IN_HEADER", "a header extension has an impossible size", file=path, field="esize",
                found=size, expected=f"8 to {len(between) - place}", hint=_BROKEN,
            )  # fmt: skip
        place += size
