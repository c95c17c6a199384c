"""The layouts of the published archives, and what is no such archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from codebrain.data.archives import find_brats, find_ixi
from codebrain.data.datasets import BRATS, IXI, dataset_named
from codebrain.errors import InputRefused, UsageError
from codebrain.vocabulary import Modality


def put(root: Path, *names: str) -> Path:
    """Files with these names; searching never opens them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not opened")
    return root


def ixi_files(subject: str, contrasts=("T1", "T2", "PD")) -> list[str]:
    return [f"IXI-{contrast}/{subject}-{contrast}.nii.gz" for contrast in contrasts]


def test_ixi_as_its_archives_unpack(tmp_path: Path) -> None:
    put(tmp_path, *ixi_files("IXI002-Guys-0828"), *ixi_files("IXI012-HH-1211", ("T1", "T2")), "IXI-T1/readme.txt")
    found = find_ixi([tmp_path])
    assert [(s.subject, s.patient) for s in found.subjects] == [
        ("IXI002-Guys-0828", "IXI002-Guys-0828"),
        ("IXI012-HH-1211", "IXI012-HH-1211"),
    ]
    assert found.subjects[0].relative(Modality.PD) == "IXI-PD/IXI002-Guys-0828-PD.nii.gz"
    complete = found.complete(IXI.modalities)
    assert [s.subject for s in complete.subjects] == ["IXI002-Guys-0828"]
    (row,) = complete.passed_over
    assert (row.subject, row.status, row.code) == ("IXI012-HH-1211", "refused", "DATA_CONTRASTS")
    assert row.message.startswith("PD is missing")


def test_ixi_in_one_folder_and_apart(tmp_path: Path) -> None:
    put(tmp_path / "flat", "IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T2.nii.gz", "IXI002-Guys-0828-PD.nii.gz")
    (subject,) = find_ixi([tmp_path / "flat"]).subjects
    assert set(subject.files) == set(IXI.modalities)


def test_one_contrast_twice_is_never_the_first_one_found(tmp_path: Path) -> None:
    put(tmp_path, *ixi_files("IXI002-Guys-0828"), "old/IXI002-Guys-0828-T2.nii.gz")
    found = find_ixi([tmp_path])
    assert not found.subjects
    (row,) = found.passed_over
    assert (row.subject, row.code) == ("IXI002-Guys-0828", "MOD_DUPLICATE")
    assert "IXI-T2/IXI002-Guys-0828-T2.nii.gz, old/IXI002-Guys-0828-T2.nii.gz" in row.message


@pytest.mark.parametrize(
    ("folder", "case", "names", "patient"),
    [
        ("", "BraTS-GLI-00005-000", ("-t1n", "-t1c", "-t2w", "-t2f"), "BraTS-GLI-00005"),
        ("ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/", "BraTS-GLI-00009-001", ("-t1n", "-t1c", "-t2w", "-t2f"),
         "BraTS-GLI-00009"),
        ("", "BraTS2021_00005", ("_t1", "_t1ce", "_t2", "_flair"), "BraTS2021_00005"),
        ("MICCAI_BraTS2020_TrainingData/", "BraTS20_Training_001", ("_t1", "_t1ce", "_t2", "_flair"),
         "BraTS20_Training_001"),
        ("HGG/", "Brats18_CBICA_AAB_1", ("_t1", "_t1ce", "_t2", "_flair"), "Brats18_CBICA_AAB_1"),
        ("LGG/", "BraTS19_TCIA10_130_1", ("_t1", "_t1ce", "_t2", "_flair"), "BraTS19_TCIA10_130"),
    ],
    ids=["2023", "2023 in its folder", "2021", "2020", "2018", "2019"],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_brats_of_every_year(tmp_path: Path, folder, case, names, patient, ending) -> None:
    put(tmp_path, *(f"{folder}{case}/{case}{name}{ending}" for name in (*names, "-seg", "_seg")))
    (subject,) = find_brats([tmp_path]).subjects
    assert (subject.subject, subject.patient) == (case, patient)
    assert set(subject.files) == set(BRATS.modalities)
    assert subject.files[Modality.T1GD].name in (f"{case}-t1c{ending}", f"{case}_t1ce{ending}")


def test_a_brats_study_with_two_files_of_a_contrast_is_named_without_the_folders_above_it(tmp_path: Path) -> None:
    case = "BraTS-GLI-00005-000"
    put(tmp_path, f"Train/{case}/{case}-t1n.nii.gz", f"Train/{case}/{case}-t1n.nii", f"Train/{case}/{case}-t2w.nii.gz")
    (row,) = find_brats([tmp_path]).passed_over
    assert (row.subject, row.status, row.code, row.patient) == (case, "refused", "MOD_DUPLICATE", "BraTS-GLI-00005")


def test_files_of_another_case_in_a_folder_are_not_taken(tmp_path: Path) -> None:
    put(tmp_path, "BraTS-GLI-00005-000/BraTS-GLI-00006-000-t1n.nii.gz")
    with pytest.raises(InputRefused):
        find_brats([tmp_path])


WRONG = {
    "empty": ((), "found 0 files", "Give the folder that the archive was unpacked into"),
    "a BraTS archive": (("BraTS-GLI-00005-000/BraTS-GLI-00005-000-t1n.nii.gz",), "found 1 files", "prepare brats"),
    "an IXI archive": (tuple(ixi_files("IXI002-Guys-0828")), "found 3 files", "prepare ixi"),
    "a BIDS data set": (("dataset_description.json", "sub-01/anat/sub-01_T1w.nii.gz"), "found 2 files", "prepare bids"),
    "study folders": (("a/T1.nii.gz", "a/T2.nii.gz"), "found 2 files", "prepare folder"),
    "pictures": (("a/b.png",), "b.png for example", "Give the folder"),
}


@pytest.mark.parametrize("kind", ["ixi", "brats"])
@pytest.mark.parametrize("case", list(WRONG))
def test_the_wrong_layout_says_what_was_expected_and_what_it_looks_like(tmp_path: Path, case: str, kind: str) -> None:
    names, found, hint = WRONG[case]
    put(tmp_path, *names)
    if kind in hint:
        pytest.skip("this is the right layout")
    with pytest.raises(InputRefused) as caught:
        dataset_named(kind).find([tmp_path])
    error = caught.value
    assert error.code == "DATA_EMPTY"
    assert found in str(error) and hint in str(error)
    assert ("IXI002-Guys-0828-T1" if kind == "ixi" else "BraTS-GLI-00005-000-t1n") in str(error)


@pytest.mark.parametrize("kind", ["ixi", "brats"])
def test_a_source_that_is_not_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputRefused, match="not a folder"):
        dataset_named(kind).find([tmp_path / "nowhere"])


def test_a_kind_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no source 'mri'"):
        dataset_named("mri")
