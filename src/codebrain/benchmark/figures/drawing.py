"""What all figures are drawn with: sheets measured in inches, colours, words burned in, PNG and PDF bytes.

Drawn without pyplot: no window, no global state. Every place is given in inches, because captions, labels and
a dozen methods must fit whatever their length; an automatic layout shrinks the images instead.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from codebrain.errors import missing_extra
from codebrain.marks import ENHANCEMENT_UNKNOWN, RESEARCH_USE_ONLY, SYNTHETIC
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import Modality

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")
"""Told apart by colour-blind readers. Source: Okabe & Ito, Color Universal Design, 2008."""

HATCHES = ("", "////", "....", "xxxx")
"""What tells methods of one colour apart, once the colours have run out."""

DPI = 300
"""Of the PNG, and of the images inside the PDF."""

PAGE = 7.2
"""Inches: two columns of a journal."""

_LONGEST = 8.0
"""Inches: lines of a caption that are longer are hard to read."""

SMALL, NORMAL = 6.5, 8.0
"""Sizes of type, in points."""

_SET_WIDER = 0.97
"""Type is set up to 2 % wider than measured, since glyphs are placed on whole pixels."""

LINE = 1.2
"""Height of a line of type, in sizes of type."""

LARGEST_ERROR = 0.3
"""Upper end of the error maps' scale, in units of the data range; larger errors have the last colour."""

_GIVEN = "#009E73"
_AMBER = "#FFD000"
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": NORMAL,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,
    "pdf.compression": 6,
    "text.usetex": False,
    "savefig.bbox": None,
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        png: 300 dpi.
        pdf: the same for print; type can be searched and edited (fonts embedded as TrueType, type 42).
        caption: what stands below it, for pages that show it.
    """

    png: bytes
    pdf: bytes
    caption: str

    def files(self, name: str) -> dict[str, bytes]:
        """Contents by file name."""
        return {f"{name}.png": self.png, f"{name}.pdf": self.pdf}


def drawn(build: Callable[[], tuple[Any, str]]) -> Drawing:
    """Build a figure and its caption under the house's style, and render both formats.

    Equal input gives equal bytes: no date, no version, nothing of the user's own matplotlib settings.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when matplotlib is not installed.
    """
    figure_class()
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure, caption = build()
        nothing = dict.fromkeys(("Creator", "Producer", "CreationDate", "ModDate"))
        files = {}
        for kind, metadata in (("png", {"Software": None, "Title": caption}), ("pdf", nothing | {"Title": caption})):
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, dpi=DPI, metadata=metadata)
            files[kind] = stream.getvalue()
    return Drawing(files["png"], files["pdf"], caption)


def figure_class() -> Any:
    """matplotlib's ``Figure``.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "bench", "Drawing the figures") from None
    return Figure


def look_of(number: int) -> tuple[str, str]:
    """Colour and hatch of the method with that number; 28 differ."""
    turns, place = divmod(number, len(COLOURS))
    return COLOURS[place], HATCHES[turns % len(HATCHES)]


# --- type ---


