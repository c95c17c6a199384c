"""From a grid in the scanner to axial slices as the network sees them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from codebrain.errors import refusal
from codebrain.vocabulary import Preparation

Image = NDArray[np.float32]

Slices = tuple[int, int] | int | None
"""Which transverse slices of a grid: the first and one past the last, counted from below; the middle N; or, by
default, those with head."""

MARGIN = 2
"""Voxels around the head that stay in a slice."""

_SPACING_TOLERANCE = 0.05
"""In-plane spacing this close to the network's is left alone: resampling would blur more than it helps."""


@dataclass(frozen=True)
class Axis:
    """One in-plane axis: a window of the grid (in RAS order, flipped for display) seen at network spacing.

    Attributes:
        size: voxels of the whole grid along this axis.
        start: first voxel of the window around the head.
        stop: one past the last.
        scale: network pixels per voxel; 1 leaves voxels as they are.
        full: pixels of the uncut axis.
        offset: pixel of the uncut axis at which the slice begins; negative where a fixed frame is larger than it.
        length: pixels of the slice.
    """

    size: int
    start: int
    stop: int
    scale: float
    full: int
    offset: int
    length: int

    def forward(self) -> NDArray[np.float32] | None:
        """Weights ``(length, size)`` from voxels to pixels; ``None`` when pixels are voxels."""
        if self.scale == 1.0:
            return None
        pixels = self.offset + np.arange(self.length)
        voxels = (pixels + 0.5) / self.scale - 0.5
        weights = _kernel_weights(voxels, np.arange(self.size), max(1.0, 1 / self.scale))
        weights[(voxels < -0.5) | (voxels > self.size - 0.5)] = 0.0
        return weights

    def backward(self) -> NDArray[np.float32] | None:
        """Weights ``(stop - start, length)`` from pixels to the window's voxels."""
        if self.scale == 1.0:
            return None
        voxels = np.arange(self.start, self.stop)
        pixels = (voxels + 0.5) * self.scale - 0.5 - self.offset
        return _kernel_weights(pixels, np.arange(self.length), max(1.0, self.scale))


