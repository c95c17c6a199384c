"""Which studies a BIDS data set holds: rows H1 to H6 of the list of bad inputs."""

from __future__ import annotations

import json
import os

import pytest

import datasets
from codebrain.errors import CodeBrainError
from codebrain.imaging.bids_dataset import (
    SIDECAR_LIMIT,
    Filter,
    check_sidecars,
    read_dataset,
    read_sidecar,
    sidecars_of,
)
from codebrain.vocabulary import Modality


@pytest.fixture
def root(tmp_path):
    return datasets.begin(tmp_path / "raw")


def refused(call, *args, **kwargs):
    with pytest.raises(CodeBrainError) as caught:
        call(*args, **kwargs)
    return caught.value


def names(study):
    return {str(m): path.name for m, path in study.files.items()}


@pytest.mark.row("H1")
def test_sessions_are_studies_of_their_own(root):
    datasets.add(root, "sub-02_ses-a_T1w.nii.gz", "sub-01_ses-1_FLAIR.nii.gz", "sub-01_ses-1_T1w.nii.gz",
                 "sub-01_ses-2_T1w.nii.gz", "sub-01_ses-2_ce-gadolinium_T1w.nii.gz")  # fmt: skip
    studies = read_dataset(root).studies
    assert [study.name for study in studies] == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-a"]
    assert names(studies[0]) == {"T1": "sub-01_ses-1_T1w.nii.gz", "FLAIR": "sub-01_ses-1_FLAIR.nii.gz"}
    assert list(studies[1].files) == [Modality.T1, Modality.T1GD]
    assert studies[0].relative(Modality.T1) == "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    assert all(study.refused is None for study in studies)


@pytest.mark.row("H1")
@pytest.mark.parametrize(
    ("files", "studies"),
    [
        # The same labels for every contrast: apart.
        (("run-1_T1w", "run-2_T1w"), {"run-1": 1, "run-2": 1}),
        (("run-1_T1w", "run-2_T1w", "run-1_FLAIR", "run-2_FLAIR"), {"run-1": 2, "run-2": 2}),
        (("acq-lo_T1w", "acq-hi_T1w", "acq-hi_T2w", "acq-lo_T2w"), {"acq-hi": 2, "acq-lo": 2}),
        (("acq-a_run-1_T1w", "acq-a_run-2_T1w"), {"run-1": 1, "run-2": 1}),
        (("T1w", "run-2_T1w", "FLAIR", "run-2_FLAIR"), {"": 2, "run-2": 2}),
        (("acq-a_T1w", "acq-b_FLAIR"), {"": 2}),  # labels of single files tell nothing apart
        (("rec-norm_T1w",), {"": 1}), (("echo-2_T2w", "echo-1_PDw"), {"": 2}),
        # Anything else: refused.
        (("run-1_T1w", "run-2_T1w", "FLAIR"), None), (("acq-a_T1w", "acq-b_T1w", "acq-a_FLAIR"), None),
        (("echo-1_T2w", "echo-2_T2w"), None), (("T1w", "rec-norm_T1w", "T2w"), None),
        (("part-mag_T1w", "T1w"), None), (("run-1_T1w", "run-2_T1w", "run-1_FLAIR", "run-3_FLAIR"), None),
    ],
)  # fmt: skip
def test_several_files_of_one_contrast(root, files, studies):
    datasets.add(root, *(f"sub-01_{name}.nii.gz" for name in files))
    found = read_dataset(root).studies
    if studies is not None:
        assert {study.name: len(study.files) for study in found} == {
            f"sub-01_{labels}".rstrip("_"): count for labels, count in studies.items()
        }
        return
    (study,) = found
    assert study.refused is not None and study.refused.code == "BIDS_AMBIGUOUS" and not study.files
    several = [name for name in files if sum(other.endswith(name.rsplit("_")[-1]) for other in files) > 1]
    assert sum(f"sub-01_{name}.nii.gz" in str(study.refused) for name in several) >= 2
    assert "--filter" in str(study.refused)