def text_width(text: str, size: float) -> float:
    """Inches that a line of text takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width) / 72


def wrapped(text: str, inches: float, size: float) -> list[str]:
    """Lines that are no wider than ``inches``; words too long for a line are broken."""
    inches *= _SET_WIDER
    lines: list[str] = []
    line = ""
    for piece in re.split(r"(?<=[\s\-_+/])", text):
        if line and text_width((line + piece).rstrip(), size) > inches:
            lines, line = [*lines, line.rstrip()], ""
        line += piece
        while text_width(line.rstrip(), size) > inches and len(line) > 1:
            fitting = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or text_width(line[:n], size) <= inches)
            lines, line = [*lines, line[:fitting]], line[fitting:]
    return [*lines, line.rstrip()]


def block(texts: Iterable[str], inches: float, size: float) -> tuple[list[str], float]:
    """The texts, each wrapped and joined, and the height of the tallest in inches."""
    found = ["\n".join(wrapped(text, inches, size)) for text in texts]
    return found, height_of(found, size)


def height_of(texts: Iterable[str], size: float) -> float:
    """Inches that the tallest of some texts takes."""
    return max((text.count("\n") + 1 for text in texts), default=0) * size * LINE / 72


def caption_of(sentences: Sequence[str], *, models: Iterable[ImputationModel] = (), imputed: Iterable[Modality]) -> str:
    """The sentences, what must be said of the models, and the fixed sentences of the house.

    Args:
        sentences: what the figure shows.
        models: whose images are in it; those that are reconstructions of a publication say so.
        imputed: contrasts of which imputed images, or scores of them, are shown.
    """
    labels = dict.fromkeys(type(model).label for model in models)
    said = [f"{label}." for label in labels if label]
    warning = [ENHANCEMENT_UNKNOWN] if Modality.T1GD in set(imputed) else []
    return " ".join([*sentences, *said, *warning, f"{RESEARCH_USE_ONLY}."])


# --- sheets ---


@dataclass(frozen=True)
class Sheet:
    """A figure whose places are inches from its upper left corner.

    Attributes:
        figure: matplotlib's.
        width, height: inches.
    """

    figure: Any
    width: float
    height: float

    @classmethod
    def of(cls, width: float, height: float, caption: str) -> Sheet:
        """A sheet that is ``height`` high without its caption, which is written below."""
        lines, below = block([caption], min(width, _LONGEST) - 0.2, SMALL)
        total = height + below + 0.18
        sheet = cls(figure_class()(figsize=(width, total), facecolor="white"), width, total)
        sheet.text(0.1, height + 0.1, lines[0], size=SMALL, va="top", ha="left", gid="caption")
        return sheet

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Axes with that upper left corner and size."""
        w, h = self.width, self.height
        return self.figure.add_axes((x / w, 1 - (y + height) / h, width / w, height / h))

    def text(self, x: float, y: float, text: str, *, size: float = NORMAL, **how: Any) -> Any:
        """Write text as it is, dollar signs included."""
        return self.figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=size, linespacing=LINE, parse_math=False, **how
        )

    def blank(self, x: float, y: float, width: float, height: float) -> Any:
        """Axes for an image: no frame, no ticks."""
        axes = self.axes(x, y, width, height)
        axes.set_axis_off()
        return axes

    def colour_bar(self, shown: Any, x: float, y: float, height: float, label: str) -> None:
        """The scale of ``shown``, upright."""
        bar = self.figure.colorbar(shown, cax=self.axes(x, y, 0.09, height), extend="max")
        bar.locator = _few_ticks()
        bar.update_ticks()
        bar.set_label(label, fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL, width=0.5, length=2)
        bar.outline.set_linewidth(0.5)


def image(axes: Any, pixels: Float[Tensor, "h w"], white: float) -> None:
    """A grey image; ``white`` and above are white."""
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=white, interpolation="nearest")


def imputed_image(axes: Any, pixels: Float[Tensor, "h w"], white: float) -> None:
    """A grey image that no scanner measured, with the word burned in."""
    image(axes, pixels, white)
    word(axes, SYNTHETIC, _AMBER)


def given_image(axes: Any, pixels: Float[Tensor, "h w"], white: float, name: str = "given") -> None:
    """A grey image that the model was given: framed, and labelled so."""
    image(axes, pixels, white)
    axes.add_patch(_rectangle(axes))
    word(axes, name, "white")


def error_map(axes: Any, error: Float[Tensor, "h w"]) -> Any:
    """Absolute error in colour; returned for the colour bar."""
    return axes.imshow(error.numpy(), cmap="magma", vmin=0, vmax=LARGEST_ERROR, interpolation="nearest")


def word(axes: Any, text: str, colour: str, *, top: bool = False) -> None:
    """A word over an image, at its lower edge or in its upper left corner."""
    x, y = (0.03, 0.975) if top else (0.5, 0.025)
    axes.text(
        x, y, text, transform=axes.transAxes, ha="left" if top else "center", va="top" if top else "bottom",
        color=colour, fontsize=_fitting(axes, text), parse_math=False,
        bbox={"facecolor": "black", "alpha": 0.6, "pad": 0.8, "linewidth": 0},
    )  # fmt: skip


def _fitting(axes: Any, text: str) -> float:
    """The size of type, at most the small one, at which a text leaves a tenth of the axes' width free."""
    room = axes.get_position().width * axes.figure.get_figwidth() * 0.9
    return float(min(SMALL, SMALL * room / text_width(text, SMALL)))


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4, steps=[1, 2, 5, 10])


def _rectangle(axes: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=_GIVEN, linewidth=2.0)


def white_of(truth: Float[Tensor, "h w"]) -> float:
    """The value shown as white: the 99.5th percentile of what is not background.

    One hyperintense spot would otherwise darken the whole brain.
    """
    inside = truth[truth > 0]
    return float(torch.quantile(inside, 0.995)) if inside.numel() else 1.0
