from __future__ import annotations

from pathlib import Path

import pytest

from codebrain.data.sources import find_subjects, patient_of
from codebrain.errors import InputRefused
from codebrain.vocabulary import Modality, ModalitySet


def _study(folder: Path, *names: str) -> Path:
    """Files with the right names; searching never opens them."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"not opened")
    return folder


@pytest.mark.parametrize(
    ("path", "patient"),
    [
        ("ms-07", "ms-07"),
        ("ms-19", "ms-19"),
        ("mslong-01-1", "mslong-01"),
        ("mslong-01-2", "mslong-01"),
        ("BraTS-GLI-00005-000", "BraTS-GLI-00005"),
        ("BraTS2021_00005", "BraTS2021_00005"),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001"),
        ("phantom-0001", "phantom-0001"),
        ("IXI002-Guys-0828", "IXI002-Guys-0828"),
        ("sri24", "sri24"),
        ("sub-01/ses-x", "sub-01"),
        ("sub-01_ses-2", "sub-01"),
        ("sub-A7-03-1", "sub-A7"),
        ("cohort-2/mslong-01-1", "cohort-2_mslong-01"),
    ],
)
def test_patients_by_name(path: str, patient: str) -> None:
    assert patient_of(path.split("/")) == patient


def test_studies_are_found_sorted(tmp_path: Path) -> None:
    _study(tmp_path / "ms-19", "T1.nii.gz", "FLAIR.nii.gz", "lesion.nii.gz")
    _study(tmp_path / "ms-07", "T1.nii.gz", "T2.nii.gz", "T1Gd.nii.gz")
    _study(tmp_path / ".hidden", "T1.nii.gz", "T2.nii.gz")
    _study(tmp_path / "notes", "README.txt")
    (tmp_path / "README.md").write_text("about")
    found = find_subjects(tmp_path)
    assert [s.subject for s in found.subjects] == ["ms-07", "ms-19"]
    assert list(found.subjects[1].files) == [Modality.T1, Modality.FLAIR]
    assert found.subjects[0].relative(Modality.T1GD) == "ms-07/T1Gd.nii.gz"
    assert found.modalities == ModalitySet.parse("T1,T2,FLAIR,T1Gd")
    assert found.passed_over == ()


def test_one_contrast_is_passed_over_and_said(tmp_path: Path) -> None:
    _study(tmp_path / "a", "T1.nii.gz", "T2.nii.gz")
    _study(tmp_path / "b", "T2.nii.gz")
    (passed,) = find_subjects(tmp_path).passed_over
    assert (passed.subject, passed.status) == ("b", "skipped")
    assert passed.message == "one contrast (T2): nothing to learn imputation from"


def test_fewer_contrasts_may_leave_a_study_with_one(tmp_path: Path) -> None:
    _study(tmp_path / "a", "T1.nii.gz", "T2.nii.gz")
    _study(tmp_path / "b", "T1.nii.gz", "PD.nii.gz", "T2.nii.gz")
    kept = find_subjects(tmp_path).restricted_to(ModalitySet.parse("T1,PD"))
    assert [s.subject for s in kept.subjects] == ["b"]
    assert list(kept.subjects[0].files) == [Modality.T1, Modality.PD]
    assert [p.subject for p in kept.passed_over] == ["a"]


def test_an_ambiguous_study_is_refused_alone(tmp_path: Path) -> None:
    _study(tmp_path / "a", "T1.nii.gz", "T2.nii.gz")
    _study(tmp_path / "b", "T1.nii.gz", "T1.nii", "T2.nii.gz")
    found = find_subjects(tmp_path)
    assert [s.subject for s in found.subjects] == ["a"]
    assert [(p.subject, p.status) for p in found.passed_over] == [("b", "refused")]


def test_bids_sessions_are_visits_of_one_patient(tmp_path: Path) -> None:
    for session in ("1", "2"):
        stem = f"sub-01_ses-{session}"
        _study(tmp_path / "sub-01" / f"ses-{session}" / "anat", f"{stem}_T1w.nii.gz", f"{stem}_FLAIR.nii.gz")
    _study(tmp_path / "sub-02" / "anat", "sub-02_T1w.nii.gz", "sub-02_T2w.nii.gz")
    found = find_subjects(tmp_path)
    assert {s.subject: s.patient for s in found.subjects} == {
        "sub-01_ses-1": "sub-01",
        "sub-01_ses-2": "sub-01",
        "sub-02": "sub-02",
    }


@pytest.mark.parametrize("name", ["subjects.tsv", "participants.tsv"])
def test_a_table_decides_who_is_whose(tmp_path: Path, name: str) -> None:
    for subject in ("scan1", "scan2", "scan3"):
        _study(tmp_path / subject, "T1.nii.gz", "T2.nii.gz")
    (tmp_path / name).write_text("subject\tage\tpatient\nscan1\t30\tann\nscan3\t31\tann\nelse\t1\tbob\n")
    assert [s.patient for s in find_subjects(tmp_path).subjects] == ["ann", "scan2", "ann"]


def test_bids_own_participants_are_no_table(tmp_path: Path) -> None:
    _study(tmp_path / "sub-01", "sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n")
    assert find_subjects(tmp_path).subjects[0].patient == "sub-01"


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    _study(tmp_path / "a", "T1.nii.gz", "T2.nii.gz")
    (tmp_path / "subjects.tsv").write_text("subject,patient\na,b\n")
    with pytest.raises(InputRefused, match="lacks a column") as caught:
        find_subjects(tmp_path)
    assert caught.value.code == "DATA_TABLE"


def test_cohorts_can_be_mixed(tmp_path: Path) -> None:
    _study(tmp_path / "x" / "a", "T1.nii.gz", "T2.nii.gz")
    _study(tmp_path / "y" / "b", "T1.nii.gz", "T2.nii.gz")
    found = find_subjects([tmp_path / "x", tmp_path / "y"])
    assert [(s.subject, s.relative(Modality.T1)) for s in found.subjects] == [
        ("a", "a/T1.nii.gz"),
        ("b", "b/T1.nii.gz"),
    ]


@pytest.mark.parametrize("other", ["a", "A"])
def test_the_same_name_twice_is_refused(tmp_path: Path, other: str) -> None:
    _study(tmp_path / "x" / "a", "T1.nii.gz", "T2.nii.gz")
    _study(tmp_path / "y" / other, "T1.nii.gz", "T2.nii.gz")
    with pytest.raises(InputRefused, match="same name") as caught:
        find_subjects([tmp_path / "x", tmp_path / "y"])
    assert caught.value.code == "DATA_DUPLICATE"


def test_no_studies(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="not a folder"):
        find_subjects(tmp_path / "nothing")
    with pytest.raises(InputRefused, match="no study folder"):
        find_subjects(tmp_path)
    _study(tmp_path / "one", "T1.nii.gz", "T2.nii.gz")
    with pytest.raises(InputRefused, match="Give the folder above it"):
        find_subjects(tmp_path / "one")


@pytest.mark.data
def test_visits_of_the_real_scans(real_data: Path) -> None:
    found = find_subjects(real_data / "raw")
    patients = {s.subject: s.patient for s in found.subjects}
    assert patients["mslong-01-1"] == patients["mslong-01-2"] == "mslong-01"
    assert patients["mslong-03-1"] == patients["mslong-03-2"] == "mslong-03"
    assert patients["ixi-002"] == "ixi-002"
    studies = find_subjects(real_data / "studies")
    assert [s.patient for s in studies.subjects] == ["glioma-fg6692", "ms-07", "ms-19", "sri24"]
    assert str(studies.modalities) == "T1,T2,PD,FLAIR,T1Gd"