@pytest.mark.row("H1")
@pytest.mark.parametrize(
    ("filters", "t1", "flair"),
    [(["run=2"], "run-02", None), (["T1:run=2"], "run-02", None), (["t1w:run=run-1"], "run-1", None),
     (["T2:run=2"], None, None)],
)  # fmt: skip
def test_filters_decide_between_several_files_only(root, filters, t1, flair):
    datasets.add(root, "sub-01_run-1_T1w.nii.gz", "sub-01_run-02_T1w.nii.gz", "sub-01_FLAIR.nii.gz")
    (study,) = read_dataset(root, filters=[Filter.parse(text) for text in filters]).studies
    if t1 is None:
        assert study.refused is not None
    else:
        assert names(study) == {"T1": f"sub-01_{t1}_T1w.nii.gz", "FLAIR": "sub-01_FLAIR.nii.gz"}


@pytest.mark.row("H1")
def test_a_filter_for_files_without_a_label_and_one_that_leaves_nothing(root):
    datasets.add(root, "sub-01_T1w.nii.gz", "sub-01_rec-norm_T1w.nii.gz", "sub-01_FLAIR.nii.gz")
    (study,) = read_dataset(root, filters=[Filter.parse("rec=none")]).studies
    assert names(study)["T1"] == "sub-01_T1w.nii.gz"
    (study,) = read_dataset(root, filters=[Filter.parse("rec=other")]).studies
    assert study.refused.code == "BIDS_FILTER"


@pytest.mark.parametrize("text", ["run", "run=", "sub=01", "nose=1", "T9:run=1", "run=1 2"])
def test_filters_that_are_none(text):
    assert refused(Filter.parse, text).exit_code == 2


def test_contrasts_that_nobody_wants_are_never_ambiguous(root):
    datasets.add(root, "sub-01_T1w.nii.gz", "sub-01_run-1_PDw.nii.gz", "sub-01_acq-x_PDw.nii.gz")
    assert read_dataset(root).studies[0].refused.code == "BIDS_AMBIGUOUS"
    (study,) = read_dataset(root, contrasts=[Modality.T1, Modality.FLAIR]).studies
    assert list(study.files) == [Modality.T1]


@pytest.mark.row("H2")
def test_the_tables_of_a_data_set(root):
    datasets.add(root, "sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz")
    assert [n.code for n in read_dataset(root).notices] == ["BIDS_PARTICIPANTS"]
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t4\nsub-02\t5\n")
    assert read_dataset(root).notices == ()
    (root / "participants.tsv").write_text("\ufeffparticipant_id\nsub-01\nsub-09\n", encoding="utf-8")
    assert [n.message for n in read_dataset(root).notices] == [
        "1 of the subjects are not in it", "1 of its subjects have no folder",
    ]  # fmt: skip
    (root / "participants.tsv").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in read_dataset(root).notices[0].message


@pytest.mark.row("H2")
@pytest.mark.parametrize("content", [None, "", "not JSON", "[]"])
def test_a_data_set_without_a_description(tmp_path, content):
    root = datasets.begin(tmp_path / "raw", description=None)
    datasets.add(root, "sub-01_T1w.nii.gz")
    if content is not None:
        (root / "dataset_description.json").write_text(content)
    error = refused(read_dataset, root)
    assert (error.code, error.exit_code) == ("BIDS_DESCRIPTION", 3)
    accepted = read_dataset(root, validate=False)
    assert "BIDS_DESCRIPTION" in [n.code for n in accepted.notices] and len(accepted.studies) == 1


def test_what_codebrain_made_is_no_source(tmp_path):
    description = datasets.DESCRIPTION | {"DatasetType": "derivative", "GeneratedBy": [{"Name": "codebrain"}]}
    root = datasets.begin(tmp_path / "out", description)
    assert refused(read_dataset, root).code == "IN_SYNTHETIC"


def test_what_is_no_data_set(tmp_path):
    assert refused(read_dataset, tmp_path / "none", validate=False).code == "IN_NOT_A_FILE"
    assert refused(read_dataset, datasets.begin(tmp_path / "empty")).code == "DATA_EMPTY"


