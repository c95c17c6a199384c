"""One checked read and one faithful write of a scan.

Everything that can be wrong with a file is found here, from the cheapest to the dearest: kind of file,
header, size, geometry (all before a voxel is allocated), then the stream to its checksum, then the values.
What is written lies on the grid of a scan that was read: shape, affine, qform, sform, voxel sizes and units
bit for bit, and nothing else of its header (names of people sit in ``descrip``, ``db_name``, extensions).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from nibabel.volumeutils import native_code
from numpy.typing import NDArray

from codebrain.errors import CodeBrainError, Notice, refusal
from codebrain.imaging import safe_files
from codebrain.imaging._container import ScanBytes, pair_of
from codebrain.imaging._geometry import Affine, corners, judge_geometry
from codebrain.imaging._header import Preamble, Promise, judge_extensions, judge_header, judge_shape, read_header
from codebrain.imaging._voxels import judge_voxels, scanner_units
from codebrain.marks import SYNTHETIC, says_imputed

if TYPE_CHECKING:
    from codebrain.imaging.dicom.series import Series

MAX_VOXELS = 2**28
"""Default cap: 1 GiB as float32, twice the largest head scan in common use."""

_MOST_EXTENSIONS = 64 << 20

_GRID_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan that passed every check.

    Attributes:
        data: scanner units, ``(i, j, k)`` float32, finite.
        affine: voxel index to scanner millimetres, RAS+, ``(4, 4)`` float64.
        header: NIfTI header whose grid fields are those on disk.
        shape_on_disk: with trailing axes of one, as outputs keep it.
        name: for messages and records: the file's name without folders.
        file: where it was read from; ``None`` for an image given in memory.
        sha256: of the file's bytes, or of voxels and affine for an image in memory.
        notices: what was accepted with a warning.
        series: the DICOM series that it was converted from; a derived series lies on its slices.
    """

    data: NDArray[np.float32]
    affine: Affine
    header: Any
    shape_on_disk: tuple[int, ...]
    name: str
    file: Path | None
    sha256: str
    notices: tuple[Notice, ...] = ()
    series: Series | None = None

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edges along i, j, k in millimetres."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def orientation(self) -> str:
        """Where i, j, k grow to, for example ``RAS``."""
        return "".join(nib.aff2axcodes(self.affine))


def read_volume(
    source: Path | str | Any,
    *,
    name: str | None = None,
    max_voxels: int = MAX_VOXELS,
    volume_index: int | None = None,
    accept_no_orientation: bool = False,
    accept_synthetic: bool = False,
) -> Volume:
    """Read one scan, every check made.

    Args:
        source: a NIfTI file (``.nii``, ``.nii.gz``, or either file of a ``.hdr``/``.img`` pair), a FreeSurfer file
            (``.mgz``, ``.mgh``), or a nibabel image (the same checks where they apply).
        name: for messages; the file's name by default.
        max_voxels: refuse larger arrays from the header alone.
        volume_index: which volume of a four-dimensional scan, from 0.
        accept_no_orientation: take a header without orientation as left-anterior-superior.
        accept_synthetic: take an image that carries our mark of one that a model computed.

    Raises:
        InputRefused: a code of the families ``IN_`` and ``GEO_``; see the list of bad inputs.
    """
    if isinstance(source, SpatialImage):
        volume = _from_image(source, name or "image", max_voxels, volume_index, accept_no_orientation)
        return _judge_mark(volume, accept_synthetic)
    if not isinstance(source, str | Path):
        raise refusal("CONFIG", "a scan is given as a path or a nibabel image", found=type(source).__name__)
    path = Path(source).expanduser()
    options = (name or path.name, max_voxels, volume_index, accept_no_orientation)
    with contextlib.ExitStack() as files:
        pair = pair_of(path)
        if pair is None:
            stream = files.enter_context(ScanBytes(path))
            volume = _from_stream(stream, stream, *options)
        else:
            header, voxels = (files.enter_context(ScanBytes(part)) for part in pair)
            volume = _from_stream(header, voxels, *options)
    return _judge_mark(volume, accept_synthetic)


def _judge_mark(volume: Volume, accept_synthetic: bool) -> Volume:
    """No synthesis from synthesis: ``IN_SYNTHETIC`` for an image that says a model computed it."""
    description, intent = (bytes(volume.header[f].item()).decode("latin-1") for f in ("descrip", "intent_name"))
    if not says_imputed(description, intent):
        return volume
    if not accept_synthetic:
        raise refusal(
            "IN_SYNTHETIC", "this image was computed by a model, not measured", file=volume.file,
            field="descrip, intent_name", found=SYNTHETIC,
            hint="Give the measured scan; --accept-synthetic imputes from it none the less and says so.",
        )  # fmt: skip
    note = "this image was itself computed by a model; it was accepted as asked for"
    return replace(volume, notices=(*volume.notices, Notice("IN_SYNTHETIC", note, volume.name)))


