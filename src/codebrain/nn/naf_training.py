"""A NAF block under autograd as one function: what training needs of :class:`codebrain.nn.naf.NafBlock`.

Written out op by op, autograd passes over the features some forty times per block beside the matrix products, and
under bfloat16 autocast most of these passes mix float32 with bfloat16, which PyTorch does without vector
instructions. Here everything between two products is of one type; the affine part of a layer norm and the residual
scales, which are per channel, are multiplied into the weights of the neighbouring products instead of into the
features; gates and norms are computed again in the backward pass instead of being kept. The arithmetic is the
block's, the order of roundings is not; ``tests/unit/nn/test_naf_training.py`` compares it with the plain block.

Source: Chen et al., "Simple Baselines for Image Restoration", ECCV 2022, arXiv 2204.04676, equations 4-6.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_EPS = 1e-6


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
        result: Tensor = _Block.apply(features.to(dtype).contiguous(), *parameters)  # type: ignore[no-untyped-call]
    return result


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, *parameters: Tensor) -> Tensor:
        (norm1, shift1, expand1, bias1, kernel, offset, attend, level, project1, end1, scale1) = parameters[:11]
        (norm2, shift2, expand2, bias2, project2, end2, scale2) = parameters[11:]
        b, h, w, c = features.shape
        dtype, rows = features.dtype, features.view(-1, c)
        unit1, mean1, rate1 = _normalised(rows)
        inner1 = (expand1 * norm1).to(dtype)
        wide = functional.linear(unit1, inner1, torch.addmv(bias1, expand1, shift1).to(dtype))
        mixed = _depthwise(wide.view(b, h, w, -1), kernel.to(dtype), offset.to(dtype))
        gated = _gated(mixed.view(-1, 2 * c))
        pooled = gated.view(b, -1, c).mean(1).to(level.dtype)
        attention = functional.linear(pooled, attend, level)
        attended = gated.view(b, -1, c) * attention.to(dtype)[:, None]
        outer1 = (project1 * scale1[:, None]).to(dtype)
        middle = functional.linear(attended.view(-1, c), outer1, (end1 * scale1).to(dtype)).add_(rows)
        unit2, mean2, rate2 = _normalised(middle)
        inner2, outer2 = (expand2 * norm2).to(dtype), (project2 * scale2[:, None]).to(dtype)
        wide2 = functional.linear(unit2, inner2, torch.addmv(bias2, expand2, shift2).to(dtype))
        result = functional.linear(_gated(wide2), outer2, (end2 * scale2).to(dtype)).add_(middle)
        ctx.save_for_backward(
            rows, mean1, rate1, wide, mixed, pooled, attention, middle, mean2, rate2, wide2,
            inner1, outer1, inner2, outer2, *parameters,
        )  # fmt: skip
        ctx.shape = features.shape
        return result.view(features.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        rows, mean1, rate1, wide, mixed, pooled, attention, middle, mean2, rate2, wide2 = ctx.saved_tensors[:11]
        (inner1, outer1, inner2, outer2), parameters = ctx.saved_tensors[11:15], ctx.saved_tensors[15:]
        (norm1, shift1, expand1, _, kernel, _, attend, _, project1, end1, scale1) = parameters[:11]
        (norm2, shift2, expand2, _, project2, end2, scale2) = parameters[11:]
        b, h, w, c = ctx.shape
        grad = gradient.contiguous().view(-1, c)
        grad_gated, *last = _scaled_back(grad, _gated(wide2), outer2, (project2, end2, scale2))
        grad_wide = _gate_back(grad_gated, wide2)
        grad_unit, *second = _behind_norm_back(grad_wide, _normalised(middle)[0], inner2, (expand2, norm2, shift2))
        grad = _normalised_back(grad_unit, middle, mean2, rate2).add_(grad)
        # attention: the gated features times one number per sample and channel, itself of their mean
        gated, factor = _gated(mixed.view(-1, 2 * c)).view(b, -1, c), attention.to(grad.dtype)[:, None]
        grad_attended, *first = _scaled_back(grad, (gated * factor).view(-1, c), outer1, (project1, end1, scale1))
        grad_attended = grad_attended.view(b, -1, c)
        grad_attention = (grad_attended * gated).sum(1).to(attention.dtype)
        grad_pooled = (grad_attention @ attend).div_(h * w).to(grad.dtype)[:, None]
        grad_mixed = _gate_back(torch.addcmul(grad_pooled, grad_attended, factor).view(-1, c), mixed.view(-1, 2 * c))
        attended = [grad_attention.T @ pooled, grad_attention.sum(0)]
        grad_wide, *depth = _depthwise_back(grad_mixed.view(b, h, w, -1), wide.view(b, h, w, -1), kernel)
        first_norm = (expand1, norm1, shift1)
        grad_unit, *opening = _behind_norm_back(grad_wide.view(-1, 2 * c), _normalised(rows)[0], inner1, first_norm)
        grad = _normalised_back(grad_unit, rows, mean1, rate1).add_(grad)
        return grad.view(ctx.shape), *opening, *depth, *attended, *first, *second, *last


def _behind_norm_back(
    grad: Tensor, unit: Tensor, inner: Tensor, parameters: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """Of a product that also does the affine part of the norm before it.

    Args:
        grad: of its result.
        unit: the rows as normalised.
        inner: its weight times the norm's scale, in the type of ``grad``.
        parameters: its weight, the norm's scale and shift.

    Returns:
        Gradients of the unit rows and of scale, shift, weight, bias.
    """
    weight, scale, shift = parameters
    grad_weight, grad_bias = (grad.T @ unit).to(weight.dtype), _column_sums(grad, weight.dtype)
    grad_scale = (grad_weight * weight).sum(0)
    grad_weight = grad_weight.mul_(scale).addr_(grad_bias, shift)
    return grad @ inner, grad_scale, grad_bias @ weight, grad_weight, grad_bias


def _scaled_back(
    grad: Tensor, rows: Tensor, outer: Tensor, parameters: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """Of a product whose outputs are scaled: gradients of its rows and of weight, bias, scale."""
    weight, bias, scale = parameters
    whole, total = (grad.T @ rows).to(weight.dtype), _column_sums(grad, weight.dtype)
    grad_scale = (whole * weight).sum(1) + total * bias
    return grad @ outer, whole.mul_(scale[:, None]), total * scale, grad_scale


def _column_sums(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.sum(0).to(dtype)  # sum(0, dtype) copies all rows first


def _gated(wide: Tensor) -> Tensor:
    left, right = wide.chunk(2, dim=-1)
    return left * right


def _gate_back(grad: Tensor, wide: Tensor) -> Tensor:
    half, result = grad.shape[-1], torch.empty_like(wide)
    torch.mul(grad, wide[:, half:], out=result[:, :half])
    torch.mul(grad, wide[:, :half], out=result[:, half:])
    return result


def _ones(rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
    # On a CPU, float32 weights make the norm keep float32 statistics of bfloat16 rows; a GPU always does.
    if rows.is_cuda or rows.dtype != torch.bfloat16:
        return None, None
    return rows.new_ones(rows.shape[-1], dtype=torch.float32), rows.new_zeros(rows.shape[-1], dtype=torch.float32)


def _normalised(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = torch.native_layer_norm(rows, rows.shape[-1:], *_ones(rows), _EPS)
    return result


def _normalised_back(grad: Tensor, rows: Tensor, mean: Tensor, rate: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.native_layer_norm_backward(
        grad, rows, rows.shape[-1:], mean, rate, *_ones(rows), [True, False, False]
    )[0]
    return result


def _depthwise(wide: Tensor, kernel: Tensor, offset: Tensor) -> Tensor:
    planes = functional.conv2d(wide.permute(0, 3, 1, 2), kernel, offset, padding=1, groups=len(kernel))
    return planes.permute(0, 2, 3, 1).contiguous()


def _depthwise_back(grad: Tensor, wide: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    planes, weights, bias = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2), wide.permute(0, 3, 1, 2), kernel.to(grad.dtype), [len(kernel)],
        [1, 1], [1, 1], [1, 1], False, [0, 0], len(kernel), [True, True, True],
    )  # fmt: skip
    return planes.permute(0, 2, 3, 1).contiguous(), weights.to(kernel.dtype), bias.to(kernel.dtype)
