"""Pictures to judge a registration by: edges of the moved contrast on the reference, before and after."""

from __future__ import annotations

import io

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from codebrain.imaging.align import by_header
from codebrain.imaging.prepared import PreparedStudy
from codebrain.imaging.study import Study
from codebrain.vocabulary import Modality

_TILE = 208
_GAP = 4
_TITLE = 16
_MARGIN = 10
_EDGE = (255, 170, 40)
_STEEP = 82
"""Edges are the steepest slopes: beyond this percentile of the cut."""

Cut = NDArray[np.float32]


def draw_overlays(study: Study, prepared: PreparedStudy) -> bytes:
    """A JPEG: for every moved contrast a row before and a row after; transverse, coronal and sagittal cuts.

    Cuts go through the middle of the kept slices; only those are seen.

    Args:
        study: the scans as they were read.
        prepared: the same, on one grid.
    """
    home, box = prepared.reference_modality, _box(prepared)
    ground = _channel(prepared, home)[box]
    rows: list[tuple[str, NDArray[np.float32]]] = []
    for modality in prepared.alignment.moved:
        before = prepared.frame.apply(by_header(prepared.reference, study.volumes[modality]).data)
        rows += [(f"{modality} on {home}, by the headers", before[box])]
        rows += [(f"{modality} on {home}, registered", _channel(prepared, modality)[box])]
    sheet = Image.new("RGB", (3 * _TILE + 2 * _GAP, len(rows) * (_TILE + _TITLE)), (0, 0, 0))
    pen = ImageDraw.Draw(sheet)
    height_mm = _millimetres(prepared)
    for line, (title, stack) in enumerate(rows):
        top = line * (_TILE + _TITLE)
        pen.text((4, top + 2), title, font=ImageFont.load_default(11), fill=(225, 228, 235))
        for column, (under, over) in enumerate(zip(_cuts(ground), _cuts(stack), strict=True)):
            tile = _tile(under, over, height_mm if column else None)
            left = column * (_TILE + _GAP) + (_TILE - tile.width) // 2
            sheet.paste(tile, (left, top + _TITLE + (_TILE - tile.height) // 2))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=72, optimize=True)
    return stream.getvalue()


def _channel(prepared: PreparedStudy, modality: Modality) -> NDArray[np.float32]:
    return prepared.slices[:, prepared.preparation.modalities.index(modality)]


def _box(prepared: PreparedStudy) -> tuple[slice, slice, slice]:
    """All kept slices, cut to the head and a little around it."""
    head = prepared.frame.apply(prepared.foreground.astype(np.float32)).max(axis=0) > 0.5
    places = [np.flatnonzero(head.any(axis=axis)) for axis in (1, 0)]
    sides = [slice(max(0, at[0] - _MARGIN), at[-1] + 1 + _MARGIN) if at.size else slice(None) for at in places]
    return slice(None), sides[0], sides[1]


def _cuts(stack: NDArray[np.float32]) -> tuple[Cut, Cut, Cut]:
    """Transverse, coronal and sagittal, upright: the front, or the top, is up."""
    n, h, w = stack.shape
    # A little off the middle, where a sagittal cut shows more than the fissure between the halves.
    return stack[n // 2], stack[::-1, h // 2], stack[::-1, :, int(0.45 * w)]


def _millimetres(prepared: PreparedStudy) -> float:
    """How much higher than wide a voxel of a standing cut is."""
    order = prepared.frame.order
    spacing = prepared.reference.spacing
    return float(spacing[order[2]] / spacing[order[0]] * prepared.frame.columns.scale)


def _tile(under: Cut, over: Cut, stretch: float | None) -> Image.Image:
    """Edges of ``over`` on ``under``, in proportion, at most a tile in size."""
    high, wide = under.shape
    tall = high * (stretch or 1.0)
    scale = _TILE / max(tall, wide)
    size = (max(1, round(wide * scale)), max(1, round(tall * scale)))
    picture = Image.fromarray(_shades(under), "L").resize(size, Image.Resampling.BICUBIC).convert("RGB")
    edges = Image.fromarray((_edges(over) * 255).astype(np.uint8), "L").resize(size, Image.Resampling.BILINEAR)
    picture.paste(Image.new("RGB", size, _EDGE), mask=edges)
    return picture


def _shades(cut: Cut) -> NDArray[np.uint8]:
    white = float(np.percentile(cut, 99.5)) or 1.0
    return (np.clip(cut / white, 0, 1) ** 0.8 * 255).astype(np.uint8)


def _edges(cut: Cut) -> NDArray[np.bool_]:
    """Thin edges: where the Laplacian changes its sign on a steep slope.

    Source: Marr and Hildreth, "Theory of edge detection", Proceedings of the Royal Society B 1980.
    """
    smooth = scipy.ndimage.gaussian_filter(cut, 1.2)
    slope = scipy.ndimage.gaussian_gradient_magnitude(smooth, 0.8)
    sign = scipy.ndimage.gaussian_laplace(cut, 1.6) > 0
    crossing = np.zeros_like(sign)
    crossing[:-1] |= sign[:-1] != sign[1:]
    crossing[:, :-1] |= sign[:, :-1] != sign[:, 1:]
    edges: NDArray[np.bool_] = crossing & (slope > max(float(np.percentile(slope, _STEEP)), 1e-9))
    return edges