def _from_stream(
    stream: ScanBytes, voxels: ScanBytes, name: str, max_voxels: int, volume_index: int | None, accept: bool
) -> Volume:
    """Header from ``stream`` and voxels from ``voxels``; one and the same but for a pair."""
    path = voxels.path
    preamble = read_header(stream, pair=stream is not voxels)
    header = preamble.header
    try:
        promise = judge_header(preamble, path, max_voxels=max_voxels, volume_index=volume_index, name=name)
        affine, geometry = judge_geometry(header, promise.shape, path, name, accept_no_orientation=accept)
    except CodeBrainError as error:
        raise stream.blame(error) from None
    if stream is not voxels:
        judge_extensions(stream.take(_MOST_EXTENSIONS), header.endianness, stream.path)
    stored = _stored(voxels, promise, preamble, volume_index)
    sha256 = _finish(stream, voxels)
    data, precision = scanner_units(stored, promise.slope, promise.intercept, path, name)
    del stored
    data, values = judge_voxels(data, path, name)
    trailing = dict.fromkeys((*stream.notices, *voxels.notices))
    found = (*preamble.notices, *promise.notices, *geometry, *trailing, *precision, *values)
    return Volume(data, affine, header, _kept_shape(promise.shape), name, path, sha256, found)


def _finish(stream: ScanBytes, voxels: ScanBytes) -> str:
    """Drain to the checksums; the SHA-256 of the file, of a pair that of the two files' SHA-256."""
    if stream is voxels:
        return voxels.finish()
    return safe_files.sha256_bytes((stream.finish() + voxels.finish()).encode())


def _kept_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that outputs have: trailing axes of one stay, a chosen volume stands alone."""
    return shape if math.prod(shape[3:]) == 1 else shape[:3]


def _stored(stream: ScanBytes, promise: Promise, preamble: Preamble, volume_index: int | None) -> NDArray[Any]:
    """The stored voxels of the one volume, ``(i, j, k)``, in the file's type.

    Raises:
        InputRefused: ``IN_TRUNCATED``, ``IN_CHECKSUM``, ``IN_HEADER`` (a broken extension).
    """
    one = math.prod(promise.shape[:3]) * promise.dtype.itemsize
    needed = promise.offset + one * math.prod(promise.shape[3:])
    if stream.most_bytes < needed:  # before memory is asked for
        raise stream.blame(_cut(stream, stream.most_bytes, needed))
    between = stream.take(promise.offset - preamble.taken)
    if preamble.taken:
        judge_extensions(between, promise.header.endianness, stream.path)
    skipped = one * (volume_index or 0) if len(promise.shape) > 3 and promise.shape[3] > 1 else 0
    got = promise.offset + stream.skip(skipped)
    buffer = np.empty(one, np.uint8)
    got += stream.take_into(buffer.data)
    if got < promise.offset + skipped + one:
        raise _cut(stream, got, needed)
    return buffer.view(promise.dtype).reshape(promise.shape[:3], order="F")


def _cut(stream: ScanBytes, got: int, needed: int) -> CodeBrainError:
    return refusal(
        "IN_TRUNCATED", "the file ends before its last voxel", file=stream.path, found=f"{got} bytes",
        expected=f"{needed} bytes", hint="The file was cut; copy or download it again.",
    )  # fmt: skip


def _from_image(image: Any, name: str, max_voxels: int, volume_index: int | None, accept: bool) -> Volume:
    """The checks of a file, for an image in memory; its array is copied, never changed."""
    shape = judge_shape(tuple(image.shape), None, max_voxels=max_voxels, volume_index=volume_index)
    header = _header_of(image)
    affine, notices = judge_geometry(header, shape, None, name, accept_no_orientation=accept)
    kind = np.dtype(image.get_data_dtype()) if hasattr(image, "get_data_dtype") else image.dataobj.dtype
    if kind.kind not in "iufb":
        hint = "Give the magnitude image." if kind.kind == "c" else "Give one number per voxel."
        raise refusal("IN_DTYPE", "the voxels are not real numbers", found=kind, expected="real numbers", hint=hint)
    stored = np.asanyarray(image.dataobj).reshape(*shape[:3], -1)[..., _index(shape, volume_index)]
    if stored.dtype.kind == "b":
        stored = stored.astype(np.uint8)
    data, precision = scanner_units(stored, 1.0, 0.0, None, name)
    sha256 = safe_files.sha256_bytes(data.tobytes(order="F") + affine.tobytes())
    data, values = judge_voxels(data, None, name)
    found = (*notices, *precision, *values)
    return Volume(data, affine, header, _kept_shape(shape), name, None, sha256, found)


def _index(shape: tuple[int, ...], volume_index: int | None) -> int:
    return (volume_index or 0) if len(shape) > 3 and shape[3] > 1 else 0


def _header_of(image: Any) -> Any:
    """A NIfTI header with the image's own grid fields, or with its affine where it has other ones."""
    if isinstance(image.header, nib.Nifti1Header):
        return image.header.copy()
    header = nib.Nifti1Header()
    header.set_data_shape(image.shape)
    header.set_xyzt_units("mm")
    if image.affine is not None:
        header.set_sform(image.affine, code="scanner")
        header.set_qform(image.affine, code="scanner", strip_shears=True)
    return header


