"""Rows D: contrasts, paths and options, as a user types them."""

from __future__ import annotations

import json
import locale
import os
import stat
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
from inputs import digests, files_in, is_refused

import scans


@pytest.fixture
def study(tmp_path):
    return scans.write_study(tmp_path / "in", ("T1", "FLAIR"))


@pytest.mark.row("D1")
def test_an_unknown_contrast_with_a_guess(study, tmp_path, impute):
    for words in (("--input", f"FLAIRR={study['FLAIR']}"), ("--t1", study["T1"], "--want", "FLAIRR")):
        answer = impute(*words, "-o", tmp_path / "out")
        is_refused(answer, "MOD_UNKNOWN", 2, tmp_path / "out")
        assert "Did you mean FLAIR?" in answer.err


@pytest.mark.row("D1")
@pytest.mark.parametrize("alias", ["t1ce", "T1C", "t1gd", "T1WKS", "T1Gd"])
def test_aliases_in_any_case(alias, study, tmp_path, impute):
    answer = impute("--input", f"{alias}={study['T1']}", "--want", "t2w", "-o", tmp_path / "out", "--json")
    assert answer.status == 0, answer.err
    assert [row["contrast"] for row in answer.json["inputs"]] == ["T1Gd"]


@pytest.mark.row("D2")
def test_a_contrast_twice(study, tmp_path, impute):
    for words in (
        ("--t1", study["T1"], "--t1", study["FLAIR"]),
        ("--t1", study["T1"], "--input", f"t1w={study['FLAIR']}"),
    ):
        answer = impute(*words, "-o", tmp_path / "out")
        is_refused(answer, "MOD_DUPLICATE", 2, tmp_path / "out")


@pytest.mark.row("D2")
@pytest.mark.parametrize("how", ["path", "link", "copy"])
def test_the_same_scan_for_two_contrasts(how, study, tmp_path, impute):
    other = tmp_path / "in" / "other.nii.gz"
    if how == "path":
        other = tmp_path / "in" / ".." / "in" / "T1.nii.gz"
    elif how == "link":
        os.link(study["T1"], other)
    else:
        other.write_bytes(study["T1"].read_bytes())
    answer = impute("--t1", study["T1"], "--t2", other, "-o", tmp_path / "out")
    is_refused(answer, "MOD_SAME_FILE", 3, tmp_path / "out")


@pytest.mark.row("D4")
def test_nothing_is_missing(tmp_path, impute):
    everything = scans.write_study(tmp_path / "in", ("T1", "T2", "PD", "FLAIR", "T1Gd"))
    words = [word for contrast, path in everything.items() for word in (f"--{contrast.lower()}", path)]
    answer = impute(*words, "-o", tmp_path / "out")
    assert answer.status == 0
    assert "Nothing to impute" in answer.out
    assert not (tmp_path / "out").exists()


@pytest.mark.row("D4")
def test_nothing_is_given(tmp_path, impute):
    (tmp_path / "in").mkdir()
    for words in ((), (tmp_path / "in",)):
        answer = impute(*words, "-o", tmp_path / "out")
        is_refused(answer, "MOD_NONE", 2, tmp_path / "out")


@pytest.mark.row("D5")
def test_a_target_that_the_model_does_not_know(study, tmp_path, impute):
    from codebrain.models import build_model, save_model
    from codebrain.vocabulary import ModalitySet, Preparation

    modalities = ModalitySet.parse("T1,T2")
    model = build_model("codebrain", modalities, {"width": 2, "depth": 1})
    save_model(model, tmp_path / "model", preparation=Preparation(modalities))
    words = ("--want", "PD", "-o", tmp_path / "out", "--model", tmp_path / "model")
    answer = impute("--t1", study["T1"], *words)
    is_refused(answer, "MOD_TARGET_UNKNOWN", 3, tmp_path / "out")
    assert "T1, T2" in answer.err


@pytest.mark.row("D5")
def test_a_target_that_is_also_given(study, tmp_path, impute):
    words = (
        "--t1",
        study["T1"],
        "--flair",
        study["FLAIR"],
        "--want",
        "FLAIR",
    )
    answer = impute(*words, "-o", tmp_path / "refused")
    is_refused(answer, "MOD_TARGET_GIVEN", 3, tmp_path / "refused")
    answer = impute(*words, "-o", tmp_path / "out", "--evaluate", "--json")
    assert answer.status == 0, answer.err
    assert {row["metric"] for row in answer.json["scores"]} >= {"PSNR", "SSIM", "MAE"}


@pytest.mark.row("D8")
def test_the_output_would_be_among_the_inputs(study, tmp_path, impute):
    before = digests(*study.values())
    for words in (
        ("--t1", study["T1"], "-o", tmp_path / "in"),
        (tmp_path / "in", "-o", tmp_path / "in" / "out"),
    ):
        answer = impute(*words, "--quiet")
        assert (answer.code, answer.status) == ("OUT_CLOBBER", 4)
    assert digests(*study.values()) == before
    assert len(files_in(tmp_path / "in")) == len(study)


ODD_NAMES = {
    "spaces": "my scan of today",
    "shell": "a#%&;$(touch pwned)'`\"|<>*?",
    "newline": "two\nlines",
    "dash": "-o",
    "emoji": "brain\N{BRAIN}",
    "composed": "Bj\u00f6rk",
    "decomposed": "Bjo\u0308rk",
    "right to left": "abc\u202egpj",
    "escape": "red\x1b[31m",
    "markup": "<img src=x onerror=alert(1)>",
    "not UTF-8": os.fsdecode(b"Bj\xf6rk"),
    "longest": "x" * (255 - len(".nii.gz")),
}


