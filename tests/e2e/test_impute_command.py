"""``codebrain impute``, ``demo`` and ``report`` as a user types them: the files, the names, the marks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import scans
from codebrain import marks


@pytest.fixture
def study(tmp_path):
    return scans.write_study(tmp_path / "in", ("T1", "FLAIR"))


@pytest.fixture
def done(study, tmp_path, impute):
    """A finished run of T1 and FLAIR to T2 and T1Gd."""
    out = tmp_path / "out"
    answer = impute("--t1", study["T1"], "--flair", study["FLAIR"], "-o", out,
                   "--want", "T2,T1Gd", "--name", "sub 01")  # fmt: skip
    assert answer.status == 0, answer.err
    return out, answer


def test_the_files_of_a_run(done):
    out, _ = done
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == sorted([
        *(f"sub 01_{c}_{what}" for c in ("T2", "T1Gd")
          for what in ("imputed.nii.gz", "uncertainty.nii.gz", "imputed.json")),
        "run.json", "preview.png", "report.html",
        *(f"figures/{name}.png" for name in
          ("T1_given", "FLAIR_given", "T2_imputed", "T2_doubt", "T1Gd_imputed", "T1Gd_doubt")),
    ])  # fmt: skip


def test_images_lie_on_the_reference_grid_and_say_what_they_are(done, study):
    out, _ = done
    reference = nib.load(study["T1"])
    for contrast, words in (("T2", "SYNTHETIC T2"), ("T1Gd", "SYNTHETIC T1Gd")):
        for kind, intent in (("imputed", words), ("uncertainty", "SYNTHETIC doubt")):
            image = nib.load(out / f"sub 01_{contrast}_{kind}.nii.gz")
            assert image.get_data_dtype() == np.float32
            assert image.shape == reference.shape
            np.testing.assert_array_equal(image.affine, reference.affine)
            assert image.header["intent_name"].item().decode() == intent
            assert image.header["descrip"].item().decode().startswith(words)
    doubt = nib.load(out / "sub 01_T2_uncertainty.nii.gz").get_fdata()
    assert 0 < doubt.max() <= 1 and doubt.min() == 0
    outside = nib.load(study["T1"]).get_fdata() == 0
    assert nib.load(out / "sub 01_T2_imputed.nii.gz").get_fdata()[outside].max() == 0


def test_the_sidecar_tells_where_the_image_comes_from(done, study, tiny_model):
    out, _ = done
    facts = json.loads((out / "sub 01_T1Gd_imputed.json").read_text())
    assert facts["Synthetic"] is True
    assert facts["Notice"] == "Research use only; not a medical device"
    assert facts["EnhancementNotice"] == marks.ENHANCEMENT_UNKNOWN
    assert facts["ContrastsUsed"] == ["T1", "FLAIR"]
    assert [source["File"] for source in facts["Sources"]] == ["T1.nii.gz", "FLAIR.nii.gz"]
    assert all(re.fullmatch("[0-9a-f]{64}", source["SHA256"]) for source in facts["Sources"])
    weights = json.loads((tiny_model / "config.json").read_text())["weights_sha256"]
    assert facts["Model"] == {"Name": "tiny", "Architecture": "codebrain", "SHA256": weights}
    assert facts["IntensityScale"]["Unit"] == "scanner" and facts["IntensityScale"]["ValueAtOne"] == 500
    assert facts["Uncertainty"]["File"] == "sub 01_T1Gd_uncertainty.nii.gz"
    assert "EnhancementNotice" not in json.loads((out / "sub 01_T2_imputed.json").read_text())


def test_the_record_of_the_run(done, tmp_path):
    out, _ = done
    run = json.loads((out / "run.json").read_text())
    assert (run["schema"], run["schema_version"]) == ("codebrain run", 1)
    assert set(run["seconds"]) >= {"read", "prepare", "model", "restore", "write"}
    assert run["peak_memory_bytes"] > 2**20
    assert run["imputed"] == ["T2", "T1Gd"] and run["reference"] == "T1"
    assert {row["contrast"]: row["role"] for row in run["inputs"]} == {"T1": "given", "FLAIR": "given"}
    for output in run["outputs"]:
        import hashlib

        assert output["sha256"] == hashlib.sha256((out / output["file"]).read_bytes()).hexdigest()
    assert {"torch", "numpy", "nibabel", "python"} <= set(run["versions"])


def test_folder_names_reach_no_file(done, tmp_path):
    """Folder names may name a patient."""
    out, _ = done
    for path in out.rglob("*"):
        if path.suffix in (".json", ".html"):
            assert str(tmp_path) not in path.read_text() and tmp_path.name not in path.read_text(), path.name


def test_the_report_and_the_preview(done):
    out, _ = done
    html = (out / "report.html").read_text()
    assert len(html.encode()) < 3_000_000
    assert html.count("data:image/png;base64,") == 7
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert html.count(marks.ENHANCEMENT_UNKNOWN.split(":")[0]) == 2
    assert "SYNTHETIC" in html and "Research use only; not a medical device" in html
    with Image.open(out / "preview.png") as preview:
        assert preview.width > 1000


def test_what_is_said(done):
    out, answer = done
    assert "SYNTHETIC T2, T1Gd imputed from T1, FLAIR with tiny" in answer.out
    assert str(out / "sub 01_T2_imputed.nii.gz") in answer.out and str(out / "report.html") in answer.out
    assert marks.ENHANCEMENT_UNKNOWN in answer.out
    assert answer.err == ""


def test_json_is_one_document(study, tmp_path, impute):
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--json")
    assert answer.json["imputed"] == ["T2", "PD", "FLAIR", "T1Gd"]
    assert answer.json["folder"] == str(tmp_path / "out")


def test_a_folder_of_scans_is_recognised_and_options_override_it(study, tmp_path, impute):
    other = scans.write_scan(tmp_path / "another.nii.gz", 2 * scans.head("FLAIR"))
    answer = impute(tmp_path / "in", "--flair", other, "-o", tmp_path / "out",
                   "--want", "T2")  # fmt: skip
    assert answer.status == 0, answer.err
    assert "T1: T1.nii.gz" in answer.err and "FLAIR: FLAIR.nii.gz (replaced by the option)" in answer.err
    files = {row["file"] for row in json.loads((tmp_path / "out" / "run.json").read_text())["inputs"]}
    assert files == {"T1.nii.gz", "another.nii.gz"}


def test_unit_intensities(study, tmp_path, impute):
    answer = impute("--t1", study["T1"], "--want", "T2", "-o", tmp_path / "out",
                   "--intensity", "unit")  # fmt: skip
    assert answer.status == 0, answer.err
    data = nib.load(tmp_path / "out" / "study_T2_imputed.nii.gz").get_fdata()
    assert 0 <= data.min() < data.max() <= 1
    facts = json.loads((tmp_path / "out" / "study_T2_imputed.json").read_text())
    assert facts["IntensityScale"]["Unit"] == "unit"


def test_an_evaluation_is_not_helped_by_what_it_withholds(study, tmp_path, impute):
    """Imputing FLAIR from T1 gives the same image whether the FLAIR lies beside it or not."""
    alone = ("--t1", study["T1"], "--want", "FLAIR")
    assert impute(*alone, "-o", tmp_path / "alone").status == 0
    answer = impute(*alone, "--flair", study["FLAIR"], "--evaluate", "-o", tmp_path / "scored")
    assert answer.status == 0, answer.err
    assert "PSNR" in answer.out
    images = [nib.load(tmp_path / out / "study_FLAIR_imputed.nii.gz") for out in ("alone", "scored")]
    np.testing.assert_array_equal(images[0].get_fdata(), images[1].get_fdata())
    assert (tmp_path / "scored" / "figures" / "FLAIR_error.png").exists()
    assert "Scores against the withheld scans" in (tmp_path / "scored" / "report.html").read_text()


def test_the_report_is_rebuilt_as_it_was(done, typed):
    out, _ = done
    before = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    answer = typed("report", out)
    assert answer.status == 0 and answer.out.strip() == str(out / "report.html")
    assert (out / "report.html").read_bytes() == before


def test_a_report_of_nothing(tmp_path, typed):
    answer = typed("report", tmp_path)
    assert (answer.code, answer.status) == ("IN_FORMAT", 3)


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden"])
def test_names_that_are_no_file_names(name, study, tmp_path, impute):
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--name", name)
    assert (answer.code, answer.status) == ("OUT_NAME", 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags", [("--align", "maybe"), ("--intensity", "hu"), ("--precision", "fp8"), ("--device", "tpu")]
)
def test_choices_that_do_not_exist(flags, study, tmp_path, impute):
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", *flags)
    assert (answer.code, answer.status) == ("CONFIG", 2)
    assert not (tmp_path / "out").exists()


def test_the_demo(tmp_path, tiny_model, typed):
    pytest.importorskip("nilearn", reason="the phantom needs the extra 'phantom'")
    answer = typed("demo", "-o", tmp_path / "demo", "--model", tiny_model)
    assert answer.status == 0, answer.err
    assert "PSNR" in answer.out and str(tmp_path / "demo" / "report.html") in answer.out
    run = json.loads((tmp_path / "demo" / "run.json").read_text())
    assert run["imputed"] == ["T2", "PD", "T1Gd"]
    assert len(run["scores"]) == 3 * 3


@pytest.mark.row("E9")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_within_five_seconds(number, expected, study, tmp_path, tiny_model):
    """The process is stopped in the model, which a hook makes last for a minute."""
    words = ["impute", "--t1", study["T1"], "-o", tmp_path / "out", "--model", tiny_model]
    code = f"""
import sys, time
import codebrain.impute as impute
def slow(self, *args):
    print("computing", file=sys.stderr, flush=True)
    time.sleep(60)
impute.Imputer._forward = slow
from codebrain.app.cli import main
sys.exit(main({[str(word) for word in words]!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert process.stderr.readline() == "computing\n"
    begun = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == expected
    assert time.monotonic() - begun < 5
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
