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
