"""Where a model's error lies: in the means of 8 x 8 blocks, which a code on an eighth of the grid can hold, or below.

::

    python benchmarks/coarse_and_fine.py STORE OUT/runs/*/model [polynomial] > coarse.tsv

For every model the mean squared error of its absent contrasts (the middle slices of the test patients, all patterns,
inside the foreground's blocks) splits exactly into the error of the block means and what is left within blocks. Both
are printed as PSNR, beside that of the whole.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch.nn.functional import avg_pool2d, interpolate

from codebrain.benchmark.references import REFERENCES, reference_model
from codebrain.benchmark.scoring import Subject, Wiring, completions, suitable_patterns
from codebrain.data.slices import SliceStore
from codebrain.models import load_model
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import ModalitySet

BLOCK = 8
SLICES = 2


@torch.inference_mode()
def split(model: ImputationModel, store: SliceStore, judged: ModalitySet) -> tuple[float, float]:
    """Mean squared error of block means and within blocks, over the foreground's blocks."""
    wiring = Wiring.of(model, store.preparation, judged)
    coarse = fine = count = 0.0
    for name in store.subjects("test"):
        subject = Subject.read(store, name, wiring, middle=SLICES)
        height, width = (size // BLOCK * BLOCK for size in subject.truth.shape[-2:])
        inside = avg_pool2d(subject.brain[:, None, :height, :width].float(), BLOCK) > 0.5
        for pattern in suitable_patterns("all", subject.record.available, wiring):
            _, completed = next(completions(model, subject, pattern))
            places = subject.absent(pattern)
            error = (completed - subject.truth)[:, places, :height, :width]
            means = avg_pool2d(error, BLOCK)
            rest = avg_pool2d((error - interpolate(means, scale_factor=BLOCK)).square(), BLOCK)
            here = inside.expand_as(means)
            coarse += float(means.square()[here].sum())
            fine += float(rest[here].sum())
            count += float(here.sum())
    return coarse / count, fine / count


def main() -> None:
    """One line per model."""
    store = SliceStore.open(Path(sys.argv[1]))
    print("model\tPSNR in the foreground\tblock means\twithin blocks\tshare of the error within blocks")
    for source in sys.argv[2:]:
        judged = store.preparation.modalities
        model = reference_model(source, store) if source in REFERENCES else load_model(Path(source))
        coarse, fine = split(model, store, judged)
        decibel = (f"{-10 * math.log10(value):.2f}" for value in (coarse + fine, coarse, fine))
        label = source if source in REFERENCES else Path(source).parent.name
        print("\t".join((label, *decibel, f"{fine / (coarse + fine):.0%}")), flush=True)


if __name__ == "__main__":
    main()
