"""``codebrain evaluate``: the files it writes, what it prints, what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from codebrain.app.cli import main
from codebrain.app.commands.evaluate import labels
from codebrain.benchmark import reference_model, rows_from_csv, summarise
from codebrain.data.slices import SliceStore
from codebrain.imaging.safe_files import sha256_file
from codebrain.models import build_model, save_model
from codebrain.vocabulary import ModalitySet, Preparation
from fabricated import fabricate_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    root = tmp_path_factory.mktemp("store")
    return fabricate_store(root, 4, modalities="T1,T2,T1Gd", val=[], test=["s00", "s02"])


@pytest.fixture(scope="module")
def folder(store: SliceStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a polynomial of degree one."""
    path = tmp_path_factory.mktemp("run") / "linear"
    model = reference_model("polynomial", store, modalities=ModalitySet.parse("T1,T2"))
    save_model(model, path, preparation=Preparation(model.modalities))
    return path


def run(*words: object) -> int:
    return main(["evaluate", *map(str, words), "--device", "cpu", "--threads", "1"])


def files(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def test_everything_is_written_and_agrees(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    assert run("mean", "--data", store.root, "-o", out) == 0
    printed = capsys.readouterr().out
    assert files(out) == {"rows.csv", "table.md", "table.tex", "scores.png", "examples.png", "run.json"}
    assert printed.strip() == (out / "table.md").read_text().strip()

    rows = rows_from_csv((out / "rows.csv").read_text())
    assert {row.model for row in rows} == {"mean", "zeros", "polynomial"}
    assert {row.patient for row in rows} == {"s00", "s02"}
    assert len(rows) == 3 * 2 * 9 * 9
    score = summarise(rows, metric="PSNR", model="polynomial")
    assert f"{score.mean:.2f} ± {score.spread:.2f}" in printed

    record = json.loads((out / "run.json").read_text())
    assert record["data"]["fingerprint"] == store.fingerprint
    assert [model["label"] for model in record["models"]] == ["mean", "zeros", "polynomial"]
    assert {o["file"]: o["sha256"] for o in record["outputs"]} == {
        name: sha256_file(out / name) for name in files(out) - {"run.json"}
    }
    assert str(tmp_path) not in json.dumps(record)
    for name in ("scores.png", "examples.png"):
        with Image.open(out / name) as picture:
            assert sum(count > 0 for count in picture.convert("L").histogram()) > 20


def test_a_model_folder_is_judged_beside_references_on_the_same_cells(
    store: SliceStore, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    assert run(folder, "--data", store.root, "-o", out, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert [model["label"] for model in record["models"]] == ["linear", "zeros", "polynomial"]
    assert len(record["models"][0]["sha256"]) == 64
    means = {s["model"]: s for s in record["summary"]
             if (s["metric"], s["region"], s["given"]) == ("PSNR", "slice", "all")}  # fmt: skip
    assert {s["cells"] for s in means.values()} == {2}
    # The folder holds the same polynomial that is fitted anew as the reference.
    assert means["linear"]["mean"] == pytest.approx(means["polynomial"]["mean"], abs=1e-3)
    assert means["zeros"]["mean"] < means["linear"]["mean"]


def test_patterns_and_no_references(store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores"
    words = ("--patterns", "T2;T1,t1ce", "--no-references", "--middle", "2")
    assert run("zeros", "--data", store.root, "-o", out, *words) == 0
    rows = rows_from_csv((out / "rows.csv").read_text())
    assert {row.pattern for row in rows} == {"T2", "T1+T1Gd"}
    assert {row.model for row in rows} == {"zeros"}
    assert "the middle 2 slices" in capsys.readouterr().out


def test_without_matplotlib_the_numbers_are_still_written(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "scores"
    assert run("zeros", "--data", store.root, "-o", out, "--no-references") == 4
    told = capsys.readouterr()
    assert "ENV_EXTRA" in told.err
    assert "codebrain-mri[bench]" in told.err
    assert "| zeros" in told.out
    assert files(out) == {"rows.csv", "table.md", "table.tex", "run.json"}
    assert json.loads((out / "run.json").read_text())["notices"][0]["code"] == "ENV_EXTRA"


def test_results_are_not_replaced_unasked(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    words = ("zeros", "--data", store.root, "-o", out, "--no-references", "--patterns", "T1")
    assert run(*words) == 0
    before = (out / "run.json").read_bytes()
    assert run(*words) == 4
    assert "OUT_EXISTS" in capsys.readouterr().err
    assert (out / "run.json").read_bytes() == before
    assert run(*words, "--overwrite") == 0


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["nowhere"], 5, "CKPT_NONE"),
        (["zeros", "--patterns", "FLAIR"], 2, "CONFIG"),
        (["zeros", "--patterns", ";"], 2, "CONFIG"),
        (["zeros", "--patterns", "T9"], 2, "MOD_UNKNOWN"),
        (["zeros", "--patterns", "T1,T2,T1Gd"], 3, "DATA_CONTRASTS"),
        (["zeros", "--split", "exam"], 2, "CONFIG"),
        (["zeros", "--split", "val"], 3, "DATA_SPLIT"),
        (["zeros", "--device", "abacus"], 2, "CONFIG"),
    ],
)
def test_refusals(
    store: SliceStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    code: str,
) -> None:
    out = tmp_path / "scores"
    assert main(["evaluate", *words, "--data", str(store.root), "-o", str(out), "--json"]) == status
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert not out.exists()


def test_a_model_of_other_contrasts_is_refused(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build_model("zeros", ModalitySet.parse("PD,FLAIR"))
    save_model(other, tmp_path / "other", preparation=Preparation(other.modalities))
    assert run(tmp_path / "other", "--data", store.root, "-o", tmp_path / "scores") == 5
    assert "CKPT_MISMATCH" in capsys.readouterr().err


def test_results_do_not_go_into_the_store(
    store: SliceStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("zeros", "--data", store.root, "-o", store.root / "scores") == 4
    assert "OUT_CLOBBER" in capsys.readouterr().err


def test_labels_tell_models_apart() -> None:
    assert labels(["runs/a/model", "runs/b/model/", "zeros", "x/same", "y/same"]) == [
        "a/model",
        "b/model",
        "zeros",
        "x/same",
        "y/same",
    ]
