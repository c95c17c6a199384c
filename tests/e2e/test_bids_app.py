"""``codebrain-bids`` as a user types it: derivatives that the BIDS validator accepts, refusals by rule."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import datasets
import scans
from codebrain import marks
from codebrain.app.bids_app import main, spread


@pytest.fixture
def bids(typed, tiny_model, tmp_path):
    """Type ``codebrain-bids raw out ...`` with the tiny model, in this process."""

    def type_app(*words, level="participant", out=tmp_path / "out", raw=tmp_path / "raw"):
        model = ("--model", tiny_model, "--jobs", 0) if level == "participant" else ()
        return typed(raw, out, level, *model, *words, program=main)

    return type_app


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model):
    """A finished data set: sessions, runs that are treated apart, T1Gd given and imputed; and what was said."""
    root = tmp_path_factory.mktemp("bids")
    raw = datasets.dataset(root / "raw", subjects=("01",), sessions=("1", "2"))
    datasets.add(raw, "sub-02_T1w.nii.gz", "sub-02_ce-gadolinium_T1w.nii.gz", whole=True, sidecar={"EchoTime": 0.003})
    datasets.add(raw, "sub-A1+b_run-1_T1w.nii.gz", "sub-A1+b_run-2_T1w.nii.gz", whole=True)
    datasets.add(raw, "sub-04_run-1_T1w.nii.gz", "sub-04_run-2_T1w.nii.gz", "sub-04_FLAIR.nii.gz")
    status = main([str(raw), str(root / "out"), "participant", "--model", str(tiny_model), "--jobs", "0", "-q",
                   "--want", "T2,T1Gd"])  # fmt: skip
    assert status == 6
    assert main([str(raw), str(root / "out"), "group", "-q"]) == 0
    return root


def validate(folder: Path) -> list[dict]:
    """Errors of the BIDS validator, run without any network: its schema is part of the package."""
    import bids_validator_deno
    from deno import find_deno_bin

    bundle = Path(bids_validator_deno.__file__).parent / "bids-validator.js"
    command = [os.fsdecode(find_deno_bin()), "run", "--no-prompt", "--cached-only", "--deny-net", "--allow-read",
               "--allow-env", str(bundle), "--json", str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = json.loads(done.stdout)
    assert found["summary"]["totalFiles"] > 3, done.stderr
    return [issue for issue in found["issues"]["issues"] if issue["severity"] == "error"]


@pytest.mark.row("H7")
def test_the_bids_validator_finds_no_error(whole):
    assert validate(whole / "out") == []


def test_the_bids_validator_would_find_one(whole, tmp_path):
    import shutil

    copy = tmp_path / "out"
    shutil.copytree(whole / "out", copy)
    sidecar = copy / "sub-02" / "anat" / "sub-02_desc-imputed_T2w.json"
    facts = json.loads(sidecar.read_text())
    del facts["SkullStripped"]
    sidecar.write_text(json.dumps(facts))
    (copy / "sub-02" / "anat" / "sub-02_rec_imputed.nii.gz").write_bytes(b"")
    assert {issue["code"] for issue in validate(copy)} >= {"SIDECAR_KEY_REQUIRED"}


def test_the_files(whole):
    out = whole / "out"
    images = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz"))
    stems = {
        "sub-01/ses-1/anat/sub-01_ses-1": ("", "T2w"), "sub-01/ses-2/anat/sub-01_ses-2": ("", "T2w"),
        "sub-02/anat/sub-02": ("", "T2w"), "sub-A1+b/anat/sub-A1+b": ("_run-1", "T2w"),
    }  # fmt: skip
    expected = []
    for stem in stems:
        for run in ("_run-1", "_run-2") if "A1" in stem else ("",):
            for desc in ("imputed", "uncertainty"):
                expected.append(f"{stem}{run}_desc-{desc}_T2w.nii.gz")
                if "sub-02" not in stem:  # its T1Gd is there
                    expected.append(f"{stem}_ce-gadolinium{run}_desc-{desc}_T1w.nii.gz")
    assert images == sorted(expected)
    assert all((out / name.replace(".nii.gz", ".json")).is_file() for name in images)
    others = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"dataset_description.json", "README.md", ".bidsignore", "sub-01_ses-2.html", "sub-A1+b_run-1.html",
            "sub-01/ses-1/anat/sub-01_ses-1_desc-uncertainty_metrics.tsv", "logs/sub-02_run.json", "logs/studies.tsv",
            "sub-02/figures/sub-02_T2_imputed.png", "group_metrics.tsv", "group_report.html"} <= others  # fmt: skip
    assert not [name for name in others if ".tmp-" in name or name.endswith(".lock")]


@pytest.mark.row("J2")
def test_the_sidecars_say_what_an_image_is_and_where_it_comes_from(whole, tiny_model):
    anat = whole / "out" / "sub-01" / "ses-1" / "anat"
    facts = json.loads((anat / "sub-01_ses-1_ce-gadolinium_desc-imputed_T1w.json").read_text())
    assert facts["SyntheticImage"] is True and facts["Synthetic"] is True
    assert facts["SyntheticMethod"].startswith("codebrain ") and facts["Notice"] == marks.RESEARCH_USE_ONLY
    assert facts["Sources"] == [f"bids:raw:sub-01/ses-1/anat/sub-01_ses-1_{c}.nii.gz" for c in ("T1w", "FLAIR")]
    assert set(facts["SourcesSHA256"]) == set(facts["Sources"])
    assert facts["Contrast"] == "T1Gd" and facts["ContrastsUsed"] == ["T1", "FLAIR"]
    assert facts["SpatialReference"] == facts["Sources"][0] and facts["SkullStripped"] is True
    assert facts["Model"]["SHA256"] == json.loads((tiny_model / "config.json").read_text())["weights_sha256"]
    assert facts["EnhancementNotice"] == marks.ENHANCEMENT_UNKNOWN and "SYNTHETIC" in facts["Description"]
    doubt = json.loads((anat / "sub-01_ses-1_desc-uncertainty_T2w.json").read_text())
    assert doubt["Sources"] == facts["Sources"] and doubt["Description"] == marks.DOUBT_MEANING
    lines = (anat / "sub-01_ses-1_desc-uncertainty_metrics.tsv").read_text().splitlines()
    assert lines[0] == "slice\tvoxels\tdoubt" and len(lines) == 1 + scans.SHAPE[2]
    assert 0 < float(lines[15].split("\t")[2]) < 1


def air_of_noise(data):
    """As a magnitude image has it; a bare brain in it proves nothing about its scalp."""
    noise = np.random.default_rng(0).normal(0, 0.04 * data.max(), (2, *data.shape))
    return np.hypot(data + noise[0], noise[1]).astype(np.float32)


@pytest.mark.parametrize(
    ("head", "stripped"), [("brain", True), ("whole", False), ("without a face", False), ("brain in noise", False)]
)
def test_the_sidecar_says_whether_the_skull_is_gone(bids, tmp_path, head, stripped):
    data = scans.head() if "brain" in head else scans.whole_head(face=head == "whole")
    spacing = scans.SPACING if "brain" in head else scans.WHOLE_SPACING
    datasets.begin(tmp_path / "raw")
    (scan,) = datasets.add(tmp_path / "raw", "sub-01_T1w.nii.gz")
    scans.write_scan(scan, air_of_noise(data) if "noise" in head else data, scans.affine_of(spacing, data.shape))
    assert bids("--want", "T2").status == 0
    sidecars = (tmp_path / "out" / "sub-01" / "anat").glob("*_T2w.json")
    assert {json.loads(path.read_text())["SkullStripped"] for path in sidecars} == {stripped}


@pytest.mark.row("H7")
def test_the_images_are_marked_and_on_the_grid_of_their_source(whole):
    out = whole / "out" / "sub-02" / "anat" / "sub-02_desc-imputed_T2w.nii.gz"
    made, given = nib.load(out), nib.load(whole / "raw" / "sub-02" / "anat" / "sub-02_T1w.nii.gz")
    np.testing.assert_array_equal(made.affine, given.affine)
    assert made.shape == given.shape and made.header["descrip"].item().startswith(b"SYNTHETIC T2")
    head = out.read_bytes()[:10]
    assert head[:4] == b"\x1f\x8b\x08\x00" and head[4:8] == bytes(4)  # no name, no time
    gzip.decompress(out.read_bytes())


@pytest.mark.row("J2")
def test_the_data_set_describes_itself(whole):
    facts = json.loads((whole / "out" / "dataset_description.json").read_text())
    assert facts["DatasetType"] == "derivative" and facts["GeneratedBy"][0]["Name"] == "codebrain"
    assert facts["DatasetLinks"] == {"raw": "../raw"} and "SYNTHETIC" in facts["Name"]


def test_nothing_names_a_folder_of_this_machine(whole):
    texts = [path for path in (whole / "out").rglob("*") if path.suffix in (".json", ".html", ".tsv", ".md")]
    assert len(texts) > 20
    for path in texts:
        assert str(whole) not in path.read_text() and whole.name not in path.read_text(), path.name


def test_the_group_level(whole):
    out = whole / "out"
    rows = list(csv.DictReader(io.StringIO((out / "group_metrics.tsv").read_text()), delimiter="\t"))
    assert [(row["study"], row["contrast"]) for row in rows] == [
        ("sub-01_ses-1", "T2"), ("sub-01_ses-1", "T1Gd"), ("sub-01_ses-2", "T2"), ("sub-01_ses-2", "T1Gd"),
        ("sub-02", "T2"), ("sub-04", "n/a"), ("sub-A1+b_run-1", "T2"), ("sub-A1+b_run-1", "T1Gd"),
        ("sub-A1+b_run-2", "T2"), ("sub-A1+b_run-2", "T1Gd"),
    ]  # fmt: skip
    assert {row["code"] for row in rows} == {"n/a", "BIDS_AMBIGUOUS"} and 0 < float(rows[0]["doubt"]) < 1
    html = (out / "group_report.html").read_text()
    links = re.findall(r'href="([^"]+)"', html)
    assert len(links) == 5 and all((out / link.replace("%2B", "+")).is_file() for link in links)
    assert not re.search(r'src="(?!data:)|<script', html)
    assert "SYNTHETIC" in html and marks.ENHANCEMENT_UNKNOWN.split(":")[0] in html and "BIDS_AMBIGUOUS" in html


def test_what_is_said_and_a_second_run(bids, tmp_path):
    datasets.dataset(tmp_path / "raw", contrasts=("T1w", "FLAIR"))
    first = bids("--want", "T2")
    assert first.status == 0, first.err
    assert "sub-01  SYNTHETIC T2 from T1, FLAIR, doubt 0." in first.out and "2 done" in first.out
    assert marks.RESEARCH_USE_ONLY in first.out
    image = tmp_path / "out" / "sub-01" / "anat" / "sub-01_desc-imputed_T2w.nii.gz"
    before = image.stat().st_mtime_ns
    datasets.add(tmp_path / "raw", "sub-03_T1w.nii.gz", whole=True)
    second = bids("--want", "T2", "--json")
    facts = json.loads(second.out.splitlines()[-1])
    assert facts["counts"] == {"kept": 2, "done": 1} and image.stat().st_mtime_ns == before
    assert "participants.tsv: 1 of the subjects are not in it" in second.err
    other = bids("--want", "PD")
    assert (other.status, other.code) == (4, "OUT_EXISTS")


def test_labels(bids, tmp_path):
    datasets.dataset(tmp_path / "raw", subjects=("01", "02", "03"), contrasts=("T1w",))
    answer = bids("--want", "T2", "--participant_label", "sub-01", "03", "--json")
    assert [row["study"] for row in answer.json["studies"]] == ["sub-01", "sub-03"]
    answer = bids("--participant-label", "1")
    assert (answer.status, answer.code) == (2, "CONFIG") and "01, 02, 03" in answer.err
    answer = bids("--session-label", "1")
    assert answer.status == 2 and "no sessions" in answer.err
    assert bids("--participant-label").status == 2


@pytest.mark.row("H1")
def test_filters_choose_between_runs(bids, tmp_path):
    datasets.begin(tmp_path / "raw")
    datasets.add(tmp_path / "raw", "sub-04_run-1_T1w.nii.gz", "sub-04_run-2_T1w.nii.gz", "sub-04_FLAIR.nii.gz",
                 whole=True)  # fmt: skip
    answer = bids("--want", "T2")
    assert (answer.status, answer.code) == (6, "BATCH")
    assert "refused BIDS_AMBIGUOUS" in answer.out and "--filter T1:run=1" in answer.out
    assert bids("--want", "T2", "--filter", "T1:run=2").status == 0
    facts = json.loads((tmp_path / "out" / "sub-04" / "anat" / "sub-04_desc-imputed_T2w.json").read_text())
    assert facts["Sources"][0] == "bids:raw:sub-04/anat/sub-04_run-2_T1w.nii.gz"


@pytest.mark.row("H4")
def test_bad_data_stop_no_other_subject(bids, tmp_path):
    raw = datasets.dataset(tmp_path / "raw", subjects=("01",), contrasts=("T1w",))
    (scan,) = datasets.add(raw, "sub-02_T1w.nii.gz", whole=True, sidecar={})
    scan.with_name("sub-02_T1w.json").write_bytes(b'\xef\xbb\xbf{"EchoTime": NaN}')
    lost = raw / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    lost.parent.mkdir(parents=True)
    lost.symlink_to("../../.git/annex/objects/nothing")
    datasets.add(raw, "sub-05_T1w.nii", "sub-05_T1w.nii.gz")
    (raw / "sub-06" / "func").mkdir(parents=True)
    answer = bids("--want", "T2", "--json")
    assert (answer.status, answer.code) == (6, "BATCH")
    rows = {row["study"]: (row["status"], row["code"]) for row in json.loads(answer.out.splitlines()[0])["studies"]}
    assert rows == {"sub-01": ("done", ""), "sub-02": ("refused", "BIDS_SIDECAR"), "sub-03": ("refused", "IN_FORMAT"),
                    "sub-05": ("refused", "BIDS_DUPLICATE"), "sub-06": ("skipped", "MOD_NONE")}  # fmt: skip
    assert validate(tmp_path / "out") == []


@pytest.mark.row("H6")
def test_a_read_only_data_set_and_derivatives_inside_it(bids, tmp_path):
    raw = datasets.dataset(tmp_path / "raw", subjects=("01",), contrasts=("T1w",))
    before = sorted(path for path in raw.rglob("*"))
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert bids("--want", "T2").status == 0
    assert sorted(raw.rglob("*")) == before
    for path in before:
        path.chmod(0o755 if path.is_dir() else 0o644)
    inside = raw / "derivatives" / "codebrain"
    assert bids("--want", "T2", out=inside).status == 0
    links = json.loads((inside / "dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"raw": "../.."}
    for out in (raw, raw / "mine", raw / "sub-01"):
        answer = bids("--want", "T2", out=out)
        assert (answer.status, answer.code) == (4, "OUT_CLOBBER")
    assert bids("--want", "T2", raw=inside, out=tmp_path / "again").code == "IN_SYNTHETIC"


@pytest.mark.row("H2")
def test_data_sets_that_are_none(bids, tmp_path):
    raw = datasets.begin(tmp_path / "raw", description=None)
    datasets.add(raw, "sub-01_T1w.nii.gz", whole=True)
    answer = bids("--want", "T2")
    assert (answer.status, answer.code) == (3, "BIDS_DESCRIPTION") and not (tmp_path / "out").exists()
    assert bids("--want", "T2", "--no-validate").status == 0
    assert bids(level="nonsense").status == 2
    assert (bids(level="group", out=tmp_path / "none").code) == "DATA_EMPTY"
    foreign = datasets.begin(tmp_path / "foreign")
    assert bids("--want", "T2", "--no-validate", out=foreign).code == "OUT_CLOBBER"


def test_ctrl_c_ends_the_batch_within_five_seconds_and_keeps_what_is_finished(tmp_path, tiny_model):
    raw = datasets.dataset(tmp_path / "raw", subjects=tuple(f"{i:02}" for i in range(30)), contrasts=("T1w",))
    command = [sys.executable, "-m", "codebrain.app.bids_app", str(raw), str(tmp_path / "out"), "participant",
               "--model", str(tiny_model), "--want", "T2", "--jobs", "1", "--json"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    records = tmp_path / "out" / ".codebrain" / "records"
    end = time.monotonic() + 100
    while not list(records.glob("sub-*.json")) and time.monotonic() < end:
        time.sleep(0.05)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert time.monotonic() - begun < 5
    assert "Traceback" not in said and "stopped by SIGINT" in said
    finished = {path.stem for path in records.glob("sub-*.json")}
    assert 1 <= len(finished) < 30
    images = {path.name.partition("_")[0] for path in (tmp_path / "out").glob("sub-*/anat/*imputed_T2w.nii.gz")}
    assert images == finished
    assert not [path for path in (tmp_path / "out").rglob("*") if ".tmp-" in path.name or path.name.endswith(".lock")]


@pytest.mark.parametrize(
    ("typed_words", "words"),
    [
        (
            "a b participant --participant-label 01 02 --jobs 2",
            "a b participant --participant-label 01 --participant-label 02 --jobs 2",
        ),
        (
            "a b group --participant_label 01 --session_label 1 2",
            "a b group --participant-label 01 --session-label 1 --session-label 2",
        ),
        (
            "a b participant --participant-label=01 --filter T1:run=2 acq=x",
            "a b participant --participant-label=01 --filter T1:run=2 --filter acq=x",
        ),
        ("a b participant --participant-label", "a b participant --participant-label"),
        ("--participant-label --jobs 2 a b", "--participant-label --jobs 2 a b"),
    ],
)
def test_options_with_several_words(typed_words, words):
    assert spread(typed_words.split()) == words.split()
