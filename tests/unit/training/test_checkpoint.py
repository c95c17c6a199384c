from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from codebrain.errors import CodeBrainError, EnvironmentRefused, ModelRefused, TrainingDiverged
from codebrain.training import loop
from codebrain.training.checkpoint import Checkpoints
from codebrain.training.config import StageConfig, TrainConfig
from fabricated import fabricate_store
from toy import build_toy

MODEL = {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3, dtype=torch.bfloat16)}
OPTIM = {"generator/0/exp_avg": torch.full((2, 3), 0.5), "generator/0/step": torch.tensor(7.0)}


def commit(checkpoints: Checkpoints, number: int) -> Path:
    return checkpoints.commit(f"step-{number:09d}", MODEL, OPTIM, {"position": {"step": number}})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    commit(checkpoints, 3)
    found = checkpoints.latest()
    assert found is not None and found.state["position"] == {"step": 3}
    assert all(torch.equal(found.model[name], value) for name, value in MODEL.items())
    assert all(torch.equal(found.optim[name], value) for name, value in OPTIM.items())
    manifest = json.loads((found.path / "MANIFEST.json").read_text())
    assert {name: facts["size"] for name, facts in manifest.items()} == {
        path.name: path.stat().st_size for path in found.path.iterdir() if path.name != "MANIFEST.json"
    }


@pytest.mark.row("E6")
def test_two_stay_and_the_newest_is_by_count_not_by_clock(tmp_path: Path) -> None:
    import os

    checkpoints = Checkpoints(tmp_path / "c")
    for number in (2, 10, 9):
        os.utime(commit(checkpoints, number), (number * -1e6, 4e9 - number * 1e8))
    assert [path.name for path in checkpoints.paths()] == ["step-000000009", "step-000000010"]
    assert checkpoints.latest().path.name == "step-000000010"


FILES = ("model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json")


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_or_cut_is_found(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    commit(checkpoints, 1)
    newest = commit(checkpoints, 2)
    whole = (newest / name).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 20)):
        for damaged in (whole[:place], bytes([*whole[:place], whole[place] ^ 4, *whole[place + 1 :]])):
            (newest / name).write_bytes(damaged)
            if not _still_says_the_same(name, whole, damaged):
                with pytest.raises(ModelRefused, match="damaged"):
                    checkpoints.read(newest)
    (newest / name).write_bytes(whole[:-1])
    with caplog.at_level(logging.WARNING, logger="codebrain"):
        assert checkpoints.latest().path.name == "step-000000001"
    assert "falling back" in caplog.text and newest.name in caplog.text


def _still_says_the_same(name: str, whole: bytes, damaged: bytes) -> bool:
    """A bit of the manifest's white space or of a size, which the SHA-256 makes redundant, changes nothing."""
    try:
        told = [{f: facts["sha256"] for f, facts in json.loads(text).items()} for text in (whole, damaged)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return name == "MANIFEST.json" and told[0] == told[1]


def test_damaged_ones_do_not_count_among_those_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    commit(checkpoints, 1)
    (commit(checkpoints, 5) / "state.json").write_text("")
    assert checkpoints.latest().path.name == "step-000000001"
    commit(checkpoints, 2)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000000001", "step-000000002"]


def test_one_of_a_newer_codebrain_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    monkeypatch.setattr("codebrain.training.checkpoint.FORMAT", 99)
    commit(checkpoints, 1)
    monkeypatch.undo()
    with pytest.raises(ModelRefused) as caught:
        checkpoints.latest()
    assert caught.value.code == "CKPT_FORMAT" and checkpoints.paths()


def test_only_the_owner_tidies_up(tmp_path: Path) -> None:
    left = tmp_path / ".step-000000001.tmp-1-00000000"  # process 1 lives, but cannot be the one that wrote it
    left.mkdir()
    Checkpoints(tmp_path, owner=False)
    assert left.exists()
    Checkpoints(tmp_path)
    assert not left.exists()


def test_what_reads_back_otherwise_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    commit(checkpoints, 1)
    monkeypatch.setattr("codebrain.training.checkpoint._bytes", lambda tensors: b"not safetensors")
    with pytest.raises(EnvironmentRefused, match="read back"):
        commit(checkpoints, 2)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-000000001"]


# --- what the loop does with them ---


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "build_model", build_toy)


