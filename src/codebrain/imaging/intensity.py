"""Where the head is, and its intensities as numbers from 0 to 1: records that can undo themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import scipy
from numpy.typing import NDArray

from codebrain.errors import refusal
from codebrain.vocabulary import Preparation

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Normalisation:
    """An affine map of scanner units to [0, 1], clipped; subclasses say what becomes 0 and 1.

    Attributes:
        low: scanner value that maps to 0.
        high: scanner value that maps to 1.
    """

    low: float = 0.0
    high: float = 1.0

    kind: ClassVar[str] = ""

    def apply(self, data: NDArray[Any]) -> Image:
        """``data`` in [0, 1], any shape; values beyond the range are clipped."""
        scaled = (np.asarray(data, np.float32) - np.float32(self.low)) * np.float32(1 / (self.high - self.low))
        return np.clip(scaled, 0.0, 1.0, out=scaled)

    def undo(self, unit: NDArray[Any]) -> Image:
        """Scanner units again; what :meth:`apply` clipped stays clipped."""
        return np.asarray(unit, np.float32) * np.float32(self.high - self.low) + np.float32(self.low)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"kind": self.kind, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`as_dict`."""
        return cls(low=float(raw["low"]), high=float(raw["high"]))

    def _between(self, low: float, high: float) -> Self:
        if not low < high:
            raise refusal(
                "IN_NO_SIGNAL", "the head is of one brightness", found=f"{low:.6g} to {high:.6g}",
                expected="a range of intensities", hint="Check that this is the right file.",
            )  # fmt: skip
        return replace(self, low=low, high=high)


@dataclass(frozen=True)
class MinMax(Normalisation):
    """The darkest voxel of the scan becomes 0, the brightest 1.

    Source: Wu et al., CodeBrain, section 4.1 (intensities scaled to [0, 1] per volume).
    """

    kind: ClassVar[str] = "min_max"

    def fit(self, data: Image, foreground: Mask) -> MinMax:
        """The map for one scan.

        Args:
            data: scanner units, ``(i, j, k)``.
            foreground: where the head is, same shape.

        Raises:
            InputRefused: ``IN_NO_SIGNAL`` for a head of one brightness.
        """
        inside = data[foreground]
        return self._between(float(inside.min()), float(inside.max())) if inside.size else self._between(0, 0)


@dataclass(frozen=True)
class Percentile(Normalisation):
    """A low and a high percentile of the head become 0 and 1: a hot voxel or a bright vessel does not matter.

    Attributes:
        lower: percentile that maps to 0.
        upper: percentile that maps to 1.
    """

    lower: float = 0.1
    upper: float = 99.9

    kind: ClassVar[str] = "percentile"

    def fit(self, data: Image, foreground: Mask) -> Percentile:
        """The map for one scan.

        Args:
            data: scanner units, ``(i, j, k)``.
            foreground: where the head is, same shape.

        Raises:
            InputRefused: ``IN_NO_SIGNAL`` for a head of one brightness.
        """
        inside = data[foreground]
        if not inside.size:
            return self._between(0, 0)
        low, high = (float(value) for value in np.percentile(inside, (self.lower, self.upper)))
        return self._between(low, high)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**super().as_dict(), "lower": self.lower, "upper": self.upper}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Percentile:
        """Inverse of :meth:`as_dict`."""
        return cls(*(float(raw[field]) for field in ("low", "high", "lower", "upper")))


def fit_normalisation(preparation: Preparation, data: Image, foreground: Mask) -> MinMax | Percentile:
    """The map that ``preparation`` asks for, fitted to one scan.

    Raises:
        InputRefused: ``IN_NO_SIGNAL``.
    """
    if preparation.normalisation == "min_max":
        whole = preparation.background == "kept"
        return MinMax().fit(data, np.ones_like(foreground) if whole else foreground)
    lower, upper = preparation.percentiles
    return Percentile(lower=lower, upper=upper).fit(data, foreground)


def to_unit(preparation: Preparation, normalisation: Normalisation, data: Image, foreground: Mask) -> Image:
    """``data`` ``(i, j, k)`` in [0, 1], 0 around the head unless ``preparation`` keeps the background."""
    unit = normalisation.apply(data)
    return unit if preparation.background == "kept" else unit * foreground


def normalisation_from_dict(raw: Mapping[str, Any]) -> MinMax | Percentile:
    """The record that ``as_dict`` of either kind wrote."""
    return MinMax.from_dict(raw) if raw["kind"] == MinMax.kind else Percentile.from_dict(raw)


_BORDER_SHARE = 0.5
_SPECKLE_SHARE = 0.02
_RIM_BRIGHTNESS = 0.15
"""Whole heads measured 0.00 to 0.12, stripped brains 0.20 to 1.16 (41 scans of seven sources)."""

