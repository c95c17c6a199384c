"""A training run survives what machines do to it (bad-inputs, section 2): kills, full disks, flipped bits, NaN."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from codebrain import faults
from fabricated import fabricate_store

RECIPE = """
model: toy
augmentation: flips
checkpoint_steps: 2
stages:
  reconstruction:
    {steps: 6, batch_size: 2, crop: 16, validate_every: 2, optimisers: {generator: {lr: 0.01, lr_end: 0.001}}}
  grading: {steps: 4, batch_size: 2, crop: 16, validate_every: 3}
"""
REAL = RECIPE.replace("model: toy", "model: codebrain\nsettings: {width: 1, depth: 1, critic_width: 2}")
REAL = REAL.replace("crop: 16", "crop: 32")
EVERY_STEP = [("reconstruction", n) for n in range(1, 7)] + [("grading", n) for n in range(1, 5)]

# A process that has torch and the loop loaded once; every run is a fork of it, half a second instead of ten.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch", "lightning_fabric", "codebrain.training.loop", "codebrain.app.cli", "torch.utils.tensorboard", "toy"]
)


def _work(arguments: list[str], environment: dict[str, str], said: Path) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    os.fsync = lambda _: None  # a kill loses nothing that was written; only a power failure does
    with Path(os.devnull).open("w") as nothing, said.open("w") as errors:
        os.dup2(nothing.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    from codebrain.app.cli import main
    from codebrain.training import loop
    from toy import build_toy

    real = loop.build_model
    loop.build_model = lambda name, *rest: build_toy(name, *rest) if name == "toy" else real(name, *rest)
    os._exit(main(arguments))


def begin(folder: Path, run: str, *options: str, fault: str = "", said: str = "stderr.txt", **environment: str):
    recipe, store = str(folder / "recipe.yaml"), str(folder / "store")
    quiet = [] if "-v" in options else ["-q"]
    arguments = ["train", recipe, "--data", store, "-o", str(folder / run), *quiet, *options]
    process = _context.Process(target=_work, args=(arguments, {"CODEBRAIN_FAULT": fault, **environment}, folder / said))
    process.start()
    return process


def train(folder: Path, run: str = "run", *options: str, fault: str = "") -> int:
    """Exit status of ``codebrain train`` in a process of its own; negative for a signal."""
    process = begin(folder, run, *options, fault=fault)
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def two_processes(folder: Path, run: str, faults: tuple[str, str] = ("", "")) -> list[Any]:
    """Two processes as torchrun starts them, each with its fault, when they have ended or two minutes are over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
    ranks = [
        begin(folder, run, "--device", "cpu", fault=fault, said=f"{run}{r}.txt", RANK=str(r), LOCAL_RANK=str(r),
              **shared)
        for r, fault in enumerate(faults)
    ]  # fmt: skip
    for process in ranks:
        process.join(120)
    return ranks