def train(tmp_path: Path, **settings: object) -> Path:
    stage = StageConfig(steps=5, batch_size=2, crop=16)
    config = TrainConfig(model="toy", stages={"reconstruction": stage, "grading": stage}, **settings)
    store = fabricate_store(tmp_path / "store", 3, val=["s00"], test=["s01"])
    return loop.train(config, store, tmp_path / "run", device="cpu")


@pytest.mark.row("F7", "F9")
def test_weights_that_are_not_finite_never_displace_good_ones(
    tmp_path: Path, toy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = loop._Trainer._save

    def spoil(self: loop._Trainer, optimisers: object) -> None:
        if self.position.total == 3:
            next(self.model.parameters()).data[0] = float("inf")
        saved(self, optimisers)

    monkeypatch.setattr(loop._Trainer, "_save", spoil)
    with pytest.raises(TrainingDiverged, match="not finite after step 3"):
        train(tmp_path, checkpoint_steps=1)
    assert [path.name[-1] for path in (tmp_path / "run" / "checkpoints").glob("step-*")] in (["1", "2"], ["2", "1"])


@pytest.mark.row("F14")
def test_a_lasting_full_disk_stops_after_three_failures(
    tmp_path: Path, toy: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, written = Checkpoints._write, []

    def fill(self: Checkpoints, folder: Path, *content: object) -> None:
        if written:
            raise OSError(28, "No space left on device")
        write(self, folder, *content)
        written.append(folder)

    monkeypatch.setattr(Checkpoints, "_write", fill)
    with pytest.raises(CodeBrainError) as caught, caplog.at_level(logging.WARNING, logger="codebrain"):
        train(tmp_path, checkpoint_steps=1)
    assert caught.value.code == "OUT_SPACE" and caplog.text.count("going on") == 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000000"]


def test_lost_best_weights_are_said_and_survived(
    tmp_path: Path, toy: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    take = loop._Trainer._take_best

    def lose(self: loop._Trainer, stage: str, score: float) -> None:
        for path in self.checkpoints.folder.glob("best-*"):
            (path / "model.safetensors").unlink()
        take(self, stage, score)

    monkeypatch.setattr(loop._Trainer, "_take_best", lose)
    with caplog.at_level(logging.WARNING, logger="codebrain"):
        assert (train(tmp_path) / "model.safetensors").is_file()
    assert "best weights are lost" in caplog.text


def test_crops_must_fit_the_network_and_devices_exist(tmp_path: Path, toy: None) -> None:
    config = TrainConfig(model="toy", stages={"reconstruction": StageConfig(steps=1, batch_size=2, crop=20)})
    store = fabricate_store(tmp_path / "store", 3, val=["s00"], test=["s01"])
    with pytest.raises(CodeBrainError) as caught:
        loop.train(config, store, tmp_path / "run", device="cpu")
    assert caught.value.code == "CONFIG" and caught.value.field == "stages.reconstruction.crop"
    with pytest.raises(CodeBrainError, match="device"):
        loop.train(config, store, tmp_path / "run", device="tpu")


def test_a_model_in_closed_form_goes_through_the_same_command(tmp_path: Path) -> None:
    from codebrain.models import load_model

    store = fabricate_store(tmp_path / "store", 3, val=["s00"], test=["s01"])
    folder = loop.train(TrainConfig(model="polynomial"), store, tmp_path / "run", device="cpu")
    model = load_model(folder)
    images, present = torch.rand(1, 3, 8, 8), torch.tensor([[True, False, True]])
    assert torch.isfinite(model(images, present)).all()
