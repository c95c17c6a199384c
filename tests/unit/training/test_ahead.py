"""Batches made ahead are the batches that were asked for, and what befalls their thread is said."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from codebrain.errors import CodeBrainError
from codebrain.nn.batch import Batch
from codebrain.training import ahead as module
from codebrain.training.ahead import ahead
from codebrain.training.batches import TrainingBatches
from codebrain.training.config import StageConfig, TrainConfig
from codebrain.vocabulary import ModalitySet
from fabricated import fabricate_store


@pytest.fixture
def batches(tmp_path: Path) -> TrainingBatches:
    store = fabricate_store(tmp_path, 4, val=["s00"], test=["s01"])
    config = TrainConfig(model="codebrain", augmentation="light")
    return TrainingBatches(store, config, StageConfig(steps=9, batch_size=2, crop=16), 0, ModalitySet.parse("T1,T2"))


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "next-batch"]


def test_they_come_in_order_and_alike(batches: TrainingBatches) -> None:
    with ahead(batches, 3, 9) as take:
        for step in range(3, 9):
            made, wanted = take(), batches.batch(step)
            assert made.ids == wanted.ids and torch.equal(made.images, wanted.images)
            assert torch.equal(made.present, wanted.present)
    assert not ours()


def test_it_ends_though_nobody_takes(batches: TrainingBatches) -> None:
    with ahead(batches, 0, 9):
        time.sleep(0.05)
        assert ours()
    assert not ours()


def test_what_goes_wrong_is_raised_where_it_is_taken(batches: TrainingBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TrainingBatches.batch

    def broken(self: TrainingBatches, step: int) -> object:
        if step == 1:
            raise MemoryError("not enough")
        return whole(self, step)

    monkeypatch.setattr(TrainingBatches, "batch", broken)
    with pytest.raises(MemoryError), ahead(batches, 0, 9) as take:
        assert take().ids
        take()
    assert not ours()


@pytest.mark.row("F10")
def test_a_disk_that_hangs_is_named_with_the_samples(batches: TrainingBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    monkeypatch.setattr(TrainingBatches, "batch", lambda self, step: gone.wait(30))
    with pytest.raises(CodeBrainError) as caught, ahead(batches, 4, 9) as take:
        take()
    gone.set()
    assert (caught.value.code, caught.value.exit_code) == ("ENV_TIMEOUT", 4)
    assert "step 5" in str(caught.value) and all(name in str(caught.value) for name in batches.ids(4))


def test_a_batch_takes_a_minute_at_most() -> None:
    assert module.PATIENCE_S < 60


def test_a_gpu_waits_for_a_batch_before_it_reads_and_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    done, kept, told = object(), [], []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append((tensor, stream)))
    stream = SimpleNamespace(wait_event=lambda event: told.append((event, len(kept))))
    batch = Batch(torch.rand(1, 2, 8, 8), torch.ones(1, 2).bool(), torch.zeros(1, 2).bool(), ("a/1",))
    module._take_over(batch, done, stream)
    assert told == [(done, 0)]
    assert [id(tensor) for tensor, _ in kept] == [id(batch.images), id(batch.available), id(batch.present)]
    assert all(where is stream for _, where in kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_they_are_those_of_the_cpu(batches: TrainingBatches) -> None:
    plain = replace(batches, config=TrainConfig(model="codebrain", augmentation="flips"))
    with ahead(replace(plain, device="cuda"), 0, 9) as take:
        for step in range(9):
            made, wanted = take(), plain.batch(step)
            assert made.images.is_cuda and torch.equal(made.images.cpu(), wanted.images)
            assert torch.equal(made.present.cpu(), wanted.present)
