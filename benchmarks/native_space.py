"""What one interpolation into a native space saves over resampling the result on the reference grid.

::

    python benchmarks/native_space.py > native.tsv

A simulated brain (``codebrain phantom``'s, T2, 1 mm) stands for the truth between its voxels through a fifth-order
spline. It is scanned on two oblique grids with a known movement between them; thick voxels are means over their
thickness. The network is perfect: its slices are the truth at its pixels. What is left is the way from its slices to
the other grid:

once         ``--space native:...``, from the slices
twice        the image on the reference grid, cubic, with as many points per voxel
one point    the same with one point per voxel
linear       the same, linear, as resampling programs do by default

PSNR in dB against the truth on that grid, inside the head.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from codebrain.data.phantom import simulate_study
from codebrain.imaging.align import Movement
from codebrain.imaging.prepared import PreparedStudy, prepare_study
from codebrain.imaging.space import NativeSpace
from codebrain.imaging.study import Study
from codebrain.imaging.volume import Volume, read_volume
from codebrain.vocabulary import Modality, ModalitySet, Preparation

Array = NDArray[np.floating[Any]]
VIEW_MM = (180, 215, 180)
GRIDS = [
    ((0.72, 0.72, 3.0), (0.6, 0.6, 3.3)),
    ((0.91, 0.91, 3.0), (0.72, 0.72, 3.0)),
    ((0.9, 0.9, 5.5), (0.9, 0.9, 5.5)),
    ((1.2, 1.2, 1.2), (0.9, 0.9, 3.0)),
    ((1.0, 1.0, 1.0), (0.9, 0.9, 3.0)),
    ((1.0, 1.0, 1.0), (6.0, 1.0, 1.0)),
]


def rotation(*degrees: float) -> Array:
    """Turns about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = (i for i in range(3) if i != axis)
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ step
    return np.asarray(matrix, np.float64)


MOVED = np.eye(4)
"""World of the reference scan to that of the other one."""
MOVED[:3, :3], MOVED[:3, 3] = rotation(4, -3, 6), (3, -4, 5)


@dataclass(frozen=True)
class Truth:
    """The simulated brain, at any point."""

    volume: Volume

    @cached_property
    def coefficients(self) -> NDArray[np.float32]:
        """Of the spline."""
        return np.asarray(ndimage.spline_filter(self.volume.data, 5, output=np.float32, mode="mirror"))

    def at(self, matrix: Array, shape: tuple[int, ...], points: tuple[int, ...]) -> NDArray[np.float32]:
        """Means over the points of each voxel of a grid; ``matrix`` leads from its voxels to the brain's world."""
        total = np.zeros(shape)
        chain = np.linalg.inv(self.volume.affine) @ matrix
        for offset in itertools.product(*([(place + 0.5) / count - 0.5 for place in range(count)] for count in points)):
            begin = chain[:3, 3] + chain[:3, :3] @ offset
            total += ndimage.affine_transform(
                self.coefficients, chain[:3, :3], begin, shape, order=5, mode="constant", prefilter=False
            ).clip(0)
        return np.asarray(total / np.prod(points), np.float32)


def oblique(spacing: tuple[float, ...], turn: Array) -> tuple[Array, tuple[int, ...]]:
    """Affine and shape of a grid around the origin."""
    shape = tuple(int(view / mm) for view, mm in zip(VIEW_MM, spacing, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = turn * np.array(spacing)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine, shape


def scanned(truth: Truth, spacing: tuple[float, ...], turn: Array, world: Array) -> Volume:
    """The brain on an oblique grid; ``world`` leads from its world to the brain's."""
    affine, shape = oblique(spacing, turn)
    points = tuple(max(1, round(mm)) for mm in spacing)
    image = nib.Nifti1Image(truth.at(world @ affine, shape, points), affine)
    image.header.set_xyzt_units("mm")
    return read_volume(image)


def perfect(truth: Truth, work: PreparedStudy) -> NDArray[np.float32]:
    """The truth at every pixel of the network's slices, which are as thick as the reference's."""
    matrix = work.reference.affine @ np.linalg.inv(work.frame.pixel_matrix())
    return truth.at(matrix, work.frame.slice_shape, (max(1, round(max(work.reference.spacing))), 1, 1))


def again(work: PreparedStudy, stack: NDArray[np.float32], other: Volume, points: tuple[int, ...], order: int) -> Array:
    """What lies on the reference grid, resampled onto the other."""
    home = np.where(work.foreground, work.frame.undo(stack), np.float32(0))
    chain = np.linalg.inv(work.reference.affine) @ np.linalg.inv(MOVED) @ other.affine
    total = np.zeros(other.data.shape)
    for offset in itertools.product(*([(place + 0.5) / count - 0.5 for place in range(count)] for count in points)):
        begin = chain[:3, 3] + chain[:3, :3] @ offset
        total += ndimage.affine_transform(home, chain[:3, :3], begin, total.shape, order=order, mode="nearest")
    return np.asarray((total / np.prod(points)).clip(home.min(), home.max()))


def main() -> None:
    """Print the table."""
    truth = Truth(
        read_volume(simulate_study(11, modalities=(Modality.T2,), labels=False, spacing_mm=1.0).images[Modality.T2])
    )
    movement = Movement(tuple(tuple(map(float, row)) for row in MOVED), 1.1, 1.2, 0.0, 0.0, True, "header", 0.0)
    print("reference_mm\tnative_mm\tpoints\tonce\ttwice\tone point\tlinear")
    for home_mm, other_mm in GRIDS:
        home = scanned(truth, home_mm, rotation(8, 5, -4), np.eye(4))
        other = scanned(truth, other_mm, rotation(-12, 20, 3), np.linalg.inv(MOVED))
        work = prepare_study(Study("brain", {Modality.T2: home}), Preparation(ModalitySet.parse("T1,T2")))
        stack = perfect(truth, work)
        space = NativeSpace.of(Modality.T1, replace(other, name="other"), work, {Modality.T1: movement})
        white = float(np.percentile(other.data[other.data > 0], 99.9))
        inside = ndimage.binary_erosion(other.data > 0.02 * white) & space.head
        images = (
            space.sample(stack, other.data),
            again(work, stack, other, space.points, 3),
            again(work, stack, other, (1, 1, 1), 3),
            again(work, stack, other, (1, 1, 1), 1),
        )
        scores = [10 * np.log10(white**2 / np.mean((image - other.data)[inside] ** 2)) for image in images]
        columns = [str(home_mm), str(other_mm), str(space.points), *(f"{score:.2f}" for score in scores)]
        print("\t".join(columns), flush=True)


if __name__ == "__main__":
    main()
