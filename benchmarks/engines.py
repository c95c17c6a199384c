"""Seconds per slice of every engine beside torch in float32: same weights, same slices, one run.

::

    python benchmarks/engines.py starter 5 > engines.tsv
    python benchmarks/engines.py published 5 > engines.tsv

``published`` is CodeBrain with the sizes of the paper for four contrasts, 160 million parameters at imputation, with
random weights: the scales of its residual blocks, zero in a new model, are drawn from 0.1 to 0.3 so that every block
has a part in the result. PSNR is over the absent contrasts against torch in float32, data range 1. The engines take
turns; ``ratio`` is torch's time by the engine's in the same round, median, smallest and largest. Threads are those of
``OMP_NUM_THREADS``, or the cores allotted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from imputation_speed import published_size
from torch import Tensor

from codebrain.engines import choose_engine, precisions
from codebrain.engines.network import example
from codebrain.machine import set_threads
from codebrain.models import load_model

CASES = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("torch", "int8"),
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
)
SIZES = {"starter": (176, 152), "published": (256, 256)}

SLICES = 4
"""Computed by every run, in calls of as many as the engine takes: torch gives each thread slices of its own, the others
share one slice among the threads."""

Run = Callable[[], Tensor]


def runs(which: str) -> dict[str, Run]:
    """Every engine, ready to compute the slices; what it takes to get ready goes to stderr."""
    model = load_model("starter") if which == "starter" else published_size()
    image, pattern = example(len(model.modalities), SIZES[which], (0, 2))
    images, present = image.repeat(SLICES, 1, 1, 1), pattern.repeat(SLICES, 1)
    faster = precisions(model, "torch", torch.device("cpu"))
    ready: dict[str, Run] = {}
    for name, precision in CASES:
        if precision == "int8" and precision not in faster:
            continue
        begun = time.perf_counter()
        engine = choose_engine(model, name, device=torch.device("cpu"), precision=precision)
        parts = list(zip(images.split(engine.at_once), present.split(engine.at_once), strict=True))
        ready[f"{name} {precision}"] = lambda engine=engine, parts=parts: torch.cat(
            [engine(*part)[0] for part in parts]
        )[:, ~pattern[0]]
        ready[f"{name} {precision}"]()
        print(f"{name} {precision}: {time.perf_counter() - begun:.1f} s to get ready", file=sys.stderr)
    return ready


def main(which: str, rounds: int) -> None:
    """Print a row for each engine."""
    threads, ready = set_threads(), runs(which)
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, run in ready.items():
            begun = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - begun) / SLICES)
    exact = ready["torch fp32"]()
    print("model\tengine\tthreads\tseconds\tleast\tmost\tratio\tratio_least\tratio_most\tpsnr_db")
    for name, run in ready.items():
        own, ratio = np.array(seconds[name]), np.array(seconds["torch fp32"]) / np.array(seconds[name])
        error = float(((run() - exact) ** 2).mean())
        quality = "exact" if error == 0 else f"{-10 * np.log10(error):.1f}"
        times = f"{np.median(own):.3f}\t{own.min():.3f}\t{own.max():.3f}"
        print(
            f"{which}\t{name}\t{threads}\t{times}\t{np.median(ratio):.2f}\t{ratio.min():.2f}\t{ratio.max():.2f}\t{quality}"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "starter", int(sys.argv[2]) if len(sys.argv) > 2 else 5)
