"""A training run survives what machines do to it (bad-inputs, section 2): kills, full disks, flipped bits, NaN."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from fabricated import fabricate_store  # noqa: E402

from codebrain import faults  # noqa: E402

RECIPE = """
model: codebrain
settings: {width: 1, depth: 1, critic_width: 2}
augmentation: flips
checkpoint_steps: 2
stages:
  reconstruction:
    {steps: 6, batch_size: 2, crop: 32, validate_every: 2, optimisers: {generator: {lr: 0.01, lr_end: 0.001}}}
  grading: {steps: 4, batch_size: 2, crop: 32, validate_every: 3}
"""
STEPS = 10

# A process that has torch and the loop loaded once; every run is a fork of it, a second instead of ten.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "lightning_fabric", "codebrain.training.loop", "torch.utils.tensorboard"])


def _work(arguments: list[str], fault: str, said: Path) -> None:
    import torch

    from codebrain.app.cli import main

    torch.set_num_threads(1)
    if fault:
        os.environ["CODEBRAIN_FAULT"] = fault
    with Path(os.devnull).open("w") as nothing, said.open("w") as errors:
        os.dup2(nothing.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    os._exit(main(arguments))


def train(folder: Path, run: str = "run", *options: str, fault: str = "") -> int:
    """Exit status of ``codebrain train`` in a process of its own; negative for a signal."""
    arguments = ["train", str(folder / "recipe.yaml"), "--data", str(folder / "store"), "-o", str(folder / run), "-q"]
    process = _context.Process(target=_work, args=([*arguments, *options], fault, folder / "stderr.txt"))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def said(folder: Path) -> str:
    """What the last run wrote to stderr."""
    return (folder / "stderr.txt").read_text()


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def steps(run: Path) -> list[tuple[str, int]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"]) for line in lines if "validation_psnr" not in line]


EVERY_STEP = [("reconstruction", n) for n in range(1, 7)] + [("grading", n) for n in range(1, 5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("training")
    fabricate_store(made / "store", 4, val=["s00"], test=["s01"])
    (made / "recipe.yaml").write_text(RECIPE)
    assert train(made, "whole") == 0
    return made


def test_a_run_that_is_never_stopped(folder: Path) -> None:
    run = folder / "whole"
    assert steps(run) == EVERY_STEP
    assert len(list((run / "checkpoints").glob("step-*"))) == 2
    assert not list(run.rglob("*.tmp-*"))
    assert "width: 1" in (run / "config.yaml").read_text()
    assert list((run / "tensorboard").iterdir())


@pytest.mark.parametrize("point", faults.POINTS)
def test_killed_at_any_point_it_resumes_to_the_same_weights(folder: Path, point: str) -> None:
    name = f"kill-{point}"
    run = folder / name
    # The second visit where there is one: the first may come before the first checkpoint.
    once = ("lock.acquire", "lock.release", "stage.export", "best.update", "ckpt.prune.first")
    nth = 1 if point in once else 2
    assert train(folder, name, fault=f"{point}:{nth}:kill9") == -signal.SIGKILL, f"{point} was never reached"
    again = [] if point == "lock.acquire" else ["--resume"]
    assert train(folder, name, *again) == 0
    assert weights(run) == weights(folder / "whole")
    assert steps(run) == EVERY_STEP
    assert not list(run.rglob("*.tmp-*")) and len(list((run / "checkpoints").glob("step-*"))) <= 3


def test_killed_five_times_it_resumes_to_the_same_weights(folder: Path) -> None:
    assert train(folder, "five", fault="step.after_players:3:kill9") == -signal.SIGKILL
    for point in ("step.after_fetch:2", "ckpt.model.half:1", "val.mid:2", "ckpt.before_rename:1"):
        assert train(folder, "five", "--resume", fault=f"{point}:kill9") == -signal.SIGKILL
    assert train(folder, "five", "--resume") == 0
    assert weights(folder / "five") == weights(folder / "whole") and steps(folder / "five") == EVERY_STEP


@pytest.mark.parametrize(("action", "status"), [("term", 143), ("int", 130)])
def test_a_polite_signal_loses_no_step(folder: Path, action: str, status: int) -> None:
    name = f"signal-{action}"
    assert train(folder, name, fault=f"step.after_fetch:3:{action}") == status
    assert steps(folder / name) == EVERY_STEP[:3]
    newest = sorted((folder / name / "checkpoints").glob("step-*"))[-1]
    assert json.loads((newest / "state.json").read_text())["position"]["step"] == 3
    assert train(folder, name, "--resume") == 0
    assert weights(folder / name) == weights(folder / "whole") and steps(folder / name) == EVERY_STEP


@pytest.mark.parametrize("damage", ["bit", "cut", "manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over(folder: Path, damage: str) -> None:
    name = f"damage-{damage}"
    assert train(folder, name, fault="step.before_counter:5:kill9") == -signal.SIGKILL
    newest = sorted((folder / name / "checkpoints").glob("step-*"))[-1]
    file = newest / ("MANIFEST.json" if damage == "manifest" else "model.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content[: len(content) // 2] if damage == "cut" else content))
    assert train(folder, name, "--resume") == 0
    assert weights(folder / name) == weights(folder / "whole") and steps(folder / name) == EVERY_STEP


def test_a_gradient_that_is_not_finite_stops_before_the_step(
    folder: Path,
) -> None:
    assert train(folder, "nan", fault="step.gradient:5:nan") == 7
    message = said(folder)
    assert "DIVERGED" in message and "Traceback" not in message
    assert "stage reconstruction, step 3" in message and ("s02/" in message or "s03/" in message)
    assert steps(folder / "nan") == EVERY_STEP[:2]
    assert train(folder, "nan", "--resume") == 0
    assert weights(folder / "nan") == weights(folder / "whole")


def test_one_full_disk_is_survived_and_a_lasting_one_is_said(folder: Path) -> None:
    assert train(folder, "full", fault="ckpt.state.done:3:enospc") == 0
    assert weights(folder / "full") == weights(folder / "whole")
    assert train(folder, "full-first", fault="ckpt.state.done:1:enospc") == 4


def test_what_cannot_be_resumed(folder: Path) -> None:
    assert train(folder, "never", "--resume") == 5 and "CKPT_NONE" in said(folder)
    assert train(folder, "whole") == 4 and "OUT_EXISTS" in said(folder)
    assert train(folder, "whole", "--resume") == 0, "a finished run is finished"
    assert train(folder, "whole", "--resume", "--set", "seed=3") == 5
    message = said(folder)
    assert "CKPT_MISMATCH" in message and "seed: 1337 is now 3" in message
