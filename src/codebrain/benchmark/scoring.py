"""Every pattern of every patient through a model, scored per absent contrast.

Protocol (the released code's): output clamped to [0, 1]; PSNR, SSIM and MAE of each 2-D slice with data
range 1; mean over slices. Slices are put back into their full in-plane frame first, so that background
counts as it does there. One subject is in memory at a time.

Every stored slice counts of which the foreground covers at least 1 % (the rule by which slices are drawn for
training), or the middle ones of those. An empty slice is imputed without error by anything: four of them
among 125 slices of a study raised the mean PSNR of black images by 2.7 dB and of a regression by 2.1 dB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from codebrain.benchmark.rows import REGIONS, Row
from codebrain.data.slices import LEAST_FOREGROUND, SliceStore, SubjectRecord
from codebrain.data.splits import Split
from codebrain.errors import refusal
from codebrain.metrics import average, mae, psnr, ssim_map
from codebrain.models._contract import ImputationModel, Reconstructs
from codebrain.vocabulary import YOUNGER_FIELDS, ModalitySet, Pattern, Preparation, pattern_name, strict_subsets

Patterns = Literal["all", "leave-one-out"] | Sequence[ModalitySet]
Progress = Callable[[int, int, str], None]

_SCORED_AT_ONCE = 32
"""Slices whose SSIM is computed together: five moments of 32 slices of 256 x 256 are 42 MB."""


@dataclass(frozen=True)
class Wiring:
    """How a model's channels meet a store's.

    Attributes:
        model, store: the two orders of channels.
        shared: contrasts that both know, in the store's order. Only they are given, and judged.
    """

    model: ModalitySet
    store: ModalitySet
    shared: ModalitySet

    @classmethod
    def of(cls, model: ImputationModel, preparation: Preparation, judged: ModalitySet | None = None) -> Wiring:
        """Connect ``model`` to slices of ``preparation``; contrasts unknown to either, or not judged, stay absent.

        Raises:
            ModelRefused: ``CKPT_MISMATCH`` when fewer than two contrasts are shared, or a trained model was
                made for images prepared in another way.
        """
        store = preparation.modalities
        shared = tuple(m for m in store if m in model.modalities and (judged is None or m in judged))
        if len(shared) < 2:
            raise refusal(
                "CKPT_MISMATCH", f"the model {model.name} and the slice store share too few contrasts",
                field="modalities", found=str(model.modalities), expected=f"at least two of {store}",
                hint="Evaluate it on a store with its contrasts.",
            )  # fmt: skip
        _check_preparation(model, preparation)
        return cls(model.modalities, store, ModalitySet(shared))

    def to_model(self, stack: Float[Tensor, "n s h w"]) -> Float[Tensor, "n m h w"]:
        """The store's channels in the model's order; zero where the store has none."""
        out = stack.new_zeros(len(stack), len(self.model), *stack.shape[2:])
        for modality in self.shared:
            out[:, self.model.index(modality)] = stack[:, self.store.index(modality)]
        return out


def _check_preparation(model: ImputationModel, preparation: Preparation) -> None:
    """A model that was loaded must see images prepared as it was trained with (bad-input F5)."""
    ours, theirs = model.preparation, preparation
    fields = ["normalisation", "pixel_spacing_mm", *YOUNGER_FIELDS]
    fields += ["percentiles"] if ours.normalisation == "percentile" else []
    different = [name for name in fields if getattr(ours, name) != getattr(theirs, name)]
    if model.sha256 and different:
        raise refusal(
            "CKPT_MISMATCH", f"the model {model.name} was made for images prepared in another way",
            field=", ".join(different),
            found="; ".join(str(getattr(theirs, name)) for name in different),
            expected="; ".join(str(getattr(ours, name)) for name in different),
            hint="Prepare the data again with the model's settings.",
        )  # fmt: skip


@torch.inference_mode()
def evaluate(
    model: ImputationModel,
    store: SliceStore,
    *,
    split: Split = "test",
    patterns: Patterns = "all",
    regions: Sequence[str] = REGIONS,
    device: torch.device | str = "cpu",
    batch: int = 8,
    middle: int | None = None,
    label: str | None = None,
    judged: ModalitySet | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Score a model on every patient of a split.

    Args:
        model: any imputation model; one with ``reconstruct`` is scored on reconstruction as well.
        store: the prepared slices.
        split: ``train``, ``val`` or ``test``.
        patterns: ``all`` non-empty strict subsets of what a subject has and the model knows; those that leave
            one contrast out; or a list of present contrasts, of which those that suit a subject are used.
        regions: which of :data:`~codebrain.benchmark.rows.REGIONS`.
        device: where the model runs.
        batch: slices that the model gets at a time.
        middle: only the middle N of these slices of each subject, as the paper's 90 (IXI) and 80 (BraTS).
        label: name in the rows; the model's own when absent.
        judged: the contrasts that are given and judged; by default all that model and store share.
        progress: ``progress(done, total, note)``, counting patterns of subjects.

    Returns:
        One row per patient, pattern, absent contrast, task, region and metric.

    Raises:
        ModelRefused: ``CKPT_MISMATCH``, see :meth:`Wiring.of`.
            ``CKPT_NONFINITE`` when the model's output is not finite.
        InputRefused: ``DATA_SPLIT`` for an empty split, ``DATA_CONTRASTS`` when no pattern suits any subject.
    """
    wiring = Wiring.of(model, store.preparation, judged)
    model = model.to(device).eval()
    work = [(name, chosen) for name in store.subjects(split)
            if scored_slices(store.record(name))
            and (chosen := suitable_patterns(patterns, store.record(name).available, wiring))]  # fmt: skip
    if not work:
        raise refusal(
            "DATA_CONTRASTS", f"no subject of {split} has contrasts for the patterns that were asked for",
            found=str(store.preparation.modalities), expected=f"two or more of {wiring.model}",
        )  # fmt: skip
    rows: list[Row] = []
    done, total = 0, sum(len(chosen) for _, chosen in work)
    for name, chosen in work:
        subject = Subject.read(store, name, wiring, device=device, middle=middle)
        for pattern in chosen:
            for task, completed in completions(model, subject, pattern, batch=batch):
                rows += subject.rows(completed, pattern, label or model.name, task, regions)
            done += 1
            if progress is not None:
                progress(done, total, name)
    return rows


