"""Does a training step cost as much per slice whatever the batch, and is the number of slices without a price?

::

    python benchmarks/training_scaling.py [--device cuda --batches 8 16 32 48 --width 32]

One process times steps of stage I in bfloat16 at growing batches, in turns, and fits seconds = a + b * batch; then it
times drawing the slices of a step from sparse stores of growing size. Without --width a small model is used, so that a
CPU has an answer in a minute; the fit of the published size is printed with --width 32.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from input_throughput import MODALITIES, make_store

from codebrain.data.slices import SliceStore
from codebrain.machine import keep_freed_memory
from codebrain.models import build_model
from codebrain.nn.batch import Batch
from codebrain.training.batches import TrainingBatches
from codebrain.training.config import OptimiserConfig, StageConfig, TrainConfig
from codebrain.training.optimisers import make_optimiser
from codebrain.training.process import start_fabric
from codebrain.training.step import Place, take_step
from codebrain.vocabulary import ModalitySet


def step_seconds(options: argparse.Namespace) -> dict[int, list[float]]:
    """Seconds of a step by batch, turn by turn."""
    fabric = start_fabric(TrainConfig(model="codebrain", precision="bf16"), options.device)
    settings = {"width": options.width, "depth": options.depth}
    model = build_model("codebrain", ModalitySet.parse("T1,T2,PD"), settings).to(fabric.device).train()
    descents = {n: make_optimiser(list(p.parameters()), OptimiserConfig()) for n, p in
                model.players("reconstruction").items()}  # fmt: skip
    seen: dict[int, list[float]] = {batch: [] for batch in options.batches}
    for turn in range(options.turns + 1):
        for batch in options.batches:
            images = torch.rand(batch, 3, options.size, options.size, device=fabric.device)
            everything = torch.ones(batch, 3, dtype=torch.bool, device=fabric.device)
            given = torch.tensor([[False, True, True]], device=fabric.device).expand(batch, -1)
            place = Place("reconstruction", StageConfig(batch_size=batch), step=50, steps=100)
            begun = time.perf_counter()
            take_step(model, Batch(images, everything, given), descents, place, fabric=fabric)  # reads its numbers
            if turn:
                seen[batch].append(time.perf_counter() - begun)
    return seen


def fit(name: str, sizes: Sequence[float], seconds: Sequence[float]) -> None:
    """Print the least-squares line and how well it fits."""
    slope, start = np.polyfit(sizes, seconds, 1)
    left = np.asarray(seconds) - (start + slope * np.asarray(sizes))
    share = 1 - left.var() / np.var(seconds)
    print(f"  seconds = {start:.3g} + {slope:.3g} x {name}   (R2 {share:.4f})\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    print(f"stage I, width {options.width}, {options.size} x {options.size}, bf16, {options.device}: seconds of a step")
    seen = step_seconds(options)
    for batch, seconds in seen.items():
        middle = statistics.median(seconds)
        print(
            f"  batch {batch:3}: {middle:.3f} ({min(seconds):.3f} - {max(seconds):.3f}), {middle / batch:.4f} a slice"
        )
    fit("batch", list(seen), [statistics.median(seconds) for seconds in seen.values()])
    print("drawing which slices a step sees, by slices in the store: milliseconds")
    sizes, middles = [], []
    for subjects in (20, 100, 500):
        with tempfile.TemporaryDirectory() as folder:
            store = SliceStore.open(make_store(Path(folder) / "store", subjects, sparse=True))
            drawn = TrainingBatches(
                store, TrainConfig(model="codebrain"), StageConfig(epochs=300, batch_size=48), 0, MODALITIES
            )
            times = []
            for step in range(0, 2000, 40):
                begun = time.perf_counter()
                drawn.picks(step)
                times.append(time.perf_counter() - begun)
        sizes.append(drawn.slices), middles.append(statistics.median(times))
        print(f"  {drawn.slices:6,} slices: {1e3 * middles[-1]:.2f} ({1e3 * min(times):.2f} - {1e3 * max(times):.2f})")
    fit("slices", sizes, middles)


if __name__ == "__main__":
    main()
