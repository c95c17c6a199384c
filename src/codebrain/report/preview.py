"""Pictures of a completed study: three cuts of every contrast, synthetic ones with the word burned in.

A panel is one row of three cuts, axial, coronal and sagittal, through one point of the head, at one scale.
The patient's left is on the right of axial and coronal cuts (radiological); sagittal cuts face left.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Literal

import nibabel as nib
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from codebrain.marks import LOW_CONFIDENCE, synthetic_mark
from codebrain.vocabulary import Modality

Role = Literal["given", "imputed", "truth", "doubt", "error"]

PANEL_WIDTH = 780
ERROR_AT_FULL_COLOUR = 0.25

_BACKGROUND = (0, 0, 0)
_AMBER = (255, 191, 64)
_GREY = (150, 156, 168)
_GAP, _MARGIN, _TITLE, _GUTTER = 6, 4, 34, 16
_SHADES = ((0, 0, 4), (60, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


@dataclass(frozen=True)
class Panel:
    """What one row of cuts shows.

    Attributes:
        contrast: whose image it is, or was imputed with.
        role: ``given``, ``imputed``, ``truth`` (withheld), ``doubt`` or ``error`` (imputed minus truth).
        data: ``(i, j, k)``, 0 .. 1.
        low_confidence: whether the doubt of the study is over the limit of its model.
    """

    contrast: Modality
    role: Role
    data: Float[np.ndarray, "i j k"]
    low_confidence: bool = False

    @property
    def synthetic(self) -> bool:
        """Whether the picture shows something that no scanner measured."""
        return self.role in ("imputed", "doubt", "error")

    @property
    def file(self) -> str:
        """Name of the picture's file."""
        return f"{self.contrast}_{self.role}.png"


def study_panels(
    given: Mapping[Modality, Float[np.ndarray, "i j k"]],
    imputed: Mapping[Modality, Float[np.ndarray, "i j k"]],
    *,
    truth: Mapping[Modality, Float[np.ndarray, "i j k"]],
    doubt: Float[np.ndarray, "i j k"] | None,
    low_confidence: bool = False,
) -> list[Panel]:
    """The panels of a study in reading order: given contrasts, then each imputed one and its maps."""
    panels = [Panel(contrast, "given", data) for contrast, data in given.items()]
    for contrast, data in imputed.items():
        panels.append(Panel(contrast, "imputed", data, low_confidence))
        if contrast in truth:
            panels.append(Panel(contrast, "truth", truth[contrast]))
            panels.append(Panel(contrast, "error", np.abs(data - truth[contrast]), low_confidence))
        if doubt is not None:
            panels.append(Panel(contrast, "doubt", doubt, low_confidence))
    return panels


def draw_panels(
    panels: Sequence[Panel],
    affine: Float[np.ndarray, "4 4"],
    *,
    focus: tuple[int, int, int] | None = None,
) -> dict[str, Image.Image]:
    """One picture per panel, by file name; all cut through the same point at the same scale.

    Args:
        panels: what to show.
        affine: voxel to world, of all panels.
        focus: the voxel to cut through; by default the middle of what is not background.
    """
    cuts = Cuts.through(np.max([p.data > 0 for p in panels if p.role == "given"], axis=0), affine, focus)
    windows = {p.contrast: _window(p.data) for p in panels if p.role in ("imputed", "given")}
    windows |= {p.contrast: _window(p.data) for p in panels if p.role == "truth"}
    return {panel.file: _draw(panel, cuts, windows[panel.contrast]) for panel in panels}


def _window(data: Float[np.ndarray, "i j k"]) -> float:
    """The value shown as white."""
    inside = data[data > 0]
    return float(np.percentile(inside, 99.5)) if inside.size else 1.0


@dataclass(frozen=True)
class Cuts:
    """How a volume is turned, where it is cut and how large the cuts are drawn.

    Attributes:
        turn: nibabel's orientation change to right-anterior-superior.
        at: the cut voxel, turned.
        low: first voxel shown, turned.
        high: one past the last voxel shown, turned.
        sizes: width and height in pixels of the axial, coronal and sagittal cut.
    """

    turn: Float[np.ndarray, "3 2"]
    at: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def through(cls, foreground: np.ndarray, affine: np.ndarray, focus: tuple[int, int, int] | None) -> Cuts:
        """Cuts through ``focus``, or through the middle of ``foreground``, that show all of it."""
        turn = nib.orientations.io_orientation(affine)
        turned = nib.orientations.apply_orientation(foreground, turn)
        places = np.argwhere(turned) if turned.any() else np.indices(turned.shape).reshape(3, -1).T
        low, high = places.min(0), places.max(0) + 1
        at = np.round(places.mean(0)).astype(int)
        if focus is not None:
            marker = np.zeros(foreground.shape, bool)
            marker[focus] = True
            at = np.argwhere(nib.orientations.apply_orientation(marker, turn))[0]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(turn[:, 0])]
        return cls(
            turn,
            tuple(at.tolist()),
            tuple(low.tolist()),
            tuple(high.tolist()),
            _sizes((high - low) * spacing),
        )

    def __call__(self, data: Float[np.ndarray, "i j k"]) -> list[Float[np.ndarray, "_ _"]]:
        """Axial, coronal and sagittal cut, rows from top to bottom."""
        turned = nib.orientations.apply_orientation(data, self.turn)
        x, y, z = (slice(a, b) for a, b in zip(self.low, self.high, strict=True))
        i, j, k = self.at
        axial, coronal, sagittal = turned[x, y, k], turned[x, j, z], turned[i, y, z]
        return [np.flip(axial.T), np.flip(coronal.T), np.flip(sagittal.T)]


