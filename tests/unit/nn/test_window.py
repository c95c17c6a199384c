"""A window gives the answer of the whole slice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from codebrain.machine import short_floats
from codebrain.nn.fast import Pooling, accelerate
from codebrain.nn.naf import NafEncoder
from codebrain.nn.window import CELL, MARGIN, Window


def head(rows: slice, columns: slice, size: tuple[int, int] = (128, 160)) -> torch.Tensor:
    images = torch.zeros(2, *size)
    images[0, rows, columns] = torch.rand(rows.stop - rows.start, columns.stop - columns.start) + 0.1
    return images


def test_it_holds_what_is_not_zero_and_a_margin_in_whole_cells():
    window = Window.around(head(slice(50, 70), slice(61, 90)), margin=2)
    assert (window.rows, window.columns) == (slice(32, 88), slice(40, 112))
    assert window.row_counts.tolist() == [1, 5, 1, 1, 1, 6, 1]
    assert float(window.row_counts.sum()) == 128 / CELL and float(window.column_counts.sum()) == 160 / CELL


def test_a_head_that_reaches_the_border_has_no_margin_there():
    window = Window.around(head(slice(0, 128), slice(100, 160)), margin=2)
    assert (window.rows, window.columns) == (slice(0, 128), slice(80, 160))
    assert window.row_counts.tolist() == [1] * 16
    assert window.column_counts.tolist() == [1, 11, *[1] * 8]


def test_an_empty_slice_has_none():
    assert Window.around(torch.zeros(2, 16, 16)) is None


def test_what_was_cut_comes_back_where_it_was():
    images = head(slice(50, 70), slice(61, 90))
    window = Window.around(images, margin=0)
    assert torch.equal(window.put_back(window.cut(images), (128, 160)), images)
    coarse = window.put_back(torch.ones(1, 3, 5), (16, 20), cell=CELL)
    assert coarse.shape == (1, 16, 20) and coarse.sum() == coarse[0, 6:9, 7:12].sum() == 15


@pytest.mark.skipif(not short_floats(), reason="this CPU has no fast products")
def test_a_network_answers_in_the_window_as_in_the_whole_slice():
    """Better than without counting what was left out, and better the wider the margin."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = NafEncoder(2, width=16, depth=3)
        for name, value in encoder.named_parameters():
            if name.endswith(("scale1", "scale2")):
                nn.init.uniform_(value, 0.1, 0.3)
        images = head(slice(100, 140), slice(90, 150), (240, 240))
    pooling = Pooling()
    encoder = accelerate(encoder.eval().requires_grad_(False), "bf16", pooling)
    whole = encoder(images[None])
    place = (slice(None), slice(100 // CELL, 140 // CELL), slice(90 // CELL, 150 // CELL))

    def error(margin: int, *, counted: bool = True) -> float:
        window = Window.around(images, margin)
        pooling.rows = window.row_counts if counted else None
        pooling.columns = window.column_counts if counted else None
        part = encoder(window.cut(images)[None]).permute(0, 3, 1, 2)
        back = window.put_back(part, (30, 30), cell=CELL).permute(0, 2, 3, 1)
        return float((back - whole)[place].square().mean() / whole[place].square().mean())

    assert error(MARGIN) < 1e-3
    assert error(MARGIN) < error(1) / 4
    assert error(MARGIN) < error(MARGIN, counted=False) / 4
