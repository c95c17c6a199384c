"""Rows B15 and C13 of the bad inputs: heads and voxels unlike those that a model was trained on."""

from __future__ import annotations

import json
import shutil

import pytest

import scans


def write_head(path, **kwargs):
    return scans.write_scan(path, scans.whole_head(**kwargs), scans.affine_of(scans.WHOLE_SPACING, scans.WHOLE_SHAPE))


@pytest.fixture
def model(tiny_model, tmp_path):
    """The tiny model, trained on heads of some kind."""

    def declare(*heads, edges=(1.0, 5.0), anisotropy=1.0):
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        file = folder / "preparation.json"
        domain = {"heads": heads, "edges_mm": edges, "anisotropy": anisotropy}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"domain": domain}))
        return folder

    return declare


@pytest.fixture
def try_scan(typed, tmp_path):
    def try_it(scan, model):
        return typed("impute", "--model", model, "--t1", scan, "--want", "T2", "-o", tmp_path / "out")

    return try_it


def warnings(tmp_path):
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    return [warning for warning in run["warnings"] if warning["code"] == "MODEL_DOMAIN"]


@pytest.mark.row("B15")
def test_b15_a_bare_brain_for_a_model_of_whole_heads(try_scan, model, tmp_path):
    answer = try_scan(scans.write_scan(tmp_path / "t1.nii.gz"), model("whole", "defaced"))
    assert (answer.code, answer.status) == ("MODEL_DOMAIN", 3)
    assert "bare brain" in answer.err and not (tmp_path / "out").exists()


@pytest.mark.row("B15")
@pytest.mark.parametrize("face", [True, False])
def test_b15_a_head_for_a_model_of_bare_brains(face, try_scan, model, tmp_path):
    answer = try_scan(write_head(tmp_path / "t1.nii.gz", face=face), model("stripped"))
    assert (answer.code, answer.status) == ("MODEL_DOMAIN", 3)
    assert "Remove the skull first" in answer.err and not (tmp_path / "out").exists()


@pytest.mark.row("B15")
def test_b15_a_face_that_is_missing_is_a_warning(try_scan, model, tmp_path):
    answer = try_scan(write_head(tmp_path / "t1.nii.gz", face=False), model("whole"))
    assert answer.status == 0, answer.err
    (warning,) = warnings(tmp_path)
    assert "a head without its face" in warning["message"] and warning["file"] == "t1.nii.gz"
    assert "MODEL_DOMAIN" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.row("B15")
@pytest.mark.parametrize("heads", [("whole",), ("stripped", "whole"), ("defaced", "stripped", "whole")])
def test_b15_a_head_that_the_model_knows(heads, try_scan, model, tmp_path):
    answer = try_scan(write_head(tmp_path / "t1.nii.gz"), model(*heads))
    assert answer.status == 0, answer.err
    assert warnings(tmp_path) == []


@pytest.mark.row("C13")
@pytest.mark.parametrize(
    ("spacing", "shape", "warned"),
    [((2.5, 2.5, 6), (64, 72, 25), True), ((1.6, 1.6, 5), (100, 112, 30), True), ((3, 3, 3), (54, 60, 50), False)],
    ids=["6 mm slices", "3:1", "isotropic"],
)
def test_c13_thick_slices(spacing, shape, warned, try_scan, model, tmp_path):
    scan = scans.write_scan(tmp_path / "t1.nii.gz", scans.head("T1", shape), scans.affine_of(spacing, shape))
    edge = 2.5 if spacing[2] == 6 else 5.0
    answer = try_scan(scan, model("stripped", edges=(1.0, edge)))
    assert answer.status == 0, answer.err
    assert [w["message"].split(" has ")[0] for w in warnings(tmp_path)] == ["T1"] * warned
    sidecar = json.loads((tmp_path / "out" / "study_T2_imputed.json").read_text())
    assert sidecar["Spacing"] == list(spacing)


def test_a_model_without_a_declaration_judges_nothing(try_scan, tiny_model, tmp_path):
    answer = try_scan(write_head(tmp_path / "t1.nii.gz", face=False), tiny_model)
    assert answer.status == 0, answer.err
    assert warnings(tmp_path) == []


@pytest.mark.data
@pytest.mark.slow
def test_the_bundled_model_and_real_scans(real_data, typed, tmp_path):
    """It has seen bare brains and simulated heads of 1 mm: thick slices and missing faces are said."""
    scan = real_data / "raw" / "mslong-20-2" / "T1.nii.gz"
    answer = typed("impute", "--t1", scan, "--want", "T2", "-o", tmp_path / "out")
    assert answer.status == 0, answer.err
    assert len(warnings(tmp_path)) == 2
