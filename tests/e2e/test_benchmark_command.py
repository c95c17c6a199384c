"""``codebrain benchmark``: what it writes, what it keeps through kills and failures, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from codebrain.app.cli import main
from codebrain.benchmark import rows_from_csv
from codebrain.benchmark.rows import rows_from_parquet
from codebrain.data.slices import SliceStore
from codebrain.models import build_model, save_model
from codebrain.vocabulary import ModalitySet, Preparation
from fabricated import fabricate_store

TINY = {
    "settings": {"width": 4, "depth": 2, "critic_width": 2}, "precision": "fp32", "checkpoint_steps": 2,
    "validation_slices": 2, "stages": {"training": {"batch_size": 2, "crop": 16}},
}  # fmt: skip
CODED = {
    "settings": {"width": 2, "depth": 1, "critic_width": 2}, "precision": "fp32", "validation_slices": 2,
    "stages": {name: {"batch_size": 2, "crop": 32} for name in ("reconstruction", "grading")},
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    root = tmp_path_factory.mktemp("store")
    return fabricate_store(root, 5, shape=(4, 40, 32), val=["s00"], test=["s01", "s02"])


def suite(folder: Path, methods: dict, **more) -> Path:
    """A suite of 12 samples for each trained method."""
    path = folder / "suite.yaml"
    content = {"title": "Trial", "budget": {"samples": 12, "validations": 1}, "methods": methods, **more}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def words(path: object, store: SliceStore, out: Path, *more: object) -> list[str]:
    return ["benchmark", *map(str, (path, "--data", store.root, "-o", out, "--device", "cpu", "--threads", 1, *more))]


def gan(**changes) -> dict:
    return {"recipe": "mm_gan_small", "changes": {**TINY, **changes}}


def test_a_suite_gives_rows_tables_and_figures(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = {
        "zeros": {"reference": "zeros"},
        "CodeBrain": {"recipe": "codebrain_small", "changes": CODED},
        "CodeBrain, expected": {"of": "CodeBrain", "settings": {"decoding": "threshold"}},
    }
    path = suite(tmp_path, methods, layout=["methods", "scenarios", "codes"], paper={"table": "2", "dataset": "IXI"})
    out = tmp_path / "out"
    assert main(words(path, store, out, "--jobs", 2)) == 0
    printed = capsys.readouterr().out

    rows = rows_from_csv((out / "rows.csv").read_text())
    assert rows_from_parquet((out / "rows.parquet").read_bytes()) == rows
    assert [*dict.fromkeys(row.model for row in rows)] == list(methods), "in the suite's order, whoever finished first"
    assert {row.task for row in rows if row.model == "CodeBrain"} == {"imputation", "reconstruction"}
    cells = {(row.pattern, row.modality) for row in rows if row.model == "zeros"}
    assert len(cells) == 9, "six patterns of three contrasts, nine cells"
    assert printed.strip() == (out / "table.md").read_text().strip()
    for text in ("table.md", "table.tex", "table.html"):
        assert "CodeBrain" in (out / text).read_text() and "Research use only" in (out / text).read_text()

    record = json.loads((out / "run.json").read_text())
    spent = record["methods"]["CodeBrain"]
    assert spent["samples"] == 12 and spent["steps"] == 6 and spent["seconds"] > 0 and spent["parameters"] > 1000
    assert record["failures"] == {} and record["suite"]["methods"]["zeros"]["reference"] == "zeros"
    assert {output["file"] for output in record["outputs"]} >= {"rows.parquet", "table.html", "figures/methods.png"}
    for name in ("methods", "scenarios", "codes", "scores_psnr"):
        with Image.open(out / "figures" / f"{name}.png") as picture:
            assert picture.width > 500
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_what_is_finished_is_not_done_again(store: SliceStore, tmp_path: Path) -> None:
    out, first = tmp_path / "out", {"MM-GAN": gan()}
    assert main(words(suite(tmp_path, first), store, out, "-q")) == 0
    kept = {path: path.stat().st_mtime_ns for path in [*out.glob("runs/*/model/*"), *out.glob("cells/*/*")]}
    assert len(kept) > 10
    before = (out / "rows.csv").read_text()

    more = {**first, "mean": {"reference": "mean"}}
    assert main(words(suite(tmp_path, more), store, out, "-q")) == 4, "a finished benchmark is not overwritten unasked"
    assert main(words(suite(tmp_path, more), store, out, "-q", "--resume")) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (out / "rows.csv").read_text().startswith(before), "one method more changes nothing for the others"


def test_a_killed_worker_is_one_failed_method_and_resuming_ends_as_if_nothing_had_been(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = suite(tmp_path, {"MM-GAN": gan(), "mean": {"reference": "mean"}})
    assert main(words(path, store, tmp_path / "whole", "-q")) == 0
    monkeypatch.setenv("CODEBRAIN_FAULT", "step.before_counter:4:kill9")
    out = tmp_path / "out"
    assert main(words(path, store, out, "-q")) == 6
    said = capsys.readouterr().err
    assert "BATCH: 1 of 2 methods failed. MM-GAN: ENV_WORKER" in said and "status -9" in said
    assert {row.model for row in rows_from_csv((out / "rows.csv").read_text())} == {"mean"}
    assert "MM-GAN is not complete" in (out / "table.md").read_text()

    monkeypatch.delenv("CODEBRAIN_FAULT")
    assert main(words(path, store, out, "-q", "--resume")) == 0
    assert (out / "rows.csv").read_text() == (tmp_path / "whole/rows.csv").read_text()
    weights = "runs/mm-gan/model/model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_the_whole_run_may_be_killed(store: SliceStore, tmp_path: Path) -> None:
    path, out = suite(tmp_path, {"MM-GAN": gan(), "zeros": {"reference": "zeros"}}), tmp_path / "out"
    command = [sys.executable, "-m", "codebrain", *words(path, store, out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
                               start_new_session=True)  # fmt: skip
    while not list(out.glob("runs/*/checkpoints/step-*[1-9]")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "run.json").exists()
    assert main(words(path, store, out, "-q")) == 4, "a benchmark that was begun is not begun again unasked"
    assert main(words(path, store, out, "-q", "--resume")) == 0
    assert {row.model for row in rows_from_csv((out / "rows.csv").read_text())} == {"MM-GAN", "zeros"}
    assert not list(out.glob(".*.tmp-*"))


def test_each_failure_gets_its_sentence_and_the_others_are_kept(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEBRAIN_FAULT", "step.gradient:3:nan")
    other = ModalitySet.parse("T1,PD")
    save_model(build_model("mean", other), tmp_path / "other", preparation=Preparation(other))
    methods = {
        "wild": gan(),
        "other contrasts": {"folder": "other"},
        "nowhere": {"folder": "no-such-folder"},
        "wrong settings": {"folder": "starter", "settings": {"width": 7}},
        "zeros": {"reference": "zeros"},
    }
    out = tmp_path / "out"
    assert main(words(suite(tmp_path, methods), store, out)) == 6
    said = capsys.readouterr().err.splitlines()[-1]
    assert "4 of 5 methods failed" in said and "\n" not in said
    assert "wild: DIVERGED" in said and "not finite" in said
    assert "other contrasts: CKPT_MISMATCH" in said and "T2" in said
    assert "nowhere: CKPT_NONE" in said
    assert "wrong settings: CKPT_MISMATCH" in said and "need other weights" in said
    assert {row.model for row in rows_from_csv((out / "rows.csv").read_text())} == {"zeros"}


def test_a_stopped_run_leaves_a_checkpoint_and_no_worker(store: SliceStore, tmp_path: Path) -> None:
    longer = {"budget": {"samples": 20_000, "validations": 1}}
    path, out = suite(tmp_path, {"MM-GAN": gan(checkpoint_steps=5000)}, **longer), tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-m", "codebrain", *words(path, store, out)], stderr=subprocess.PIPE,
                               text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    log = out / "runs/mm-gan/metrics.jsonl"
    while (not log.is_file() or log.stat().st_size < 3000) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopped by SIGINT" in said and "Traceback" not in said
    newest = max(int(folder.name[5:]) for folder in out.glob("runs/mm-gan/checkpoints/step-*"))
    assert 0 < newest == len(log.read_text().splitlines()), "no step was lost"


def test_a_method_whose_recipe_changed_says_so_and_its_old_rows_are_not_shown(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, zeros = tmp_path / "out", {"reference": "zeros"}
    assert main(words(suite(tmp_path, {"MM-GAN": gan(), "zeros": zeros}), store, out, "-q")) == 0
    changed = {"MM-GAN": gan(settings={**TINY["settings"], "width": 8}), "zeros": zeros}
    assert main(words(suite(tmp_path, changed), store, out, "-q", "--resume")) == 6
    said = capsys.readouterr().err
    assert "CKPT_MISMATCH" in said and "settings.width: 4 is now 8" in said and "remove runs/mm-gan" in said
    assert {row.model for row in rows_from_csv((out / "rows.csv").read_text())} == {"zeros"}
    assert str(tmp_path) not in (out / "table.md").read_text() + (out / "run.json").read_text()


def test_json_says_how_far_it_is_and_what_came_of_it(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = suite(tmp_path, {"mean": {"reference": "mean"}}, patterns="leave-one-out")
    assert main(words(path, store, tmp_path / "out", "--json")) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["machine"]["threads"] == 1 and last["failures"] == {} and "mean" in last["methods"]


def test_a_budget_of_seconds_is_timed_once_and_kept(store: SliceStore, tmp_path: Path) -> None:
    path, out = suite(tmp_path, {"MM-GAN": gan()}, budget={"seconds": 0.5, "validations": 1}), tmp_path / "out"
    assert main(words(path, store, out, "-q")) == 0
    plan = json.loads((out / "plan.json").read_text())["methods"]["MM-GAN"]
    steps = plan["resolved"]["stages"]["training"]["steps"]
    assert steps >= 1 and plan["asked"]["threads"] == 1
    assert main(words(path, store, out, "-q", "--resume")) == 0
    assert json.loads((out / "plan.json").read_text())["methods"]["MM-GAN"] == plan
    assert json.loads((out / "run.json").read_text())["methods"]["MM-GAN"]["steps"] == steps


def test_a_figure_that_cannot_be_drawn_costs_no_table(
    store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(*_: object, **__: object) -> None:
        raise RuntimeError("out of ink")

    monkeypatch.setattr("codebrain.benchmark.figures.methods_figure", torn)
    out = tmp_path / "out"
    assert main(words(suite(tmp_path, {"mean": {"reference": "mean"}}), store, out, "-q")) == 4
    assert (out / "table.md").is_file() and (out / "figures/scores_psnr.png").is_file()
    (notice,) = json.loads((out / "run.json").read_text())["notices"]
    assert "out of ink" in notice["message"]


@pytest.mark.parametrize(
    ("methods", "more", "sentence"),
    [
        ({"a": {"recipe": "mm_gan_smal"}}, {}, "Did you mean mm_gan_small"),
        ({"a": {"recipe": "mm_gan_small", "changes": {"settings": {"widht": 4}}}}, {}, "Did you mean width"),
        ({"a": {"recipe": "mm_gan_small", "changes": {"model": "mmgan"}}}, {}, "Did you mean mm_gan"),
        ({"a": {"reference": "median"}}, {}, "zeros, mean, polynomial"),
        ({"a": {"reference": "zeros", "folder": "x"}}, {}, "exactly one of"),
        ({"a": {"of": "b"}}, {}, "'b' is no method"),
        ({"a": {"reference": "zeros"}, "A!": {"reference": "mean"}}, {}, "share the folder"),
        ({"a": {"reference": "zeros"}}, {"modalities": ["T1", "T9"]}, "T9"),
        ({"a": {"reference": "zeros"}}, {"budgets": 3}, "Did you mean budget"),
        ({"a": {"reference": "zeros"}}, {"budget": {"samples": 3, "seconds": 4}}, "not both"),
        ({"a": {"reference": "zeros"}}, {"patterns": "T1;T7"}, "T7"),
        ({"a": {"reference": "zeros"}}, {"reference": "b"}, "none of the methods"),
        ({"a": {"reference": "zeros"}}, {"paper": {"table": "2", "dataset": "ixi"}}, "IXI, BraTS"),
        ({"a": {"recipe": "mm_gan_small"}, "b": {"of": "a", "settings": {"dropuot": 0.1}}}, {}, "Did you mean dropout"),
        ({"a": {"recipe": "mm_gan_small", "changes": {"stages": {"trainin": {"steps": 3}}}}}, {}, "has no 'trainin'"),
        ({}, {}, "at least one method"),
    ],
)
def test_a_wrong_suite_is_refused_before_any_work(
    methods: dict, more: dict, sentence: str, store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(suite(tmp_path, methods, **more), store, tmp_path / "out")) == 2
    assert sentence in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_data_without_a_wanted_contrast_is_refused(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = suite(tmp_path, {"zeros": {"reference": "zeros"}}, modalities=["T1", "T1Gd"])
    assert main(words(path, store, tmp_path / "out")) == 3
    assert "DATA_CONTRASTS" in capsys.readouterr().err
    assert main(words(path, store, tmp_path / "out", "--resume")) == 5, "nothing was begun"