def test_participants_and_sessions_by_label(root):
    datasets.add(root, "sub-01_ses-1_T1w.nii.gz", "sub-02_ses-1_T1w.nii.gz", "sub-02_ses-2_T1w.nii.gz")
    found = read_dataset(root, participants=["sub-02", "01"], sessions=["ses-2"]).studies
    assert [study.name for study in found] == ["sub-02_ses-2"]
    error = refused(read_dataset, root, participants=["01", "1"])
    assert (error.code, error.exit_code) == ("CONFIG", 2)
    assert "found 1" in str(error) and "01, 02" in str(error)
    assert "1, 2" in str(refused(read_dataset, root, sessions=["3"]))


@pytest.mark.row("H3")
def test_the_same_stem_twice(root):
    datasets.add(root, "sub-01_T1w.nii.gz", "sub-01_T1w.nii", "sub-02_T1w.nii")
    first, second = read_dataset(root).studies
    assert first.refused.code == "BIDS_DUPLICATE" and "sub-01_T1w" in str(first.refused)
    assert names(second) == {"T1": "sub-02_T1w.nii"}


def test_a_scan_in_the_folder_of_another(root):
    (path,) = datasets.add(root, "sub-01_T1w.nii.gz")
    path.rename(path.with_name("sub-02_T1w.nii.gz"))
    assert read_dataset(root).studies[0].refused.code == "BIDS_NAME"


@pytest.mark.row("H6")
def test_odd_labels_and_empty_folders(root):
    datasets.add(root, "sub-A1b+2_T1w.nii.gz", "sub-0001_ses-20260101T10_T1w.nii.gz")
    for folder in ("sub-01-old", "sub-é", "sub-03_ses-1", "sub-9/ses-a b", "sub-7/func"):
        (root / folder).mkdir(parents=True)
    (root / "sub-notafolder").touch()
    found = {study.name: study.refused.code if study.refused else len(study.files)
             for study in read_dataset(root).studies}  # fmt: skip
    assert found == {"sub-A1b+2": 1, "sub-0001_ses-20260101T10": 1, "sub-01-old": "BIDS_NAME", "sub-é": "BIDS_NAME",
                     "sub-03_ses-1": "BIDS_NAME", "sub-9_ses-a b": "BIDS_NAME", "sub-7": 0}  # fmt: skip


@pytest.mark.row("H5")
def test_what_is_passed_over_is_said(root):
    datasets.add(root, "sub-01_T1w.nii.gz", "sub-01_UNIT1.nii.gz", "sub-01_part-phase_T2w.nii.gz",
                 "sub-01_acq-postcontrast_FLAIR.nii.gz", "sub-02_acq-postcontrast_T1w.nii.gz")  # fmt: skip
    first, second = read_dataset(root).studies
    assert {(n.code, n.file) for n in first.notices} == {
        ("BIDS_UNUSED", "sub-01_UNIT1.nii.gz"), ("BIDS_UNUSED", "sub-01_part-phase_T2w.nii.gz"),
    }  # fmt: skip
    assert [n.code for n in second.notices] == ["BIDS_CONTRAST_AGENT"]


BAD_SIDECARS = {
    "not JSON": b"{", "byte-order mark": b'\xef\xbb\xbf{"a": 1}', "NaN": b'{"a": NaN}', "infinity": b'{"a": -Infinity}',
    "a key twice": b'{"a": 1, "a": 1}', "a nested key twice": b'{"a": {"b": 1, "b": 2}}', "a list": b"[1]",
    "other text": b'{"a": "\xff"}', "deep": b"[" * 100_000, "huge": b'{"a": "' + b"x" * SIDECAR_LIMIT + b'"}',
}  # fmt: skip


