"""Which slices a step sees: a function of (seed, stage, step) alone, so resuming is exact.

What chance gives to a sample depends on its place in the batch of all processes and not on the process that holds it,
so that two processes train as one does.

Batches are made in the process that trains, by a thread (:mod:`codebrain.training.ahead`, which says what happens when
that hangs). There are no loader workers, so none can be killed or fill ``/dev/shm``: a slice is read in well under a
millisecond.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codebrain.data.augment import Augmentation
from codebrain.data.slices import FULL_SCALE, SliceStore
from codebrain.errors import CodeBrainError, refusal
from codebrain.nn.batch import Batch
from codebrain.nn.patterns import draw_patterns
from codebrain.training.config import StageConfig, TrainConfig
from codebrain.vocabulary import ModalitySet, strict_subsets

MOST_DAMAGED = 0.01
"""Share of the training slices that may be left out because their subject's files were damaged meanwhile."""
_SHOWN = 10
_log = logging.getLogger(__name__)


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
        device: where batches are wanted; they are augmented there.
    """

    store: SliceStore
    config: TrainConfig
    stage: StageConfig
    number: int
    modalities: ModalitySet
    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.stage.batch_size % self.world:
            raise refusal(
                "CONFIG", "the processes of a training share its batches evenly", field="batch_size",
                found=self.stage.batch_size, expected=f"a multiple of {self.world}",
            )  # fmt: skip
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
        """The batch of a step: this process's share of it, augmented, with its patterns drawn.

        Raises:
            InputRefused: ``DATA_CORRUPT`` when more than :data:`MOST_DAMAGED` of the slices had to be left out.
        """
        own, size = self._own, self.stage.batch_size
        while True:
            numbers, generator = chance(self.config.seed, self.number, step)
            numbers.random(own.start)  # one for each sample before ours
            try:
                read = self.store.stored_batch if self._short else self.store.batch
                images, available, ids = read(self.picks(step), crop=self.stage.crop, generator=numbers)
                break
            except CodeBrainError as error:
                self._refuse_many_damaged(error)
        stack, there = _channels(self.store, self.modalities, images, available)
        stack, there = in_unit(moved(stack, self.device)), moved(there, self.device)
        augment = Augmentation.named(self.config.augmentation)
        stack = augment(stack, generator, first=own.start, of=size) * there[:, :, None, None]
        present = draw_patterns(
            self._there(step), generator, per=self.config.patterns, choice=self.config.choice,
            easiest=self.stage.easiest(step / self.steps),
        )  # fmt: skip
        return Batch(stack, there, moved(present[own], self.device), ids)

    @property
    def _short(self) -> bool:
        """Whether slices travel to the device as they are stored, in half as many bytes."""
        return torch.device(self.device).type == "cuda"

    @property
    def _own(self) -> slice:
        """This process's part of a batch."""
        share = self.stage.batch_size // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def _there(self, step: int) -> torch.Tensor:
        """Which of the model's contrasts each sample of the whole batch has."""
        stored = self.store.preparation.modalities
        columns = [stored.index(m) if m in stored else None for m in self.modalities]
        records = (self.store.manifest.records[subject].available for subject, _ in self._everyone(step))
        return torch.tensor([[c is not None and bool(record[c]) for c in columns] for record in records])

    def ids(self, step: int) -> list[str]:
        """``subject/slice`` of every sample of a step."""
        return self._named(self.picks(step))

    def picks(self, step: int) -> NDArray[np.int64]:
        """Subject and slice numbers of a step; every slice once per epoch, or subjects drawn evenly.

        In place of a slice whose subject was found damaged comes the next one of the store that is whole.
        """
        return self._everyone(step)[self._own]

    def _everyone(self, step: int) -> NDArray[np.int64]:
        if self.config.sampling == "subjects":
            return self._whole(self._even(step))
        wanted = np.arange(step * self.stage.batch_size, (step + 1) * self.stage.batch_size)
        epochs = wanted // self.slices
        orders = {
            e: chance(self.config.seed, self.number, -1 % 2**32, int(e))[0].permutation(self.slices)
            for e in set(epochs)
        }
        return self._whole(self._all[[orders[e][i % self.slices] for e, i in zip(epochs, wanted, strict=True)]])

    @property
    def left_out(self) -> list[str]:
        """The training slices, ``subject/slice``, of subjects that were found damaged since the store was opened."""
        return self._named(self._all[self._damaged(self._all)])

    def _named(self, picks: NDArray[np.int64]) -> list[str]:
        return [f"{self.store.names[subject]}/{z}" for subject, z in picks]

    def _damaged(self, picks: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.isin(picks[:, 0], [self.store.names.index(name) for name in self.store.damaged])

    def _whole(self, picks: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.store.damaged:
            return picks
        left, picks = self._all[~self._damaged(self._all)], picks.copy()
        for place in np.flatnonzero(self._damaged(picks)):
            later = (left[:, 0] > picks[place, 0]).argmax()  # the first of all where none is later
            picks[place] = left[(later + picks[place, 1]) % len(left)]  # not the same one for all its slices
        return picks

    def _refuse_many_damaged(self, error: CodeBrainError) -> None:
        """Go on without a damaged subject, unless there are too many of them or the trouble is another."""
        lost = self.left_out
        if error.code != "DATA_CORRUPT" or not lost:
            raise error
        if len(lost) > MOST_DAMAGED * self.slices:
            more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
            raise refusal(
                "DATA_CORRUPT", f"{error.message}; too many training slices cannot be used any more: "
                f"{', '.join(lost[:_SHOWN])}{more}", file=error.file, found=f"{len(lost)} of {self.slices}",
                expected=f"at most {MOST_DAMAGED:.0%}", hint=f"{error.hint} Then go on with train --resume.",
            ) from error  # fmt: skip
        name = error.file.name if error.file is not None else ""
        _log.warning("%s: %s; its subject is left out, now %d of %d training slices",
                     name, error.message, len(lost), self.slices)  # fmt: skip

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


def moved(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """On the device; to a GPU from pinned memory, so that nobody waits for the copy."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def in_unit(images: torch.Tensor) -> torch.Tensor:
    """Intensities in [0, 1], float32, of slices that may still be as they are stored: 16 bits, of any sign."""
    if images.is_floating_point():
        return images
    whole = (images.int() & FULL_SCALE).float()
    # By a tensor: a GPU multiplies by the reciprocal of a number, which is not what the store gives a CPU.
    return whole / torch.full((), float(FULL_SCALE), device=images.device)


def _channels(
    store: SliceStore, modalities: ModalitySet, images: NDArray[Any], available: NDArray[np.bool_]
) -> tuple[torch.Tensor, torch.Tensor]:
    stored = store.preparation.modalities
    if images.dtype == np.uint16:
        images = images.view(np.int16)  # torch computes with these
    stack = torch.zeros(len(images), len(modalities), *images.shape[2:], dtype=torch.from_numpy(images).dtype)
    there = torch.zeros(len(images), len(modalities), dtype=torch.bool)
    for channel, modality in enumerate(modalities):
        if modality in stored:
            stack[:, channel] = torch.from_numpy(images[:, stored.index(modality)])
            there[:, channel] = torch.from_numpy(available[:, stored.index(modality)])
    return stack, there
