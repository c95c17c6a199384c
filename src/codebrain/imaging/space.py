"""Results on the grid of a given scan other than the reference, by one interpolation of the network's slices.

From a voxel of that grid a single affine map leads to a place in the stack of slices: its scan's affine, the inverse
of its rigid movement, the inverse of the reference's affine, the frame's cut and pixel spacing. Resampling the result
that lies on the reference grid would interpolate twice wherever the frame resampled in plane.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from codebrain.errors import Notice, refusal
from codebrain.imaging._geometry import Affine
from codebrain.imaging.align import Movement
from codebrain.imaging.prepared import PreparedStudy
from codebrain.imaging.volume import Volume, same_grid
from codebrain.vocabulary import Modality

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

REFERENCE, NATIVE = "reference", "native"
_CUBIC, _LINEAR = 3, 1


def native_contrasts(space: str | Iterable[str]) -> tuple[Modality, ...]:
    """The contrasts in ``reference``, ``native:FLAIR`` or ``native:FLAIR,native:T2``, once each.

    Raises:
        UsageError: ``CONFIG`` for other words, ``MOD_UNKNOWN`` for a contrast that does not exist.
    """
    words = [word.strip() for word in (space.split(",") if isinstance(space, str) else space)]
    found = []
    for word in words:
        kind, colon, contrast = word.partition(":")
        if kind == NATIVE and colon:
            found.append(Modality.parse(contrast))
        elif word != REFERENCE:
            expected = "reference, or native: and a contrast, for example native:FLAIR"
            raise refusal("CONFIG", "no such space", field="space", found=word or "nothing", expected=expected)
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, eq=False)
class NativeSpace:
    """The grid of a given scan, and how it is filled.

    Attributes:
        modality: the scan's contrast.
        grid: the scan as it was read.
        reference: the scan whose grid the results are on otherwise.
        transform: reference world millimetres (RAS+) to the scan's own, ``(4, 4)``.
        pixels: voxel of the grid to slice, row and column of the stack, ``(4, 4)``; ``None`` where the grid is that
            of the reference, whose results are then the results.
        points: samples along i, j, k whose mean a voxel is; more than one where it is larger than the network's
            pixels and slices, as a scanner averages over the thickness of a slice.
        head: where the reference's foreground lies on this grid.
    """

    modality: Modality
    grid: Volume
    reference: Volume
    transform: Affine
    pixels: Affine | None
    points: tuple[int, int, int]
    head: Mask

    @classmethod
    def of(
        cls, modality: Modality, grid: Volume, prepared: PreparedStudy, moved: Mapping[Modality, Movement]
    ) -> NativeSpace:
        """The space of a scan of the study.

        Args:
            modality: the scan's contrast.
            grid: the scan as it was read.
            prepared: the study as the network saw it.
            moved: how scans came onto the reference grid; those that were on it need not be there.
        """
        home, still = prepared.reference, np.eye(4)
        if same_grid(home, grid):
            return cls(modality, grid, home, still, None, (1, 1, 1), prepared.foreground)
        transform = np.array(moved[modality].transform)
        voxels = np.linalg.inv(home.affine) @ np.linalg.inv(transform) @ grid.affine
        pixels = prepared.frame.pixel_matrix() @ voxels
        points = _points(pixels)
        share = _sample(prepared.foreground.astype(np.float32), voxels, grid.data.shape, points, _LINEAR)
        return cls(modality, grid, home, transform, pixels, points, share >= 0.5)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Says where a space was asked for that is no other one."""
        if self.pixels is not None:
            return ()
        message = f"{self.modality} lies on the reference grid; its images in native space equal those on that grid"
        return (Notice("GEO_SAME_GRID", message, self.grid.name),)

    def sample(self, stack: NDArray[Any], on_reference: Image) -> Image:
        """An image on this grid, ``(i, j, k)``, within the stack's range, zero outside the head.

        Args:
            stack: the network's slices ``(n, h, w)``.
            on_reference: the same on the reference grid.
        """
        if self.pixels is None:
            return on_reference
        image = np.zeros(self.head.shape, np.float32, order="F")
        if not self.head.any():  # the two scans show no common part of the head
            return image
        box = _box(self.head)
        shifted = self.pixels @ _shift([part.start for part in box])
        inside = self.head[box]
        values = _sample(np.asarray(stack, np.float32), shifted, inside.shape, self.points, _CUBIC)
        image[box] = np.where(inside, values.clip(float(stack.min()), float(stack.max())), np.float32(0))
        return image

    def as_dict(self) -> dict[str, Any]:
        """JSON form, without the arrays."""
        how = "none: the grid is that of the reference"
        if self.pixels is not None:
            how = "cubic B-spline, once, from the network's slices"
        return {
            "Space": f"{NATIVE}:{self.modality}",
            "Transform": {
                "From": self.reference.name,
                "To": self.grid.name,
                "Matrix": self.transform.tolist(),
                "Meaning": "millimetres of the first scan (RAS+) to millimetres of the second",
            },
            "Interpolation": {"Method": how, "PointsPerVoxel": list(self.points)},
        }


def _points(pixels: Affine) -> tuple[int, int, int]:
    """Samples along each axis of a voxel, about one for each pixel or slice that it spans."""
    i, j, k = (max(1, round(float(step))) for step in np.linalg.norm(pixels[:3, :3], axis=0))
    return i, j, k


def _sample(source: Image, places: Affine, shape: tuple[int, ...], points: tuple[int, int, int], order: int) -> Image:
    """``source`` at ``places`` of the voxels of a grid, the mean over the points of each voxel.

    A mask fades to zero half a voxel beyond its last one; an image goes on as it ends, because the mask ends it.
    """
    mode = "grid-constant" if order == _LINEAR else "nearest"
    if order > _LINEAR:
        source = scipy.ndimage.spline_filter(source, order, output=np.float32, mode=mode)
    total = np.zeros(shape, np.float32)
    for offset in _offsets(points):
        matrix = places @ _shift(offset)
        total += scipy.ndimage.affine_transform(
            source, matrix[:3, :3], matrix[:3, 3], shape, np.float32, order, mode, prefilter=False
        )
    return np.asarray(total / np.float32(np.prod(points)), np.float32)


def _offsets(points: tuple[int, int, int]) -> Iterator[tuple[float, ...]]:
    """Points evenly spread over a voxel, from its centre, in voxels."""
    yield from itertools.product(*([(place + 0.5) / count - 0.5 for place in range(count)] for count in points))


def _shift(by: Iterable[float]) -> Affine:
    matrix = np.eye(4)
    matrix[:3, 3] = list(by)
    return matrix


def _box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box that holds the mask, which is not empty."""
    spans = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
