"""Which slices a step sees: a function of (seed, stage, step, rank) alone, so resuming is exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from codebrain.data.augment import Augmentation
from codebrain.data.slices import SliceStore
from codebrain.errors import refusal
from codebrain.nn.batch import Batch
from codebrain.nn.patterns import draw_patterns
from codebrain.training.config import StageConfig, TrainConfig
from codebrain.vocabulary import ModalitySet, strict_subsets


def chance(*place: int) -> tuple[np.random.Generator, torch.Generator]:
    """Generators for one place of a run, for example (seed, stage, step, rank)."""
    sequence = np.random.SeedSequence(place)
    seed = int(sequence.generate_state(1, np.uint64)[0] >> 1)
    return np.random.default_rng(sequence), torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class TrainingBatches:
    """The training slices of one stage.

    Attributes:
        store: prepared slices.
        config: of the run.
        stage: its settings.
        number: of the stage, for the chance.
        modalities: the model's contrasts, in its order.
        rank, world: this process among how many.
    """

    store: SliceStore
    config: TrainConfig
    stage: StageConfig
    number: int
    modalities: ModalitySet
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        picks = usable(self.store, "train", self.modalities)
        if not len(picks):
            raise refusal(
                "DATA_CONTRASTS", "no training subject has two of the model's contrasts", file=self.store.root,
                expected=str(self.modalities), hint="Name other contrasts: modalities in the configuration.",
            )  # fmt: skip
        object.__setattr__(self, "_picks", picks)

    @property
    def slices(self) -> int:
        """How many training slices there are."""
        return len(self._all)

    @property
    def _all(self) -> NDArray[np.int64]:
        picks: NDArray[np.int64] = self.__dict__["_picks"]
        return picks

    @property
    def steps(self) -> int:
        """Length of the stage."""
        per_epoch = -(-self.slices // self.stage.batch_size)
        return self.stage.steps if self.stage.steps is not None else (self.stage.epochs or 1) * per_epoch

    def batch(self, step: int) -> Batch:
        """The batch of a step: this process's share of it, augmented, with its patterns drawn."""
        numbers, generator = chance(self.config.seed, self.number, step, self.rank)
        images, available, ids = self.store.batch(self.picks(step), crop=self.stage.crop, generator=numbers)
        stack, there = _channels(self.store, self.modalities, images, available)
        stack = Augmentation.named(self.config.augmentation)(stack, generator) * there[:, :, None, None]
        present = draw_patterns(
            there, generator, per=self.config.patterns, choice=self.config.choice,
            easiest=self.stage.easiest(step / self.steps),
        )  # fmt: skip
        return Batch(stack, there, present, ids)

    def picks(self, step: int) -> NDArray[np.int64]:
        """Subject and slice numbers of a step; every slice once per epoch, or subjects drawn evenly."""
        size = self.stage.batch_size
        first, last = (step * size + size * r // self.world for r in (self.rank, self.rank + 1))
        if self.config.sampling == "subjects":
            return self._even(step)[first - step * size : last - step * size]
        wanted = np.arange(first, last)
        epochs = wanted // self.slices
        orders = {
            e: chance(self.config.seed, self.number, -1 % 2**32, int(e))[0].permutation(self.slices)
            for e in set(epochs)
        }
        return self._all[[orders[e][i % self.slices] for e, i in zip(epochs, wanted, strict=True)]]

    def _even(self, step: int) -> NDArray[np.int64]:
        numbers, _ = chance(self.config.seed, self.number, step, 2**31)
        subjects = numbers.choice(np.unique(self._all[:, 0]), self.stage.batch_size)
        return np.stack([numbers.choice(self._all[self._all[:, 0] == subject]) for subject in subjects])

    def whole(self) -> Iterator[Batch]:
        """Every training slice once, whole, with everything present: for models fitted in closed form."""
        for images, available, ids in stacks(self.store, "train", self.modalities):
            yield Batch(images, available, available, ids)


def usable(store: SliceStore, split: str, modalities: ModalitySet) -> NDArray[np.int64]:
    """The picks of subjects that have at least two of the model's contrasts."""
    columns = [store.preparation.modalities.index(m) for m in modalities if m in store.preparation.modalities]
    enough = [sum(record.available[c] for c in columns) > 1 for record in store.manifest.records]
    picks = store.index(split)  # type: ignore[arg-type]
    return np.asarray([pick for pick in picks if enough[pick[0]]], dtype=np.int64).reshape(-1, 2)


def stacks(
    store: SliceStore, split: str, modalities: ModalitySet, *, most: int | None = None, size: int = 8
) -> Iterator[tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]]:
    """Whole slices of a split, subject by subject, at most ``most`` of them, evenly spaced."""
    picks = usable(store, split, modalities)
    if most is not None and len(picks) > most:
        picks = picks[np.linspace(0, len(picks) - 1, most).round().astype(int)]
    unused = np.random.default_rng(0)  # whole slices draw nothing
    for subject in dict.fromkeys(picks[:, 0]):
        own = picks[picks[:, 0] == subject]
        for start in range(0, len(own), size):
            images, available, ids = store.batch(own[start : start + size], crop=None, generator=unused)
            yield *_channels(store, modalities, images, available), ids


def leave_one_out(available: torch.Tensor) -> list[torch.Tensor]:
    """For a batch of one subject: every pattern that withholds exactly one contrast."""
    there = tuple(bool(value) for value in available[0])
    patterns = [p for p in strict_subsets(there) if sum(p) == sum(there) - 1]
    return [torch.tensor([pattern] * len(available)) for pattern in patterns]


def _channels(
    store: SliceStore, modalities: ModalitySet, images: NDArray[np.float32], available: NDArray[np.bool_]
) -> tuple[torch.Tensor, torch.Tensor]:
    stored = store.preparation.modalities
    stack = torch.zeros(len(images), len(modalities), *images.shape[2:])
    there = torch.zeros(len(images), len(modalities), dtype=torch.bool)
    for channel, modality in enumerate(modalities):
        if modality in stored:
            stack[:, channel] = torch.from_numpy(images[:, stored.index(modality)])
            there[:, channel] = torch.from_numpy(available[:, stored.index(modality)])
    return stack, there