def said(folder: Path) -> str:
    """What the last run wrote to stderr."""
    return (folder / "stderr.txt").read_text()


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def steps(run: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"]) for line in lines if "validation_psnr" not in line]


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def assert_equal_to_the_whole_run(run: Path) -> None:
    whole = run.parent / "whole"
    assert weights(run) == weights(whole)
    assert steps(run) == EVERY_STEP
    assert not list(run.rglob("*.tmp-*")) and len(checkpoints(run)) == 2
    assert not (run / ".codebrain.lock").exists()
    scores = [json.loads((r / "model" / "metrics.json").read_text())["validation_psnr_db"] for r in (run, whole)]
    assert scores[0] == scores[1]


def make(folder: Path, recipe: str) -> Path:
    fabricate_store(folder / "store", 4, val=["s00"], test=["s01"])
    (folder / "recipe.yaml").write_text(recipe)
    assert train(folder, "whole") == 0, said(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("training"), RECIPE)


def test_a_run_that_is_never_stopped(folder: Path) -> None:
    run = folder / "whole"
    assert_equal_to_the_whole_run(run)
    assert "model: toy" in (run / "config.yaml").read_text()
    assert list((run / "tensorboard").iterdir())
    begun = json.loads((checkpoints(run)[0] / "state.json").read_text())
    assert begun["format"] == 1 and begun["data"] and begun["config"]["seed"] == 1337


@pytest.mark.parametrize("point", faults.TRAINING_POINTS)
def test_killed_at_any_point_it_resumes_to_the_same_weights(folder: Path, point: str) -> None:
    name = f"kill-{point}"
    # The second visit where there is one: the first may come before the first checkpoint.
    once = ("lock.acquire", "lock.release", "stage.export", "best.update", "ckpt.prune.first")
    nth = 1 if point in once else 2
    assert train(folder, name, fault=f"{point}:{nth}:kill9") == -signal.SIGKILL, f"{point} was never reached"
    again = [] if point == "lock.acquire" else ["--resume"]
    assert train(folder, name, *again) == 0, said(folder)
    assert_equal_to_the_whole_run(folder / name)


@pytest.mark.parametrize("plan", ["log.append.half:7:torn:9", "ckpt.model.half:3:torn:50", "ckpt.optim.half:4:eio"])
def test_torn_files_are_mended(folder: Path, plan: str) -> None:
    name = f"torn-{plan}".replace(":", "-")
    status = train(folder, name, fault=plan)
    assert status in (0, -signal.SIGKILL)
    assert train(folder, name, "--resume") == 0, said(folder)
    assert_equal_to_the_whole_run(folder / name)


def test_killed_five_times_it_resumes_to_the_same_weights(folder: Path) -> None:
    assert train(folder, "five", fault="step.after_players:3:kill9") == -signal.SIGKILL
    for point in ("step.after_fetch:2", "ckpt.model.half:1", "val.mid:2", "ckpt.before_rename:1"):
        assert train(folder, "five", "--resume", fault=f"{point}:kill9") == -signal.SIGKILL
    assert train(folder, "five", "--resume") == 0
    assert_equal_to_the_whole_run(folder / "five")


@pytest.mark.parametrize(("action", "status"), [("term", 143), ("int", 130)])
@pytest.mark.parametrize(
    ("point", "done", "judged"),
    [("step.after_fetch:3", 3, 2), ("step.between_players:3", 2, 0), ("val.mid:4", 4, 2)],
)
def test_a_polite_signal_loses_no_step(
    folder: Path, point: str, done: int, judged: int, action: str, status: int
) -> None:
    name = f"signal-{action}-{point}".replace(":", "-")
    assert train(folder, name, fault=f"{point}:{action}") == status
    assert steps(folder / name) == EVERY_STEP[:done]
    position = json.loads((checkpoints(folder / name)[-1] / "state.json").read_text())["position"]
    # No validation is begun after a signal, and one under way is broken off: a cluster gives half a minute.
    assert (position["step"], position["judged"]) == (done, judged)
    assert train(folder, name, "--resume") == 0
    assert_equal_to_the_whole_run(folder / name)


@pytest.mark.row("F1")
@pytest.mark.parametrize("damage", ["bit", "cut", "manifest", "optim", "state", "gone"])
def test_a_damaged_newest_checkpoint_is_passed_over(folder: Path, damage: str) -> None:
    name = f"damage-{damage}"
    assert train(folder, name, fault="step.before_counter:5:kill9") == -signal.SIGKILL
    newest = checkpoints(folder / name)[-1]
    files = {"manifest": "MANIFEST.json", "optim": "optim.safetensors", "state": "state.json"}
    file = newest / files.get(damage, "model.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content[: len(content) // 2] if damage == "cut" else content))
    if damage == "gone":
        file.unlink()
    # Another interval, so that the next checkpoint does not simply take the damaged one's place.
    assert train(folder, name, "--resume", "--set", "checkpoint_steps=1") == 0
    assert_equal_to_the_whole_run(folder / name)
    assert not list((folder / name / "checkpoints").glob("damaged-*"))


def test_the_checkpoint_that_is_taken_up_is_named(folder: Path) -> None:
    assert train(folder, "named", fault="step.before_counter:5:kill9") == -signal.SIGKILL
    newest = checkpoints(folder / "named")[-1]
    (newest / "state.json").write_text("{}")
    assert train(folder, "named", "--resume", "-v") == 0
    words = said(folder)
    assert newest.name in words and "damaged" in words and "falling back" in words


@pytest.mark.row("F9")
@pytest.mark.parametrize("point", ["step.gradient:5", "step.after_fetch:3"])
def test_a_number_that_is_not_finite_stops_before_the_step(folder: Path, point: str) -> None:
    name = f"nan-{point}".replace(":", "-")
    assert train(folder, name, fault=f"{point}:nan") == 7
    message = said(folder)
    assert "DIVERGED" in message and "Traceback" not in message
    assert "stage reconstruction, step 3" in message and ("s02/" in message or "s03/" in message)
    assert steps(folder / name) == EVERY_STEP[:2]
    assert [path.name for path in checkpoints(folder / name)] == ["step-000000000", "step-000000002"]
    assert train(folder, name, "--resume") == 0
    assert weights(folder / name) == weights(folder / "whole")


@pytest.mark.row("F14")
def test_one_full_disk_is_survived_and_a_lasting_one_is_said(folder: Path) -> None:
    assert train(folder, "full", fault="ckpt.state.done:3:enospc") == 0
    assert "OUT_SPACE" not in said(folder)
    assert_equal_to_the_whole_run(folder / "full")
    assert train(folder, "full-first", fault="ckpt.state.done:1:enospc") == 4
    assert "OUT_SPACE" in said(folder) and "Traceback" not in said(folder)


@pytest.mark.row("F8")
def test_what_cannot_be_resumed(folder: Path) -> None:
    assert train(folder, "never", "--resume") == 5 and "CKPT_NONE" in said(folder)
    assert not (folder / "never").exists()
    assert train(folder, "whole") == 4 and "OUT_EXISTS" in said(folder)
    assert train(folder, "whole", "--resume") == 0, "a finished run is finished"
    assert_equal_to_the_whole_run(folder / "whole")
    options = ["--resume", "--set", "seed=3", "--set", "stages.grading.batch_size=4"]
    assert train(folder, "whole", *options) == 5
    message = said(folder)
    assert "CKPT_MISMATCH" in message and "seed: 1337 is now 3" in message
    assert "stages.grading.batch_size: 2 is now 4" in message and "steps:" not in message


@pytest.mark.row("F8")
def test_changes_are_accepted_when_asked_for_and_when_the_weights_fit(folder: Path) -> None:
    assert train(folder, "changed", fault="step.before_counter:5:kill9") == -signal.SIGKILL
    width = ["--set", "settings.width=5"]
    assert train(folder, "changed", "--resume", "--accept-changes", *width) == 5
    assert "CKPT_MISMATCH" in said(folder) and "architecture" in said(folder)
    assert train(folder, "changed", "--resume", "--accept-changes", "--set", "seed=3") == 0
    assert "seed: 3" in (folder / "changed" / "config.yaml").read_text()
    assert steps(folder / "changed") == EVERY_STEP
    assert weights(folder / "changed") != weights(folder / "whole")


@pytest.mark.row("F8", "F11")
def test_other_data_are_noticed(folder: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other")
    assert train(folder, "whole", "--resume", "--data", str(other)) == 5
    assert "CKPT_MISMATCH" in said(folder) and "fingerprint" in said(folder)


def make_store(root: Path) -> Path:
    fabricate_store(root, 4, val=["s00"], test=["s01"], seed=1)
    return root


def test_without_validation_patients_the_last_step_is_the_result(folder: Path, tmp_path: Path) -> None:
    fabricate_store(tmp_path / "store", 3, val=[], test=["s01"])
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert train(tmp_path, "run", "-v") == 0, said(tmp_path)
    assert "the last step is the result" in said(tmp_path)
    assert steps(tmp_path / "run") == EVERY_STEP


@pytest.mark.row("F13")
def test_two_processes_agree_and_match_one(folder: Path) -> None:
    # The toy's noise is drawn per process, so one process of two cannot equal one alone bit for bit.
    ranks = two_processes(folder, "two")
    assert [process.exitcode for process in ranks] == [0, 0], (folder / "two0.txt").read_text()
    assert steps(folder / "two") == EVERY_STEP, "only the first process writes"
    ours, theirs = (load_file(folder / run / "model" / "model.safetensors") for run in ("two", "whole"))
    assert all(abs(ours[name] - theirs[name]).max() < 0.1 for name in theirs)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("real"), REAL)


@pytest.mark.row("F13")
def test_two_processes_train_as_one_does(real: Path) -> None:
    """Patterns, crops and flips belong to a sample's place in the batch; losses are pooled before the logarithm."""
    ranks = two_processes(real, "pair")
    assert [process.exitcode for process in ranks] == [0, 0], (real / "pair0.txt").read_text()
    ours, theirs = (load_file(real / run / "model" / "model.safetensors") for run in ("pair", "whole"))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-4, err_msg=name)
    logs = [(real / run / "metrics.jsonl").read_text().splitlines() for run in ("pair", "whole")]
    pairs = [
        (json.loads(pair).get("psnr_absent"), json.loads(whole).get("psnr_absent"))
        for pair, whole in zip(*logs, strict=True)
    ]
    known = [pair for pair in pairs if pair[1] is not None]
    assert len(known) == 6 and all(pair == pytest.approx(whole, abs=1e-3) for pair, whole in known)


@pytest.mark.row("F13")
def test_when_one_process_of_two_is_killed_the_other_ends_too(folder: Path) -> None:
    ranks = two_processes(folder, "orphan", faults=("", "step.after_players:3:kill9"))
    assert ranks[1].exitcode == -signal.SIGKILL
    assert ranks[0].exitcode == 4, "None: the first process hangs"
    assert "ENV_PEER" in (folder / "orphan0.txt").read_text()


@pytest.mark.row("F10")
def test_memory_that_runs_out_is_said(folder: Path) -> None:
    assert train(folder, "oom", fault="step.after_fetch:3:oom") == 4
    message = said(folder)
    assert "ENV_MEMORY" in message and "Traceback" not in message
    assert "stage reconstruction, step 3" in message and ("s02/" in message or "s03/" in message)
    assert train(folder, "oom", "--resume") == 0
    assert_equal_to_the_whole_run(folder / "oom")


def test_the_real_model_resumes_bitwise_too(real: Path) -> None:
    assert train(real, "killed", fault="step.between_players:9:kill9") == -signal.SIGKILL
    assert train(real, "killed", "--resume", fault="step.after_players:4:kill9") == -signal.SIGKILL
    assert train(real, "killed", "--resume") == 0, said(real)
    assert_equal_to_the_whole_run(real / "killed")
