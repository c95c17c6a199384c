"""The references that every model has to beat, made ready on a slice store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from codebrain.benchmark.scoring import Progress, Wiring
from codebrain.data.slices import SliceStore
from codebrain.models import build_model
from codebrain.models._contract import ImputationModel
from codebrain.nn.batch import Batch
from codebrain.vocabulary import ModalitySet

REFERENCES = ("zeros", "mean", "polynomial")
"""Models that need no training beyond one pass over the slices."""

MOST_SLICES = 2000
"""Training slices that the polynomial is fitted to, evenly spaced: some fifty million voxels for at most 56
coefficients, half a minute on one core."""


def reference_model(
    name: str, store: SliceStore, *, modalities: ModalitySet | None = None, progress: Progress | None = None
) -> ImputationModel:
    """A reference, fitted to the training patients of ``store`` where it has to be.

    Args:
        name: one of :data:`REFERENCES`.
        store: supplies preparation and training slices.
        modalities: the contrasts it shall know, so that it is judged on the same cells as a model that knows
            no more; those of the store when absent.
        progress: ``progress(done, total, note)`` over the training slices.

    Raises:
        InputRefused: ``DATA_SPLIT`` when a fit is needed and the store has no training patients.
    """
    model = build_model(name, modalities or store.preparation.modalities)
    model.preparation = replace(store.preparation, modalities=model.modalities)
    if model.stages:
        model.fit(_training_batches(store, Wiring.of(model, store.preparation), progress))
    return model.eval().requires_grad_(False)


def _training_batches(store: SliceStore, wiring: Wiring, progress: Progress | None, size: int = 16) -> Iterator[Batch]:
    picks = store.index("train")
    places = np.unique(np.linspace(0, len(picks) - 1, min(len(picks), MOST_SLICES)).round().astype(int))
    picks = picks[places]
    unused = np.random.default_rng(0)  # whole slices are read: no crop is drawn
    for start in range(0, len(picks), size):
        images, available, ids = store.batch(picks[start : start + size], crop=None, generator=unused)
        here = torch.from_numpy(available)[:, :, None, None]
        known = wiring.to_model(here).flatten(1)
        yield Batch(wiring.to_model(torch.from_numpy(images)), known, known, ids)
        if progress is not None:
            progress(min(start + size, len(picks)), len(picks), "polynomial")