def parse_patterns(text: str, known: ModalitySet) -> Patterns:
    """``all``, ``leave-one-out``, or sets of present contrasts, as ``T1;T1,FLAIR``.

    Raises:
        UsageError: ``CONFIG`` or ``MOD_*`` for anything else, or a contrast that the store lacks.
    """
    if text == "all":
        return "all"
    if text == "leave-one-out":
        return "leave-one-out"
    wanted = [ModalitySet.parse(part) for part in text.split(";") if part.strip()]
    strange = sorted({str(m) for given in wanted for m in given if m not in known})
    if not wanted or strange:
        raise refusal(
            "CONFIG", "the slice store has no such contrast" if strange else "no pattern was named",
            field="patterns", found=", ".join(strange) or repr(text), expected=f"contrasts of {known}",
        )  # fmt: skip
    return wanted


def suitable_patterns(patterns: Patterns, available: Sequence[bool], wiring: Wiring) -> list[Pattern]:
    """The patterns to score for a subject, over the shared contrasts; something must stay to be imputed."""
    have = tuple(bool(available[wiring.store.index(m)]) for m in wiring.shared)
    every = strict_subsets(have)
    if patterns == "all":
        return every
    if patterns == "leave-one-out":
        return [pattern for pattern in every if sum(pattern) == sum(have) - 1]
    wanted = [wiring.shared.pattern(p) for p in patterns if all(m in wiring.shared for m in p)]
    return [pattern for pattern in every if pattern in wanted]


@dataclass(frozen=True)
class Subject:
    """One subject's slices on the device, as stored and in the full frame.

    Attributes:
        record: what the store knows about it.
        wiring: of the model that will see it.
        images: the stored slices in the model's channels, ``(n, m, h, w)``; 0 where nothing is available.
        truth: the shared contrasts in the full in-plane frame, ``(n, s, h, w)``.
        brain: foreground in the full frame, ``(n, h, w)``.
    """

    record: SubjectRecord
    wiring: Wiring
    images: Tensor
    truth: Tensor
    brain: Tensor

    @classmethod
    def read(
        cls,
        store: SliceStore,
        name: str,
        wiring: Wiring,
        *,
        device: torch.device | str = "cpu",
        middle: int | None = None,
    ) -> Subject:
        """Read the slices to score: those of :func:`scored_slices`."""
        record = store.record(name)
        keep = scored_slices(record, middle)
        stack = torch.from_numpy(store.stack(name)[keep]).to(device)
        brain = torch.from_numpy(store.brain(name)[keep]).to(device)
        places = [wiring.store.index(m) for m in wiring.shared]
        return cls(
            record,
            wiring,
            wiring.to_model(stack),
            full_frame(stack[:, places], record),
            full_frame(brain, record),
        )

    @property
    def available(self) -> Pattern:
        """Which shared contrasts have ground truth."""
        return tuple(bool(self.record.available[self.wiring.store.index(m)]) for m in self.wiring.shared)

    def absent(self, pattern: Pattern) -> list[int]:
        """Places in the shared contrasts that are imputed and judged."""
        return [i for i, (has, given) in enumerate(zip(self.available, pattern, strict=True)) if has and not given]

    def rows(self, completed: Tensor, pattern: Pattern, model: str, task: str, regions: Sequence[str]) -> Iterator[Row]:
        """The rows of one pattern; ``completed`` is ``(n, s, h, w)`` in the full frame."""
        name = pattern_name(self.wiring.shared, pattern)
        for place in self.absent(pattern):
            scores = region_scores(completed[:, place], self.truth[:, place], self.brain, regions)
            for region, metric, value, count in scores:
                yield Row(
                    model, self.record.patient, self.record.subject, name,
                    str(self.wiring.shared.members[place]), task, region, metric, value, count,
                )  # fmt: skip


