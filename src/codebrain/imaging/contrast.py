"""Which contrast an image looks like, from how fluid, white and grey matter relate in it; never from its name.

Two relations tell the five contrasts apart. Is the fluid in and around the ventricles brighter than the tissue
(T2 much, PD a little) or darker (T1, T1Gd, FLAIR)? And is the tissue of even brightness, which is mostly white
matter, brighter than the tissue of uneven brightness, which is mostly cortex (T1, T1Gd) or not (FLAIR)? A few
voxels far brighter than white matter speak for vessels after contrast agent.

The image is judged on voxels of 3 mm in the order right, anterior, superior, in the upper part of the brain,
where no registration is needed to be inside it. The borders below lie between the contrasts of 38 real scans of
eleven people and 70 simulated ones; see ``docs/how-to/doctor.md`` for how often the rule was right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from codebrain.imaging.frame import ras_view
from codebrain.imaging.volume import Volume
from codebrain.vocabulary import Modality

Mask = NDArray[np.bool_]
Image = NDArray[np.float32]

_EDGE_MM = 3.0
_SKIN_MM = 16.0
"""Scalp, skull and the fluid under it: what lies deeper in a whole head is brain."""

_TOP_MM, _BOTTOM_MM = 12.0, 70.0
"""Below the top of the brain: the hemispheres above the skull base."""

_CENTRE_MM = (25.0, 45.0, 25.0)
"""Half axes of the ellipsoid around the brain's centre that holds the ventricles."""

_LEAST_VOXELS = 500
_HEAD_LITRES = (0.5, 8.0)


@dataclass(frozen=True)
class Borders:
    """Between the contrasts; what falls between a pair is unsure.

    Attributes:
        fluid: below the first fluid is darker than tissue, above the second it is brighter.
        bright: how much brighter than tissue fluid is, as a share: PD below, T2 above.
        even: chance that an even voxel is brighter than an uneven one: FLAIR below, T1 above.
        beyond_white: 60th percentile of the tissue, 0 fluid and 1 white: T1 below, FLAIR above.
        tail: brightest voxels against bright ones: T1 below, T1Gd above.
    """

    fluid: tuple[float, float] = (0.8, 1.0)
    bright: tuple[float, float] = (0.45, 0.70)
    even: tuple[float, float] = (0.60, 0.68)
    beyond_white: tuple[float, float] = (0.98, 0.99)
    tail: tuple[float, float] = (1.75, 2.1)


BORDERS = Borders()


@dataclass(frozen=True)
class Relations:
    """What was measured in an image; see :class:`Borders` for the meaning of each number.

    Attributes:
        fluid: span from the median to the bright end of the brain's centre over that to its dark end.
        bright: bright end of the centre over the median, less 1; in units of the signal, air being 0.
        even: as in :class:`Borders`.
        beyond_white: likewise.
        tail: likewise.
        magnitude: whether zero means no signal, so that ``bright`` has a meaning.
        stripped: whether the skull had been removed.
    """

    fluid: float
    bright: float
    even: float
    beyond_white: float
    tail: float
    magnitude: bool
    stripped: bool


@dataclass(frozen=True)
class LikelyContrast:
    """What an image looks like.

    Attributes:
        candidates: one contrast; several where the image does not decide; none where it was not judged.
        reason: what was seen, one sentence.
        relations: the numbers behind it.
    """

    candidates: tuple[Modality, ...]
    reason: str
    relations: Relations | None = None

    @property
    def confidence(self) -> Literal["likely", "unsure", "not judged"]:
        """``likely`` for one candidate."""
        if not self.candidates:
            return "not judged"
        return "likely" if len(self.candidates) == 1 else "unsure"

    def __str__(self) -> str:
        if len(self.candidates) < 2:
            return str(self.candidates[0]) if self.candidates else "not judged"
        return f"unsure between {', '.join(self.candidates[:-1])} and {self.candidates[-1]}"

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        numbers = {} if self.relations is None else {k: _plain(v) for k, v in vars(self.relations).items()}
        return {
            "candidates": list(self.candidates),
            "confidence": self.confidence,
            "reason": self.reason,
            "measured": numbers,
        }


