"""``codebrain doctor`` as a user types it: what is said, what is wrong, what mends it, and the exit status."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import brain
import scans
from scans import affine_of, head, nifti, zipped


def test_a_good_scan(tmp_path, typed):
    path = brain.write_brain(tmp_path / "sub-01_FLAIR.nii.gz", "FLAIR")
    answer = typed("doctor", path)
    assert answer.status == 0 and answer.err == ""
    first, *lines = answer.out.strip().splitlines()
    assert first == f"{path}: usable"
    said = {line[:14].strip(): line[14:] for line in lines}
    assert "NIfTI-1, gzip, little-endian" in said["file"] and "float32" in said["file"]
    assert said["grid"] == "60 x 72 x 60 voxels of 3 x 3 x 3 mm, field of view 180 x 216 x 180 mm"
    assert said["orientation"] == "RAS; qform 1 (scanner), sform 1 (scanner), they agree"
    assert said["background"].startswith("0 fills it; the head is 1.6")
    assert said["looks like"].startswith("FLAIR (fluid is darkest")


def test_every_file_is_examined_and_one_refusal_decides(tmp_path, typed):
    good = scans.write_scan(tmp_path / "a_T1.nii.gz")
    bad = tmp_path / "b_T2.nii.gz"
    bad.write_bytes(zipped(nifti(head()))[:-8])
    answer = typed("doctor", bad, good, tmp_path / "absent.nii.gz")
    assert answer.status == 3 and "Traceback" not in answer.out + answer.err
    assert f"{good}: usable" in answer.out
    assert "IN_TRUNCATED: the gzip stream ends before its checksum." in answer.out
    assert "32 x 36 x 30 voxels of 5 x 5 x 5 mm" in answer.out.split(str(good))[0], "the header is told all the same"
    assert f"gzip --test {bad}" in answer.out
    assert "absent.nii.gz: would be refused" in answer.out and "IN_NOT_A_FILE" in answer.out


def test_json_holds_the_same(tmp_path, typed):
    brain.write_brain(tmp_path / "x_T1.nii.gz", "T1")
    brain.write_brain(tmp_path / "x_T2.nii.gz", "T2", units="unknown")
    (tmp_path / "x_PD.nii.gz").write_bytes(b"")
    answer = typed("doctor", tmp_path, "--json")
    assert answer.status == 3
    found = answer.json
    assert found["usable"] is False and [f["usable"] for f in found["files"]] == [False, True, True]
    empty, t1, t2 = found["files"]
    assert empty["header"] is None and empty["findings"][0]["code"] == "IN_EMPTY"
    assert t1["image"]["contrast"]["candidates"] == ["T1"] and t1["image"]["head_kind"] == "stripped"
    assert t1["header"]["spacing_mm"] == [3, 3, 3] and t1["header"]["orientation"] == "RAS"
    (units,) = t2["findings"]
    assert (units["code"], units["severity"]) == ("GEO_UNITS", "warning")
    assert "set_xyzt_units" in units["mend"][0]["command"]
    (group,) = found["groups"]
    assert group["one_grid"] is True and [scan["place"] for scan in group["scans"]] == ["reference", "in place"]


def test_numbers_that_are_not_finite_are_still_json(tmp_path, typed):
    content = scans.patch(scans.patch(nifti(head()), scans.PIXDIM, float("nan"), 2), scans.SFORM_CODE, 0)
    (tmp_path / "t1.nii").write_bytes(scans.patch(content, scans.SLOPE, float("inf")))
    answer = typed("doctor", tmp_path / "t1.nii", "--json")
    assert answer.status == 3 and answer.json["files"][0]["header"]["spacing_mm"][1] is None


def test_a_name_that_says_something_else_than_the_image(tmp_path, typed):
    brain.write_brain(tmp_path / "sub-01_T1w.nii.gz", "T2")
    answer = typed("doctor", tmp_path / "sub-01_T1w.nii.gz")
    assert answer.status == 0
    assert "MOD_NAME: the name or header says T1, the image looks like T2: fluid is" in answer.out


def test_an_image_of_codebrain_s_own_is_noticed(tmp_path, impute, typed):
    study = scans.write_study(tmp_path / "in")
    assert impute("--t1", study["T1"], "--want", "T2", "-o", tmp_path / "out").status == 0
    answer = typed("doctor", tmp_path / "out" / "study_T2_imputed.nii.gz")
    assert answer.status == 3 and "IN_SYNTHETIC" in answer.out and "--accept-synthetic" in answer.out
    answer = typed("doctor", tmp_path / "out" / "study_T2_imputed.nii.gz", "--accept-synthetic")
    assert answer.status == 0 and "IN_SYNTHETIC" in answer.out


def test_several_scans_of_one_head(tmp_path, typed):
    folder = tmp_path / "study"
    folder.mkdir()
    brain.write_brain(folder / "a_T1.nii.gz", "T1")
    scans.write_scan(folder / "a_T2.nii.gz", np.roll(brain.brain("T2"), 3, 1), affine_of(3.0, brain.SHAPE))
    shifted = affine_of(3.0, brain.SHAPE)
    shifted[0, 3] += 7
    scans.write_scan(folder / "a_FLAIR.nii.gz", brain.brain("FLAIR"), shifted)
    (folder / "a_seg.nii.gz").write_bytes(zipped(nifti((brain.tissues()[0][2] > 0.5).astype(np.uint8), shifted)))
    answer = typed("doctor", folder)
    assert answer.status == 0, "impute passes over what is not named after a contrast"
    assert "a_seg.nii.gz: would be refused; impute passes it over" in answer.out
    assert "3 scans together: not on one grid" in answer.out
    lines = {line[:14].strip() + " " + line[14:25]: line for line in answer.out.splitlines()}
    assert "its head lies 9." in lines["same grid a_T2.nii.gz"], "same grid, 9 mm off"
    assert "its head lies 7." in lines["own grid a_FLAIR.nii"]
    assert "GEO_NOT_ALIGNED: a_T2.nii.gz is on the grid of a_T1.nii.gz but its head lies 9." in answer.out
    assert f"codebrain impute --flair {folder}/a_FLAIR.nii.gz --t1 {folder}/a_T1.nii.gz" in answer.out
    assert "together" in typed("doctor", folder).out and "together" not in typed("doctor", folder, "--no-compare").out


def test_the_same_image_under_two_names(tmp_path, typed):
    content = zipped(nifti(head()))
    for name in ("a_T1.nii.gz", "a_T2.nii.gz"):
        (tmp_path / name).write_bytes(content)
    assert "MOD_SAME_FILE: a_T2.nii.gz holds the same image as a_T1.nii.gz." in typed("doctor", tmp_path).out


def test_the_options_of_impute_decide_here_too(tmp_path, typed):
    many = tmp_path / "many.nii.gz"
    many.write_bytes(zipped(nifti(np.stack([head(), head("T2")], -1))))
    bare = scans.write_scan(tmp_path / "bare.nii.gz", codes=(0, 0))
    for path, flags in ((many, ("--volume", "1")), (bare, ("--accept-no-orientation",))):
        assert typed("doctor", path).status == 3
        assert typed("doctor", path, *flags).status == 0
    assert typed("doctor", bare, "--accept-no-orientation", "--max-voxels", "1000").status == 3


def test_folders_without_a_scan(tmp_path, typed):
    (tmp_path / "empty").mkdir()
    answer = typed("doctor", tmp_path / "empty")
    assert answer.status == 3 and "there is no scan in this folder" in answer.out


def test_the_series_of_a_dicom_folder(tmp_path, typed):
    pytest.importorskip("pydicom")
    import series

    folder = series.write_study(tmp_path / "dicom", ("T1", "FLAIR"))
    answer = typed("doctor", folder, "--json", "--no-compare")
    assert answer.status == 0, answer.out + answer.err
    assert [(f["image"]["contrast_in_name"], f["header"]["format"][:5]) for f in answer.json["files"]] == [
        ("T1", "DICOM"), ("FLAIR", "DICOM"),
    ]  # fmt: skip
    answer = typed("doctor", folder)
    assert f"codebrain impute {folder} -o OUT" in answer.out and "what the DICOM headers say" in answer.out
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(100))
    answer = typed("doctor", tmp_path / "broken")
    assert answer.status == 3 and "Traceback" not in answer.out + answer.err


def test_pairs_and_freesurfer_files_in_a_folder(tmp_path, typed):
    nib.save(nib.Nifti1Pair(head(), affine_of()), tmp_path / "a.img")
    nib.save(nib.MGHImage(head(), affine_of()), tmp_path / "b.mgz")
    (tmp_path / "c.hdr").write_bytes((tmp_path / "a.hdr").read_bytes())
    answer = typed("doctor", tmp_path, "--no-compare", "--json")
    files = {f["file"].rsplit("/", 1)[1]: f for f in answer.json["files"]}
    assert {name: f["usable"] for name, f in files.items()} == {"a.img": True, "b.mgz": True, "c.hdr": False}
    assert files["a.img"]["header"]["format"] == "NIfTI-1, two files, plain, little-endian"
    assert files["b.mgz"]["header"]["format"] == "MGH, gzip, big-endian"
    assert "c.img" in files["c.hdr"]["findings"][0]["message"]


def test_names_cannot_steer_the_terminal(tmp_path, typed):
    path = scans.write_scan(tmp_path / "a\x1b[31m\u202e_T1.nii.gz")
    answer = typed("doctor", path)
    assert "\x1b" not in answer.out and "\u202e" not in answer.out and "\\x1b[31m\\u202e_T1.nii.gz" in answer.out


def test_colours_on_a_terminal_only(tmp_path):
    (tmp_path / "t1.nii.gz").write_bytes(b"")
    code = "import sys; from codebrain.app.cli import main; sys.exit(main(['doctor', 't1.nii.gz']))"
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")} | {"TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, cwd=tmp_path, env=environment, check=False)
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == 3
    assert "\x1b[" in said and "IN_EMPTY" in said


@pytest.mark.data
def test_real_studies(real_data, typed):
    answer = typed(
        "doctor", real_data / "raw" / "mslong-03-2", real_data / "odd" / "false-spacing-T1Gd.nii.gz", "--json"
    )
    assert answer.status == 3
    files = {f["file"].rsplit("/", 1)[1]: f for f in answer.json["files"]}
    false = files["false-spacing-T1Gd.nii.gz"]
    assert false["findings"][0]["code"] == "GEO_FOV" and false["header"]["field_of_view_mm"] == [256, 256, 24]
    assert {n: f["image"]["head_kind"] for n, f in files.items() if f["image"]} == dict.fromkeys(
        ("T1.nii.gz", "T2.nii.gz", "FLAIR.nii.gz"), "defaced"
    )
    (group,) = answer.json["groups"]
    shifts = {scan["file"].rsplit("/", 1)[1]: scan.get("shift_mm") for scan in group["scans"]}
    assert not group["one_grid"] and 4 < shifts["T2.nii.gz"] < 9 and 4 < shifts["FLAIR.nii.gz"] < 9
