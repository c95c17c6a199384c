"""NAFNet blocks, encoder and decoder, channels last throughout.

Source: Chen et al., "Simple Baselines for Image Restoration", ECCV 2022, arXiv 2204.04676, figure 4 and
equations 4-6. Tensors are ``(b, h, w, c)``: a 1 x 1 convolution is then a matrix product and the layer norm
runs over the last, contiguous axis. That is several times faster on a CPU than the published
``(b, c, h, w)`` form, and the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from codebrain.nn.naf_training import train_block


class Conv2d(nn.Conv2d):
    """A convolution over ``(b, h, w, c)``: as a permuted view, PyTorch's channels-last format, no copy."""

    def forward(self, input: Float[Tensor, "b h w c"]) -> Float[Tensor, "b _h _w _c"]:  # noqa: A002
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class NafBlock(nn.Module):
    """Depthwise convolution, gates instead of activations, simplified channel attention; two residuals.

    Both residual scales start at zero: a new block is the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.expand1 = nn.Linear(channels, 2 * channels)
        self.depthwise = Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attention = nn.Linear(channels, channels)
        self.project1 = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.expand2 = nn.Linear(channels, 2 * channels)
        self.project2 = nn.Linear(channels, channels)
        self.scale1 = nn.Parameter(torch.zeros(channels))
        self.scale2 = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return train_block(features, tuple(self.parameters_in_order()))
        return self.plain(features)

    def parameters_in_order(self) -> Iterator[Tensor]:
        """As :func:`codebrain.nn.naf_training.train_block` takes them."""
        first = (self.norm1, self.expand1, self.depthwise, self.attention, self.project1)
        for parts, scale in ((first, self.scale1), ((self.norm2, self.expand2, self.project2), self.scale2)):
            for part in parts:
                yield from (part.weight, part.bias)  # type: ignore[misc]
            yield scale

    def plain(self, features: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """The block as published, one operation after the other: what the fast ways are compared with."""
        gated = gate(self.depthwise(self.expand1(self.norm1(features))))
        attended = gated * self.attention(gated.mean((1, 2), keepdim=True))
        features = features + self.project1(attended) * self.scale1
        gated = gate(self.expand2(self.norm2(features)))
        result: Tensor = features + self.project2(gated) * self.scale2
        return result


def gate(features: Float[Tensor, "*b c2"]) -> Float[Tensor, "*b c"]:
    """The first half of the channels times the second."""
    left, right = features.chunk(2, dim=-1)
    return left * right


class SubpixelLinear(nn.Linear):
    """A linear map whose outputs are four pixels: one channel after the other, as depth to space moves them.

    The published order, in which the weights are kept, has a channel's four pixels side by side; features in that
    order would be moved number by number. Weights are put in order instead, which are fewer.
    """

    def ordered(self) -> tuple[Float[Tensor, "o i"], Float[Tensor, "o"]]:
        """Weight and bias, rows in the order (sub-pixel row, sub-pixel column, channel)."""
        weight, bias = (rearrange(part, "(c p) ... -> (p c) ...", p=4) for part in (self.weight, self.bias))
        return weight, bias

    def forward(self, input: Float[Tensor, "b h w i"]) -> Float[Tensor, "b h w o"]:  # noqa: A002
        return functional.linear(input, *self.ordered())


def _shuffle() -> Rearrange:
    return Rearrange("b h w (p q c) -> b (h p) (w q) c", p=2, q=2)


class NafEncoder(nn.Module):
    """Images ``(b, m, h, w)`` to features ``(b, h/8, w/8, 8 * width)``, or to ``outputs`` channels.

    Args:
        contrasts: m.
        width: channels at full resolution; doubled at each of three halvings.
        depth: blocks at the lowest resolution (one at each of the others).
        outputs: channels of a last 1 x 1 convolution; ``None`` for none.
    """

    def __init__(self, contrasts: int, *, width: int, depth: int, outputs: int | None = None) -> None:
        super().__init__()
        stages: list[nn.Module] = [Conv2d(contrasts, width, 3, padding=1), NafBlock(width)]
        for scale in (1, 2, 4):
            stages.append(Conv2d(scale * width, 2 * scale * width, 2, stride=2))
            stages.extend(NafBlock(2 * scale * width) for _ in range(depth if scale == 4 else 1))
        if outputs is not None:
            stages.append(nn.Linear(8 * width, outputs))
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Float[Tensor, "b m h w"]) -> Float[Tensor, "b hc wc c"]:
        features: Tensor = self.stages(rearrange(images, "b m h w -> b h w m").contiguous())
        return features


class NafDecoder(nn.Module):
    """Code ``(b, h/8, w/8, c)`` and common features ``(b, h/8, w/8, 8 * width)`` to images ``(b, m, h, w)``.

    Args:
        contrasts: m.
        code_channels: c; 0 for a decoder of the common features alone, whose code is ``None``.
        width: the common encoder's width.
        depth: blocks at the lowest resolution.
    """

    def __init__(self, contrasts: int, *, code_channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.fuse = nn.Linear(code_channels + 8 * width, 16 * width)
        stages: list[nn.Module] = [NafBlock(16 * width) for _ in range(depth)]
        stages += [SubpixelLinear(16 * width, 16 * width), _shuffle(), NafBlock(4 * width)]
        stages += [SubpixelLinear(4 * width, 8 * width), _shuffle(), NafBlock(2 * width)]
        stages += [SubpixelLinear(2 * width, 4 * width), _shuffle(), NafBlock(width)]
        stages.append(Conv2d(width, contrasts, 3, padding=1))
        self.stages = nn.Sequential(*stages)

    def forward(
        self, code: Float[Tensor, "b hc wc c"] | None, common: Float[Tensor, "b hc wc k"]
    ) -> Float[Tensor, "b m h w"]:
        fused = self.fuse(common if code is None else torch.cat([code.to(common.dtype), common], dim=-1))
        images: Tensor = rearrange(self.stages(fused), "b h w m -> b m h w")
        return images
