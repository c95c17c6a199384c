"""Rows J: a synthetic image says so, wherever it goes, and nothing claims more than research."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import pytest

import codebrain
import scans
from codebrain import marks

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGE = Path(codebrain.__file__).parent


@pytest.fixture
def done(tmp_path, impute):
    """A run that imputes T2 and T1Gd; gives the folder and what was said."""
    study = scans.write_study(tmp_path / "Jane Doe")
    answer = impute("--t1", study["T1"], "--flair", study["FLAIR"], "--want", "T2,T1Gd", "-o", tmp_path / "out")
    assert answer.status == 0, answer.err
    return tmp_path / "out", answer


@pytest.fixture(scope="module")
def out(tmp_path_factory, tiny_model):
    """The folder of such a run, shared by the tests that only look at it."""
    from codebrain.app.cli import main

    place = tmp_path_factory.mktemp("safety")
    study = scans.write_study(place / "Jane Doe")
    words = ["impute", "--model", tiny_model, "--t1", study["T1"], "--flair", study["FLAIR"], "--want", "T2,T1Gd", "-q"]
    assert main([str(word) for word in (*words, "-o", place / "out")]) == 0
    return place / "out"


def header_marks(path):
    """Which marks a NIfTI header still carries."""
    header = nib.load(path).header
    found = {name for name in ("descrip", "intent_name") if header[name].item().startswith(b"SYNTHETIC")}
    comments = [json.loads(e.get_content()) for e in header.extensions if e.get_code() == 6]
    return found | ({"comment"} if any(comment.get("SYNTHETIC") is True for comment in comments) else set())


@pytest.mark.row("J1")
def test_every_nifti_output_says_what_it_is(out):
    for contrast in ("T2", "T1Gd"):
        for kind in ("imputed", "uncertainty"):
            assert header_marks(out / f"study_{contrast}_{kind}.nii.gz") == {"descrip", "intent_name", "comment"}
        sidecar = json.loads((out / f"study_{contrast}_imputed.json").read_text())
        assert sidecar["Synthetic"] is True and sidecar["ContrastsUsed"] == ["T1", "FLAIR"]
    (comment,) = nib.load(out / "study_T1Gd_imputed.nii.gz").header.extensions
    facts = json.loads(comment.get_content())
    assert facts["Contrast"] == "T1Gd" and facts["Notice"] == marks.RESEARCH_USE_ONLY
    assert re.fullmatch("[0-9a-f]{64}", facts["Model"]["SHA256"]) and "Jane" not in json.dumps(facts)


def with_header(path, target):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(2 * image.get_fdata(), image.affine, image.header), target)


def without_header(path, target):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(2 * image.get_fdata(), image.affine), target)


def simple_itk(path, target, change=lambda image: image):
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(change(sitk.ReadImage(str(path))), str(target))


def itk_filter(path, target):
    simple_itk(path, target, lambda image: image + 1.0)


SURVIVE = {
    "renamed": (shutil.copy, {"descrip", "intent_name", "comment"}),
    "nibabel, loaded and saved": (lambda path, target: nib.save(nib.load(path), target), None),
    "nibabel, new voxels with the header": (with_header, {"descrip", "intent_name", "comment"}),
    "nibabel, new image without the header": (without_header, set()),
    "SimpleITK, read and written": (simple_itk, {"descrip"}),
    "SimpleITK, filtered": (itk_filter, set()),
}


@pytest.mark.row("J5")
@pytest.mark.parametrize("how", SURVIVE)
def test_which_marks_survive(how, out, tmp_path):
    """The table of docs/how-to/doctor.md. Where no mark in the header is left, name and sidecar remain."""
    change, survivors = SURVIVE[how]
    target = tmp_path / "renamed_T2.nii.gz"
    change(out / "study_T2_imputed.nii.gz", target)
    survivors = {"descrip", "intent_name", "comment"} if survivors is None else survivors
    assert header_marks(target) == survivors
    table = (REPOSITORY / "docs" / "how-to" / "doctor.md").read_text()
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {how} |")]
    assert [mark for mark in ("descrip", "intent_name", "comment") if f"`{mark}`" in line] == sorted(
        survivors, key=("descrip", "intent_name", "comment").index
    )


def with_limits(model, folder, **limits):
    """The model as one that declares limits of doubt by number of given contrasts."""
    shutil.copytree(model, folder)
    declared = {number.removeprefix("n"): limit for number, limit in limits.items()}
    (folder / "metrics.json").write_text(json.dumps({"doubt": {"limits": declared, "rule": "a test"}}))
    return folder


@pytest.mark.row("J6")
def test_doubt_by_slice_stands_beside_every_output_and_without_a_limit_nothing_is_judged(out):
    run = json.loads((out / "run.json").read_text())["uncertainty"]
    heads = [value for value in run["per_slice"] if value is not None]
    assert run["limit"] is None and run["low_confidence"] is False
    assert len(heads) > 3 and run["score"] == pytest.approx(sum(heads) / len(heads), abs=1e-4)
    for contrast in ("T2", "T1Gd"):
        doubt = nib.load(out / f"study_{contrast}_uncertainty.nii.gz").get_fdata()
        sidecar = json.loads((out / f"study_{contrast}_imputed.json").read_text())["Uncertainty"]
        assert sidecar["PerSlice"] == run["per_slice"] and sidecar["Limit"] is None
        assert sidecar["LowConfidence"] is False and sidecar["File"] == f"study_{contrast}_uncertainty.nii.gz"
        assert doubt[doubt > 0].mean() == pytest.approx(sidecar["Score"], abs=0.05)
    page = (out / "report.html").read_text()
    assert page.count("<rect ") == len(heads) and marks.NO_DOUBT_LIMIT in page and 'class="alarm"' not in page


@pytest.mark.row("J6")
@pytest.mark.parametrize(
    ("limits", "low"), [({"n2": 0.0}, True), ({"n2": 1.0, "n1": 0.0}, False)], ids=["over", "under"]
)
def test_a_doubt_over_the_limit_is_low_confidence_everywhere(limits, low, out, tmp_path, tiny_model, impute):
    study, place = scans.write_study(tmp_path / "in"), tmp_path / "out"
    model = with_limits(tiny_model, tmp_path / "tiny", **limits)
    answer = impute(
        "--t1", study["T1"], "--flair", study["FLAIR"], "--want", "T2,T1Gd", "-o", place, "--model", model
    )  # fmt: skip
    assert answer.status == 0, answer.err
    run, page = json.loads((place / "run.json").read_text()), (place / "report.html").read_text()
    said = {
        "record": run["uncertainty"]["low_confidence"],
        "warning": [warning["code"] for warning in run["warnings"]].count("LOW_CONFIDENCE") == 1,
        "banner": 'class="alarm"' in page,
        "last word": "".join(answer.err.splitlines()[-1:]).startswith("codebrain: LOW CONFIDENCE"),
        "pictures": (place / "preview.png").read_bytes() != (out / "preview.png").read_bytes(),
    }
    for contrast in ("T2", "T1Gd"):
        for kind in ("imputed", "uncertainty"):
            path = place / f"study_{contrast}_{kind}.nii.gz"  # the names of files are a contract and stay
            description = nib.load(path).header["descrip"].item().decode()
            assert header_marks(path) == {"descrip", "intent_name", "comment"}
            said |= {f"{contrast} {kind}": description.startswith(f"SYNTHETIC LOW CONFIDENCE {contrast}")}
        facts = json.loads((place / f"study_{contrast}_imputed.json").read_text())
        said |= {f"{contrast} sidecar": facts["Uncertainty"]["LowConfidence"]}
    assert said == dict.fromkeys(said, low)


@pytest.mark.row("J8")
def test_a_fixed_sentence_stands_beside_every_imputed_t1gd(done):
    out, answer = done
    assert marks.ENHANCEMENT_UNKNOWN in answer.out
    assert json.loads((out / "run.json").read_text())["enhancement"] == marks.ENHANCEMENT_UNKNOWN
    assert json.loads((out / "study_T1Gd_imputed.json").read_text())["EnhancementNotice"] == marks.ENHANCEMENT_UNKNOWN
    assert "EnhancementNotice" not in json.loads((out / "study_T2_imputed.json").read_text())
    assert marks.ENHANCEMENT_UNKNOWN.split(":")[0] in (out / "report.html").read_text()


@pytest.mark.row("J10")
def test_research_use_only_is_said_everywhere(done, typed):
    out, answer = done
    sentence = marks.RESEARCH_USE_ONLY
    assert sentence in answer.out and sentence in typed("--version").out
    assert sentence in (out / "report.html").read_text()
    assert json.loads((out / "study_T2_imputed.json").read_text())["Notice"] == sentence
    assert re.search("research use only; not a medical device", (REPOSITORY / "README.md").read_text(), re.IGNORECASE)


CLAIMS = re.compile(
    r"\b(diagnos\w*|clinically (?:valid\w*|proven|approved)|fda|ce[- ]marked|patient care"
    r"|treatment (?:of|plan\w*)|detects? (?:tumou?rs?|lesions?|disease))\b",
    re.IGNORECASE,
)


@pytest.mark.row("J10")
def test_no_word_claims_a_clinical_use():
    """In all that is said to users: sentences of the package, pages, README, documentation."""
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.j2"), *PACKAGE.rglob("*.md"), *PACKAGE.rglob("*.yaml")]
    files += [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    found = {f"{path.name}: {match.group()}" for path in files for match in CLAIMS.finditer(path.read_text("utf-8"))}
    assert found == set()
    assert CLAIMS.search("helps the diagnosis") and CLAIMS.search("it detects tumours")
