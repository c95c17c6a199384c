"""Several slices at a time on a CPU, each computed by one thread.

The passes over a slice are short, so threads that share one slice mostly wait for each other: two slices on two cores
take about 0.6 of the time of one after the other on both (docs/performance.md).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.engines._contract import Engine

MOST = 8
"""Slices at a time; more cores share the slices, because memory grows with their number."""


TURNS = 4
"""Slices for each thread in a call: threads wait for each other at its end, with one slice each 7 % of the time."""


class SliceThreads:
    """An engine that shares the slices of a batch out to threads.

    Args:
        engine: called with a part of the batch.
        threads: cores that may be used.
    """

    def __init__(self, engine: Engine, threads: int) -> None:
        self.engine, self.name = engine, engine.name
        workers = min(threads, MOST)
        self.at_once = TURNS * workers if workers > 1 else 1
        self.pool = ThreadPoolExecutor(workers, "slices", torch.set_num_threads, (threads // workers,))

    def __call__(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m h w"], list[Float[Tensor, "b _ hc wc"]]]:
        """See :class:`codebrain.engines._contract.Engine`; a slice without grades among others has grades of zero."""
        parts = list(self.pool.map(self.engine, torch.split(images, 1), torch.split(present, 1)))
        graded = next((grades for _, grades in parts if grades), [])
        blank = [torch.zeros_like(channel) for channel in graded]
        channels = zip(*(grades or blank for _, grades in parts), strict=True)
        return torch.cat([completed for completed, _ in parts]), [torch.cat(channel) for channel in channels]