def volume_image(
    data: NDArray[Any], *, like: Volume, description: str, intent_name: str, comment: str = ""
) -> nib.Nifti1Image:
    """``data`` ``(i, j, k)`` as a float32 image on the grid of ``like``, its grid fields bit for bit.

    Args:
        data: on the grid of ``like``.
        like: the scan whose grid it lies on.
        description: up to 79 bytes of ``descrip``.
        intent_name: up to 15 bytes.
        comment: a header extension; none when empty.

    Raises:
        ValueError: when the shape of ``data`` is not that of ``like``.
    """
    if data.shape != like.data.shape:
        raise ValueError(f"the data have shape {data.shape}, their grid {like.data.shape}")
    header = _output_header(like, description, intent_name)
    values = np.asarray(data, np.float32).reshape(like.shape_on_disk)
    cls = nib.Nifti2Image if header.sizeof_hdr == 540 else nib.Nifti1Image
    image = cls(values, header.get_best_affine(), header)
    _keep_grid(image.header, like)  # nibabel mends odd fields on the way
    if comment:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", comment.encode()))
    return image


def _output_header(like: Volume, description: str, intent_name: str) -> Any:
    wide = isinstance(like.header, nib.Nifti2Header)
    header = nib.Nifti2Header() if wide else nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(like.shape_on_disk)
    _keep_grid(header, like)
    if abs(float(header["pixdim"][0])) != 1:
        header["pixdim"][0] = 1  # as it was read; nibabel refuses to make an image with another one
    header["descrip"] = description.encode()[:79]
    header["intent_name"] = intent_name.encode()[:15]
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    return header


def _keep_grid(header: Any, like: Volume) -> None:
    for field in _GRID_FIELDS:
        header[field] = like.header[field]
    if tuple(like.header["dim"][1 : like.header["dim"][0] + 1]) == like.shape_on_disk:
        header["dim"] = like.header["dim"]


def write_volume(
    target: Path | str, data: NDArray[Any], *, like: Volume, description: str, intent_name: str, comment: str = ""
) -> None:
    """Write ``data`` as :func:`volume_image` makes it: all or nothing, and equal bytes for equal data.

    The gzip header carries neither name nor time.

    Raises:
        EnvironmentRefused: ``OUT_SPACE``, ``OUT_PERMISSION``, ``OUT_NAME``.
    """
    image = volume_image(data, like=like, description=description, intent_name=intent_name, comment=comment)
    with safe_files.atomic_stream(target) as stream:
        if Path(target).name.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=_LEVEL, fileobj=stream, mtime=0) as packed:
                _write(packed, image)
        else:
            _write(stream, image)


_LEVEL = 4
"""Of gzip: 29 MB of a head in about a second; level 9 takes four times as long for 2 % less."""


def _write(stream: Any, image: Any) -> None:
    header = image.header
    extensions = io.BytesIO()
    header.extensions.write_to(extensions, byteswap=header.endianness != native_code)
    begin = bytes([bool(extensions.tell()), 0, 0, 0]) + extensions.getvalue()
    begin += bytes(-(header.sizeof_hdr + len(begin)) % 16)
    header["vox_offset"] = header.sizeof_hdr + len(begin)
    stream.write(header.binaryblock + begin)
    values = np.asarray(image.dataobj).astype("<f4", copy=False).reshape(-1, order="F")
    stream.write(values.view(np.uint8).data)


def on_grid_of(volume: Volume, reference: Volume, data: NDArray[np.float32]) -> Volume:
    """``volume`` with ``data`` that were resampled onto the grid of ``reference``."""
    return replace(
        volume, data=data, affine=reference.affine, header=reference.header, shape_on_disk=reference.shape_on_disk
    )


def same_grid(a: Volume, b: Volume, tolerance_mm: float = 1e-3) -> bool:
    """Whether two scans have one shape and their corners lie within ``tolerance_mm`` of each other."""
    if a.data.shape != b.data.shape:
        return False
    apart = corners(a.affine, a.data.shape) - corners(b.affine, b.data.shape)
    return float(np.linalg.norm(apart, axis=1).max()) <= tolerance_mm
