"""Tiny scans, whole and spoiled, as bytes: a head of 32 x 36 x 30 voxels of 5 mm, in milliseconds."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (32, 36, 30)
SPACING = 5.0

# Where the fields of a NIfTI-1 header lie, and their struct codes.
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET = (40, "h"), (70, "h"), (72, "h"), (76, "f"), (108, "f")
SLOPE, INTERCEPT, XYZT_UNITS = (112, "f"), (116, "f"), (123, "B")
QFORM_CODE, SFORM_CODE, QUATERNION, SROW = (252, "h"), (254, "h"), (256, "f"), (280, "f")


def affine_of(spacing=SPACING, shape=SHAPE):
    """RAS, centred."""
    spacing = np.broadcast_to(spacing, 3).astype(float)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    return affine


def head(contrast="T1", shape=SHAPE):
    """A skull-stripped head: an ellipsoid with a texture, which contrasts turn round, and a bright ball."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    ball = sum((axis - 0.3) ** 2 for axis in axes) < 0.06
    texture = 0.5 + 0.15 * np.sin(7 * axes[0]) * np.cos(5 * axes[1]) * np.cos(6 * axes[2])
    sign = {"T1": 1, "T1Gd": 0.8, "T2": -1, "PD": 0.4, "FLAIR": -0.6}[contrast]
    return (np.clip(0.55 + sign * (texture - 0.5) + 0.25 * ball, 0.05, None) * inside * 800).astype(np.float32)


WHOLE_SHAPE, WHOLE_SPACING = (52, 62, 56), 3.5


def whole_head(face=True):
    """Scalp, skull and brain as shells; without a face, the lower front is cut away."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in WHOLE_SHAPE), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    brain = 0.6 + 0.2 * np.sin(7 * x) * np.cos(5 * y) * np.cos(6 * z)
    layers = [(0.98, 0.9), (0.88, 0.08), (0.78, brain)]
    data = np.zeros(WHOLE_SHAPE)
    for outer, value in layers:
        data = np.where(radius < outer, value, data)
    if not face:
        data[(y > 0.3) & (z < 0.05)] = 0
    return (800 * data).astype(np.float32)


def nifti(data, affine=None, *, dtype=None, codes=(1, 1), cls=nib.Nifti1Image, units="mm"):
    """The bytes of a plain NIfTI file."""
    affine = affine_of(shape=(*data.shape, 1)[:3]) if affine is None else affine
    image = cls(data if dtype is None else data.astype(dtype), affine, dtype=dtype or data.dtype)
    image.set_sform(affine, codes[1])
    image.set_qform(affine, codes[0])
    image.header.set_xyzt_units(units)
    return image.to_bytes()


def patch(content, field, value, index=0):
    """``content`` with one header field changed."""
    offset, code = field
    place = offset + index * struct.calcsize(code)
    return content[:place] + struct.pack(f"<{code}", value) + content[place + struct.calcsize(code) :]


def zipped(content):
    return gzip.compress(content, 1, mtime=0)


def write_scan(path: Path, data=None, affine=None, **kwargs) -> Path:
    """A whole scan as a file, zipped by its name."""
    content = nifti(head() if data is None else data, affine, **kwargs)
    path.write_bytes(zipped(content) if path.name.endswith(".gz") else content)
    return path


def write_study(folder: Path, contrasts=("T1", "FLAIR")) -> dict[str, Path]:
    """Whole scans on one grid: ``T1.nii.gz`` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    return {c: write_scan(folder / f"{c}.nii.gz", head(c)) for c in contrasts}
