"""``codebrain prepare ixi``, ``brats`` and ``bids``: from the archive's layout to what training reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import datasets
from codebrain.data.slices import SliceStore
from codebrain.imaging.study import Study
from codebrain.imaging.volume import read_volume
from codebrain.vocabulary import Modality
from scans import affine_of, head, write_scan

IXI_SHAPE, IXI_MM = (40, 48, 130), (5.0, 5.0, 1.25)
BRATS_SHAPE, BRATS_MM = (24, 28, 155), (8.0, 8.0, 1.0)
SMALL = ("--frame", "48x40", "--jobs", 1)


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    """A second saved per study; one test has workers."""
    if request.function is not test_ixi_as_published:
        from codebrain.data import isolated, prepare

        here = isolated.isolated
        monkeypatch.setattr(prepare, "isolated", lambda work, tasks, **how: here(work, tasks, **how | {"jobs": 0}))


def scan(contrast, shape, spacing, seed=0):
    """A head that is nobody else's."""
    data = head(contrast, shape) * (1 + 0.01 * seed)
    return data.astype(np.float32), affine_of(spacing, shape)


def ixi_subject(root: Path, subject: str, contrasts=("T1", "T2", "PD"), seed=0) -> None:
    """All contrasts on the grid of T2, so that nothing needs to be registered."""
    for contrast in contrasts:
        (root / f"IXI-{contrast}").mkdir(parents=True, exist_ok=True)
        write_scan(root / f"IXI-{contrast}" / f"{subject}-{contrast}.nii.gz", *scan(contrast, IXI_SHAPE, IXI_MM, seed))


def brats_study(root: Path, case: str, seed=0) -> None:
    (root / case).mkdir(parents=True)
    for contrast, name in {"T1": "t1n", "T2": "t2w", "FLAIR": "t2f", "T1Gd": "t1c"}.items():
        write_scan(root / case / f"{case}-{name}.nii.gz", *scan(contrast, BRATS_SHAPE, BRATS_MM, seed))


def table(root: Path) -> dict[str, dict[str, str]]:
    rows = csv.DictReader((root / "subjects.tsv").read_text().splitlines(), delimiter="\t")
    return {row["subject"]: row for row in rows}