def scored_slices(record: SubjectRecord, middle: int | None = None) -> list[int]:
    """Numbers of the slices with enough foreground, or of the middle ones among them."""
    area = record.shape[2] * record.shape[3]
    kept = [z for z, pixels in enumerate(record.foreground_pixels) if pixels >= LEAST_FOREGROUND * area]
    if middle is None or middle >= len(kept):
        return kept
    first = (len(kept) - middle) // 2
    return kept[first : first + middle]


def full_frame(stored: Tensor, record: SubjectRecord) -> Tensor:
    """Stored slices back in their uncut in-plane frame, with background 0 (or False) around them.

    Padding that reaches beyond the frame is cut off.
    """
    (height, width), (top, left) = record.full_slice, record.offset
    h, w = stored.shape[-2:]
    around = (left, width - left - w, top, height - top - h)
    if stored.dtype == torch.bool:
        return F.pad(stored.to(torch.uint8), around).bool()
    return F.pad(stored, around)


def completions(
    model: ImputationModel, subject: Subject, pattern: Pattern, *, batch: int = 8
) -> Iterator[tuple[str, Float[Tensor, "n s h w"]]]:
    """Task and completed shared contrasts, clamped to [0, 1], in the full frame.

    Imputation sees the present contrasts alone. Reconstruction sees the code of the complete images.
    """
    wiring = subject.wiring
    given = wiring.model.pattern(wiring.shared.present(pattern))
    present = torch.tensor(given, device=subject.images.device)
    known = subject.images * present[:, None, None]
    yield "imputation", _through(model, known, present, subject, batch)
    if isinstance(model, Reconstructs):
        yield "reconstruction", _through(model.reconstruct, subject.images, present, subject, batch)


def _through(
    function: Callable[..., Tensor], images: Tensor, present: Bool[Tensor, "m"], subject: Subject, batch: int
) -> Tensor:
    places = [subject.wiring.model.index(m) for m in subject.wiring.shared]
    parts = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        parts.append(function(part, present.expand(len(part), -1))[:, places].float().clamp(0, 1))
    completed = torch.cat(parts)
    if not completed.isfinite().all():
        raise refusal("CKPT_NONFINITE", "the model's output holds values that are not finite",
                      found=f"subject {subject.record.subject}")  # fmt: skip
    return full_frame(completed, subject.record)


def region_scores(
    prediction: Float[Tensor, "n h w"],
    truth: Float[Tensor, "n h w"],
    brain: Bool[Tensor, "n h w"],
    regions: Sequence[str] = REGIONS,
) -> Iterator[tuple[str, str, float, int]]:
    """Region, metric, mean over slices, and how many slices it is a mean over.

    Slices without brain have no score in the brain and are left out there.
    """
    similarity = torch.cat(
        [
            ssim_map(prediction[i : i + _SCORED_AT_ONCE], truth[i : i + _SCORED_AT_ONCE])
            for i in range(0, len(truth), _SCORED_AT_ONCE)
        ]
    )
    for region in regions:
        mask = brain if region == "brain" else None
        per: Literal["slice", "volume"] = "volume" if region == "volume" else "slice"
        values = {
            "PSNR": psnr(prediction, truth, mask=mask, per=per),
            "SSIM": average(similarity, mask, per=per),
            "MAE": mae(prediction, truth, mask=mask, per=per),
        }
        for metric, found in values.items():
            scored = found.double() if mask is None else found[mask.flatten(1).any(1)].double()
            if scored.numel():
                count = len(truth) if per == "volume" else scored.numel()
                yield region, metric, float(scored.mean()), count
