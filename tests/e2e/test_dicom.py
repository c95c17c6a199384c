"""DICOM in and out as a user types it: folders and archives, choices, derived series, and nothing of the patient."""

from __future__ import annotations

import gzip
import json
import sys
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest

import scans
import series
from codebrain.imaging.dicom.convert import read_series
from codebrain.imaging.dicom.find import only_series

pytest.importorskip("dcm2niix", reason="DICOM needs the extra 'dicom'")

CANARY = "ZQCANARYZQ"


@pytest.fixture
def study(tmp_path):
    return series.write_study(tmp_path / "in", ("T1", "FLAIR"))


def record(out):
    return json.loads((out / "run.json").read_text())


def test_a_folder_of_series_to_nifti_and_dicom(study, tmp_path, impute):
    out = tmp_path / "out"
    answer = impute(study, "-o", out, "--want", "T2", "--output-type", "nifti,dicom")
    assert answer.status == 0, answer.err
    assert "codebrain: series 1: T1: gradient echo, TR 2300 ms" in answer.err
    assert "codebrain: series 2: FLAIR: spin echo, TR 9000 ms" in answer.err
    assert str(out / "study_T2_imputed_dicom") in answer.out
    run = record(out)
    assert {row["contrast"]: row["file"] for row in run["inputs"]} == {
        "T1": "DICOM series 1",
        "FLAIR": "DICOM series 2",
    }
    row = run["outputs"][-1]
    assert row["file"] == "study_T2_imputed_dicom" and len(row["files"]) == 30
    assert sorted(p.name for p in (out / row["file"]).iterdir()) == sorted(row["files"])

    image = nib.load(out / "study_T2_imputed.nii.gz")
    back = read_series(only_series(out / "study_T2_imputed_dicom"), accept_synthetic=True)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-3)
    step = float(pydicom.dcmread(out / "study_T2_imputed_dicom" / "0001.dcm").RescaleSlope)
    np.testing.assert_allclose(back.data, image.get_fdata(), atol=0.51 * step + 1e-4)

    # A second run without DICOM takes the older series away; its images are not accepted as inputs.
    again = impute("--t1", out / "study_T2_imputed_dicom", "-o", tmp_path / "again")
    assert (again.code, again.status) == ("IN_SYNTHETIC", 3)
    assert impute(study, "-o", out, "--want", "T2", "--overwrite").status == 0
    assert not (out / "study_T2_imputed_dicom").exists()


def test_an_archive_and_a_series_by_option(study, tmp_path, impute):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        for path in sorted(study.rglob("*.dcm")):
            archive.write(path, path.relative_to(study))
    outs = []
    for n, words in enumerate(([tmp_path / "scans.zip"], ["--t1", study / "1", "--input", f"FLAIR={study / '2'}"])):
        out = tmp_path / f"out{n}"
        answer = impute(*words, "-o", out, "--want", "T2")
        assert answer.status == 0, answer.err
        outs.append(nib.load(out / "study_T2_imputed.nii.gz").get_fdata())
    np.testing.assert_array_equal(*outs)


def test_two_candidates_and_the_way_out(study, tmp_path, impute):
    series.write(study / "3", series.slices(number=7))
    out = tmp_path / "out"
    answer = impute(study, "-o", out, "--want", "T2")
    assert (answer.code, answer.status) == ("DCM_AMBIGUOUS", 3)
    assert not out.exists() and "--series T1=1" in answer.err
    assert impute(study, "-o", out, "--want", "T2", "--series", "T1=7").status == 0
    assert {row["file"] for row in record(out)["inputs"]} == {"DICOM series 7", "DICOM series 2"}
    assert impute(study, "-o", out, "--want", "T2", "--series", "t1w=none", "--overwrite").status == 0
    assert [row["contrast"] for row in record(out)["inputs"]] == ["FLAIR"]


def test_series_words_that_cannot_be(study, tmp_path, impute):
    nifti = scans.write_study(tmp_path / "nifti", ("T1",))
    for words, code in (
        ([study, "--series", "T1"], "CONFIG"),
        ([study, "--series", "T9=1"], "MOD_UNKNOWN"),
        ([study, "--series", "T1=99"], "CONFIG"),
        (["--t1", nifti["T1"], "--series", "T1=1"], "CONFIG"),
        ([tmp_path / "nifti", "--series", "T1=1"], "CONFIG"),
    ):
        answer = impute(*words, "-o", tmp_path / "out", "--want", "T2")
        assert (answer.code, answer.status) == (code, 2), words


def test_dicom_output_needs_a_dicom_input(study, tmp_path, impute):
    nifti = scans.write_study(tmp_path / "nifti", ("T1",))
    words = ("-o", tmp_path / "out", "--want", "T2", "--output-type", "nifti,dicom")
    for inputs in (["--t1", nifti["T1"]], ["--t1", nifti["T1"], "--flair", study / "2", "--ref", "T1"]):
        answer = impute(*inputs, *words)
        assert (answer.code, answer.status) == ("DCM_SOURCE", 3)
        assert not (tmp_path / "out").exists()
    assert impute("--t1", nifti["T1"], *words[:4], "--output-type", "jpeg").code == "CONFIG"
    assert impute("--t1", nifti["T1"], *words[:4], "--keep-patient").code == "CONFIG"