@pytest.fixture(scope="module")
def ixi(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("archive") / "IXI"
    ixi_subject(root, "IXI002-Guys-0828", seed=1)
    ixi_subject(root, "IXI012-HH-1211", seed=2)
    ixi_subject(root, "IXI013-HH-1212", ("T1", "T2"), seed=3)
    ixi_subject(root, "IXI999-HH-9999", seed=4)
    return root


def test_ixi_as_published(typed, ixi, tmp_path):
    answer = typed("prepare", "ixi", ixi, "-o", tmp_path / "store", "--jobs", 1, "--json")
    assert answer.status == 6  # IXI013 lacks a contrast, which the protocol needs
    facts = json.loads(answer.out.splitlines()[0])
    assert facts["contrasts"] == ["T1", "T2", "PD"]
    assert (facts["prepared"], facts["skipped"], facts["refused"], facts["missing"]) == (2, 1, 1, 574)
    assert "574 listed studies are not in the source" in answer.err
    rows = table(tmp_path / "store")
    assert {name: (rows[name]["status"], rows[name]["code"]) for name in ("IXI013-HH-1212", "IXI999-HH-9999")} == {
        "IXI013-HH-1212": ("refused", "DATA_CONTRASTS"),
        "IXI999-HH-9999": ("skipped", "DATA_UNLISTED"),
    }
    store = SliceStore.open(tmp_path / "store")
    store.verify()
    assert store.record("IXI002-Guys-0828").shape == store.record("IXI012-HH-1211").shape == (90, 3, 256, 256)
    assert (rows["IXI002-Guys-0828"]["first_slice"], rows["IXI002-Guys-0828"]["last_slice"]) == ("20", "109")
    assert (rows["IXI012-HH-1211"]["first_slice"], rows["IXI012-HH-1211"]["last_slice"]) == ("11", "100")
    assert store.preparation.normalisation == "min_max" and store.preparation.frame == (256, 256)
    assert store.preparation.pixel_spacing_mm is None and store.preparation.background == "kept"

    data = read_volume(ixi / "IXI-PD" / "IXI012-HH-1211-PD.nii.gz").data
    unit = (data - data.min()) / (data.max() - data.min())
    wanted = np.zeros((90, 256, 256))
    wanted[:, 104:152, 108:148] = unit[:, ::-1, 11:101].transpose(2, 1, 0)  # 48 x 40 in the middle of 256 x 256
    np.testing.assert_allclose(store.stack("IXI012-HH-1211")[:, 2], wanted, atol=1e-5)

    images, available, _ = store.batch(store.index("train")[:2], crop=256, generator=np.random.default_rng(0))
    assert images.shape == (2, 3, 256, 256) and available.all()
    assert not (tmp_path / "store" / "quality.html").exists()  # nothing was registered


def test_training_scoring_and_imputation_see_one_frame(typed, ixi, tmp_path):
    """A head in the middle of its frame while training, and in a corner later, was a difference nobody saw."""
    from codebrain.impute import Imputer
    from codebrain.intake import take_in
    from codebrain.models import build_model

    assert typed("prepare", "ixi", ixi, "-o", tmp_path / "store", "--frame", "56x64", "--jobs", 1).status == 6
    store = SliceStore.open(tmp_path / "store")
    model = build_model("zeros", store.preparation.modalities)
    model.preparation = store.preparation
    files = {m: ixi / f"IXI-{m}" / f"IXI002-Guys-0828-{m}.nii.gz" for m in ("T1", "T2")}
    study = Study.read(files)
    prepared = take_in(study, model.preparation).prepared
    first, end = store.record("IXI002-Guys-0828").frame["slices"]
    begin = prepared.frame.slices[0]
    stored = store.stack("IXI002-Guys-0828")
    assert stored.shape[2:] == prepared.slices.shape[2:] == (56, 64)
    np.testing.assert_allclose(prepared.slices[first - begin : end - begin, :2], stored[:, :2], atol=1e-5)
    completed = Imputer(model)(study)
    assert completed.contrasts[Modality.PD].image.shape == IXI_SHAPE


def test_an_unlisted_or_unwanted_subject(typed, ixi, tmp_path):
    words = ("--unlisted", "val", "--exclude", "IXI012-HH-1211", *SMALL)
    typed("prepare", "ixi", ixi, "-o", tmp_path / "store", *words)
    rows = table(tmp_path / "store")
    assert (rows["IXI999-HH-9999"]["split"], rows["IXI999-HH-9999"]["first_slice"]) == ("val", "20")
    assert rows["IXI012-HH-1211"]["code"] == "DATA_EXCLUDED"
    assert typed("prepare", "ixi", ixi, "-o", tmp_path / "other", "--exclude", "IXI000").status == 3


def test_thick_slices_are_refused_and_the_others_go_on(typed, ixi, tmp_path):
    root = tmp_path / "IXI"
    ixi_subject(root, "IXI002-Guys-0828")
    for contrast in ("T1", "T2", "PD"):
        data, affine = scan(contrast, (40, 48, 28), (5.0, 5.0, 6.0))
        write_scan(root / f"IXI-{contrast}" / f"IXI012-HH-1211-{contrast}.nii.gz", data, affine)
    (root / "IXI-T2" / "IXI016-Guys-0697-T2.nii.gz").write_bytes(b"")
    for contrast in ("T1", "PD"):
        write_scan(root / f"IXI-{contrast}" / f"IXI016-Guys-0697-{contrast}.nii.gz", *scan(contrast, IXI_SHAPE, IXI_MM))
    answer = typed("prepare", "ixi", root, "-o", tmp_path / "store", *SMALL)
    assert answer.status == 6 and answer.code == "BATCH"
    rows = table(tmp_path / "store")
    assert rows["IXI002-Guys-0828"]["status"] == "prepared"
    assert rows["IXI012-HH-1211"]["code"] == "DATA_SLICES" and "28 slices" in rows["IXI012-HH-1211"]["message"]
    assert rows["IXI016-Guys-0697"]["code"] == "IN_EMPTY"


@pytest.fixture(scope="module")
def brats(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("archive") / "BraTS"
    for seed, case in enumerate(("BraTS-GLI-00005-000", "BraTS-GLI-00095-000", "BraTS-GLI-00095-001")):
        brats_study(root, case, seed)
    return root


def test_brats_by_patient(typed, brats, tmp_path):
    answer = typed("prepare", "brats", brats, "-o", tmp_path / "store", "--jobs", 1)
    assert answer.status == 0
    store = SliceStore.open(tmp_path / "store")
    assert str(store.preparation.modalities) == "FLAIR,T1,T2,T1Gd"
    assert store.record("BraTS-GLI-00005-000").shape == (80, 4, 240, 240)
    assert store.subjects("train") == ("BraTS-GLI-00005-000",)
    assert store.subjects("test") == ("BraTS-GLI-00095-001",)
    row = table(tmp_path / "store")["BraTS-GLI-00095-000"]
    assert (row["status"], row["code"], row["split"]) == ("skipped", "DATA_PATIENT", "")
    assert store.manifest.splits["split"] == "patient"
    assert "577 missing" in answer.out and "test over validation over training" in answer.out


def test_brats_as_published_says_who_is_in_two_splits(typed, brats, tmp_path):
    answer = typed("prepare", "brats", brats, "-o", tmp_path / "store", "--split", "published", *SMALL)
    assert answer.status == 0
    assert "patients in more than one split, as published: BraTS-GLI-00095 (train and test)" in answer.err
    splits = SliceStore.open(tmp_path / "store").manifest.splits
    assert splits["split"] == "published" and splits["several_splits"] == {"BraTS-GLI-00095": ["train", "test"]}
    assert splits["patients"]["train"] == ["BraTS-GLI-00005", "BraTS-GLI-00095"]


def test_another_year_is_drawn(typed, brats, tmp_path):
    root = tmp_path / "BraTS2021"
    for seed, name in enumerate(("BraTS2021_00001", "BraTS2021_00002", "BraTS2021_00003")):
        brats_study(root, name, seed)
    answer = typed("prepare", "brats", root, "-o", tmp_path / "store", *SMALL)
    assert (answer.status, answer.code) == (3, "DATA_EMPTY") and "--split drawn" in answer.err
    assert typed("prepare", "brats", root, "-o", tmp_path / "store", "--split", "drawn", *SMALL).status == 0
    store = SliceStore.open(tmp_path / "store")
    assert store.counts() == {"train": 1, "val": 1, "test": 1}
    assert store.record("BraTS2021_00001").frame["slices"] == [37, 117]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("brats", "IXI"), 3, "Did you mean `codebrain prepare ixi`?"),
        (("ixi", "BRATS"), 3, "Did you mean `codebrain prepare brats`?"),
        (("ixi", "EMPTY"), 3, "found 0 files"),
        (("bids", "EMPTY"), 3, "dataset_description.json"),
        (("ixi", "IXI", "--split", "half"), 2, "patient or published or drawn"),
        (("folder", "IXI", "--split", "published"), 2, "expected drawn"),
        (("ixi", "IXI", "--test", "IXI002-Guys-0828"), 2, "--split drawn"),
        (("ixi", "IXI", "--unlisted", "some"), 2, "train or val or test"),
        (("ixi", "IXI", "--frame", "250x250"), 2, "multiples of 8"),
        (("ixi", "IXI", "--frame", "256"), 2, "HxW"),
        (("ixi", "IXI", "--slices", "0"), 2, "1 or more"),
        (("ixi", "IXI", "--background", "grey"), 2, "zero or kept"),
        (("ixi", "IXI", "--filter", "run=1"), 2, "only BIDS"),
        (("ixi", "IXI", "--split", "drawn", "--unlisted", "train"), 2, "every study is drawn"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(typed, ixi, brats, tmp_path, words, status, said):
    (tmp_path / "empty").mkdir()
    places = {"IXI": ixi, "BRATS": brats, "EMPTY": tmp_path / "empty"}
    answer = typed("prepare", *(places.get(word, word) for word in words), "-o", tmp_path / "store")
    assert answer.status == status and said in answer.err
    assert answer.err.count("\n") == 1 and answer.out == ""
    assert not (tmp_path / "store").exists()


# BIDS


def bids_scan(root: Path, name: str, seed: int) -> None:
    contrast = "T1Gd" if "ce-" in name else {"T1w": "T1", "T2w": "T2", "FLAIR": "FLAIR"}[name.split("_")[-1]]
    (path,) = datasets.add(root, f"{name}.nii.gz")
    write_scan(path, head(contrast) * np.float32(1 + 0.01 * seed))


@pytest.fixture
def bids(tmp_path) -> Path:
    root = datasets.begin(tmp_path / "raw")
    names = ["sub-01_ses-1_T1w", "sub-01_ses-1_FLAIR", "sub-01_ses-2_T1w", "sub-01_ses-2_T2w", "sub-02_T1w",
             "sub-02_ce-gadolinium_T1w", "sub-03_T1w", "sub-03_FLAIR", "sub-04_T1w"]  # fmt: skip
    for seed, name in enumerate(names):
        bids_scan(root, name, seed)
    return root


def test_sessions_of_a_subject_are_one_patient(typed, bids, tmp_path):
    assert typed("prepare", "bids", bids, "-o", tmp_path / "store", "--jobs", 1, "--seed", 3).status == 0
    store = SliceStore.open(tmp_path / "store")
    assert store.names == ("sub-01_ses-1", "sub-01_ses-2", "sub-02", "sub-03")
    assert str(store.preparation.modalities) == "T1,T2,FLAIR,T1Gd"
    assert store.record("sub-02").available == (True, False, False, True)
    assert store.patient("sub-01_ses-1") == store.patient("sub-01_ses-2") == "sub-01"
    rows = table(tmp_path / "store")
    assert rows["sub-01_ses-1"]["split"] == rows["sub-01_ses-2"]["split"] != ""
    assert (rows["sub-04"]["status"], rows["sub-04"]["code"]) == ("skipped", "DATA_CONTRASTS")
    again = typed("prepare", "bids", bids, "-o", tmp_path / "again", "--jobs", 1, "--seed", 3, "--json")
    assert again.json["splits_sha256"] == store.manifest.splits["sha256"]
    assert again.json["fingerprint"] == store.fingerprint


def test_several_files_of_a_contrast_are_refused_until_they_are_chosen(typed, bids, tmp_path):
    bids_scan(bids, "sub-03_run-2_T1w", 20)
    answer = typed("prepare", "bids", bids, "-o", tmp_path / "store", "--jobs", 1)
    assert answer.status == 6
    row = table(tmp_path / "store")["sub-03"]
    assert (row["status"], row["code"]) == ("refused", "BIDS_AMBIGUOUS")
    assert "sub-03_T1w.nii.gz" in row["message"] and str(tmp_path) not in row["message"]
    words = ("--filter", "T1:run=2", "--resume")
    assert typed("prepare", "bids", bids, "-o", tmp_path / "store", "--jobs", 1, *words).status == 0
    record = SliceStore.open(tmp_path / "store").record("sub-03")
    assert record.inputs["T1"]["file"] == "sub-03/anat/sub-03_run-2_T1w.nii.gz"


def test_runs_that_every_contrast_has_are_treated_apart(typed, bids, tmp_path):
    for seed, name in enumerate(f"sub-05_run-{run}_{what}" for run in (1, 2) for what in ("T1w", "FLAIR")):
        bids_scan(bids, name, 30 + seed)
    typed("prepare", "bids", bids, "-o", tmp_path / "store", "--jobs", 1)
    store = SliceStore.open(tmp_path / "store")
    assert {"sub-05_run-1", "sub-05_run-2"} <= set(store.names)
    assert store.patient("sub-05_run-1") == store.patient("sub-05_run-2") == "sub-05"


def test_a_data_set_without_a_description_or_participants(typed, bids, tmp_path):
    (bids / "dataset_description.json").unlink()
    (bids / "participants.tsv").unlink(missing_ok=True)
    answer = typed("prepare", "bids", bids, "-o", tmp_path / "store", "--jobs", 1)
    assert (answer.status, answer.code) == (3, "BIDS_DESCRIPTION")
    answer = typed("prepare", "bids", bids, "-o", tmp_path / "store", "--jobs", 1, "--no-validate")
    assert answer.status == 0 and "participants.tsv" in answer.err
    codes = [notice["code"] for notice in SliceStore.open(tmp_path / "store").manifest.protocol["notices"]]
    assert codes == ["BIDS_DESCRIPTION", "BIDS_PARTICIPANTS"]


def test_a_bad_sidecar_or_a_twin_refuses_that_subject_alone(typed, bids, tmp_path):
    (bids / "sub-02" / "anat" / "sub-02_T1w.json").write_text('{"EchoTime": NaN}')
    write_scan(bids / "sub-03" / "anat" / "sub-03_T1w.nii", head("T1"))
    for seed, name in enumerate(("sub-05_T1w", "sub-05_T2w")):
        bids_scan(bids, name, 40 + seed)
    assert typed("prepare", "bids", bids, "-o", tmp_path / "store", "--jobs", 1, "--val", "none").status == 6
    rows = table(tmp_path / "store")
    assert {name: rows[name]["code"] for name in ("sub-02", "sub-03")} == {
        "sub-02": "BIDS_SIDECAR",
        "sub-03": "BIDS_DUPLICATE",
    }