def _plain(value: float | bool) -> float | bool:
    return value if isinstance(value, bool) else round(float(value), 3)


def likely_contrast(volume: Volume, head: Mask, *, stripped: bool) -> LikelyContrast:
    """What contrast a scan looks like.

    Args:
        volume: a checked scan.
        head: where the head, or the brain of a stripped scan, is; the volume's shape.
        stripped: whether the skull was removed.
    """
    litres = float(head.sum()) * float(np.prod(volume.spacing)) / 1e6
    if not _HEAD_LITRES[0] <= litres <= _HEAD_LITRES[1]:
        return LikelyContrast((), f"what is in the image has {litres:.2g} litres, unlike a head or a brain")
    relations = measure_relations(volume, head, stripped=stripped)
    if relations is None:
        return LikelyContrast((), "too little of the upper brain is in view")
    return judge_relations(relations)


def judge_relations(seen: Relations, borders: Borders = BORDERS) -> LikelyContrast:
    """The contrasts that the relations leave possible, with the reason."""
    if seen.fluid >= borders.fluid[1]:
        return _bright_fluid(seen, borders)
    if seen.fluid > borders.fluid[0] and seen.even < borders.even[1]:
        either = (Modality.PD, Modality.FLAIR)
        return LikelyContrast(either, "fluid is about as far from the tissue's brightness to both sides", seen)
    return _dark_fluid(seen, borders)


def _bright_fluid(seen: Relations, borders: Borders) -> LikelyContrast:
    both = (Modality.T2, Modality.PD)
    if not seen.magnitude:
        reason = "fluid is brighter than tissue; how much cannot be said, because zero is not the absence of signal"
        return LikelyContrast(both, reason, seen)
    reason = f"fluid is {1 + seen.bright:.1f} times as bright as tissue"
    low, high = borders.bright
    if seen.bright <= low:
        return LikelyContrast((Modality.PD,), reason, seen)
    return LikelyContrast((Modality.T2,) if seen.bright >= high else both, reason, seen)


def _dark_fluid(seen: Relations, borders: Borders) -> LikelyContrast:
    white = seen.even >= borders.even[1] and seen.beyond_white <= borders.beyond_white[0]
    grey = seen.even <= borders.even[0] and seen.beyond_white >= borders.beyond_white[1]
    if grey:
        return LikelyContrast((Modality.FLAIR,), "fluid is darkest, and white matter is not brighter than grey", seen)
    if not white:
        reason = "fluid is darkest, and white and grey matter are about equally bright"
        agents = (Modality.T1GD,) if seen.tail > borders.tail[0] else ()
        return LikelyContrast((Modality.T1, *agents, Modality.FLAIR), reason, seen)
    reason = "fluid is darkest and white matter brighter than grey"
    if seen.tail <= borders.tail[0]:
        return LikelyContrast((Modality.T1,), f"{reason}, and nothing is much brighter than white matter", seen)
    if seen.stripped and seen.tail >= borders.tail[1]:
        return LikelyContrast((Modality.T1GD,), f"{reason}, and some voxels, as of vessels, are far brighter", seen)
    where = "" if seen.stripped else ", which in a head with its skull can be fat"
    return LikelyContrast((Modality.T1, Modality.T1GD), f"{reason}, and some voxels are brighter{where}", seen)