def test_a_series_on_the_grid_of_another_contrast(tmp_path, impute):
    """The reference is NIfTI, FLAIR is a DICOM series on another grid."""
    data, affine = series.axial(scans.head("FLAIR"))
    moved = affine + np.eye(4, k=3) * 4
    folder = series.write(tmp_path / "flair", series.slices(data, moved, contrast="FLAIR", number=2))
    t1, out = scans.write_scan(tmp_path / "t1.nii.gz"), tmp_path / "out"
    words = ("-o", out, "--want", "T2", "--output-type", "nifti,dicom", "--ref", "T1", "--space", "native:FLAIR")
    answer = impute("--t1", t1, "--flair", folder, *words)
    assert answer.status == 0, answer.err
    folders = {path.name for path in out.iterdir() if path.is_dir()}
    assert folders == {"figures", "study_space-FLAIR_T2_imputed_dicom"}
    image = nib.load(out / "study_space-FLAIR_T2_imputed.nii.gz")
    back = read_series(only_series(out / "study_space-FLAIR_T2_imputed_dicom"), accept_synthetic=True)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-3)
    ds = pydicom.dcmread(out / "study_space-FLAIR_T2_imputed_dicom" / "0001.dcm")
    assert (
        ds.SeriesDescription == "SYNTHETIC T2, on the grid of FLAIR, imputed by codebrain" and ds.SeriesNumber == 9042
    )
    np.testing.assert_allclose(back.data, image.get_fdata(), atol=0.51 * float(ds.RescaleSlope) + 1e-4)


def test_the_output_is_not_among_the_scans(study, tmp_path, impute):
    for out, words in ((study / "1" / "out", [study]), (study / "1" / "out", ["--t1", study / "1"])):
        answer = impute(*words, "-o", out, "--want", "T2")
        assert (answer.code, answer.status) == ("OUT_CLOBBER", 4)


@pytest.mark.row("G14")
def test_g14_an_imputed_nifti_is_no_input_and_a_phantom_is(tmp_path, impute):
    for name, descrip, intent in (("imputed", b"SYNTHETIC T1, codebrain 0.1", b"SYNTHETIC T1"),
                                  ("phantom", b"SYNTHETIC phantom T1", b"SYNTHETIC")):  # fmt: skip
        image = nib.Nifti1Image(scans.head(), scans.affine_of())
        image.header["descrip"], image.header["intent_name"] = descrip, intent
        image.set_sform(scans.affine_of(), 1)
        image.header.set_xyzt_units("mm")
        (tmp_path / f"{name}.nii").write_bytes(image.to_bytes())
    answer = impute("--t1", tmp_path / "imputed.nii", "-o", tmp_path / "out", "--want", "T2")
    assert (answer.code, answer.status) == ("IN_SYNTHETIC", 3)
    flagged = impute("--t1", tmp_path / "imputed.nii", "-o", tmp_path / "out", "--want", "T2", "--accept-synthetic")
    assert flagged.status == 0, flagged.err
    assert [w["code"] for w in record(tmp_path / "out")["warnings"]] == ["IN_SYNTHETIC"]
    assert impute("--t1", tmp_path / "phantom.nii", "-o", tmp_path / "out2", "--want", "T2").status == 0


def canaries(made):
    """Every text of a series that may say something about a person, filled with the canary."""
    for ds in made:
        for keyword in (
            "PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientNames", "PatientComments", "PatientAddress",
            "PatientMotherBirthName", "EthnicGroup", "Occupation", "AdditionalPatientHistory", "AccessionNumber",
            "StudyID", "StudyDescription", "SeriesDescription", "ProtocolName", "InstitutionName", "InstitutionAddress",
            "InstitutionalDepartmentName", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName",
            "PhysiciansOfRecord", "RequestingPhysician", "NameOfPhysiciansReadingStudy", "StationName",
            "DeviceSerialNumber", "ImageComments", "RequestedProcedureDescription", "PerformedProcedureStepDescription",
            "PositionReferenceIndicator", "SequenceName",
        ):  # fmt: skip
            setattr(ds, keyword, CANARY)
        ds.RequestAttributesSequence = [
            series.item(RequestedProcedureID=CANARY, ScheduledProcedureStepDescription=CANARY)
        ]
        ds.private_block(0x0029, CANARY, create=True).add_new(1, "LO", CANARY)
    return made


def texts(out):
    """Every file of a run, as it is and unpacked."""
    for path in sorted(out.rglob("*")):
        yield path.name, path.name.encode()
        if path.is_file():
            content = path.read_bytes()
            yield path.name, content
            if path.suffix == ".gz":
                yield path.name, gzip.decompress(content)


