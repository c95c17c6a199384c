"""``codebrain export``, and ``--engine``, as a user types them."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

import scans


@pytest.fixture
def exported(typed, tiny_model, tmp_path):
    """Type ``codebrain export`` of the tiny model into one folder; TorchScript, the quickest, by default."""
    return lambda *words, kind="torchscript": typed(
        "export", tiny_model, "--format", kind, "-o", tmp_path / "network", *words
    )


def test_an_export_says_what_it_is(exported, tmp_path):
    answer = exported()
    assert answer.status == 0, answer.err
    assert "Research use only" in answer.out and "synthetic" in answer.out and "dB" in answer.out
    facts = json.loads((tmp_path / "network" / "network.json").read_text())
    assert set(facts["files"]) == {"network.pt"}
    assert not [path for path in (tmp_path / "network").iterdir() if path.name.startswith(".")]


def test_an_earlier_export_is_replaced_only_when_asked(exported):
    assert exported("--json").json["kind"] == "torchscript"
    again = exported()
    assert (again.status, again.code) == (4, "OUT_EXISTS")
    assert exported("--overwrite").status == 0


def test_what_cannot_be_exported_leaves_nothing(exported, typed, tmp_path):
    assert (exported(kind="tensorrt").status, (tmp_path / "network").exists()) == (2, False)
    assert exported("--precision", "fp16").code == "CONFIG"
    nothing = typed("export", tmp_path / "no-model", "--format", "onnx", "-o", tmp_path / "network")
    assert (nothing.status, nothing.code) == (5, "CKPT_NONE")
    assert not (tmp_path / "network").exists()


def test_another_engine_gives_the_same_images_and_is_in_the_record(impute, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    study, images = scans.write_study(tmp_path / "in", ("T1", "FLAIR")), {}
    for engine in ("torch", "onnx"):
        out = tmp_path / engine
        answer = impute("--t1", study["T1"], "--flair", study["FLAIR"], "--want", "T2", "--engine", engine, "-o", out)
        assert answer.status == 0, answer.err
        record = json.loads((out / "run.json").read_text())
        assert record["engine"] == engine
        assert ("onnxruntime" in record["versions"]) == (engine == "onnx")
        images[engine] = np.asarray(nib.load(out / "study_T2_imputed.nii.gz").dataobj)
    assert np.abs(images["torch"] - images["onnx"]).max() < 1e-3 * images["torch"].max()
    assert len(list((tmp_path / "cache" / "codebrain" / "networks").glob("*.onnx"))) == 1


@pytest.mark.parametrize("words", [("--engine", "tensorrt"), ("--engine", "onnx", "--precision", "bf16")])
def test_an_engine_that_does_not_fit_is_refused(words, impute, tmp_path):
    study = scans.write_study(tmp_path / "in", ("T1", "FLAIR"))
    answer = impute("--t1", study["T1"], *words, "-o", tmp_path / "out")
    assert (answer.status, answer.code) == (2, "CONFIG")
