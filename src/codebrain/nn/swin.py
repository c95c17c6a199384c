"""Swin attention over a set of contrasts: windows are cut in space, and all contrasts of a window attend jointly.

Tensors are ``(b, n, h, w, d)``, n contrasts on one grid. Queries and keys may come from different sets.

Source: Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030 (windows, shift, position bias, merging);
Cao et al., "Swin-Unet", arXiv 2105.05537 (expanding); Liu et al., "One Model to Synthesize Them All" (MMT),
IEEE TMI 42(9), 2023, arXiv 2204.13738 (one window of all contrasts, contrast embeddings, cross-attention).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Windows:
    """How a grid is cut into windows.

    A window is never larger than the grid, and then not shifted. A grid that is no multiple of the window is
    padded below and to the right with tokens that no real token attends to.

    Attributes:
        grid: tokens down and across.
        window: edge in tokens where the grid is large enough.
        shifted: displace the windows by half their edge.
    """

    grid: tuple[int, int]
    window: int
    shifted: bool

    @property
    def sides(self) -> tuple[int, int]:
        """The edges of a window, down and across."""
        return min(self.window, self.grid[0]), min(self.window, self.grid[1])

    @property
    def shift(self) -> tuple[int, int]:
        """By how many tokens the windows are displaced, down and across."""
        down, across = (
            side // 2 if self.shifted and size > side else 0 for size, side in zip(self.grid, self.sides, strict=True)
        )
        return down, across

    @property
    def padding(self) -> tuple[int, int]:
        """Tokens added below and to the right."""
        return -self.grid[0] % self.sides[0], -self.grid[1] % self.sides[1]

    @property
    def counts(self) -> tuple[int, int]:
        """Windows down and across."""
        down, across = (
            (size + more) // side for size, more, side in zip(self.grid, self.padding, self.sides, strict=True)
        )
        return down, across

    def cut(self, tokens: Float[Tensor, "b n h w d"], heads: int) -> Float[Tensor, "b gk l c"]:
        """Every head of every window as a sequence of all its tokens, contrast by contrast."""
        below, right = self.padding
        tokens = F.pad(tokens, (0, 0, 0, right, 0, below)) if below or right else tokens
        tokens = tokens.roll((-self.shift[0], -self.shift[1]), (2, 3)) if any(self.shift) else tokens
        p, q = self.sides
        return rearrange(tokens, "b n (y p) (x q) (k c) -> b (y x k) (n p q) c", p=p, q=q, k=heads)

    def join(self, sequences: Float[Tensor, "b gk l c"], heads: int) -> Float[Tensor, "b n h w d"]:
        """Undo :meth:`cut`."""
        (p, q), (y, x) = self.sides, self.counts
        pattern = "b (y x k) (n p q) c -> b n (y p) (x q) (k c)"
        tokens = rearrange(sequences, pattern, p=p, q=q, y=y, x=x, k=heads)
        tokens = tokens.roll(self.shift, (2, 3)) if any(self.shift) else tokens
        return tokens[:, :, : self.grid[0], : self.grid[1]]

    def offsets(self, device: torch.device) -> Int[Tensor, "l l"]:
        """For each pair of places of a window, the row of a bias table of ``(2 window - 1)^2`` displacements.

        A window that shrank to its grid uses the middle of the table.
        """
        ranges = [torch.arange(side, device=device) for side in self.sides]
        places = torch.cartesian_prod(*ranges)
        down, across = (places[:, None] - places[None] + self.window - 1).unbind(-1)
        return down * (2 * self.window - 1) + across

    def apart(self, device: torch.device) -> Bool[Tensor, "g l l"] | None:
        """Which places of each window may not attend to one another; None when all may.

        They are those that only the cyclic shift brought together, and padding beside real tokens.
        """
        if not any(self.shift) and not any(self.padding):
            return None
        rows, columns = (self._regions(axis, device) for axis in (0, 1))
        p, q = self.sides
        regions = rearrange(3 * rows[:, None] + columns, "(y p) (x q) -> (y x) (p q)", p=p, q=q)
        return regions[:, :, None] != regions[:, None, :]

    def _regions(self, axis: int, device: torch.device) -> Int[Tensor, "s"]:
        # Along one axis, after the shift: 0 in order, 1 wrapped around, 2 padding.
        size, shift = self.grid[axis], self.shift[axis]
        total = size + self.padding[axis]
        place = torch.arange(total, device=device)
        wrapped = (place >= total - shift).long()
        return torch.where((place + shift) % total >= size, 2, wrapped)


class WindowAttention(nn.Module):
    """Attention of one set of contrasts to another, within windows.

    One relative-position bias per pair of places and head, the same for all pairs of contrasts; so the order
    of the contrasts has no influence.

    Args:
        width: channels of a token.
        heads: of attention.
        window: edge in tokens.
        shifted: displace the windows by half their edge.
    """

    def __init__(self, width: int, heads: int, *, window: int, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(
        self,
        queries: Float[Tensor, "b t h w d"],
        keys: Float[Tensor, "b n h w d"],
        values: Float[Tensor, "b n h w d"],
    ) -> Float[Tensor, "b t h w d"]:
        windows = Windows((queries.shape[2], queries.shape[3]), self.window, self.shifted)
        query = windows.cut(self.query(queries), self.heads)
        key, value = windows.cut(self.key(keys), self.heads), windows.cut(self.value(values), self.heads)
        bias = self._bias(windows, queries.shape[1], keys.shape[1])
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        result: Tensor = self.output(windows.join(attended, self.heads))
        return result

    def _bias(self, windows: Windows, asking: int, asked: int) -> Float[Tensor, "1 gk lq lk"]:
        bias = rearrange(self.table[windows.offsets(self.table.device)], "i j k -> 1 k i j")
        apart = windows.apart(self.table.device)
        if apart is not None:
            bias = bias.masked_fill(apart[:, None], float("-inf"))
        down, across = windows.counts
        bias = bias.expand(down * across, -1, -1, -1).repeat(1, 1, asking, asked)
        return rearrange(bias, "g k i j -> 1 (g k) i j")


class JointBlock(nn.Module):
    """All contrasts of a window attend to one another; then each token by itself. Norms come first.

    Args:
        width: channels of a token.
        heads: of attention.
        window: edge in tokens.
        shifted: displace the windows.
    """

    def __init__(self, width: int, heads: int, *, window: int, shifted: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window=window, shifted=shifted)
        self.feed_forward = _feed_forward(width)

    def forward(self, tokens: Float[Tensor, "b n h w d"], marks: Float[Tensor, "n d"]) -> Float[Tensor, "b n h w d"]:
        """``marks`` say which contrast is which; they enter queries and keys, not values."""
        normed = self.norm1(tokens)
        marked = normed + marks[:, None, None]
        tokens = tokens + self.attention(marked, marked, normed)
        result: Tensor = tokens + self.feed_forward(self.norm2(tokens))
        return result


class QueryBlock(nn.Module):
    """Wanted contrasts, each by itself, attend to themselves and then to all given ones.

    Args:
        width: channels of a token.
        heads: of attention.
        window: edge in tokens.
        shifted: displace the windows.
    """

    def __init__(self, width: int, heads: int, *, window: int, shifted: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention = WindowAttention(width, heads, window=window, shifted=shifted)
        self.cross_attention = WindowAttention(width, heads, window=window, shifted=shifted)
        self.feed_forward = _feed_forward(width)

    def forward(
        self,
        tokens: Float[Tensor, "b t h w d"],
        marks: Float[Tensor, "t d"],
        given: Float[Tensor, "b n h w d"],
        given_marks: Float[Tensor, "n d"],
    ) -> Float[Tensor, "b t h w d"]:
        """``marks`` say which contrast is wanted, ``given_marks`` which is given."""
        normed = self.norm1(tokens)
        marked, plain = (_alone(part) for part in (normed + marks[:, None, None], normed))
        tokens = tokens + self.attention(marked, marked, plain).reshape(tokens.shape)
        # Queries do not see one another here, so that all wanted contrasts may ask at once.
        queries = self.norm2(tokens) + marks[:, None, None]
        tokens = tokens + self.cross_attention(queries, given + given_marks[:, None, None], given)
        result: Tensor = tokens + self.feed_forward(self.norm3(tokens))
        return result


class PatchMerging(nn.Module):
    """Two by two tokens become one of twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, tokens: Float[Tensor, "b n h w d"]) -> Float[Tensor, "b n _h _w _d"]:
        merged: Tensor = self.reduce(self.norm(rearrange(tokens, "b n (h p) (w q) d -> b n h w (p q d)", p=2, q=2)))
        return merged


class PatchExpanding(nn.Module):
    """One token becomes two by two of half the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(width // 2)

    def forward(self, tokens: Float[Tensor, "b n h w d"]) -> Float[Tensor, "b n _h _w _d"]:
        wide = rearrange(self.expand(tokens), "b n h w (p q d) -> b n (h p) (w q) d", p=2, q=2)
        expanded: Tensor = self.norm(wide)
        return expanded


def start_linear(module: nn.Module) -> None:
    """Swin's initial weights of linear layers: a truncated normal of deviation 0.02, no bias. For ``apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def _alone(tokens: Float[Tensor, "b t h w d"]) -> Float[Tensor, "bt 1 h w d"]:
    # Contrasts as samples: none sees another.
    return rearrange(tokens, "b t h w d -> (b t) 1 h w d")
