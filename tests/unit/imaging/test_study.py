"""Which file is which contrast."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import pytest

import scans
from codebrain.errors import CodeBrainError
from codebrain.imaging.study import Study, find_files, find_session, modality_of
from codebrain.vocabulary import Modality
from scans import affine_of, head, nifti, patch, write_scan, zipped


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("T1.nii.gz", "T1"), ("t2.nii", "T2"), ("FLAIR.NII.GZ", "FLAIR"), ("T1Gd.nii.gz", "T1Gd"),
        ("BraTS-GLI-00005-000-t1n.nii.gz", "T1"), ("BraTS-GLI-00005-000-t1c.nii.gz", "T1Gd"),
        ("BraTS-GLI-00005-000-t2f.nii.gz", "FLAIR"), ("BraTS-GLI-00005-000-t2w.nii.gz", "T2"),
        ("BraTS20_Training_001_t1ce.nii.gz", "T1Gd"), ("BraTS20_Training_001_flair.nii.gz", "FLAIR"),
        ("IXI002-Guys-0828-T1.nii.gz", "T1"), ("IXI002-Guys-0828-PD.nii.gz", "PD"),
        ("sub-01_T1w.nii.gz", "T1"), ("sub-01_ses-2_run-1_PDw.nii.gz", "PD"),
        ("sub-01_ce-gadolinium_T1w.nii.gz", "T1Gd"), ("sub-01_ce-GD_T1w.nii.gz", "T1Gd"),
        ("patient01_T1WKS.nii.gz", "T1Gd"), ("my scan T2.nii.gz", "T2"),
        ("sub-01_ce-ferumoxytol_T1w.nii.gz", None), ("sub-01_part-phase_T2w.nii.gz", None),
        ("sub-01_inv-1_T1w.nii.gz", None), ("sub-01_desc-imputed_T2w.nii.gz", None),
        ("sub-01_UNIT1.nii.gz", None), ("sub-01_bold.nii.gz", None),
        ("study_T2_imputed.nii.gz", None), ("study_T2_uncertainty.nii.gz", None),
        ("lesion.nii.gz", None), ("tissues.nii.gz", None), ("BraTS-GLI-00005-000-seg.nii.gz", None),
        ("T1.json", None), ("T1.nii.gz.part", None), (".T1.nii.gz", None), ("._T1.nii.gz", None), ("T1", None),
    ],
)  # fmt: skip
def test_names(name, modality):
    assert modality_of(name) == modality


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_a_folder_in_vocabulary_order(tmp_path):
    folder = touch(tmp_path / "a", "c-t2f.nii.gz", "c-t1c.nii.gz", "c-t1n.nii.gz", "c-seg.nii.gz", "notes.txt")
    found = find_files(folder)
    assert list(found) == [Modality.T1, Modality.FLAIR, Modality.T1GD]
    assert found[Modality.T1GD] == folder / "c-t1c.nii.gz"


def test_the_anat_folder_of_bids(tmp_path):
    touch(tmp_path / "sub-01" / "anat", "sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz")
    assert list(find_files(tmp_path / "sub-01")) == [Modality.T1, Modality.T2]


def test_a_bids_subject_with_sessions(tmp_path):
    subject = tmp_path / "raw" / "sub-01"
    touch(subject / "ses-1" / "anat", "sub-01_ses-1_T1w.nii.gz")
    assert list(find_session(subject)) == [Modality.T1]
    touch(subject / "ses-2" / "anat", "sub-01_ses-2_T1w.nii.gz")
    for folder, shown in ((subject, "ses-1, ses-2"), (tmp_path / "raw", "sub-01")):
        with pytest.raises(CodeBrainError) as caught:
            find_session(folder)
        assert caught.value.code == "BIDS_AMBIGUOUS" and shown in str(caught.value)
    assert find_session(touch(tmp_path / "other", "notes.txt")) == {}


def test_nothing_found_is_an_empty_answer(tmp_path):
    assert find_files(touch(tmp_path / "a", "lesion.nii.gz")) == {}


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("T1.nii.gz", "T1.nii"), "MOD_DUPLICATE"),
        (("T1.nii.gz", "x_t1w.nii.gz"), "MOD_DUPLICATE"),
        (("sub-01_run-1_T1w.nii.gz", "sub-01_run-2_T1w.nii.gz"), "BIDS_AMBIGUOUS"),
        (("sub-01_acq-mprage_T1w.nii.gz", "sub-01_acq-tse_T1w.nii.gz"), "BIDS_AMBIGUOUS"),
    ],
)
def test_two_files_of_one_contrast_are_listed(names, code, tmp_path):
    with pytest.raises(CodeBrainError) as caught:
        find_files(touch(tmp_path / "a", *names))
    assert caught.value.code == code
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.write_text("x")])
def test_what_is_no_folder(make, tmp_path):
    make(tmp_path / "a")
    with pytest.raises(CodeBrainError) as caught:
        find_files(tmp_path / "a")
    assert caught.value.code == "IN_NOT_A_FILE"


def test_reading_a_study(tmp_path):
    files = scans.write_study(tmp_path, ("FLAIR", "T1"))
    study = Study.read({"t1w": files["T1"], "flair": str(files["FLAIR"])}, name="mine")
    assert study.name == "mine" and list(study.volumes) == [Modality.T1, Modality.FLAIR]
    assert study.volumes[Modality.T1].name == "T1.nii.gz"
    memory = Study.read({"T1": nib.load(files["T1"]), "T2": files["FLAIR"]})
    assert memory.volumes[Modality.T1].name == "T1"
    np.testing.assert_array_equal(memory.volumes[Modality.T1].data, study.volumes[Modality.T1].data)


def test_options_reach_every_scan(tmp_path):
    many = np.stack([head("T1"), head("T2")], -1)
    path = write_scan(tmp_path / "t1.nii.gz", many)
    assert Study.read({"T1": path}, volume_index=1).volumes[Modality.T1].data.ndim == 3
    with pytest.raises(CodeBrainError) as caught:
        Study.read({"T1": path}, volume_index=1, max_voxels=10)
    assert caught.value.code == "IN_TOO_BIG"


@pytest.mark.parametrize(
    ("files", "code"),
    [({}, "MOD_NONE"), ({"T9": "x"}, "MOD_UNKNOWN"), ({"T1": "x", "t1w": "y"}, "MOD_DUPLICATE")],
)
def test_names_that_are_refused(files, code):
    with pytest.raises(CodeBrainError) as caught:
        Study.read(files)
    assert (caught.value.code, caught.value.exit_code) == (code, 2)


@pytest.mark.parametrize("how", ["path", "symlink", "hard link", "copy", "object", "equal objects"])
def test_one_scan_for_two_contrasts(how, tmp_path):
    first = write_scan(tmp_path / "a.nii.gz")
    second = tmp_path / "b.nii.gz"
    sources = {"T1": first, "T2": second}
    if how == "path":
        sources["T2"] = tmp_path / ".." / tmp_path.name / "a.nii.gz"
    elif how == "symlink":
        second.symlink_to(first)
    elif how == "hard link":
        os.link(first, second)
    elif how == "copy":
        second.write_bytes(first.read_bytes())
    elif how == "object":
        image = nib.load(first)
        sources = {"T1": image, "T2": image}
    else:
        sources = {"T1": nib.load(first), "T2": nib.load(first)}
    with pytest.raises(CodeBrainError) as caught:
        Study.read(sources)
    assert caught.value.code == "MOD_SAME_FILE" and "T1" in str(caught.value) and "T2" in str(caught.value)


def without_orientation(contrast, shape=scans.SHAPE):
    content = nifti(head(contrast, shape), affine_of(shape=shape))
    return zipped(patch(patch(content, scans.QFORM_CODE, 0), scans.SFORM_CODE, 0))


def test_scans_without_orientation_must_agree(tmp_path):
    (tmp_path / "t1.nii.gz").write_bytes(without_orientation("T1"))
    (tmp_path / "t2.nii.gz").write_bytes(without_orientation("T2"))
    (tmp_path / "big.nii.gz").write_bytes(without_orientation("T2", (34, 36, 30)))
    oriented = write_scan(tmp_path / "flair.nii.gz", head("FLAIR"))
    both = {"T1": tmp_path / "t1.nii.gz", "T2": tmp_path / "t2.nii.gz"}
    assert len(Study.read(both, accept_no_orientation=True).volumes) == 2
    for other in ({"FLAIR": oriented}, {"PD": tmp_path / "big.nii.gz"}):
        with pytest.raises(CodeBrainError) as caught:
            Study.read(both | other, accept_no_orientation=True)
        assert caught.value.code == "GEO_NO_ORIENTATION"


@pytest.mark.data
def test_real_folders(real_data):
    assert list(find_files(real_data / "studies" / "ms-19")) == ["T1", "T2", "FLAIR", "T1Gd"]
    assert list(find_files(real_data / "studies" / "sri24")) == ["T1", "T2", "PD"]
    assert list(find_files(real_data / "raw" / "mslong-19-2")) == ["T1", "FLAIR"]
