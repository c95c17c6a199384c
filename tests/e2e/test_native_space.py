"""``codebrain impute --space``: files on the grids of given scans, with their headers, facts and marks."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

import codebrain
import scans
from codebrain.imaging.study import find_files


@pytest.fixture
def study(tmp_path):
    """T1, T2 on one grid; FLAIR oblique, reflected, with thick slices, and with a qform that says otherwise."""
    files = scans.write_study(tmp_path / "in", ("T1", "T2"))
    angle = np.deg2rad(10)
    affine = scans.affine_of((-4.5, 4.5, 8.0), (34, 40, 18))
    affine[:3, :3] = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]] @ affine[:3, :3]
    affine[:3, 3] = -affine[:3, :3] @ (np.array((34, 40, 18)) - 1) / 2
    image = nib.Nifti1Image(scans.head("FLAIR", (34, 40, 18)), affine)
    image.set_sform(affine, 2)
    elsewhere = affine.copy()
    elsewhere[0, 3] += 3.0
    image.set_qform(elsewhere, 1)
    image.header.set_xyzt_units("mm")
    files["FLAIR"] = tmp_path / "in" / "FLAIR.nii.gz"
    files["FLAIR"].write_bytes(scans.zipped(image.to_bytes()))
    return files


def words(study, *contrasts):
    return [word for contrast in contrasts for word in (f"--{contrast.lower()}", study[contrast])]


GRID_FIELDS = ("dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
               "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip


def test_results_on_the_grid_of_another_scan(study, tmp_path, impute):
    out = tmp_path / "out"
    answer = impute(*words(study, "T1", "FLAIR"), "--want", "T2,T1Gd", "--space", "native:FLAIR",
                    "-o", out, "--name", "sub 01")  # fmt: skip
    assert answer.status == 0, answer.err
    assert str(out / "sub 01_space-FLAIR_T2_imputed.nii.gz") in answer.out
    home, given = (nib.load(study[contrast]).header for contrast in ("T1", "FLAIR"))
    for contrast in ("T2", "T1Gd"):
        for place, header in (("", home), ("space-FLAIR_", given)):
            for kind, name in (("imputed", f"SYNTHETIC {contrast}"), ("uncertainty", "SYNTHETIC doubt")):
                image = nib.load(out / f"sub 01_{place}{contrast}_{kind}.nii.gz")
                for field in GRID_FIELDS:  # bit for bit, though qform and sform of the FLAIR disagree
                    assert image.header[field].tobytes() == header[field].tobytes(), (place, field)
                assert image.header["intent_name"].item().decode() == name
                assert image.header["descrip"].item().decode().startswith("SYNTHETIC")
                data = image.get_fdata()
                assert np.isfinite(data).all() and data.max() > 0 and data.min() == 0
    assert answer.err.count("GEO_FORMS") == 1

    facts = json.loads((out / "sub 01_space-FLAIR_T2_imputed.json").read_text())
    assert facts["File"] == "sub 01_space-FLAIR_T2_imputed.nii.gz"
    assert facts["Uncertainty"]["File"] == "sub 01_space-FLAIR_T2_uncertainty.nii.gz"
    assert (facts["SpatialReference"], facts["Space"]) == ("FLAIR.nii.gz", "native:FLAIR")
    assert facts["Spacing"] == [4.5, 4.5, 8.0] and facts["Synthetic"] is True
    assert (facts["Transform"]["From"], facts["Transform"]["To"]) == ("T1.nii.gz", "FLAIR.nii.gz")
    run = json.loads((out / "run.json").read_text())
    moved = {entry["contrast"]: entry["alignment"] for entry in run["inputs"]}
    assert facts["Transform"]["Matrix"] == moved["FLAIR"]["transform"]
    assert facts["Interpolation"]["Method"].startswith("cubic")
    at_home = json.loads((out / "sub 01_T2_imputed.json").read_text())
    assert (at_home["SpatialReference"], at_home["Space"]) == ("T1.nii.gz", "reference")

    assert run["spaces"] == ["reference", "native:FLAIR"]
    spaces = {row["file"]: row["space"] for row in run["outputs"]}
    assert spaces["sub 01_space-FLAIR_T2_imputed.nii.gz"] == "native:FLAIR" and len(spaces) == 12
    report = (out / "report.html").read_text()
    assert "that of T1, also native:FLAIR" in report
    assert "sub 01_space-FLAIR_T1Gd_imputed.nii.gz" in report and "on the grid of FLAIR" in report


def test_the_head_lies_where_it_lies_in_the_scan(study, tmp_path, impute):
    out = tmp_path / "out"
    assert impute(*words(study, "T1", "FLAIR"), "--want", "T2", "--space", "native:FLAIR", "-o", out).status == 0
    imputed = nib.load(out / "study_space-FLAIR_T2_imputed.nii.gz").get_fdata() > 0
    head = nib.load(study["FLAIR"]).get_fdata() > 0
    assert 2 * (imputed & head).sum() / (imputed.sum() + head.sum()) > 0.85


def test_a_scan_on_the_reference_grid_gets_the_same_bits(study, tmp_path, impute):
    out = tmp_path / "out"
    answer = impute(*words(study, "T1", "T2"), "--want", "FLAIR", "--space", "native:T2,native:T1", "-o", out)
    assert answer.status == 0, answer.err
    assert answer.err.count("GEO_SAME_GRID") == 2
    for kind in ("imputed", "uncertainty"):
        home = nib.load(out / f"study_FLAIR_{kind}.nii.gz").get_fdata()
        for contrast in ("T1", "T2"):
            here = nib.load(out / f"study_space-{contrast}_FLAIR_{kind}.nii.gz").get_fdata()
            np.testing.assert_array_equal(here, home)


def test_the_grid_of_a_withheld_scan(study, tmp_path, impute):
    """It has no part in the imputation: with another reference, its own space only."""
    out = tmp_path / "out"
    answer = impute(*words(study, "T1", "FLAIR"), "--want", "FLAIR", "--evaluate", "--space", "native:FLAIR", "-o", out)
    assert answer.status == 0, answer.err
    there = nib.load(out / "study_space-FLAIR_FLAIR_imputed.nii.gz")
    assert there.shape == (34, 40, 18)


def test_images_in_memory(study, tmp_path, tiny_model):
    imputer = codebrain.Imputer.from_pretrained(tiny_model, device="cpu", threads=1)
    files = {contrast: study[contrast] for contrast in ("T1", "FLAIR")}
    result = imputer(files, want=["T2"], space=["native:FLAIR"], intensity="unit")
    there = result.in_space("flair")["T2"]
    assert result["T2"].image.shape == scans.SHAPE and there.image.shape == there.uncertainty.shape == (34, 40, 18)
    assert 0 < there.data.max() <= 1
    written = {path.name for path in result.save(tmp_path / "out")}
    assert {"study_T2_imputed.nii.gz", "study_space-FLAIR_T2_imputed.nii.gz"} <= written


def test_without_the_option_nothing_else_is_written(study, tmp_path, impute):
    out = tmp_path / "out"
    assert impute(*words(study, "T1", "FLAIR"), "--want", "T2", "-o", out).status == 0
    assert not list(out.glob("*space-*"))
    assert json.loads((out / "run.json").read_text())["spaces"] == ["reference"]


@pytest.mark.parametrize(
    ("space", "code"),
    [("native:T2", "CONFIG"), ("native:PD", "CONFIG"), ("native", "CONFIG"), ("FLAIR", "CONFIG"),
     ("native:T9", "MOD_UNKNOWN")],
)  # fmt: skip
def test_spaces_that_do_not_exist(space, code, study, tmp_path, impute):
    answer = impute(*words(study, "T1", "FLAIR"), "--want", "T2", "--space", space, "-o", tmp_path / "out")
    assert (answer.code, answer.status) == (code, 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("folder", "given", "other"), [("mslong-03-2", "T1", "FLAIR"), ("ixi-002", "T1", "PD")])
def test_real_studies_in_another_space(folder, given, other, real_data, tmp_path, impute):
    files = find_files(real_data / "raw" / folder)
    pair = [word for contrast in (given, other) for word in ("--input", f"{contrast}={files[contrast]}")]
    out = tmp_path / "out"
    answer = impute(*pair, "--want", "T2", "--space", f"native:{other}", "-o", out)
    assert answer.status == 0, answer.err
    here, scan = nib.load(out / f"study_space-{other}_T2_imputed.nii.gz"), nib.load(files[other])
    assert here.shape == scan.shape
    np.testing.assert_array_equal(here.affine, scan.affine)
    imputed, head = here.get_fdata() > 0, scan.get_fdata() > 0.15 * np.percentile(scan.get_fdata(), 99)
    assert (imputed & head).sum() > 0.9 * head.sum()
