"""A NAF block under autograd as two functions: what training needs of :class:`codebrain.nn.naf.NafBlock`.

Written out op by op, autograd passes over the features some forty times per block beside the matrix products, and
under bfloat16 autocast most of these passes mix float32 with bfloat16, which PyTorch does without vector
instructions. Here everything between two products is of one type; the residual scales, which are per channel, are
multiplied into the weights before them instead of into the features; gates and norms are computed again in the backward
pass instead of being kept. What a gate multiplies are two tensors and not two halves of one: all passes between two
products then run over memory as it lies, which is two to four times faster on a CPU. The arithmetic is the block's,
the order of roundings is not; ``tests/unit/nn/test_naf_training.py`` compares it with the plain block.

Source: Chen et al., "Simple Baselines for Image Restoration", ECCV 2022, arXiv 2204.04676, equations 4-6.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from codebrain.machine import short_floats

_EPS = 1e-6
_PARTS = 8
"""Rows are summed in as many parts, whose sums are added in the parameters' type: no copy of all rows in that type,
and a smaller error than one sum in the rows' type."""
_MANY = 4
"""Times as many rows as outputs, from which on one CPU routine is faster than another: weights are worth packing, and
the backward pass of a convolution makes all three gradients of a product in less time than two products and a sum."""

Pair = tuple[Tensor, Tensor]
"""Left and right factor of a gate, each ``(rows, c)``, or the weights that make them."""


def train_block(features: Float[Tensor, "b h w c"], parameters: tuple[Tensor, ...]) -> Float[Tensor, "b h w c"]:
    """The block with a backward pass of its own, in the type autocast asks for (its own type without autocast).

    Args:
        features: the residual stream.
        parameters: weight and bias of norm1, expand1, depthwise, attention, project1, then scale1; weight and bias
            of norm2, expand2, project2, then scale2.

    Returns:
        The residual stream after the block, in the type the block was computed in.
    """
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    with torch.autocast(device, enabled=False):
        middle = _Mixing.apply(features.to(dtype).contiguous(), *parameters[:11])  # type: ignore[no-untyped-call]
        result: Tensor = _Feeding.apply(middle, *parameters[11:])  # type: ignore[no-untyped-call]
    return result