@dataclass(frozen=True)
class Frame:
    """How a grid was turned into slices; undoes it exactly in shape, and in values where nothing was resampled.

    Slices are axial, lowest first. Rows run from anterior to posterior, columns from the patient's left to
    the right. All 48 orders of the same voxels give the same slices.

    Attributes:
        shape: of the grid, ``(i, j, k)``.
        order: the grid axis that runs left-right, posterior-anterior, inferior-superior.
        flip: whether each of them runs the other way.
        slices: first slice with head and one past the last, counted from below.
        rows: anterior to posterior.
        columns: left to right.
        fixed: whether slices have the frame of the preparation instead of being cut to the head; what lies beyond
            the frame is then no part of an uncut slice.
    """

    shape: tuple[int, int, int]
    order: tuple[int, int, int]
    flip: tuple[bool, bool, bool]
    slices: tuple[int, int]
    rows: Axis
    columns: Axis
    fixed: bool = False

    @classmethod
    def fit(
        cls,
        foreground: NDArray[np.bool_],
        affine: NDArray[np.float64],
        preparation: Preparation,
        *,
        slices: Slices = None,
    ) -> Frame:
        """The frame around a head.

        Args:
            foreground: where the head is, ``(i, j, k)``.
            affine: of the grid, millimetres.
            preparation: gives the pixel spacing, and the frame or the multiple that slices are cut to.
            slices: which transverse slices, see :data:`Slices`.

        Raises:
            InputRefused: ``IN_NO_SIGNAL`` for an empty foreground, ``DATA_SLICES`` for slices that the grid lacks.
        """
        if not foreground.any():
            raise refusal("IN_NO_SIGNAL", "no head was found in the scan", hint="Check that this is the right file.")
        order, flip = _to_ras(affine)
        stack = _reorient(foreground, order, flip)
        spacing = np.round(np.linalg.norm(affine[:3, :3], axis=0), 5)[list(order)]
        scales = _scales((float(spacing[1]), float(spacing[0])), preparation.pixel_spacing_mm)
        occupied = np.flatnonzero(stack.any(axis=(1, 2)))
        sides = [np.asarray(stack.any(axis=others)) for others in ((0, 2), (0, 1))]
        frame = preparation.frame or (None, None)
        rows, columns = (
            _fit_axis(side, scale, preparation.multiple)
            if pixels is None
            else _fixed_axis(side, scale, preparation.multiple, pixels)
            for side, scale, pixels in zip(sides, scales, frame, strict=True)
        )
        return cls(
            shape=cast("tuple[int, int, int]", foreground.shape),
            order=order,
            flip=flip,
            slices=_chosen(slices, occupied, len(stack)),
            rows=rows,
            columns=columns,
            fixed=preparation.frame is not None,
        )

    @property
    def full_slice(self) -> tuple[int, int]:
        """Pixels ``(h, w)`` of a slice before the background was cut away."""
        return self.slice_shape[1:] if self.fixed else (self.rows.full, self.columns.full)

    @property
    def offset(self) -> tuple[int, int]:
        """Row and column of the uncut slice at which the cut one begins."""
        return (0, 0) if self.fixed else (self.rows.offset, self.columns.offset)

    @property
    def slice_shape(self) -> tuple[int, int, int]:
        """``(n, h, w)`` of what :meth:`apply` gives."""
        return self.slices[1] - self.slices[0], self.rows.length, self.columns.length

    def apply(self, data: NDArray[Any]) -> Image:
        """Slices ``(n, h, w)`` of ``data`` ``(i, j, k)``, within its own range; 0 beyond the grid.

        Raises:
            ValueError: when ``data`` are not on the grid of this frame.
        """
        if data.shape != self.shape:
            raise ValueError(f"the frame is of a grid {self.shape}, the data are {data.shape}")
        stack = _reorient(data, self.order, self.flip)[slice(*self.slices)].astype(np.float32)
        bounds = (float(stack.min()), float(stack.max()))
        stack = _see(stack, self.rows, axis=1)
        stack = _see(stack, self.columns, axis=2)
        if self.rows.scale != 1.0 or self.columns.scale != 1.0:
            np.clip(stack, min(0.0, bounds[0]), max(0.0, bounds[1]), out=stack)
        return np.ascontiguousarray(stack)

    def undo(self, slices: NDArray[Any], fill: float = 0.0) -> Image:
        """Slices ``(n, h, w)`` back on the grid ``(i, j, k)``, ``fill`` outside the box around the head.

        Raises:
            ValueError: when ``slices`` have not the shape that :meth:`apply` gives.
        """
        if tuple(slices.shape) != self.slice_shape:
            raise ValueError(f"the frame gives slices {self.slice_shape}, not {tuple(slices.shape)}")
        stack = np.asarray(slices, np.float32)
        bounds = (float(stack.min()), float(stack.max()))
        stack = _put(_put(stack, self.columns, axis=2), self.rows, axis=1)
        grid = np.full([self.shape[axis] for axis in self.order][::-1], fill, np.float32)
        window = (slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop))
        grid[(slice(*self.slices), *window)] = stack.clip(*bounds)
        return _reorient_back(grid, self.order, self.flip)

    def pixel_matrix(self) -> NDArray[np.float64]:
        """Voxel ``(i, j, k, 1)`` to its place ``(slice, row, column, 1)`` in the slices, ``(4, 4)``.

        What :meth:`apply` and :meth:`undo` do, as one affine map.
        """
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        backwards = (self.flip[2], not self.flip[1], self.flip[0])
        scales = (1.0, self.rows.scale, self.columns.scale)
        begins = (self.slices[0], self.rows.offset, self.columns.offset)
        for place, (axis, back, scale, begin) in enumerate(
            zip(self.order[::-1], backwards, scales, begins, strict=True)
        ):
            first = self.shape[axis] - 1 if back else 0
            matrix[place, axis] = -scale if back else scale
            matrix[place, 3] = (first + 0.5) * scale - 0.5 - begin
        return matrix

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Frame:
        """Inverse of :meth:`as_dict`."""
        tuples = {name: tuple(raw[name]) for name in ("shape", "order", "flip", "slices")}
        axes = {name: Axis(**raw[name]) for name in ("rows", "columns")}
        return cls(**cast("dict[str, Any]", tuples | axes), fixed=bool(raw.get("fixed", False)))


