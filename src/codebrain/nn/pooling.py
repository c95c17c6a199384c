"""Sums over the samples of a step, whichever process holds them.

A loss that is a mean of equal shares comes out right when the processes' gradients are averaged. One that is not
linear in its mean (the logarithm of the PSNR loss), or whose count differs from process to process (contrasts that are
absent), needs the sums of all. Losses ask for them here and know nothing else of processes; the loop says once who
the others are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]

_processes: tuple[Total, int] | None = None


@contextmanager
def over_processes(total: Total, count: int) -> Iterator[None]:
    """Inside, :func:`pooled` sums over ``count`` processes with ``total``, which every one of them must call alike."""
    global _processes  # noqa: PLW0603 - one per process, as the process group is
    before, _processes = _processes, (total, count) if count > 1 else None
    try:
        yield
    finally:
        _processes = before


def pooled(sums: Tensor) -> Tensor:
    """The sums of all processes; differentiable, for gradients that are averaged over processes afterwards."""
    return sums if _processes is None else _Pooled.apply(sums)  # type: ignore[no-untyped-call]


def pooled_ratio(numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator over denominator, both summed over processes, zero over zero being zero; and the denominator."""
    both = pooled(torch.stack([numerator.float(), denominator.float()]))
    return both[0] / both[1].clamp(min=1), both[1]


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        assert _processes is not None
        total, ctx.count = _processes
        return total(sums.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every process derives the same number by its own part; averaged, the parts must count that many times.
        scaled: Tensor = gradient * ctx.count
        return scaled
