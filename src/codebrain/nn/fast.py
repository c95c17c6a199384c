"""NAFNet networks for inference on a CPU: the same weights in bfloat16 or 8-bit integers, blocks with fewer passes.

:func:`accelerate` gives a module whose blocks are replaced; everything else is shared with the original. What makes
it fast:

* Weights of the layer norm and the residual scales are multiplied into the matrices beside them.
* Matrices are packed once for the processor's matrix instructions (oneDNN), the residual is added by the product
  itself, and the stride-2 convolutions become matrix products.
* ``int8``: rows of a matrix are quantised once each to 8 bits, what goes in anew at every product, by its largest
  magnitude. Accumulation is in 32-bit integers, biases and the residual stream stay in float32.
* ``bf16``: factors in bfloat16, accumulation and the residual stream in float32.
* A slice can be computed without most of its empty rows and columns, see :mod:`codebrain.nn.window`.

Sources: NAFNet as in :mod:`codebrain.nn.naf`; Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 2 (the integer products).
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from codebrain.nn.naf import Conv2d, NafBlock, NafDecoder, NafEncoder, SubpixelLinear, gate

Reduced = Literal["bf16", "int8"]
_Network = TypeVar("_Network", bound=nn.Module)

SMALLEST = 192
"""Channels below which nothing is quantised, because moving the pixels costs more there than multiplying them, and
the residual stream is bfloat16: those levels have one block each, so that its roundings do not add up."""


NARROW = 80
"""Channels up to which a layer norm's means are products: torch's own takes twice as long for such short rows."""


class Pooling(threading.local):
    """How the blocks of one network average over a slice; shared by all of them, set before each pass, per thread.

    Attributes:
        rows, columns: how often each cell of eight rows and of eight columns counts; ``None`` counts all once.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None

    def mean(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b c"]:
        """Over rows and columns, in float32."""
        batch, height, width, channels = features.shape
        rows, columns = _spread(self.rows, height), _spread(self.columns, width)
        # Sums along rows by a matrix product, which is several times faster than a reduction of bfloat16.
        across = columns.to(features.dtype).expand(batch * height, 1, -1)
        sums = torch.bmm(across, features.flatten(0, 1)).view(batch, height, channels).float()
        total: Tensor = torch.einsum("h,bhc->bc", rows, sums) / (rows.sum() * columns.sum())
        return total


def _spread(counts: Tensor | None, length: int) -> Float[Tensor, "length"]:
    return torch.ones(length) if counts is None else counts.repeat_interleave(length // len(counts))


# --- products ---


class FastLinear(nn.Module):
    """``x @ weight.T + bias`` with packed weights; takes and gives ``(n, c)``."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, "o"]) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), None)
        self.bias = bias.bfloat16()

    def forward(self, pixels: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """In bfloat16."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(pixels.bfloat16(), self.weight, self.bias, "none", [], "")
        return product

    def add(self, pixels: Float[Tensor, "n i"], stream: Float[Tensor, "n o"]) -> Float[Tensor, "n o"]:
        """The product added to the stream, in place."""
        return stream.add_(self(pixels))


class QuantisedLinear(nn.Module):
    """:class:`FastLinear` in 8-bit integers: weights per row, inputs by their largest magnitude."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, "o"]) -> None:
        super().__init__()
        self.scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        whole = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self.zero_point = torch.zeros(len(weight), dtype=torch.long)
        self.bias = bias.float()

    def forward(self, pixels: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """In bfloat16."""
        whole, step, zero = quantised(pixels)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, step, zero, self.weight, self.scale, self.zero_point, self.bias, 1.0, 0, torch.bfloat16,
            "none", [], "",
        )  # fmt: skip
        return product

    def add(self, pixels: Float[Tensor, "n i"], stream: Float[Tensor, "n o"]) -> Float[Tensor, "n o"]:
        """The product added to the stream, in place."""
        whole, step, zero = quantised(pixels)
        torch.ops.onednn.qlinear_pointwise.binary(
            whole, step, zero, self.weight, self.scale, self.zero_point, stream, self.bias, 1.0, 0, torch.float32,
            1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip
        return stream


def quantised(pixels: Float[Tensor, "n c"]) -> tuple[UInt8[Tensor, "n c"], float, int]:
    """Rounded to 256 steps from the least to the largest value and zero; what a step is worth; where zero lies."""
    low, high = (float(value) for value in pixels.aminmax())
    step = max(max(high, 0.0) - min(low, 0.0), 1e-30) / 255
    zero = round(-min(low, 0.0) / step)
    # Signed bytes whose highest bit is flipped: the conversion to unsigned ones is several times slower.
    whole = torch.add(torch.tensor(zero - 128.0), pixels.float(), alpha=1 / step).round_().to(torch.int8)
    return whole.view(torch.uint8).bitwise_xor_(128), step, zero


def _stream(product: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
    """As residual stream."""
    return product.float() if product.shape[-1] >= SMALLEST else product


def _product(weight: Tensor, bias: Tensor | None, precision: Reduced) -> FastLinear | QuantisedLinear:
    flat = weight.detach().float().contiguous()
    shift = flat.new_zeros(len(flat)) if bias is None else bias.detach().float()
    kind = QuantisedLinear if precision == "int8" and min(flat.shape) >= SMALLEST else FastLinear
    return kind(flat, shift)


# --- layers ---


class FastNafBlock(nn.Module):
    """:class:`codebrain.nn.naf.NafBlock` over ``(b, h, w, c)``; uses up its input."""

    def __init__(self, block: NafBlock, precision: Reduced, pooling: Pooling) -> None:
        super().__init__()
        self.pooling, self.channels, self.eps = pooling, block.norm1.normalized_shape[0], block.norm1.eps
        self.average = torch.full((self.channels, 1), 1 / self.channels)
        self.expand1 = _product(*_after(block.norm1, block.expand1), precision)
        self.expand2 = _product(*_after(block.norm2, block.expand2), precision)
        self.project1 = _product(*_scaled(block.project1, block.scale1), precision)
        self.project2 = _product(*_scaled(block.project2, block.scale2), precision)
        self.attention = block.attention
        self.taps = block.depthwise.weight.detach().to(torch.bfloat16, memory_format=torch.channels_last)
        self.shift = None if block.depthwise.bias is None else block.depthwise.bias.detach().bfloat16()

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        b, h, w, c = features.shape
        stream = _stream(features).reshape(-1, c)
        wide = self.expand1(self._normed(stream)).view(b, h, w, 2 * c)
        filtered = F.conv2d(wide.permute(0, 3, 1, 2), self.taps, self.shift, padding=1, groups=2 * c)
        gated = gate(filtered.permute(0, 2, 3, 1))
        attention = self.attention(self.pooling.mean(gated)).to(gated.dtype)
        stream = self.project1.add((gated * attention[:, None, None]).view(-1, c), stream)
        stream = self.project2.add(gate(self.expand2(self._normed(stream))), stream)
        return stream.view(b, h, w, c)

    def _normed(self, stream: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        if self.channels > NARROW:
            return F.layer_norm(stream, (self.channels,), eps=self.eps)
        pixels = stream.float()
        centred = pixels - pixels @ self.average
        variance = centred.square() @ self.average
        return centred.mul_(variance.add_(self.eps).rsqrt_())


def _after(norm: nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of ``linear(norm(x))`` on what is only centred and divided by its deviation."""
    return linear.weight * norm.weight, linear.bias + linear.weight @ norm.bias


def _scaled(linear: nn.Linear, scale: Tensor) -> tuple[Tensor, Tensor]:
    return linear.weight * scale[:, None], linear.bias * scale


class FastConv(nn.Module):
    """A convolution in bfloat16 over ``(b, h, w, c)``."""

    def __init__(self, conv: Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight.detach().to(torch.bfloat16, memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else conv.bias.detach().bfloat16()
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b _h _w _c"]:
        moved = features.bfloat16().permute(0, 3, 1, 2)
        result = F.conv2d(moved, self.weight, self.bias, stride=self.stride, padding=self.padding)
        return _stream(result.permute(0, 2, 3, 1))


class FastHalving(nn.Module):
    """A 2 x 2 convolution of stride 2 as one matrix product."""

    def __init__(self, conv: Conv2d, precision: Reduced) -> None:
        super().__init__()
        self.product = _product(rearrange(conv.weight, "o i p q -> o (p q i)"), conv.bias, precision)

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b hh wh o"]:
        blocks = rearrange(features, "b (h p) (w q) c -> (b h w) (p q c)", p=2, q=2)
        batch, height, width, _ = features.shape
        product: Tensor = self.product(blocks)
        return _stream(product).view(batch, height // 2, width // 2, -1)


class FastPointwise(nn.Module):
    """A linear map of every pixel of ``(b, h, w, c)``; gives bfloat16."""

    def __init__(self, linear: nn.Linear, precision: Reduced) -> None:
        super().__init__()
        parts = linear.ordered() if isinstance(linear, SubpixelLinear) else (linear.weight, linear.bias)
        self.product = _product(*parts, precision)

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w o"]:
        product: Tensor = self.product(features.reshape(-1, features.shape[-1]))
        return product.view(*features.shape[:-1], -1)


class ExactPointwise(nn.Module):
    """A linear map of every pixel in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w o"]:
        result: Tensor = self.linear(features.float())
        return result


# --- networks ---


def accelerate(network: _Network, precision: Reduced, pooling: Pooling | None = None) -> _Network:
    """The network with fast layers in place of those of :mod:`codebrain.nn.naf`; the original stays as it is.

    The code that the decoder reads beside the features, and the grades, are not quantised: the one is small beside
    the other in one matrix, and a grade decides. What is not of :mod:`codebrain.nn.naf` is shared, not copied.
    """
    pooling = pooling or Pooling()
    layer = _Layers(precision, pooling)
    if isinstance(network, NafEncoder):
        stages = list(network.stages)
        last = stages[-1]
        head = [ExactPointwise(last)] if isinstance(last, nn.Linear) else []
        if head:  # its answer is rounded to a code, where a small difference becomes a step
            return _with(network, stages=nn.Sequential(*map(_Layers("bf16", pooling), stages[:-1]), *head))
        return _with(network, stages=nn.Sequential(*map(layer, stages)))
    if isinstance(network, NafDecoder):
        fuse = FastPointwise(network.fuse, "bf16")
        return _with(network, fuse=fuse, stages=nn.Sequential(*map(layer, network.stages)))
    parts = {name: accelerate(part, precision, pooling) for name, part in network.named_children()}
    return _with(network, **parts)


def _with(network: _Network, **parts: nn.Module) -> _Network:
    """A shallow copy with other children."""
    clone = copy.copy(network)
    clone._modules = {**network._modules, **parts}
    return clone


@dataclass(frozen=True)
class _Layers:
    precision: Reduced
    pooling: Pooling

    def __call__(self, layer: nn.Module) -> nn.Module:
        """The fast layer that does the same."""
        if isinstance(layer, NafBlock):
            return FastNafBlock(layer, self.precision, self.pooling)
        if isinstance(layer, Conv2d):
            return FastConv(layer) if layer.stride == (1, 1) else FastHalving(layer, self.precision)
        return FastPointwise(layer, self.precision) if isinstance(layer, nn.Linear) else layer