@pytest.mark.row("G13")
def test_g13_no_word_of_the_patient_comes_out(tmp_path, impute, monkeypatch):
    """In every text, private element, folder and file name; into no file, name or line."""
    folder = tmp_path / f"{CANARY} of {CANARY}"
    for number, contrast in enumerate(("T1", "FLAIR"), start=1):
        for k, ds in enumerate(canaries(series.slices(contrast=contrast, number=number))):
            series.save(ds, folder / f"{CANARY}{number}" / f"{CANARY}-{k}.dcm")
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["codebrain", "impute", f"{folder}/", "-o", str(out)])  # what run.json repeats
    answer = impute(folder, "-o", out, "--want", "T2,T1Gd", "--output-type", "nifti,dicom")
    assert answer.status == 0, answer.err
    assert CANARY not in answer.err and CANARY not in answer.out
    found = dict.fromkeys(name for name, content in texts(out) if CANARY.encode() in content)
    assert list(found) == []
    assert record(out)["command"] == ["codebrain", "impute", "DICOM", "-o", "out"]

    words = (folder, "-o", tmp_path / "out3", "--want", "T2", "--output-type", "nifti,dicom", "--keep-patient", "-v")
    kept = impute(*words)
    assert kept.status == 0, kept.err
    lines = [line for line in (kept.err + kept.out).splitlines() if CANARY in line]
    assert len(lines) == 2 and all(
        line.endswith(f"[{CANARY} {CANARY} {CANARY}]") for line in lines
    )  # asked for with -v
    names = {name for name, content in texts(tmp_path / "out3") if CANARY.encode() in content}
    assert names == {f"{k:04d}.dcm" for k in range(1, 31)}  # the search does see it
    ds = pydicom.dcmread(tmp_path / "out3" / "study_T2_imputed_dicom" / "0001.dcm")
    kept_keywords = {element.keyword for element in ds.iterall() if CANARY in str(element.value)}
    assert kept_keywords == {"PatientName", "PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID",
                             "StudyDescription", "ReferringPhysicianName"}  # fmt: skip


@pytest.mark.row("G13")
def test_g13_refusals_name_no_patient_but_in_the_path_that_was_typed(tmp_path, impute):
    made = canaries(series.slices())
    del made[9]
    series.write(tmp_path / "in", made)
    answer = impute(tmp_path / "in", "-o", tmp_path / "out", "--want", "T2", "--json")
    assert (answer.code, answer.status) == ("DCM_GAP", 3)
    assert CANARY not in answer.err + answer.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda made: made[3].__delattr__("ImagePositionPatient"), "DCM_GEOMETRY"),
        (lambda made: [setattr(ds, "Modality", "CT") for ds in made], "DCM_MODALITY"),
        (lambda made: [setattr(ds, "SyntheticData", "YES") for ds in made], "IN_SYNTHETIC"),
        (lambda made: made[0].__setattr__("Rows", 65535), "DCM_MIXED"),
        (lambda made: made[4].__setattr__("PixelData", made[4].PixelData[:-500]), "IN_TRUNCATED"),
    ],
)
def test_refusals_leave_nothing(spoil, code, tmp_path, impute):
    made = series.slices()
    spoil(made)
    folder = series.write(tmp_path / "in", made)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    answer = impute("--t1", folder, "-o", tmp_path / "out", "--want", "T2")
    assert (answer.code, answer.status) == (code, 3), answer.err
    assert len(answer.err.strip().splitlines()) == 1 and "Traceback" not in answer.err
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_json_says_the_same(study, tmp_path, impute):
    answer = impute(study, "-o", tmp_path / "out", "--want", "T2", "--json")
    assert answer.status == 0, answer.err
    assert answer.json["inputs"][0]["file"] == "DICOM series 1"


def test_the_doctor_says_what_impute_would_take(study, tmp_path, typed):
    answer = typed("doctor", study)
    assert answer.status == 0
    assert "series 1: T1: gradient echo, TR 2300 ms" in answer.out
    series.write(study / "3", series.slices(number=7))
    answer = typed("doctor", study)
    assert answer.status == 3 and "DCM_AMBIGUOUS" in answer.out and "--series T1=1" in answer.out
    for path in (study / "3").iterdir():
        path.unlink()
    (study / "1" / "0007.dcm").unlink()
    answer = typed("doctor", study, "--json")
    assert answer.status == 3
    assert "DCM_GAP" in [finding["code"] for found in answer.json["files"] for finding in found["findings"]]
    one = typed("doctor", study / "2" / "0000.dcm")  # a slice is a file of a series, and no scan
    assert one.status == 3 and "DCM_UNKNOWN" in one.out
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(100))
    answer = typed("doctor", broken)
    assert answer.status == 3 and "DCM_MALFORMED" in answer.out


def test_the_library_takes_series_too(study, tmp_path, tiny_model):
    from codebrain import Imputer

    result = Imputer.from_pretrained(tiny_model, threads=1)({"T1": study / "1", "FLAIR": str(study / "2")}, want=["T2"])
    written = result.save(tmp_path / "out", dicom=True)
    assert len([path for path in written if path.suffix == ".dcm"]) == 30