_BINS = 512


def foreground_mask(data: Image) -> Mask:
    """Where the head, or the brain of a skull-stripped scan, is.

    Skull-stripped: what differs from the constant that fills the border. Whole head: what is brighter than
    Otsu's threshold on the robust range. Of either the largest piece, its holes filled. The same mask for
    ``a * data + b``, a > 0, and for any order of the axes.

    Args:
        data: scanner units, ``(i, j, k)``.
    """
    constant = border_constant(data)
    if constant is not None:
        differing = data != constant
        mask = _largest(differing)
        if _is_cut_out(np.abs(data - constant), differing, mask):
            return mask
    return _filled_slices(_largest(data > _otsu(data)))


def border_constant(data: Image) -> float | None:
    """The one value that fills most of the six faces; ``None`` where there is none."""
    faces = np.concatenate([np.moveaxis(data, axis, 0)[place].ravel() for axis in range(3) for place in (0, -1)])
    values, counts = np.unique(faces, return_counts=True)
    top = int(counts.argmax())
    return float(values[top]) if counts[top] >= _BORDER_SHARE * faces.size else None


def _is_cut_out(contrast: Image, differing: Mask, mask: Mask) -> bool:
    """Whether all that differs from the border is head: nothing stray outside the piece, its rim about as bright.

    The rim of a whole head whose scanner set the air to 0 is noise, a tenth as bright as the head. Whether what was
    cut out is a bare brain is asked of :func:`codebrain.imaging.domain.skull_stripped`.
    """
    count = int(mask.sum())
    if count == 0 or int((differing & ~mask).sum()) > _SPECKLE_SHARE * count:
        return False
    rim = mask & ~_eroded(mask)
    return bool(rim.any()) and float(np.median(contrast[rim])) > _RIM_BRIGHTNESS * float(np.median(contrast[mask]))


def _eroded(mask: Mask) -> Mask:
    """The voxels whose six neighbours are in the mask too; those beyond the border count as in it.

    ``scipy.ndimage.binary_erosion`` takes six times as long.
    """
    inner = mask.copy(order="K")
    for axis in range(3):
        kept, neighbours = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        kept[1:] &= neighbours[:-1]
        kept[:-1] &= neighbours[1:]
    return inner


def _otsu(data: Image) -> float:
    """Otsu's threshold between air and head, on the range without the extreme half percent.

    Source: Otsu 1979, equations 12 to 17, on the square root of the range, where air and head are equally wide.
    """
    low, high = (float(v) for v in np.percentile(data, (0.5, 99.5)))
    if low >= high:
        return low
    unit = np.sqrt(np.clip((data.ravel(order="K") - low) / (high - low), 0.0, 1.0))
    counts, edges = np.histogram(unit, _BINS, (0.0, 1.0))
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = below[-1] + counts[-1] - below
    sums = np.cumsum(counts * middles)
    means_apart = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    best = int(np.argmax(below * above * means_apart**2))
    return low + (high - low) * float(edges[best + 1]) ** 2


def _largest(mask: Mask) -> Mask:
    """The largest piece with its holes filled."""
    box = tuple(_extent(np.asarray(mask.any(axis=others))) for others in ((1, 2), (0, 2), (0, 1)))
    pieces, count = scipy.ndimage.label(mask[box])
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    result = np.zeros_like(mask)
    result[box] = _filled(pieces == sizes.argmax(), axes=(0, 1, 2))
    return result


def _extent(occupied: Mask) -> slice:
    places = np.flatnonzero(occupied)
    return slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, 0)


def _filled_slices(mask: Mask) -> Mask:
    """Holes filled in every slice along each axis: sinuses and ears reach the air somewhere.

    Until nothing is left to fill: one round would give another mask for another order of the axes, because what was
    filled along one axis can close a hole along another.
    """
    before, count = -1, int(mask.sum())
    while count > before:
        for axes in ((1, 2), (0, 2), (0, 1)):
            mask = _filled(mask, axes=axes)
        before, count = count, int(mask.sum())
    return mask


def _filled(mask: Mask, *, axes: tuple[int, ...]) -> Mask:
    """Holes filled, where a hole cannot reach the border by steps along ``axes``.

    One labelling of the air; ``scipy.ndimage.binary_fill_holes`` grows it voxel by voxel, ten times slower.
    """
    steps = np.zeros((3, 3, 3), bool)
    for axis in axes:
        np.moveaxis(steps, axis, 0)[:, 1, 1] = True
    air, count = scipy.ndimage.label(~mask, steps)
    open_air = np.zeros(count + 1, bool)
    for axis in axes:
        for face in (0, -1):
            open_air[np.moveaxis(air, axis, 0)[face]] = True
    open_air[0] = False
    holes: Mask = ~open_air[air]
    return holes