def _chosen(slices: Slices, occupied: NDArray[np.intp], count: int) -> tuple[int, int]:
    """First slice and one past the last, of ``count``."""
    if slices is None:
        return int(occupied[0]), int(occupied[-1]) + 1
    if isinstance(slices, int):
        slices = ((count - slices) // 2, (count - slices) // 2 + slices)
    if not 0 <= slices[0] < slices[1] <= count:
        raise refusal(
            "DATA_SLICES", "the scan has not the transverse slices that are asked for", found=f"{count} slices",
            expected=f"{slices[1] - slices[0]} from number {slices[0]} on",
            hint="Thick slices are no data of this protocol; leave the subject out, or ask for other --slices.",
        )  # fmt: skip
    return slices


def _to_ras(affine: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """For each of right, anterior, superior: the nearest grid axis, and whether it runs the other way."""
    codes = nib.io_orientation(affine)
    order = tuple(int(np.flatnonzero(codes[:, 0] == world)[0]) for world in range(3))
    flip = tuple(bool(codes[axis, 1] < 0) for axis in order)
    return cast("tuple[int, int, int]", order), cast("tuple[bool, bool, bool]", flip)


def ras_view(data: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A view ``(i, j, k)`` -> ``(right, anterior, superior)``, nearest axes, and its voxel edges in millimetres."""
    order, flip = _to_ras(affine)
    turned = data.transpose(order)[tuple(slice(None, None, -1 if back else 1) for back in flip)]
    return turned, np.linalg.norm(affine[:3, :3], axis=0)[list(order)]


def _reorient(data: NDArray[Any], order: tuple[int, int, int], flip: tuple[bool, bool, bool]) -> NDArray[Any]:
    """A view ``(i, j, k)`` -> ``(superior, posterior, right)``."""
    right, anterior, superior = order
    stack = data.transpose(superior, anterior, right)
    steps = (-1 if flip[2] else 1, 1 if flip[1] else -1, -1 if flip[0] else 1)
    return stack[:: steps[0], :: steps[1], :: steps[2]]


def _reorient_back(stack: Image, order: tuple[int, int, int], flip: tuple[bool, bool, bool]) -> Image:
    steps = (-1 if flip[2] else 1, 1 if flip[1] else -1, -1 if flip[0] else 1)
    turned = stack[:: steps[0], :: steps[1], :: steps[2]]
    back = np.argsort((order[2], order[1], order[0]))
    return np.asfortranarray(turned.transpose(*(int(axis) for axis in back)))


def _scales(spacing: tuple[float, float], wanted: float | None) -> tuple[float, float]:
    """Pixels per voxel along rows and columns; both or neither are resampled."""
    if wanted is None or all(abs(mm / wanted - 1) <= _SPACING_TOLERANCE for mm in spacing):
        return 1.0, 1.0
    return spacing[0] / wanted, spacing[1] / wanted


def _fit_axis(occupied: NDArray[np.bool_], scale: float, multiple: int) -> Axis:
    """The window around the head, its length in pixels a multiple, inside the uncut axis where that is longer."""
    size = len(occupied)
    places = np.flatnonzero(occupied)
    start, stop = max(0, int(places[0]) - MARGIN), min(size, int(places[-1]) + 1 + MARGIN)
    first, last = int(np.floor(start * scale + 1e-6)), int(np.ceil(stop * scale - 1e-6))
    length = -(-(last - first) // multiple) * multiple
    full = max(int(np.ceil(size * scale - 1e-6)), length)
    offset = min(max(0, first - (length - (last - first)) // 2), full - length)
    return Axis(size, start, stop, float(scale), full, offset, length)


def _fixed_axis(occupied: NDArray[np.bool_], scale: float, multiple: int, pixels: int) -> Axis:
    """A window of ``pixels`` in the middle of the axis.

    It moves only where it would cut the head, and grows to a multiple only where the head is larger than it.
    """
    head = _fit_axis(occupied, scale, multiple)
    length = max(-(-pixels // multiple) * multiple, head.length)
    full = int(np.ceil(head.size * scale - 1e-6))
    places = np.flatnonzero(occupied)
    first, last = int(places[0] * scale), int(np.ceil((places[-1] + 1) * scale - 1e-6))
    offset = int((full - length) / 2)  # towards zero, as the slice store places slices in frames
    offset = max(min(offset, first), last - length)
    start, stop = int(np.ceil(offset / scale - 1e-6)), int((offset + length) / scale + 1e-6)
    start, stop = max(0, start), min(head.size, stop)
    return Axis(head.size, start, stop, float(scale), full, offset, length)


def _see(stack: Image, axis_: Axis, *, axis: int) -> Image:
    """Voxels to pixels along one axis."""
    weights = axis_.forward()
    if weights is not None:
        return _weigh(stack, weights, axis)
    begin, end = max(0, axis_.offset), min(axis_.offset + axis_.length, axis_.size)
    window = [slice(None)] * 3
    window[axis] = slice(begin, end)
    pad = [(0, 0)] * 3
    pad[axis] = (begin - axis_.offset, axis_.offset + axis_.length - end)
    return np.pad(stack[tuple(window)], pad)


def _put(stack: Image, axis_: Axis, *, axis: int) -> Image:
    """Pixels to the window's voxels along one axis."""
    weights = axis_.backward()
    if weights is not None:
        return _weigh(stack, weights, axis)
    window = [slice(None)] * 3
    window[axis] = slice(axis_.start - axis_.offset, axis_.stop - axis_.offset)
    return stack[tuple(window)]


def _weigh(stack: Image, weights: NDArray[np.float32], axis: int) -> Image:
    """``weights`` applied along ``axis`` (1 or 2) of ``(n, h, w)``: one matrix product per slice."""
    if axis == 2:
        return np.asarray(stack @ weights.T, np.float32)
    return np.asarray(np.matmul(weights, stack), np.float32)


def _kernel_weights(
    places: NDArray[np.floating[Any]], sources: NDArray[np.integer[Any]], width: float
) -> NDArray[np.float32]:
    """Cubic convolution, widened when it shrinks an image so that fine detail does not alias.

    Source: Keys 1981, equation 15 (a = -1/2). Weights sum to 1 in every row, also at the border.
    """
    x = np.abs(places[:, None] - sources[None, :]) / width
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    total = weights.sum(axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (weights / np.where(np.abs(total) < 1e-6, 1.0, total)).astype(np.float32)
    return scaled