class _Mixing(torch.autograd.Function):
    """The first half of the block: depthwise convolution, gate, channel attention."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, *parameters: Tensor) -> Tensor:
        norm, shift, expand, bias, kernel, offset, attend, level, project, end, scale = parameters
        b, h, w, c = features.shape
        dtype, rows = features.dtype, features.view(-1, c)
        unit, mean, rate = _normalised(rows, norm, shift)
        inner, outer = expand.to(dtype), (project * scale[:, None]).to(dtype)
        wide = _expanded(unit, inner, bias)
        mixed = [
            _depthwise(part, taps.to(dtype), start.to(dtype), features.shape)
            for part, taps, start in zip(wide, kernel.chunk(2), offset.chunk(2), strict=True)
        ]
        gated = (mixed[0] * mixed[1]).view(b, -1, c)
        pooled = _sums(gated, level.dtype) / (h * w)
        attention = functional.linear(pooled, attend, level)
        attended = (gated * attention.to(dtype)[:, None]).view(-1, c)
        result = _product(attended, outer, (end * scale).to(dtype), rows)
        ctx.save_for_backward(rows, mean, rate, *wide, *mixed, pooled, attention, inner, outer, *parameters)
        ctx.shape = features.shape
        return result.view(features.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        rows, mean, rate, wide1, wide2, left, right, pooled, attention, inner, outer, *parameters = ctx.saved_tensors
        norm, shift, _, _, kernel, _, attend, _, project, end, scale = parameters
        b, h, w, c = ctx.shape
        grad = gradient.contiguous().view(-1, c)
        # attention: the gated features times one number per sample and channel, itself of their mean
        gated, factor = (left * right).view(b, -1, c), attention.to(grad.dtype)[:, None]
        grad_attended, *last = _scaled_back(grad, (gated * factor).view(-1, c), outer, (project, end, scale))
        grad_attended = grad_attended.view(b, -1, c)
        grad_attention = _sums(gated.mul_(grad_attended), attention.dtype)
        grad_pooled = (grad_attention @ attend).div_(h * w).to(grad.dtype)[:, None]
        grad_gated = torch.addcmul(grad_pooled, grad_attended, factor).view(-1, c)
        attended = [grad_attention.T @ pooled, grad_attention.sum(0)]
        halves = [
            _depthwise_back(grad_gated * other, part, taps, (b, h, w, c))
            for other, part, taps in zip((right, left), (wide1, wide2), kernel.chunk(2), strict=True)
        ]
        grad_wide, *depth = zip(*halves, strict=True)
        back, *opening = _expanded_back(tuple(grad_wide), inner, rows, (mean, rate), (norm, shift))
        return back.add_(grad).view(ctx.shape), *opening, *(torch.cat(part) for part in depth), *attended, *last


class _Feeding(torch.autograd.Function):
    """The second half: the gate alone."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, *parameters: Tensor) -> Tensor:
        norm, shift, expand, bias, project, end, scale = parameters
        dtype, rows = features.dtype, features.view(-1, features.shape[-1])
        unit, mean, rate = _normalised(rows, norm, shift)
        inner, outer = expand.to(dtype), (project * scale[:, None]).to(dtype)
        left, right = _expanded(unit, inner, bias)
        result = _product(left * right, outer, (end * scale).to(dtype), rows)
        ctx.save_for_backward(rows, mean, rate, left, right, inner, outer, norm, shift, project, end, scale)
        return result.view(features.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        rows, mean, rate, left, right, inner, outer, norm, shift, *last = ctx.saved_tensors
        grad = gradient.contiguous().view(rows.shape)
        grad_gated, *closing = _scaled_back(grad, left * right, outer, tuple(last))
        halves = grad_gated * right, grad_gated * left
        back, *opening = _expanded_back(halves, inner, rows, (mean, rate), (norm, shift))
        return back.add_(grad).view(gradient.shape), *opening, *closing


def _product(rows: Tensor, weight: Tensor, bias: Tensor, stream: Tensor | None = None) -> Tensor:
    """``rows @ weight.T + bias``, and the stream added; a CPU that can adds both without passes of their own."""
    if not _shortened(rows):
        plain = functional.linear(rows, weight, bias)
        return plain if stream is None else plain.add_(stream)
    if _many(rows, weight):
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    product: Tensor = (
        torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        if stream is None
        else torch.ops.mkldnn._linear_pointwise.binary(rows, stream, weight, bias, "add")
    )
    return product


def _product_back(grad: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, weight and bias of :func:`_product`; the latter in whatever type they were made in."""
    if not _shortened(rows) or not _many(rows, weight):
        return grad @ weight, grad.T @ rows, _sums(grad[None], torch.promote_types(grad.dtype, torch.float32))[0]
    planes, features = (part.view(1, 1, *part.shape).permute(0, 3, 1, 2) for part in (grad, rows))
    back, whole, total = torch.ops.aten.convolution_backward(
        planes, features, weight[:, :, None, None], [len(weight)],
        [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True],
    )  # fmt: skip
    return back.permute(0, 2, 3, 1).view(rows.shape), whole.view(weight.shape), total


def _shortened(rows: Tensor) -> bool:
    return rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and short_floats()


def _many(rows: Tensor, weight: Tensor) -> bool:
    return len(rows) > _MANY * len(weight)


def _expanded(unit: Tensor, inner: Tensor, bias: Tensor) -> Pair:
    weights, biases = inner.chunk(2), bias.to(inner.dtype).chunk(2)
    return _product(unit, weights[0], biases[0]), _product(unit, weights[1], biases[1])


def _expanded_back(
    grads: Pair, inner: Tensor, rows: Tensor, statistics: Pair, affine: Pair
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of norm and product.

    Args:
        grads: of the product's left and right half.
        inner: its weight, in the type of ``grads``.
        rows: what was normalised.
        statistics: their mean and one over their deviation.
        affine: the norm's scale and shift.

    Returns:
        Gradients of the rows, of the norm's scale and shift, of the product's weight and bias.
    """
    norm, shift = affine
    unit = _normalised(rows, torch.ones_like(norm), torch.zeros_like(shift))[0]
    weight, bias = torch.empty_like(inner, dtype=norm.dtype), torch.empty_like(inner[:, 0], dtype=norm.dtype)
    halves = []
    for place, end, grad, half in zip(weight.chunk(2), bias.chunk(2), grads, inner.chunk(2), strict=True):
        back, whole, total = _product_back(grad, unit, half)
        place.copy_(whole), end.copy_(total)
        halves.append(back)
    passed = halves[0].add_(halves[1])
    result: Tensor = torch.ops.aten.native_layer_norm_backward(
        passed, rows, rows.shape[-1:], *statistics, *_affine(rows, norm, shift), [True, False, False]
    )[0]
    # Not the norm's own sums: on a CPU they add up in bfloat16, and are wrong by a third for 131,072 rows.
    grad_norm, grad_shift = (_sums(part[None], norm.dtype)[0] for part in (unit.mul_(passed), passed))
    return result, grad_norm, grad_shift, weight.mul_(norm).addr_(bias, shift), bias


def _scaled_back(grad: Tensor, rows: Tensor, outer: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of a product whose outputs are scaled: gradients of its rows and of weight, bias, scale."""
    weight, bias, scale = parameters
    back, *made = _product_back(grad, rows, outer)
    whole, total = (part.to(weight.dtype) for part in made)
    grad_scale = (whole * weight).sum(1) + total * bias
    return back, whole.mul_(scale[:, None]), total * scale, grad_scale


def _sums(rows: Float[Tensor, "b r c"], dtype: torch.dtype) -> Float[Tensor, "b c"]:
    parts = math.gcd(rows.shape[1], _PARTS)
    b, r, c = rows.shape
    return rows.reshape(b, parts, r // parts, c).sum(2).to(dtype).sum(1)


def _affine(rows: Tensor, norm: Tensor, shift: Tensor) -> Pair:
    # A CPU takes float32 weights beside bfloat16 rows, and then keeps float32 statistics; a GPU always does.
    return (norm.to(rows.dtype), shift.to(rows.dtype)) if rows.is_cuda else (norm, shift)


def _normalised(rows: Tensor, norm: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    affine = _affine(rows, norm, shift)
    result: tuple[Tensor, Tensor, Tensor] = torch.native_layer_norm(rows, rows.shape[-1:], *affine, _EPS)
    return result


def _depthwise(rows: Tensor, kernel: Tensor, offset: Tensor, shape: tuple[int, ...]) -> Tensor:
    planes = functional.conv2d(rows.view(shape).permute(0, 3, 1, 2), kernel, offset, padding=1, groups=len(kernel))
    return planes.permute(0, 2, 3, 1).reshape(rows.shape)


def _depthwise_back(grad: Tensor, rows: Tensor, kernel: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    grad, rows = (part.view(shape).permute(0, 3, 1, 2) for part in (grad, rows))
    planes, weights, bias = torch.ops.aten.convolution_backward(
        grad, rows, kernel.to(grad.dtype), [len(kernel)],
        [1, 1], [1, 1], [1, 1], False, [0, 0], len(kernel), [True, True, True],
    )  # fmt: skip
    return planes.permute(0, 2, 3, 1).reshape(-1, len(kernel)), weights.to(kernel.dtype), bias.to(kernel.dtype)