def _sizes(extent_mm: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Pixels of the three cuts so that together they fill the panel's width at one scale."""
    x, y, z = (float(mm) for mm in extent_mm)
    scale = (PANEL_WIDTH - 2 * _GAP - 2 * _MARGIN) / (2 * x + y)
    return tuple((max(1, int(w * scale)), max(1, int(h * scale))) for w, h in ((x, y), (x, z), (y, z)))


def _draw(panel: Panel, cuts: Cuts, white: float) -> Image.Image:
    height = max(h for _, h in cuts.sizes) + 2 * _MARGIN
    picture = Image.new("RGB", (PANEL_WIDTH, height), _BACKGROUND)
    x = _MARGIN
    for cut, (width, tall), sides in zip(cuts(panel.data), cuts.sizes, ("RL", "RL", "AP"), strict=True):
        y = (height - tall) // 2
        image = _shade(cut, panel.role, white)
        picture.paste(image.resize((width, tall), Image.Resampling.BICUBIC), (x, y))
        _label(ImageDraw.Draw(picture), panel, (x, 0, x + width, height), sides)
        x += width + _GAP
    return picture if panel.synthetic else picture.convert("L")


def _shade(cut: np.ndarray, role: Role, white: float) -> Image.Image:
    if role in ("doubt", "error"):
        scale = 1.0 if role == "doubt" else ERROR_AT_FULL_COLOUR
        return Image.fromarray(_colours()[_bytes(cut / scale)], "RGB")
    return Image.fromarray(_bytes(cut / white), "L").convert("RGB")


def _bytes(unit: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((np.clip(np.nan_to_num(unit), 0, 1) * 255 + 0.5).astype(np.uint8))


@cache
def _colours() -> np.ndarray:
    """256 shades from black through purple and orange to pale yellow, evenly rising in lightness."""
    stops = np.linspace(0, 255, len(_SHADES))
    return np.stack([np.interp(np.arange(256), stops, c) for c in zip(*_SHADES, strict=True)], -1).astype(np.uint8)


def _label(draw: ImageDraw.ImageDraw, panel: Panel, box: tuple[int, int, int, int], sides: str) -> None:
    left, top, right, bottom = box
    for letter, at, anchor in ((sides[0], left + 4, "ld"), (sides[1], right - 4, "rd")):
        draw.text((at, bottom - 4), letter, font=_font(13), fill=_GREY, anchor=anchor)
    if panel.synthetic:
        mark = synthetic_mark(low_confidence=panel.low_confidence).replace(LOW_CONFIDENCE, f"\n{LOW_CONFIDENCE}")
        draw.text((left + 4, top + 4), mark, font=_font(18), fill=_AMBER, stroke_width=2, stroke_fill=(0, 0, 0))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw_preview(panels: Sequence[Panel], pictures: Mapping[str, Image.Image]) -> Image.Image:
    """All panels on one sheet, two side by side: the given contrasts, then each imputed one with its maps.

    Args:
        panels: as from :func:`study_panels`.
        pictures: as from :func:`draw_panels`.
    """
    rows = [row for _, group in groupby(panels, key=_belongs) for row in batched_pairs(list(group))]
    tall = max(picture.height for picture in pictures.values()) + _TITLE
    sheet = Image.new("RGB", (2 * PANEL_WIDTH + _GUTTER, tall * len(rows)), _BACKGROUND)
    draw, titles = ImageDraw.Draw(sheet), panel_titles(panels)
    for line, row in enumerate(rows):
        for column, panel in enumerate(row):
            x, y = column * (PANEL_WIDTH + _GUTTER), line * tall
            place = (x + _MARGIN + 2, y + _TITLE // 2)
            draw.text(place, titles[panel.file], font=_font(17), fill=(230, 232, 238), anchor="lm")
            sheet.paste(pictures[panel.file], (x, y + _TITLE))
    return sheet


def _belongs(panel: Panel) -> str:
    return "given" if panel.role == "given" else str(panel.contrast)


def batched_pairs(panels: list[Panel]) -> list[list[Panel]]:
    """Two at a time; the last may be alone."""
    return [panels[start : start + 2] for start in range(0, len(panels), 2)]


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file without time or other metadata.

    Compression level 4: level 9 took ten times as long to save a fifth of the bytes.
    """
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=4)
    return stream.getvalue()


def colour_bar() -> Image.Image:
    """The shades of doubt and error, from 0 on the left to full on the right."""
    return Image.fromarray(np.repeat(_colours()[None], 10, axis=0), "RGB")


def panel_titles(panels: Iterable[Panel]) -> dict[str, str]:
    """What stands over each panel, by file name."""
    words = {
        "given": "{} as given",
        "imputed": "{} imputed (SYNTHETIC)",
        "truth": "{} itself, withheld from the model",
        "error": f"{{}} absolute error, 0 to {ERROR_AT_FULL_COLOUR} of full range (of a SYNTHETIC image)",
        "doubt": "Doubt of the predicted code, 0 to 1 (of the SYNTHETIC {})",
    }
    unsure = {p.file: f", {LOW_CONFIDENCE}" if p.low_confidence else "" for p in panels}
    return {p.file: words[p.role].format(p.contrast) + unsure[p.file] for p in panels}
