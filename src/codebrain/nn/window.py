"""The part of a slice that a NAFNet network has to compute; the rest is background and looks the same everywhere.

Far from the head the features of background depend on nothing but the channel attention, and rows of background are
all alike except near the border of the slice. A window that keeps a margin around what is not zero and leaves out
whole cells beyond it is the slice with some of those rows and columns taken out. Its own border stands for that of
the slice; where rows were taken out, one row of the margin counts as often as it stood there when the blocks average
over the slice. On 240 x 240 slices of a real head the network's answer inside the head is then the same to 51 dB with
a margin of two cells and to 60 dB with three (the same without counting: 30 and 34 dB).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CELL = 8
"""Pixels that one place of the lowest resolution stands for."""

MARGIN = 3
"""Cells of background kept on each side."""


@dataclass(frozen=True)
class Window:
    """A part of a slice, in whole cells.

    Attributes:
        rows, columns: in pixels.
        row_counts, column_counts: how often each cell of the window counts in an average over the slice.
    """

    rows: slice
    columns: slice
    row_counts: Float[Tensor, "_"]
    column_counts: Float[Tensor, "_"]

    @classmethod
    def around(cls, images: Float[Tensor, "m h w"], margin: int = MARGIN) -> Window | None:
        """What is not zero in any of the images, and the margin; None where everything is zero."""
        there = images.ne(0).any(0)
        if not there.any():
            return None
        rows, row_counts = _span(there.any(1), margin)
        columns, column_counts = _span(there.any(0), margin)
        return cls(rows, columns, row_counts, column_counts)

    def cut(self, images: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b hw ww"]:
        """The window of slices."""
        return images[..., self.rows, self.columns]

    def put_back(
        self, part: Float[Tensor, "*b hp wp"], size: tuple[int, int], *, cell: int = 1
    ) -> Float[Tensor, "*b h w"]:
        """What was computed of the window in a slice of zeros.

        Args:
            part: the window, or a map of it that is ``cell`` times smaller.
            size: of the result.
            cell: 1, or :data:`CELL` for maps at the lowest resolution.
        """
        whole = part.new_zeros(*part.shape[:-2], *size)
        rows, columns = (slice(s.start // cell, s.stop // cell) for s in (self.rows, self.columns))
        whole[..., rows, columns] = part
        return whole


def _span(there: Tensor, margin: int) -> tuple[slice, Float[Tensor, "_"]]:
    places = there.nonzero()
    cells = len(there) // CELL
    first = max(int(places.min()) // CELL - margin, 0)
    last = min(int(places.max()) // CELL + 1 + margin, cells)
    counts = torch.ones(last - first)
    # The cell in the middle of a margin: neither the border of the slice nor the head is near.
    if first > 0:
        counts[margin // 2] += first
    if last < cells:
        counts[-1 - margin // 2] += cells - last
    return slice(first * CELL, last * CELL), counts
