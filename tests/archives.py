"""Folders in the exact layout of the IXI and BraTS archives, made of phantoms or of the scans beside the project."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from codebrain.vocabulary import Modality

IXI_T2 = ((256, 256, 130), (0.9375, 0.9375, 1.25), "LAS")
"""Shape, voxel and axes of IXI's T2 and PD: transverse."""
IXI_T1 = ((256, 256, 150), (0.9375, 0.9375, 1.2), "PSR")
"""Of its T1: sagittal."""
COARSE_T2 = ((40, 48, 130), (5.0, 5.0, 1.25), "LAS")
COARSE_T1 = ((48, 48, 42), (4.5, 4.5, 4.5), "PSR")

BRATS_2023 = {"T1": "t1n", "T2": "t2w", "FLAIR": "t2f", "T1Gd": "t1c"}


def grid(shape, spacing, axes, centre=(0.0, 0.0, 0.0)):
    """The affine of a grid around ``centre``, RAS millimetres."""
    ornt = nib.orientations.axcodes2ornt(axes)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(ornt):
        affine[int(world), axis] = sign * spacing[axis]
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def resampled(image, shape, affine, moved=None):
    """``image`` on another grid; ``moved`` (world to world) says where the head was when it was scanned there."""
    source = np.linalg.inv(image.affine) @ (np.eye(4) if moved is None else moved) @ affine
    data = np.squeeze(np.asarray(image.dataobj, np.float32))
    # Averaged along axes that get coarser, as a thick slice is.
    wide = np.linalg.norm(affine[:3, :3], axis=0).max() / np.linalg.norm(image.affine[:3, :3], axis=0)
    data = ndimage.gaussian_filter(data, np.where(wide > 1.5, 0.3 * wide, 0.0))
    out = ndimage.affine_transform(data, source[:3, :3], source[:3, 3], output_shape=shape, order=1)
    return nib.Nifti1Image(np.rint(out).astype(np.int16), affine)


def centre_of(image):
    """World millimetres of the middle of a grid."""
    return image.affine[:3, :3] @ ((np.array(image.shape[:3]) - 1) / 2) + image.affine[:3, 3]


def write(image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.name.endswith(".gz") else content)
    return path


def add_to_ixi(
    root: Path, subject: str, images: Mapping[Modality, nib.Nifti1Image], *,
    t1=IXI_T1, t2=IXI_T2, moved: np.ndarray | None = None, flat: bool = False,
) -> None:  # fmt: skip
    """Three contrasts as ``IXI-T1/IXI002-Guys-0828-T1.nii.gz`` and so on, T1 on its own sagittal grid."""
    centre = centre_of(images[Modality.T2])
    for modality, image in images.items():
        shape, spacing, axes = t1 if modality is Modality.T1 else t2
        there = moved if modality is Modality.T1 else None
        out = resampled(image, shape, grid(shape, spacing, axes, centre), there)
        folder = root if flat else root / f"IXI-{modality}"
        write(out, folder / f"{subject}-{modality}.nii.gz")


def add_to_brats(
    root: Path, case: str, files: Mapping[str, Path], *, names=BRATS_2023, separator="-", ending=".nii.gz"
):
    """The contrasts of one case under the archive's names, as they are."""
    for modality, path in files.items():
        image = nib.load(path)
        if image.shape[:3] != (240, 240, 155):
            shape = (240, 240, 155)
            image = resampled(image, shape, grid(shape, (1, 1, 1), "LPS", centre_of(image)))
        write(
            nib.Nifti1Image(np.asarray(image.dataobj), image.affine),
            root / case / f"{case}{separator}{names[modality]}{ending}",
        )


def rigid(shift=(0.0, 0.0, 0.0), degrees=0.0, axis=2):
    """A movement of the head, world to world."""
    angle, (a, b) = np.deg2rad(degrees), [i for i in range(3) if i != axis]
    matrix = np.eye(4)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    matrix[:3, 3] = shift
    return matrix
