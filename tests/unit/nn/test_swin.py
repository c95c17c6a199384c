from __future__ import annotations

import pytest
import torch

from codebrain.nn.swin import JointBlock, PatchExpanding, PatchMerging, QueryBlock, WindowAttention, Windows

GRIDS = [(8, 8), (4, 12), (3, 3), (6, 5), (12, 12)]


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(attention: WindowAttention, inputs: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """The definition, pair by pair: same window of the displaced grid, bias by displacement."""
    _, contrasts, height, width, _ = inputs.shape
    windows = Windows((height, width), attention.window, attention.shifted)
    owner = [
        [(place - shift) // side for place in range(size)]
        for size, side, shift in zip(windows.grid, windows.sides, windows.shift, strict=True)
    ]
    places = [(n, i, j) for n in range(contrasts) for i in range(height) for j in range(width)]
    middle, row = attention.window - 1, 2 * attention.window - 1
    bias = torch.full((attention.heads, len(places), len(places)), float("-inf"))
    for a, (_, i, j) in enumerate(places):
        for b, (_, p, q) in enumerate(places):
            if owner[0][i] == owner[0][p] and owner[1][j] == owner[1][q]:
                bias[:, a, b] = attention.table[(i - p + middle) * row + j - q + middle].detach()
    flat, marked = inputs.flatten(1, 3), (inputs + marks[:, None, None]).flatten(1, 3)
    split = [
        layer(part).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for layer, part in ((attention.query, marked), (attention.key, marked), (attention.value, flat))
    ]
    scores = split[0] @ split[1].transpose(-1, -2) / split[0].shape[-1] ** 0.5 + bias
    return attention.output((scores.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)).view_as(inputs)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shifted", [False, True])
def test_attention_is_its_definition(grid: tuple[int, int], shifted: bool) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(4, 2, window=4, shifted=shifted)
    inputs, marks = tokens(2, 2, *grid, 4), tokens(2, 4, seed=1)
    marked = inputs + marks[:, None, None]
    assert torch.allclose(attention(marked, marked, inputs), reference(attention, inputs, marks), atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_are_joined_as_they_were_cut(grid: tuple[int, int], shifted: bool) -> None:
    windows, inputs = Windows(grid, 4, shifted), tokens(2, 3, *grid, 6)
    sequences = windows.cut(inputs, 2)
    down, across = windows.counts
    assert sequences.shape == (2, down * across * 2, 3 * windows.sides[0] * windows.sides[1], 3)
    assert torch.equal(windows.join(sequences, 2), inputs)


def test_a_window_shrinks_to_its_grid_and_is_not_shifted_then() -> None:
    windows = Windows((3, 12), 8, shifted=True)
    assert windows.sides == (3, 8) and windows.shift == (0, 4) and windows.padding == (0, 4)
    assert windows.counts == (1, 2)


def test_a_shrunken_window_takes_the_middle_of_the_table() -> None:
    device = torch.device("cpu")
    assert Windows((1, 1), 8, shifted=False).offsets(device).tolist() == [[7 * 15 + 7]]
    assert sorted(set(Windows((8, 8), 8, shifted=False).offsets(device).flatten().tolist())) == list(range(225))


def test_nothing_is_kept_apart_without_need() -> None:
    device = torch.device("cpu")
    assert Windows((8, 8), 4, shifted=False).apart(device) is None
    assert Windows((4, 4), 4, shifted=True).apart(device) is None
    apart = Windows((8, 8), 4, shifted=True).apart(device)
    assert apart is not None and apart.shape == (4, 16, 16)
    assert not apart[0].any() and apart[3].any() and not apart.diagonal(dim1=1, dim2=2).any()


@pytest.mark.parametrize("shifted", [False, True])
def test_the_order_of_the_contrasts_has_no_influence(shifted: bool) -> None:
    torch.manual_seed(0)
    block, order = JointBlock(8, 2, window=4, shifted=shifted), [2, 0, 1]
    inputs, marks = tokens(2, 3, 8, 8, 8), tokens(3, 8, seed=1)
    assert torch.allclose(block(inputs[:, order], marks[order]), block(inputs, marks)[:, order], atol=1e-5)


def test_contrasts_attend_to_one_another() -> None:
    torch.manual_seed(0)
    block, inputs, marks = JointBlock(8, 2, window=4, shifted=False), tokens(1, 2, 4, 4, 8), tokens(2, 8, seed=1)
    changed = inputs.clone()
    changed[:, 1] = 0
    assert (block(inputs, marks)[:, 0] - block(changed, marks)[:, 0]).abs().max() > 1e-3


def test_wanted_contrasts_do_not_see_one_another() -> None:
    torch.manual_seed(0)
    block = QueryBlock(8, 2, window=4, shifted=True)
    wanted, marks, given, given_marks = tokens(2, 3, 8, 8, 8), tokens(3, 8), tokens(2, 2, 8, 8, 8), tokens(2, 8)
    together = block(wanted, marks, given, given_marks)
    for number in range(3):
        alone = block(wanted[:, [number]], marks[[number]], given, given_marks)
        assert torch.allclose(alone[:, 0], together[:, number], atol=1e-5)
    backwards = block(wanted, marks, given.flip(1), given_marks.flip(0))
    assert torch.allclose(backwards, together, atol=1e-5)


def test_merging_halves_the_grid_and_expanding_doubles_it() -> None:
    merged = PatchMerging(4)(tokens(1, 2, 6, 4, 4))
    assert merged.shape == (1, 2, 3, 2, 8)
    assert PatchExpanding(8)(merged).shape == (1, 2, 6, 4, 4)