def measure_relations(volume: Volume, head: Mask, *, stripped: bool) -> Relations | None:
    """The numbers of :class:`Relations`; ``None`` where too little of the upper brain is in view."""
    air = float(np.median(volume.data[~head])) if not head.all() else 0.0
    data, mask = _small(volume.data, volume.affine) - air, _small(head.astype(np.float32), volume.affine) > 0.5
    mask = scipy.ndimage.binary_fill_holes(mask)
    upper, centre = _regions(mask, 0.0 if stripped else _SKIN_MM)
    if min(int(upper.sum()), int(centre.sum())) < _LEAST_VOXELS:
        return None
    slope = _slope(data)
    dark, middle, bright = np.percentile(data[centre], (2, 50, 98))
    median = float(np.median(data[upper]))
    high, highest = np.percentile(data[upper], (95, 99.9))
    return Relations(
        fluid=_ratio(bright - middle, middle - dark),
        bright=_ratio(bright - median, median),
        even=_even_is_brighter(data[upper], slope[upper]),
        beyond_white=_beyond_white(data[upper], slope[upper], float(dark)),
        tail=_ratio(highest - median, high - median),
        magnitude=float((data[upper] < 0).mean()) < 0.01,
        stripped=stripped,
    )


def _ratio(a: float, b: float) -> float:
    return float(a) / max(float(b), 1e-6 * max(abs(float(a)), 1e-30))


def _small(data: Image, affine: NDArray[np.float64]) -> Image:
    """Averaged to voxels of about 3 mm, axes to the right, to the front, to the top."""
    turned, spacing = ras_view(data, affine)
    blocks = [max(1, round(_EDGE_MM / mm)) for mm in spacing]
    smooth = scipy.ndimage.uniform_filter(turned, blocks) if max(blocks) > 1 else turned
    return np.asarray(
        scipy.ndimage.zoom(smooth, spacing / _EDGE_MM, order=1, grid_mode=True, mode="nearest"), np.float32
    )


def _regions(mask: Mask, skin: float) -> tuple[Mask, Mask]:
    """The upper brain, and the ellipsoid around its centre."""
    depth = scipy.ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] * _EDGE_MM
    levels = np.flatnonzero(mask.any((0, 1)))
    if not levels.size:
        return mask, mask
    below = ((levels[-1] - np.arange(mask.shape[2])) * _EDGE_MM - skin)[None, None, :]
    upper = (depth > skin + 6) & (below > _TOP_MM) & (below < _BOTTOM_MM)
    middle = mask & (below > 35) & (below < 90)
    if not middle.any():
        return upper, middle
    places = np.indices(mask.shape)
    centre = [float(np.mean(axis)) for axis in np.nonzero(middle)]
    away = sum(((p - c) * _EDGE_MM / half) ** 2 for p, c, half in zip(places, centre, _CENTRE_MM, strict=True))
    return upper, (away < 1) & (depth > skin + 3)


def _slope(data: Image) -> Image:
    return np.asarray(np.sqrt(sum(scipy.ndimage.sobel(data, axis) ** 2 for axis in range(3))), np.float32)


def _even_is_brighter(values: Image, slope: Image) -> float:
    """Chance that a voxel of the evenest 30 % is brighter than one of the unevenest 40 %, without outliers."""
    spread = float(np.median(np.abs(values - np.median(values))))
    kept = np.abs(values - np.median(values)) < 4 * max(spread, 1e-30)
    values, slope = values[kept], slope[kept]
    even, uneven = values[slope < np.percentile(slope, 30)], values[slope > np.percentile(slope, 60)]
    if not even.size or not uneven.size:
        return 0.5
    return float(scipy.stats.mannwhitneyu(even, uneven, method="asymptotic").statistic) / (even.size * uneven.size)


def _beyond_white(values: Image, slope: Image, fluid: float) -> float:
    """The 60th percentile where 0 is fluid and 1 the evenest quarter of the tissue."""
    tissue = values > fluid + 0.5 * (np.median(values) - fluid)
    white = np.median(values[tissue & (slope < np.percentile(slope[tissue], 25))]) if tissue.any() else fluid
    return _ratio(float(np.percentile(values, 60)) - fluid, float(white) - fluid)