@pytest.mark.row("D6")
@pytest.mark.parametrize("kind", ODD_NAMES)
def test_odd_names_are_read_and_escaped(kind, tmp_path, monkeypatch, impute):
    monkeypatch.chdir(tmp_path)
    name = f"{ODD_NAMES[kind]}.nii.gz"
    scans.write_scan(Path(name) if not name.startswith("-") else tmp_path / name)
    answer = impute("--input", f"T1={name}", "--want", "T2", "-o", "out")
    assert answer.status == 0, answer.err
    assert not Path("pwned").exists()
    run = json.loads(Path("out/run.json").read_text())
    assert run["inputs"][0]["file"] == name
    html = Path("out/report.html").read_text()
    assert "\u202e" not in html + answer.out + answer.err and "\x1b" not in html + answer.out + answer.err
    assert "<img src=x" not in html


@pytest.mark.row("D6")
@pytest.mark.parametrize("length", [4096, 300])
def test_paths_that_are_too_long(length, tmp_path, impute):
    path = str(tmp_path) + "/d" * 2000 if length > 1000 else tmp_path / ("x" * length)
    answer = impute("--t1", f"{path}.nii.gz", "-o", tmp_path / "out")
    is_refused(answer, "IN_NOT_A_FILE", 3, tmp_path / "out")
    scan = scans.write_scan(tmp_path / "t1.nii.gz")
    answer = impute("--t1", scan, "-o", f"{path}")
    assert answer.status == 4 and answer.code in ("OUT_NAME", "OUT_PERMISSION"), answer.err


@pytest.mark.row("D7")
def test_an_input_may_be_a_link_but_no_loop(study, tmp_path, impute):
    link, loop = tmp_path / "link.nii.gz", tmp_path / "loop.nii.gz"
    link.symlink_to(study["T1"])
    loop.symlink_to(loop)
    assert impute("--t1", link, "--want", "T2", "-o", tmp_path / "out").status == 0
    is_refused(impute("--t1", loop, "-o", tmp_path / "none"), "IN_NOT_A_FILE", 3, tmp_path / "none")


@pytest.mark.row("D7")
def test_an_output_that_is_a_link_to_elsewhere_is_refused(study, tmp_path, impute):
    elsewhere, home = tmp_path / "elsewhere", tmp_path / "home"
    elsewhere.mkdir()
    (home / "runs").mkdir(parents=True)
    words = ("--t1", study["T1"], "--want", "T2")
    (home / "out").symlink_to(elsewhere)
    (home / "gone").symlink_to(tmp_path / "not" / "there")
    for out in (home / "out", home / "gone"):
        answer = impute(*words, "-o", out)
        assert (answer.code, answer.status) == ("OUT_SYMLINK", 4), answer.err
    (home / "here").symlink_to("runs")
    assert impute(*words, "-o", home / "here").status == 0, "a link inside its own folder is the user's own"
    for name in files_in(home / "runs" / "figures"):
        (home / "runs" / "figures" / name).unlink()
    (home / "runs" / "figures").rmdir()
    (home / "runs" / "figures").symlink_to(elsewhere)
    answer = impute(*words, "-o", home / "runs", "--overwrite")
    assert (answer.code, answer.status) == ("OUT_SYMLINK", 4), answer.err
    assert files_in(elsewhere) == []


@pytest.mark.row("D9")
@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "tr_TR.UTF-8", "LC_NUMERIC": "de_DE.UTF-8", "PYTHONIOENCODING": "ascii"},
    ],
    ids=lambda environment: " ".join(f"{k}={v}" for k, v in environment.items()),
)
def test_locales(environment, tmp_path):
    scans.write_scan(tmp_path / "T1.nii.gz")
    code = "import sys; from codebrain.app.cli import main; sys.exit(main())"
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8", "PYTHONIO"))}
    command = [sys.executable, "-c", code, "doctor", "T1.nii.gz", "I\u0130\N{BRAIN}.nii.gz".encode()]
    done = subprocess.run(command, cwd=tmp_path, env=bare | environment, capture_output=True, check=False)
    assert done.returncode == 3 and b"Traceback" not in done.stderr, done.stderr
    assert b"field of view 160 x 180 x 150 mm" in done.stdout and b"IN_NOT_A_FILE" in done.stdout


@pytest.mark.row("D9")
def test_a_decimal_comma_changes_no_file(study, tmp_path, impute):
    before = locale.setlocale(locale.LC_ALL)
    try:
        locale.setlocale(locale.LC_ALL, next(n for n in ("de_DE.UTF-8", "C.UTF-8", "C") if _settable(n)))
        assert impute("--t1", study["T1"], "--want", "T2", "-o", tmp_path / "out").status == 0
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["inputs"][0]["spacing_mm"] == [5.0, 5.0, 5.0]


def _settable(name):
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    return True


@pytest.mark.row("D9")
def test_new_files_obey_the_umask_and_replaced_ones_keep_their_mode(study, tmp_path, impute):
    out = tmp_path / "out"
    words = ("--t1", study["T1"], "--want", "T2", "-o", out)
    before = os.umask(0o077)
    try:
        assert impute(*words).status == 0
        assert {stat.S_IMODE((out / name).stat().st_mode) for name in files_in(out)} == {0o600}
        shared = out / "study_T2_imputed.nii.gz"
        shared.chmod(0o664)
        assert impute(*words, "--overwrite").status == 0
        assert stat.S_IMODE(shared.stat().st_mode) == 0o664
    finally:
        os.umask(before)
    assert nib.load(shared).shape == scans.SHAPE
