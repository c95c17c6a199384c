from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from codebrain.errors import UsageError
from codebrain.training.batches import TrainingBatches, in_unit, leave_one_out, moved
from codebrain.training.config import StageConfig, TrainConfig
from codebrain.vocabulary import ModalitySet
from fabricated import fabricate_store


def batches(root: Path, rank: int = 0, world: int = 1, **config: object) -> TrainingBatches:
    subjects = {"a": (True,) * 3, "b": (True, True, False), "c": (True,) * 3, "v": (True,) * 3, "t": (True,) * 3}
    store = fabricate_store(root, subjects, val=["v"], test=["t"])
    stage = StageConfig(epochs=2, batch_size=4, crop=16)
    settings = TrainConfig(model="codebrain", augmentation="flips", **config)
    return TrainingBatches(store, settings, stage, 0, ModalitySet.parse("T2,T1,FLAIR"), rank, world)


def test_every_slice_comes_once_per_epoch(tmp_path: Path) -> None:
    drawn = batches(tmp_path)
    count = Counter(tuple(pick) for step in range(drawn.steps) for pick in drawn.picks(step))
    assert drawn.slices == 12 and drawn.steps == 6
    assert set(count.values()) == {2} and len(count) == 12


def test_a_step_is_the_same_whenever_it_is_asked_for(tmp_path: Path) -> None:
    drawn = batches(tmp_path)
    later, again = drawn.batch(3), batches(tmp_path).batch(3)
    assert torch.equal(later.images, again.images) and torch.equal(later.present, again.present)
    assert not torch.equal(drawn.batch(2).images, later.images)


def test_processes_share_a_batch_without_overlap(tmp_path: Path) -> None:
    whole = [tuple(pick) for pick in batches(tmp_path).picks(1)]
    parts = [tuple(p) for rank in range(2) for p in batches(tmp_path, rank, 2).picks(1)]
    assert parts == whole


def test_channels_follow_the_model_and_gaps_stay_gaps(tmp_path: Path) -> None:
    drawn = batches(tmp_path)
    for step in range(drawn.steps):
        batch = drawn.batch(step)
        for sample, name in enumerate(batch.ids):
            assert batch.available[sample].tolist() == [True, True, not name.startswith("b")]
        assert (batch.images[~batch.available] == 0).all()
        assert (batch.present <= batch.available).all() and batch.absent.any(1).all() and batch.present.any(1).all()


def test_subjects_can_be_drawn_evenly(tmp_path: Path) -> None:
    drawn = batches(tmp_path, sampling="subjects")
    count = Counter(int(pick[0]) for step in range(200) for pick in drawn.picks(step))
    assert len(count) == 3 and min(count.values()) > 200


def test_leave_one_out_withholds_each_available_contrast_once() -> None:
    patterns = leave_one_out(torch.tensor([[True, False, True]] * 2))
    assert [p.tolist() for p in patterns] == [[[True, False, False]] * 2, [[False, False, True]] * 2]


def test_a_contrast_the_store_lacks_is_absent_everywhere(tmp_path: Path) -> None:
    drawn = batches(tmp_path)
    other = TrainingBatches(drawn.store, drawn.config, drawn.stage, 0, ModalitySet.parse("PD,T1,T2"))
    batch = other.batch(0)
    assert not batch.available[:, 0].any() and batch.available[:, 1:].all()


@pytest.mark.parametrize("patterns", ["sample", "batch"])
def test_what_a_sample_gets_does_not_depend_on_the_process(tmp_path: Path, patterns: str) -> None:
    whole = batches(tmp_path, patterns=patterns).batch(2)
    parts = [batches(tmp_path, rank, 2, patterns=patterns).batch(2) for rank in range(2)]
    assert whole.ids == parts[0].ids + parts[1].ids
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert torch.equal(whole.present, torch.cat([part.present for part in parts]))
    assert torch.equal(whole.available, torch.cat([part.available for part in parts]))


def test_shares_are_even(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size"):
        batches(tmp_path, 0, 3)


def test_slices_that_travel_as_stored_are_the_same_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = batches(tmp_path)
    usual = [drawn.batch(step) for step in range(drawn.steps)]
    monkeypatch.setattr(TrainingBatches, "_short", True)
    for step, expected in enumerate(usual):
        batch = drawn.batch(step)
        assert batch.images.dtype == torch.float32 and torch.equal(batch.images, expected.images)
        assert torch.equal(batch.available, expected.available) and torch.equal(batch.present, expected.present)


def test_every_stored_number_becomes_its_intensity() -> None:
    stored = np.arange(65536).astype(np.uint16)
    ours = in_unit(torch.from_numpy(stored.view(np.int16)))
    np.testing.assert_array_equal(ours.numpy(), stored.astype(np.float32) / np.float32(65535))


def test_only_a_gpu_is_served_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: calls.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *where, **how: calls.append((where, how)) or tensor)
    moved(torch.zeros(2), "cpu")
    assert calls == [(("cpu",), {})]
    moved(torch.zeros(2), "cuda:1")
    assert calls[1:] == ["pinned", (("cuda:1",), {"non_blocking": True})]
