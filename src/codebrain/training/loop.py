"""One loop for every model and stage.

Gradients are averaged over processes by hand, in one flat bucket per player, instead of wrapping players for
distributed training: the players of a step share one forward graph, which such wrappers do not see.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codebrain import metrics
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError, EnvironmentRefused, refusal
from codebrain.faults import fault
from codebrain.imaging import safe_files
from codebrain.machine import keep_freed_memory
from codebrain.models import build_model, save_model
from codebrain.models._contract import ImputationModel
from codebrain.nn.batch import Batch
from codebrain.nn.pooling import over_processes
from codebrain.training.ahead import Take, ahead
from codebrain.training.batches import TrainingBatches, chance, leave_one_out, stacks
from codebrain.training.checkpoint import Checkpoint, Checkpoints
from codebrain.training.config import OptimiserConfig, StageConfig, TrainConfig
from codebrain.training.log import RunLog
from codebrain.training.mishaps import naming_the_batch, verify_store
from codebrain.training.optimisers import make_optimiser
from codebrain.training.process import Stop, own_folder, start_fabric
from codebrain.training.resume import refuse_changes, refuse_other_weights, restore_optimiser
from codebrain.training.step import Place, compile_blocks, take_step
from codebrain.vocabulary import ModalitySet

_log = logging.getLogger(__name__)

_MOST_FAILURES = 3
"""Checkpoints that fail one after another before the run stops."""

Advance = Callable[[int, int, str], None]


@dataclass
class Position:
    """How far a run is; all that a checkpoint says besides tensors.

    Attributes:
        stage: number of the stage under way; the count of stages when all are done.
        step: optimiser steps done in it.
        best: highest validation PSNR of the stage in dB, and the step it was reached at.
        scores: best validation PSNR of finished stages.
        total: steps done in all stages and one for every finished stage, the checkpoint's name.
        judged: step of the last validation; a signal may come in the middle of one, which is then repeated.
        left_out: training subjects whose files were found damaged on the way, so that later steps were without them.
    """

    stage: int = 0
    step: int = 0
    judged: int = 0
    best: float | None = None
    best_step: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    total: int = 0
    left_out: list[str] = field(default_factory=list)


def train(
    config: TrainConfig,
    store: SliceStore,
    run: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    accept_changes: bool = False,
    verify: bool = True,
    progress: Advance | None = None,
) -> Path:
    """Train every stage of a model and write its folder.

    Args:
        config: what to train.
        store: prepared slices.
        run: folder for configuration, log, checkpoints and ``model/``.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        resume: go on from the newest checkpoint of ``run``.
        accept_changes: resume although configuration or data changed.
        verify: read the whole store first and compare its hashes.
        progress: told (steps done, steps in all, a note).

    Returns:
        The model folder.

    Raises:
        TrainingDiverged: a loss or gradient was not finite; nothing was updated with it.
        ModelRefused: ``CKPT_NONE`` nothing to resume, ``CKPT_MISMATCH`` other configuration or data.
        InputRefused: ``DATA_CORRUPT`` when the store is not what was written, or too much of it is not any more.
        EnvironmentRefused: ``OUT_EXISTS``, ``OUT_SPACE``, ``LOCKED``, ``ENV_EXTRA``, ``ENV_GPU``; ``ENV_MEMORY``
            naming the batch.
    """
    fabric = start_fabric(config, device)
    keep_freed_memory()
    with own_folder(run, fabric, resume=resume):
        trainer = _Trainer(config, store, run, fabric, progress)
        try:
            trainer.restore(resume=resume, accept_changes=accept_changes)
            if verify and not trainer.finished:
                verify_store(store)
            world = over_processes(lambda sums: fabric.all_reduce(sums, reduce_op="sum"), fabric.world_size)
            with Stop() as stop, world:
                trainer.run_stages(stop)
            return trainer.export()
        finally:
            trainer.close()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


class _Trainer:
    def __init__(
        self, config: TrainConfig, store: SliceStore, run: Path, fabric: Any, progress: Advance | None
    ) -> None:
        self.config, self.store, self.run, self.fabric = config, store, run, fabric
        self.modalities = ModalitySet.parse(config.modalities or list(store.preparation.modalities))
        torch.manual_seed(config.seed)
        self.model = build_model(config.model, self.modalities, config.settings).to(fabric.device)
        if config.compile:
            compile_blocks(self.model)
        refuse_unknown_stages(config, self.model)
        _refuse_bad_crops(config, store)
        self.batches = [self._batches(number) for number in range(len(self.model.stages))]
        self.length = [
            b.steps if self.model.players(stage) else 0
            for stage, b in zip(self.model.stages, self.batches, strict=True)
        ]
        self.position = Position()
        self.checkpoints = Checkpoints(run / "checkpoints", owner=fabric.is_global_zero)
        self.log = RunLog(run) if fabric.is_global_zero else None
        self.progress = progress
        self._saved_at = time.monotonic()
        self._failures = 0

    # --- stages ---

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return self.position.stage == len(self.model.stages)

    def run_stages(self, stop: Stop) -> None:
        """Every stage that is not done yet."""
        if self.finished:
            _log.info("this run is finished")
        if self.log is not None:
            self.log.start()
        while not self.finished:
            stage = self.model.stages[self.position.stage]
            fault("stage.start")
            if self.model.players(stage):
                self._run_stage(stage, stop)
            else:
                self.model.fit(self.batches[self.position.stage].whole())
            self._end_stage(stage)

    def _run_stage(self, stage: str, stop: Stop) -> None:
        number = self.position.stage
        batches, steps = self.batches[number], self.length[number]
        players = self.model.players(stage)
        optimisers = self._optimisers(stage, players)
        with ahead(batches, self.position.step, steps) as following:
            self._run_steps(stage, stop, following, players, optimisers)

    def _run_steps(
        self,
        stage: str,
        stop: Stop,
        following: Take,
        players: Mapping[str, nn.Module],
        optimisers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        number, settings = self.position.stage, self._settings(stage)
        batches, steps = self.batches[number], self.length[number]
        while self.position.step < steps or self._unjudged(settings, steps):
            if not self._unjudged(settings, steps):
                step = self.position.step
                with naming_the_batch(stage, step, batches.ids):
                    record = self._step(stage, settings, players, optimisers, following(), steps)
                record |= self._leave_out(batches)
                fault("step.before_counter")
                self.position.step, self.position.total = step + 1, self.position.total + 1
                self._write_log({"stage": stage, "step": step + 1, **record})
                self._tell(stage, record)
                if (step + 1) * settings.batch_size % batches.slices < settings.batch_size:
                    fault("epoch.end")
            if self._unjudged(settings, steps):
                self._validate(stage, stop)
            stopping = self._anyone(stop.number)
            if stopping or self._due(self.position.step == steps):
                self._save(optimisers)
                stop.obey(stopping)

    def _leave_out(self, batches: TrainingBatches) -> dict[str, float]:
        """What the log says about slices that are left out; nothing while all are well."""
        if not self.store.damaged:
            return {}
        self.position.left_out = sorted({*self.position.left_out, *self.store.damaged})
        return {"slices_left_out": float(len(batches.left_out))}

    def _unjudged(self, settings: StageConfig, steps: int) -> bool:
        """Whether a validation is due after the steps done so far."""
        step = self.position.step
        return step > self.position.judged and (step % settings.validate_every == 0 or step == steps)

    def _step(
        self,
        stage: str,
        settings: StageConfig,
        players: Mapping[str, nn.Module],
        optimisers: Mapping[str, torch.optim.Optimizer],
        batch: Batch,
        steps: int,
    ) -> dict[str, float]:
        """One optimiser step of every player; nothing is updated with a number that is not finite."""
        step = self.position.step
        if fault("step.after_fetch"):
            batch = replace(batch, images=batch.images * math.nan)
        _, generator = chance(self.config.seed, self.position.stage, step, self.fabric.global_rank, 1)
        torch.manual_seed(generator.initial_seed())  # models with dropout draw from the global generator
        self.model.train()
        record = take_step(
            self.model, batch, optimisers, Place(stage, settings, step, steps), fabric=self.fabric, generator=generator
        )
        for name in players:
            self._refuse_nonfinite(record, stage=stage, player=name, ids=batch.ids)
        fault("step.after_players")
        return record

    def _refuse_nonfinite(self, record: Mapping[str, float], *, stage: str, player: str, ids: tuple[str, ...]) -> None:
        loss, norm = record.get(player, 0.0), record.get(f"{player} gradient", 0.0)
        if math.isfinite(norm) and math.isfinite(loss):
            return
        raise refusal(
            "DIVERGED",
            f"stage {stage}, step {self.position.step + 1}: the {player}'s loss or gradient is not finite; "
            f"nothing was updated with it. The batch was {', '.join(ids)}",
            found=f"loss {loss:g}, gradient norm {norm:g}",
            hint="Look at these slices, or lower the learning rate; --resume goes on from the last checkpoint.",
        )

    def _validate(self, stage: str, stop: Stop) -> None:
        """Mean PSNR over slices, leave-one-out patterns and absent contrasts; the best weights are kept.

        A signal breaks it off, because it can take longer than the half minute that a cluster leaves us; the
        validation is then due again on resuming.
        """
        score = math.nan
        if self.log is not None and self.store.counts()["val"]:
            score = self._score(stage, stop)
        score, broken = self.fabric.broadcast((score, self.log is not None and bool(stop.number)))
        if broken:
            return
        if math.isfinite(score) and (self.position.best is None or score > self.position.best):
            fault("best.update")
            name = _best_name(stage, self.position.step)
            if not self.fabric.broadcast(self.log is not None and self._commit(name, {}, lambda: {"psnr": score})):
                return  # due again at once: without these weights the run would end in others
            self.position.best, self.position.best_step = score, self.position.step
        self.position.judged = self.position.step
        if math.isfinite(score):
            self._write_log({"stage": stage, "step": self.position.step, "validation_psnr": score})
            _log.info("%s, step %d: validation %.2f dB", stage, self.position.step, score)

    def _score(self, stage: str, stop: Stop) -> float:
        score = validation_psnr(
            self.model.eval(), self.store, stage=stage, most=self.config.validation_slices,
            device=self.fabric.device, stopping=lambda: bool(stop.number),
        )  # fmt: skip
        if not math.isfinite(score) and not stop.number:
            _log.warning("%s, step %d: the validation score is not a number", stage, self.position.step)
        return score

    def _end_stage(self, stage: str) -> None:
        """Go on with the best weights of the stage, if validation chose some, and commit that."""
        self._refuse_drift(stage)
        if self.position.best is not None:
            self.fabric.barrier()
            self._take_best(stage, self.position.best)
        elif self.model.players(stage):
            _log.info("%s: nothing to validate with, so the last step is the result", stage)
        before = self.position
        self.position = Position(
            before.stage + 1, scores=before.scores, total=before.total + 1, left_out=before.left_out
        )
        self._save({})
        self.fabric.barrier()

    def _refuse_drift(self, stage: str) -> None:
        """Processes start from one seed and apply one gradient, so they must hold the same weights, bit for bit."""
        if self.fabric.world_size == 1:
            return
        mark = torch.tensor(int(fingerprint(self.model)[:12], 16), device=self.fabric.device)
        if self.fabric.all_reduce(mark.clone(), reduce_op="max") != -self.fabric.all_reduce(-mark, reduce_op="max"):
            raise refusal("DIVERGED", f"the processes hold different weights after stage {stage}",
                          hint="Start them on equal hardware with equal versions of torch.")  # fmt: skip

    def _take_best(self, stage: str, score: float) -> None:
        try:
            best = self.checkpoints.read(self.checkpoints.folder / _best_name(stage, self.position.best_step))
        except CodeBrainError as error:
            _log.warning("%s: the best weights are lost, so the last step is the result: %s", stage, error)
            return
        self.model.load_state_dict(best.model)
        self.position.scores[stage] = score
        _log.info("%s: the best weights are those of step %d, %.2f dB", stage, self.position.best_step, score)

    # --- state ---

    def restore(self, *, resume: bool, accept_changes: bool) -> None:
        """Start, or go on where the newest good checkpoint was written."""
        self._resumed: Checkpoint | None = None
        if not resume:
            self._begin()
            return
        found = self.checkpoints.latest()
        if found is None:
            raise refusal(
                "CKPT_NONE",
                "there is no checkpoint to resume from",
                file=self.run,
                hint="Leave out --resume to start.",
            )
        refuse_changes(found, self._hashes(), accept=accept_changes)
        refuse_other_weights(found, self.model)
        self.model.load_state_dict(found.model)
        self.position = Position(**found.state["position"])
        if self.log is not None:
            self.log.cut(found.state["log_bytes"], total=self.position.total)
            safe_files.write_text(self.run / "config.yaml", self.config.to_yaml())
        self._resumed = found
        _log.info("resuming from %s, the newest checkpoint that verifies", found.path.name)

    def _begin(self) -> None:
        """Write the configuration and a checkpoint of step 0, so that there is always one to resume from."""
        if self.log is not None:
            safe_files.write_text(self.run / "config.yaml", self.config.to_yaml())
            self.log.cut(0, total=0)
        self._save({})

    def _save(self, optimisers: Mapping[str, torch.optim.Optimizer]) -> None:
        self._saved_at = time.monotonic()
        if self.log is None:
            return
        optim = {
            f"{player}/{index}/{quantity}": value
            for player, optimiser in optimisers.items()
            for index, quantities in optimiser.state_dict()["state"].items()
            for quantity, value in quantities.items()
        }
        self._refuse_nonfinite_weights()
        log = self.log
        if self._commit(
            f"step-{self.position.total:09d}",
            optim,
            lambda: {"position": vars(self.position), "log_bytes": log.commit(), **self._hashes()},
        ):
            self._prune_best()

    def _commit(self, name: str, optim: Mapping[str, Tensor], state: Callable[[], Mapping[str, Any]]) -> bool:
        """Write a checkpoint; a full disk is survived three times while an older one stands."""
        try:
            self.checkpoints.commit(name, self.model.state_dict(), optim, state())
        except EnvironmentRefused as error:
            self._failures += 1
            if not self.checkpoints.paths() or self._failures == _MOST_FAILURES:
                raise
            _log.warning("%s; going on, the older checkpoint is kept", error)
            return False
        self._failures = 0
        return True

    def _refuse_nonfinite_weights(self) -> None:
        """A finite gradient can still throw weights out of range; such weights must not displace good ones."""
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise refusal(
                    "DIVERGED", f"the weights {name} are not finite after step {self.position.total}",
                    hint="Lower the learning rate; --resume goes on from the last checkpoint.",
                )  # fmt: skip

    def _prune_best(self) -> None:
        """Remove best weights that no checkpoint refers to any more."""
        kept = set()
        for path in self.checkpoints.paths():
            position = self.checkpoints.position(path)
            if position is None:
                return
            stage = self.model.stages[min(position["stage"], len(self.model.stages) - 1)]
            kept.add(_best_name(stage, position["best_step"]))
        for path in self.checkpoints.folder.glob("best-*"):
            if path.name not in kept:
                shutil.rmtree(path)

    def _optimisers(self, stage: str, players: Mapping[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        made = {
            name: make_optimiser(
                [p for p in module.parameters() if p.requires_grad], self._optimiser_config(stage, name)
            )
            for name, module in players.items()
        }
        if self._resumed is not None and self._resumed.optim:
            for name, optimiser in made.items():
                restore_optimiser(optimiser, name, self._resumed.optim)
        self._resumed = None
        return made

    def export(self) -> Path:
        """Write the model folder of a finished run."""
        folder = self.run / "model"
        if self.fabric.is_global_zero:
            fault("stage.export")
            preparation = self.store.preparation
            if tuple(preparation.modalities) != tuple(self.modalities):
                preparation = replace(preparation, modalities=self.modalities)
            facts = {"validation_psnr_db": self.position.scores, "data_fingerprint": self.store.fingerprint}
            if self.position.left_out:
                facts["subjects_left_out"] = self.position.left_out
            save_model(self.model.eval(), folder, preparation=preparation, metrics=facts, card=self._card())
        return folder

    def _card(self) -> str:
        patients = sorted({self.store.patient(name) for name in self.store.subjects("train")})
        scores = ", ".join(f"{stage} {score:.2f} dB" for stage, score in self.position.scores.items())
        return (
            f"# {self.model.label or self.config.model}\n\nContrasts, in channel order: {self.modalities}.\n\n"
            f"Trained on {len(patients)} patients: {', '.join(patients[:20])}{' ...' if len(patients) > 20 else ''}.\n"
            f"{_without(self.position.left_out)}"
            f"Validation PSNR (leave-one-out patterns): {scores or 'no validation patients'}.\n\n"
            "Research use only; not a medical device. Output images are SYNTHETIC.\n\n"
            f"Settings:\n\n```yaml\n{self.config.to_yaml()}```\n"
        )

    # --- small things ---

    def _batches(self, number: int) -> TrainingBatches:
        stage = self._settings(self.model.stages[number])
        rank, world = self.fabric.global_rank, self.fabric.world_size
        return TrainingBatches(self.store, self.config, stage, number, self.modalities, rank, world, self.fabric.device)

    def _settings(self, stage: str) -> StageConfig:
        return self.config.stages.get(stage, StageConfig())

    def _optimiser_config(self, stage: str, player: str) -> OptimiserConfig:
        return self._settings(stage).optimisers.get(player, OptimiserConfig())

    def _hashes(self) -> dict[str, Any]:
        return {"config": json.loads(json.dumps(vars_of(self.config))), "data": self.store.fingerprint}

    def _due(self, last: bool) -> bool:
        minutes = (time.monotonic() - self._saved_at) / 60
        return (
            last or self.position.step % self.config.checkpoint_steps == 0 or minutes >= self.config.checkpoint_minutes
        )

    def _anyone(self, number: int) -> int:
        """The signal that any process of the run was sent; all must stop after the same step."""
        if self.fabric.world_size == 1:
            return number
        return int(self.fabric.all_reduce(torch.tensor(number), reduce_op="max"))

    def _write_log(self, record: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.write(record, total=self.position.total)

    def _tell(self, stage: str, record: Mapping[str, float]) -> None:
        if self.progress is not None and self.fabric.is_global_zero:
            shown = record.get("psnr_absent", record.get("accuracy"))
            done = sum(self.length[: self.position.stage]) + self.position.step
            self.progress(done, sum(self.length), stage if shown is None else f"{stage} {shown:.2f}")

    def close(self) -> None:
        """Let go of the log."""
        if self.log is not None:
            self.log.close()


@torch.no_grad()
def validation_psnr(
    model: ImputationModel,
    store: SliceStore,
    *,
    stage: str,
    most: int | None = None,
    device: Any = "cpu",
    stopping: Callable[[], bool] = lambda: False,
) -> float:
    """Mean PSNR in dB of absent contrasts over validation slices and their leave-one-out patterns.

    NaN when no validation subject has two of the model's contrasts, or when ``stopping`` says to break off.
    """
    scores = []
    for images, available, ids in stacks(store, "val", model.modalities, most=most):
        for present in leave_one_out(available):
            batch = Batch(images.to(device), available.to(device), present.to(device), ids)
            if stopping():
                return math.nan
            completed = model.validate(batch, stage=stage).clamp(0, 1)
            scores.append(metrics.psnr(completed, batch.images)[batch.absent].cpu())
            fault("val.mid")
    return float(torch.cat(scores).mean()) if scores else math.nan


def _without(subjects: Sequence[str]) -> str:
    names = ", ".join(subjects)
    return f"Left out from some step on, because their files were damaged meanwhile: {names}.\n" if subjects else ""


def _best_name(stage: str, step: int) -> str:
    return f"best-{stage}-{step:09d}"


def vars_of(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain data."""
    import yaml

    plain: dict[str, Any] = yaml.safe_load(config.to_yaml())
    return plain


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over all weights; equal for bitwise equal models."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def refuse_unknown_stages(config: TrainConfig, model: ImputationModel) -> None:
    """``CONFIG`` when the configuration names a stage or player that the model has not."""
    for name, stage in config.stages.items():
        known = set(model.players(name)) if name in model.stages else set()
        stray = sorted(set(stage.optimisers) - known) if name in model.stages else [name]
        if stray:
            raise refusal(
                "CONFIG", f"{config.model} has no {stray[0]!r}", field=f"stages.{name}",
                expected=", ".join(sorted(known) or model.stages),
            )  # fmt: skip


def _refuse_bad_crops(config: TrainConfig, store: SliceStore) -> None:
    multiple = store.preparation.multiple
    for name, stage in config.stages.items():
        if stage.crop is not None and stage.crop % multiple:
            raise refusal("CONFIG", f"crops must be a multiple of {multiple}, as the slices are",
                          field=f"stages.{name}.crop", found=stage.crop)  # fmt: skip