@pytest.mark.row("H4")
@pytest.mark.parametrize("content", BAD_SIDECARS.values(), ids=BAD_SIDECARS.keys())
def test_sidecars_that_cannot_be_trusted(root, content):
    (scan,) = datasets.add(root, "sub-01_T1w.nii.gz", sidecar={"EchoTime": 0.003})
    (study,) = read_dataset(root).studies
    check_sidecars(study)
    scan.with_name("sub-01_T1w.json").write_bytes(content)
    error = refused(check_sidecars, study)
    assert (error.code, error.file.name) == ("BIDS_SIDECAR", "sub-01_T1w.json")


def test_sidecars_are_inherited(root):
    datasets.add(root, "sub-01_ses-1_acq-x_T1w.nii.gz", sidecar={})
    for name in ("T1w.json", "acq-x_T1w.json", "acq-y_T1w.json", "T2w.json", "sub-01/sub-01_T1w.json",
                 "sub-01/ses-1/sub-01_ses-1_T1w.json", "sub-01/sub-01_acq-y_T1w.json"):  # fmt: skip
        (root / name).write_text("{}")
    (study,) = read_dataset(root).studies
    assert [path.relative_to(root).as_posix() for path in sidecars_of(study, Modality.T1)] == [
        "T1w.json", "acq-x_T1w.json", "sub-01/sub-01_T1w.json", "sub-01/ses-1/sub-01_ses-1_T1w.json",
        "sub-01/ses-1/anat/sub-01_ses-1_acq-x_T1w.json",
    ]  # fmt: skip
    (root / "acq-x_T1w.json").write_text("nothing")
    assert refused(check_sidecars, study).file.name == "acq-x_T1w.json"


def test_a_synthetic_scan_is_no_source(root):
    datasets.add(root, "sub-01_T1w.nii.gz", sidecar={"SyntheticImage": True})
    assert refused(check_sidecars, read_dataset(root).studies[0]).code == "IN_SYNTHETIC"


@pytest.mark.row("H6")
def test_links_of_git_annex(root, tmp_path):
    """Links to fetched content are scans; links to nothing are found, and refused when they are read."""
    (path,) = datasets.add(root, "sub-01_T1w.nii.gz", whole=True)
    content = tmp_path / "annex" / "objects" / "key.nii.gz"
    content.parent.mkdir(parents=True)
    path.rename(content)
    path.symlink_to(content)
    lost = path.with_name("sub-01_FLAIR.nii.gz")
    lost.symlink_to("../../.git/annex/objects/nothing")
    path.with_name("sub-01_T1w.json").symlink_to("../../.git/annex/objects/nothing")
    (study,) = read_dataset(root).studies
    assert list(study.files) == [Modality.T1, Modality.FLAIR]
    assert "datalad get" in str(refused(check_sidecars, study))
    from codebrain.imaging.volume import read_volume

    assert "not fetched" in str(refused(read_volume, study.files[Modality.FLAIR]))


@pytest.mark.row("H6")
def test_a_read_only_data_set_is_read_without_writes(root):
    datasets.add(root, "sub-01_T1w.nii.gz", sidecar={"EchoTime": 0.003})
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    for path in root.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        check_sidecars(read_dataset(root).studies[0])
        assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before
    finally:
        for path in root.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_subject_that_may_not_be_listed_stops_no_other(root):
    datasets.add(root, "sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz")
    (root / "sub-01").chmod(0)
    try:
        assert [bool(study.refused) for study in read_dataset(root).studies] == [True, False]
    finally:
        (root / "sub-01").chmod(0o755)


@pytest.mark.row("H6")
def test_five_hundred_subjects_in_a_moment(root):
    import time

    for i in range(500):
        anat = root / f"sub-{i:05}" / "anat"
        anat.mkdir(parents=True)
        for suffix in ("T1w", "FLAIR"):
            (anat / f"sub-{i:05}_{suffix}.nii.gz").touch()
    begun = time.process_time()
    assert len(read_dataset(root).studies) == 500
    assert time.process_time() - begun < 3  # 60 seconds for ten thousand; measured: 2


def test_the_strict_reader_reads(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": [1.5, None], "b": {"c": "é"}}))
    assert read_sidecar(path) == {"a": [1.5, None], "b": {"c": "é"}}
