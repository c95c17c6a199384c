"""A study with missing contrasts becomes a completed study.

The flow; every step hands on its result and the record that can undo it::

    files -> Study -> one grid, [0, 1], slices -> model -> stack -> original grid, scanner units -> files
             intake, imaging.prepared              here    Frame           IntensityScale           results
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from codebrain.data.slices import LEAST_FOREGROUND
from codebrain.engines import choose_engine, engine_name, precisions
from codebrain.engines._contract import Engine
from codebrain.engines.check import PrecisionCheck, choose_precision
from codebrain.errors import Notice, is_out_of_memory, refusal
from codebrain.imaging.align import AlignmentRecord, AlignMode, align_study
from codebrain.imaging.frame import Frame
from codebrain.imaging.intensity import fit_normalisation, foreground_mask, to_unit
from codebrain.imaging.prepared import PreparedStudy
from codebrain.imaging.space import REFERENCE, NativeSpace
from codebrain.imaging.study import Study
from codebrain.intake import Intake, Stopwatch, take_in
from codebrain.machine import available_memory, choose_device, set_threads
from codebrain.metrics import mae, psnr, ssim
from codebrain.models import load_model
from codebrain.models._contract import ImputationModel
from codebrain.plan import Plan
from codebrain.records import RunFacts
from codebrain.results import Image, Imputation, ImputedContrast, IntensityScale
from codebrain.threads import in_threads
from codebrain.uncertainty import StudyDoubt, code_doubt, slice_doubts
from codebrain.vocabulary import Modality, ModalitySet, Precision, parse_precision

SLICES_AT_ONCE = {"cpu": 1, "cuda": 16}
"""Slices per forward pass of an engine that says nothing else. Memory stays flat, and on a CPU a slice for each
thread is the fastest, because it stays in the cache."""

_SCORED_AT_ONCE = 16
"""Slices whose SSIM is computed together: its moments are five images each."""

_METRICS = {"PSNR": psnr, "SSIM": ssim, "MAE": mae}

_WORTH_A_CHECK = 8
"""Slices below which float32 is as fast as finding out."""

Advance = Callable[[int, int, str], None]
Stack = Float[np.ndarray, "n h w"]


class Imputer:
    """A model, loaded once, that completes studies.

    Args:
        model: in evaluation mode, with its preparation.
        device: where it computes.
        precision: ``fp32``, ``bf16``, ``int8``, or ``auto``: the fastest that stays within
            :data:`codebrain.engines.check.LIMIT_DB` of ``fp32`` on two slices of the study.
        engine: see :mod:`codebrain.engines`.

    Attributes:
        at_once: slices per forward pass; halved when a device runs out of memory, for all studies that follow.
        notices: says so.
        check: how the precision of the last study was chosen.
    """

    def __init__(
        self,
        model: ImputationModel,
        *,
        device: torch.device | None = None,
        precision: Precision = "fp32",
        engine: str = "auto",
    ) -> None:
        self.device = device or torch.device("cpu")
        self.model = model.to(self.device)
        self.precision = precision
        self.engine = engine_name(engine)
        self.check = PrecisionCheck(precision, "fp32" if precision == "auto" else precision)
        self._engines: dict[Precision, Engine] = {}
        self.at_once = max(SLICES_AT_ONCE.get(self.device.type, 1), self._computes(self.check.used).at_once)
        self.notices: tuple[Notice, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "starter",
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "auto",
        engine: str = "auto",
    ) -> Self:
        """Load a bundled model by name or a model folder.

        Args:
            source: ``starter`` or a path.
            device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
            threads: CPU threads; by default the cores allotted to this process.
            precision: ``auto`` (the fastest that is close to ``fp32`` by a check on every study), ``fp32``, ``bf16`` or
                ``int8``.
            engine: ``auto`` (torch), ``torch``, ``openvino`` or ``onnx``; see :mod:`codebrain.engines`.

        Raises:
            ModelRefused: see :func:`codebrain.models.load_model`.
            UsageError: ``CONFIG`` for a device, number of threads, precision or engine that does not exist, or that
                do not go together.
            EnvironmentRefused: ``ENV_GPU`` for a GPU that is not there, ``ENV_EXTRA`` for an engine that is not.
        """
        exact = parse_precision(precision)
        place = choose_device(device)
        set_threads(threads)
        name = engine_name(engine)  # refused before the weights are read
        return cls(load_model(source), device=place, precision=exact, engine=name)

    @property
    def modalities(self) -> ModalitySet:
        """The contrasts that the model knows."""
        return self.model.modalities

    def __call__(
        self,
        inputs: Mapping[Any, Any] | Study,
        want: Iterable[str | Modality] | None = None,
        *,
        name: str = "study",
        align: AlignMode = "auto",
        reference: str | Modality | None = None,
        space: str | Iterable[str] = REFERENCE,
        intensity: Literal["scanner", "unit"] = "scanner",
        evaluate: bool = False,
        advance: Advance | None = None,
        **reading: Any,
    ) -> Imputation:
        """Complete a study.

        Args:
            inputs: path (of a NIfTI file, or of a folder or zip with one DICOM series) or nibabel image by
                contrast (aliases accepted), or a :class:`Study`.
            want: contrasts to impute; by default all that the model knows and the study lacks.
            name: the study's name; files are named after it.
            align: ``auto`` registers contrasts that are not on one grid, ``none`` refuses them.
            reference: the contrast whose grid the results are on.
            space: ``reference``, or also ``native:FLAIR`` and others, for results on the grids of given contrasts.
            intensity: ``scanner`` scales to the training median of each contrast, ``unit`` gives [0, 1].
            evaluate: withhold wanted contrasts that were given, and score against them.
            advance: called as ``advance(done, total, note)``.
            **reading: ``max_voxels``, ``volume_index``, ``accept_no_orientation``, ``accept_synthetic`` of
                :func:`codebrain.imaging.volume.read_volume`.

        Raises:
            CodeBrainError: as documented in the list of bad inputs; what the command line prints.
        """
        intake = take_in(
            inputs, self.model.preparation, want, name=name, align=align, reference=reference, space=space,
            evaluate=evaluate, **reading,
        )  # fmt: skip
        return self.impute(intake, intensity=intensity, advance=advance)

    def impute(
        self, intake: Intake, *, intensity: Literal["scanner", "unit"] = "scanner", advance: Advance | None = None
    ) -> Imputation:
        """Complete a study that was taken in for this model.

        Args:
            intake: by :func:`codebrain.intake.take_in` with this model's preparation.
            intensity, advance: as for a call.

        Raises:
            ModelRefused: ``CKPT_MISMATCH`` when it was prepared for another model.
        """
        study, plan, prepared = intake.study, intake.plan, intake.prepared
        if intake.preparation != self.model.preparation:
            raise refusal("CKPT_MISMATCH", "the study was prepared for another model", file=self.model.name)
        if prepared is None:
            return Imputation(study.name, {}, {}, {}, {}, {}, plan.notices)
        watch = Stopwatch(intake.seconds)
        with watch("model"):
            stacks, doubt = self.complete(prepared, plan, advance)
            unsure = None if doubt is None else self.study_doubt(prepared, plan, doubt)
        with watch("restore"):
            seen = {m: prepared.slices[:, self.modalities.index(m)] for m in plan.given}
            given, unit = restore_all(prepared, seen), restore_all(prepared, stacks)
            doubt_image = None if doubt is None else restore(prepared, doubt)
        with watch("score"):
            truth = Truth.of(study, plan, prepared)
            scores = [
                row
                for m in plan.withheld
                for row in score_rows(m, stacks[m], truth.images[m], prepared.frame, head=prepared.foreground)
            ]
        with watch("native"):
            spaces = native_spaces(intake.spaces, study, prepared, truth.alignment)
        facts = RunFacts(
            study, plan, prepared, self.model, str(self.device), self.check, truth.alignment, spaces, unsure,
            self.notices, engine=self.engine,
        )  # fmt: skip
        scales = {m: intensity_scale(m, self.model.preparation.intensity_scale, intensity) for m in unit}
        contrasts = {
            m: ImputedContrast(
                m,
                data * np.float32(scales[m].value_at_one),
                doubt_image,
                prepared.reference,
                facts.sidecar(m, scales[m]),
                sources={given: study.volumes[given].series for given in plan.given},
            )
            for m, data in unit.items()
        }
        with watch("native"):
            native = {
                space.modality: in_native_space(space, contrasts, stacks, doubt, facts, scales) for space in spaces
            }
        record = facts.run_record(watch.seconds, scores)
        files = tuple(volume.file for volume in study.volumes.values() if volume.file is not None)
        return Imputation(study.name, contrasts, given, unit, truth.images, record, facts.notices, files, native=native)

    def complete(
        self, prepared: PreparedStudy, plan: Plan, advance: Advance | None = None
    ) -> tuple[dict[Modality, Stack], Stack | None]:
        """The imputed stacks ``(n, h, w)`` in [0, 1] and the doubt, a few slices at a time."""
        count, _, height, width = prepared.slices.shape
        self.check = self._checked(prepared, plan)
        stacks = {m: np.empty((count, height, width), np.float32) for m in plan.targets}
        doubt: Stack | None = None
        start = 0
        while start < count:
            part = slice(start, start + slices_that_fit(self.at_once, self.device))
            try:
                images, entropy = self._forward(torch.from_numpy(prepared.slices[part]), plan.given)
            except (RuntimeError, MemoryError) as error:
                self._take_fewer(error, f"{height} x {width}")
                continue
            for target in plan.targets:
                stacks[target][part] = images[:, self.modalities.index(target)].numpy()
            if entropy is not None:
                doubt = np.zeros((count, height, width), np.float32) if doubt is None else doubt
                doubt[part] = entropy.numpy()
            start = min(part.stop, count)
            if advance is not None:
                advance(start, count, "slices")
        return stacks, doubt

    def _take_fewer(self, error: RuntimeError | MemoryError, size: str) -> None:
        """After a forward pass that ran out of memory: half the slices from now on. Slices do not know of each other.

        Raises:
            EnvironmentRefused: ``ENV_MEMORY`` where one slice is too much.
            RuntimeError: any other error, as it was.
        """
        if not is_out_of_memory(error):
            raise error
        if self.at_once == 1:
            raise refusal(
                "ENV_MEMORY", f"one slice of {size} pixels does not fit into the memory of the device",
                field="device", found=self.device, hint="Use --device cpu, a smaller model, or a machine with more.",
            ) from error  # fmt: skip
        self.at_once //= 2
        note = f"the device ran out of memory; the model takes {self.at_once} slices at a time, which changes no result"
        self.notices = (Notice("ENV_MEMORY", note),)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def study_doubt(self, prepared: PreparedStudy, plan: Plan, doubt: Stack) -> StudyDoubt:
        """What the doubt ``(n, h, w)`` of a study says, against the limit for so many given contrasts."""
        head = self._head(prepared)
        limit = self.model.doubt_limits.get(len(plan.given))
        return StudyDoubt.of(slice_doubts(doubt, head), prepared.frame.slices[0], limit)

    def _checked(self, prepared: PreparedStudy, plan: Plan) -> PrecisionCheck:
        """The precision for a study; where there is a choice it costs a few slices' time."""
        faster = precisions(self.model, self.engine, self.device) if self.precision == "auto" else ()
        if not faster or len(prepared.slices) < _WORTH_A_CHECK:
            return PrecisionCheck(self.precision, "fp32" if self.precision == "auto" else self.precision)
        pattern = torch.tensor(self.modalities.pattern(plan.given))
        targets = [self.modalities.index(m) for m in plan.targets]
        head = torch.from_numpy(self._head(prepared))
        try:
            return choose_precision(
                self._computes, faster, torch.from_numpy(prepared.slices), pattern, head=head, targets=targets
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return PrecisionCheck("auto", "fp32")  # which takes less: no second set of weights

    @staticmethod
    def _head(prepared: PreparedStudy) -> Bool[np.ndarray, "n h w"]:
        return prepared.frame.apply(prepared.foreground.astype(np.float32)) > 0.5

    def _computes(self, precision: Precision) -> Engine:
        """The engine for a precision, made when it is first needed."""
        if precision not in self._engines:
            self._engines[precision] = choose_engine(self.model, self.engine, device=self.device, precision=precision)
        return self._engines[precision]

    @torch.inference_mode()
    def _forward(
        self, slices: Float[Tensor, "b m h w"], given: tuple[Modality, ...]
    ) -> tuple[Float[Tensor, "b m h w"], Float[Tensor, "b h w"] | None]:
        """Completed slices and doubt, on the CPU."""
        present = torch.tensor(self.modalities.pattern(given)).expand(len(slices), -1)
        completed, grades = self._computes(self.check.used)(slices, present)
        if not torch.isfinite(completed).all():
            raise refusal("CKPT_NONFINITE", "the model computed values that are not finite", file=self.model.name)
        height, width = slices.shape[-2:]
        return completed.float().cpu(), code_doubt(grades, (height, width)).cpu() if grades else None


_BYTES_A_SLICE = 2**28
"""What one more slice at a time may take: 256 x 256 pixels in a CodeBrain of the paper's size."""


def slices_that_fit(wanted: int, device: torch.device) -> int:
    """How many slices a CPU may compute at the same time with half of the memory that is left; at least one."""
    have = available_memory() if device.type == "cpu" else None
    return wanted if have is None else max(1, min(wanted, have // 2 // _BYTES_A_SLICE))


def restore(prepared: PreparedStudy, stack: Stack) -> Image:
    """A stack of slices on the reference grid ``(i, j, k)``, zero outside the head."""
    data = prepared.frame.undo(stack)
    return np.where(prepared.foreground, data, np.float32(0)).astype(np.float32, copy=False)


def restore_all(prepared: PreparedStudy, stacks: Mapping[Modality, Stack]) -> dict[Modality, Image]:
    """Every stack as :func:`restore` does it."""
    return dict(zip(stacks, in_threads(lambda stack: restore(prepared, stack), stacks.values()), strict=True))


def native_spaces(
    asked: Iterable[Modality], study: Study, prepared: PreparedStudy, truth: AlignmentRecord | None
) -> tuple[NativeSpace, ...]:
    """The grids of the contrasts that were asked for; ``truth`` says where those of withheld ones are."""
    moved = {**prepared.alignment.moved, **(truth.moved if truth is not None else {})}
    return tuple(NativeSpace.of(m, study.volumes[m], prepared, moved) for m in asked)


def in_native_space(
    space: NativeSpace, on_reference: Mapping[Modality, ImputedContrast], stacks: Mapping[Modality, Stack],
    doubt: Stack | None, facts: RunFacts, scales: Mapping[Modality, IntensityScale],
) -> dict[Modality, ImputedContrast]:  # fmt: skip
    """What was imputed on the grid of one of the given contrasts."""
    unsure = next((contrast.doubt for contrast in on_reference.values()), None)
    doubt_image = None if doubt is None or unsure is None else space.sample(doubt, unsure)
    return {
        m: ImputedContrast(
            m,
            space.sample(stacks[m] * np.float32(scales[m].value_at_one), contrast.data),
            doubt_image,
            space.grid,
            facts.sidecar(m, scales[m], space),
            sources=contrast.sources,
            space=space.modality,
        )
        for m, contrast in on_reference.items()
    }


def intensity_scale(
    modality: Modality, training_medians: Mapping[str, float], unit: Literal["scanner", "unit"]
) -> IntensityScale:
    """What the network's 1 becomes; an absent contrast has no observed range, so training lends its own."""
    if unit == "unit":
        return IntensityScale("unit", 1.0, "asked for")
    if modality not in training_medians:
        return IntensityScale("unit", 1.0, "the model records no training median for this contrast")
    return IntensityScale("scanner", float(training_medians[modality]), "median over the training scans")


@dataclass(frozen=True)
class Truth:
    """The withheld contrasts of an evaluation; they meet the given ones only here, after the imputation.

    Attributes:
        images: in [0, 1] on the reference grid.
        alignment: how they came onto it; None without withheld contrasts.
    """

    images: Mapping[Modality, Image]
    alignment: AlignmentRecord | None = None

    @classmethod
    def of(cls, study: Study, plan: Plan, prepared: PreparedStudy) -> Truth:
        """The plan's withheld contrasts, prepared as the given ones were."""
        if not plan.withheld:
            return cls({})
        home = {prepared.reference_modality: prepared.reference}
        together = Study(study.name, home | {m: study.volumes[m] for m in plan.withheld})
        aligned, alignment = align_study(together, mode="auto", reference=prepared.reference_modality)
        return cls({m: _unit(prepared, aligned.volumes[m].data) for m in plan.withheld}, alignment)


def _unit(prepared: PreparedStudy, data: Image) -> Image:
    """A scan in [0, 1] as :func:`codebrain.imaging.prepared.prepare_study` makes it."""
    mask, how = foreground_mask(data), prepared.preparation
    return to_unit(how, fit_normalisation(how, data, mask), data, mask)


def score_rows(
    modality: Modality, imputed: Stack, truth: Image, frame: Frame, *, head: Bool[np.ndarray, "i j k"]
) -> list[dict[str, Any]]:
    """Mean over slices of each metric, in [0, 1] with data range 1, background put back around the head.

    Slices with less than one per cent of head in them, which any image would get right, do not count.
    """
    share = (frame.apply(head.astype(np.float32)) > 0.5).mean(axis=(1, 2))
    kept = share >= LEAST_FOREGROUND
    pair = [torch.from_numpy(_uncut(stack[kept], frame)) for stack in (imputed, frame.apply(truth))]
    starts = range(0, len(pair[0]), _SCORED_AT_ONCE)
    parts = [[stack[start : start + _SCORED_AT_ONCE] for stack in pair] for start in starts]
    means = {name: torch.cat([metric(*part) for part in parts]).mean().item() for name, metric in _METRICS.items()}
    return [
        {"contrast": str(modality), "metric": name, "value": value, "slices": int(kept.sum())}
        for name, value in means.items()
    ]


def _uncut(stack: Stack, frame: Frame) -> Stack:
    """Slices in their full in-plane frame, as the published scores are computed."""
    (top, left), (_, height, width) = frame.offset, stack.shape
    full = np.zeros((len(stack), *frame.full_slice), np.float32)
    full[:, top : top + height, left : left + width] = stack
    return full
