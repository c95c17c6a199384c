"""Data that are damaged while a run goes on, and memory that runs out in a step; in one process, without workers."""

from __future__ import annotations

import json
import logging
import multiprocessing.process
import multiprocessing.shared_memory
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError
from codebrain.training import loop
from codebrain.training.batches import TrainingBatches
from codebrain.training.config import StageConfig, TrainConfig
from codebrain.training.mishaps import naming_the_batch
from codebrain.vocabulary import ModalitySet
from fabricated import fabricate_store
from toy import build_toy

SUBJECTS = 130
"""Of 128 to train with, one is less than 1 % and two are more."""

EPOCH = 32
"""Steps of 16 in 128 x 4 slices."""


@pytest.fixture
def store(tmp_path: Path) -> SliceStore:
    subjects = {f"s{n:03d}": (True, True) for n in range(SUBJECTS)}
    return fabricate_store(tmp_path / "store", subjects, modalities="T1,T2", shape=(5, 16, 16),
                           val=["s000"], test=["s001"])  # fmt: skip


def config(epochs: int = 3) -> TrainConfig:
    stages = {name: StageConfig(epochs=n, batch_size=16) for name, n in (("reconstruction", epochs), ("grading", 1))}
    return TrainConfig(model="toy", stages=stages, augmentation="flips", checkpoint_steps=10_000)


def batches(store: SliceStore, sampling: str = "slices") -> TrainingBatches:
    stage = StageConfig(epochs=3, batch_size=16, crop=8)
    settings = TrainConfig(model="toy", augmentation="flips", sampling=sampling)
    return TrainingBatches(store, settings, stage, 0, ModalitySet.parse("T1,T2"))


def spoil(store: SliceStore, subject: str, how: str = "edited") -> None:
    path = store.root / "slices" / f"{subject}.npy"
    if how == "vanished":
        path.unlink()
    elif how == "cut":
        os.truncate(path, 300)
    else:
        content = bytearray(path.read_bytes())
        content[-40] ^= 1
        path.write_bytes(content)


@pytest.mark.row("F11")
@pytest.mark.parametrize("sampling", ["slices", "subjects"])
@pytest.mark.parametrize("how", ["edited", "cut", "vanished"])
def test_a_damaged_subject_is_left_out_and_nothing_else_changes(
    store: SliceStore, how: str, sampling: str, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = batches(store, sampling)
    before = [(drawn.batch(step), drawn.picks(step)) for step in range(EPOCH)]
    store = SliceStore.open(store.root)
    spoil(store, "s007", how)
    drawn = batches(store, sampling)
    with caplog.at_level(logging.WARNING):
        after = [drawn.batch(step) for step in range(EPOCH)]
    number = store.names.index("s007")
    assert any(number in picks[:, 0] for _, picks in before), "the damaged one was never drawn"
    for (old, picks), new in zip(before, after, strict=True):
        assert len(new.ids) == 16 and not any(name.startswith("s007/") for name in new.ids)
        if number not in picks[:, 0]:
            assert torch.equal(old.images, new.images) and torch.equal(old.present, new.present)
    assert drawn.left_out == [f"s007/{z}" for z in range(1, 5)]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("s007.npy: ") and "now 4 of 512 training slices" in line


@pytest.mark.row("F11")
def test_more_than_one_percent_stops(store: SliceStore) -> None:
    drawn = batches(store)
    spoil(store, "s007", "cut"), spoil(store, "s008", "vanished")
    with pytest.raises(CodeBrainError) as caught:
        [drawn.batch(step) for step in range(EPOCH)]
    assert (caught.value.code, caught.value.exit_code, caught.value.found) == ("DATA_CORRUPT", 3, "8 of 512")
    assert "s007/1, s007/2" in str(caught.value) and "s008/4" in str(caught.value)
    assert "prepare" in str(caught.value) and "--resume" in str(caught.value)


def train(store: SliceStore, run: Path, monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], object], **options):
    monkeypatch.setattr(loop, "build_model", build_toy)
    steps = iter(range(1, 1_000_000))
    return loop.train(config(), store, run, device="cpu", **options,
                      progress=lambda done, total, note: next(steps) == at and act())  # fmt: skip


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.row("F10", "F11")
def test_data_edited_in_the_third_epoch(store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on and says so everywhere; it does without worker processes and shared memory."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("training needs no other process and no shared memory")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    monkeypatch.setattr(multiprocessing.shared_memory.SharedMemory, "__init__", refuse)
    model = train(store, tmp_path / "run", monkeypatch, 2 * EPOCH + 1, lambda: spoil(store, "s007"))
    steps = [line for line in logged(tmp_path / "run") if "validation_psnr" not in line]
    assert [(line["stage"], line["step"]) for line in steps] == [
        *(("reconstruction", n) for n in range(1, 3 * EPOCH + 1)), *(("grading", n) for n in range(1, EPOCH + 1))
    ]  # fmt: skip
    counts = [line.get("slices_left_out") for line in steps]
    found = counts.index(4.0)
    assert 2 * EPOCH < found < 3 * EPOCH and counts == [None] * found + [4.0] * (len(counts) - found)
    assert json.loads((model / "metrics.json").read_text())["subjects_left_out"] == ["s007"]
    assert "s007.\n" in (model / "MODEL_CARD.md").read_text()


@pytest.mark.row("F11")
def test_a_run_that_lost_too_much_is_taken_up_when_the_store_is_mended(
    store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(store, tmp_path / "whole", monkeypatch, 0, lambda: None)
    paths = [store.root / "slices" / f"s{n:03d}.npy" for n in range(2, 12)]
    good = {path: path.read_bytes() for path in paths}
    with pytest.raises(CodeBrainError) as caught:
        train(SliceStore.open(store.root), tmp_path / "run", monkeypatch, 5,
              lambda: [spoil(store, path.stem, "cut") for path in paths])  # fmt: skip
    assert caught.value.code == "DATA_CORRUPT"
    for path in paths:
        path.write_bytes(good[path])
    model = train(SliceStore.open(store.root), tmp_path / "run", monkeypatch, 0, lambda: None, resume=True)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, model)]
    assert weights[0] == weights[1]


@pytest.mark.row("F11")
def test_data_edited_before_the_start(store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(store, "s129")
    with pytest.raises(CodeBrainError, match=r"s129\.npy") as caught:
        train(SliceStore.open(store.root), tmp_path / "run", monkeypatch, 0, lambda: None)
    assert caught.value.code == "DATA_CORRUPT"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.row("F11")
def test_damaged_validation_data_stop(store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores over other slices could not be compared, so nothing is left out there."""
    with pytest.raises(CodeBrainError, match=r"s000\.npy") as caught:
        train(store, tmp_path / "run", monkeypatch, 1, lambda: spoil(store, "s000", "cut"))
    assert caught.value.code == "DATA_CORRUPT"


@pytest.mark.row("F10")
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_runs_out_names_the_batch(error: Exception) -> None:
    with pytest.raises(CodeBrainError) as caught, naming_the_batch("grading", 41, lambda step: [f"s1/{step}", "s2/7"]):
        raise error
    assert (caught.value.code, caught.value.exit_code) == ("ENV_MEMORY", 4)
    assert "stage grading, step 42" in str(caught.value) and "s1/41, s2/7" in str(caught.value)
    assert "--set stages.grading.batch_size" in str(caught.value)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), naming_the_batch("grading", 0, lambda step: []):
        raise RuntimeError("shapes differ")
