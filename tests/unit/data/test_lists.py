"""Published lists, the patients that they put into two splits, and what is on disk."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from codebrain.data.lists import PublishedLists, select
from codebrain.data.sources import Found, PassedOver, SubjectFiles, patient_of
from codebrain.errors import InputRefused

BRATS, IXI = PublishedLists.named("brats2023"), PublishedLists.named("ixi")
TWICE = {
    "BraTS-GLI-00095": ("test", "train"),
    "BraTS-GLI-00774": ("test", "train"),
    "BraTS-GLI-00520": ("val", "train"),
    "BraTS-GLI-00548": ("val", "train"),
    "BraTS-GLI-00608": ("val", "train"),
}


def on_disk(*subjects: str, spoiled: tuple[str, ...] = ()) -> Found:
    studies = tuple(SubjectFiles(name, patient_of([name]), {}, Path()) for name in sorted(subjects))
    return Found(studies, tuple(PassedOver(name, "refused", "DATA_CONTRASTS", "PD is missing") for name in spoiled))


def test_the_lists_are_the_published_ones() -> None:
    assert Counter(IXI.split_of.values()) == {"train": 500, "val": 37, "test": 40}
    assert Counter(BRATS.split_of.values()) == {"train": 500, "val": 40, "test": 40}
    assert IXI.slices == (20, 110) and BRATS.slices == (37, 117)
    assert len(IXI.slices_of) == 85 and not BRATS.slices_of
    assert IXI.slices_of["IXI014-HH-1236"] == (1, 26)
    # 44,935 and 40,000 training slices: the released lists have as many lines, the last without its end.
    for lists, count in ((IXI, 44_935), (BRATS, 40_000)):
        ranges = [lists.slices_of.get(s, lists.slices) for s, split in lists.split_of.items() if split == "train"]
        assert sum(end - first for first, end in ranges) == count
    assert "ycwu1997/CodeBrain" in IXI.source and "0510304" in BRATS.source


@pytest.mark.data
@pytest.mark.parametrize("name", ["ixi", "brats2023"])
def test_the_lists_are_those_beside_the_project(name: str, real_data: Path) -> None:
    raw = json.loads((real_data.parent / "splits" / f"{name}.json").read_text())
    lists = PublishedLists.named(name)
    for split in ("train", "val", "test"):
        assert {s for s, where in lists.split_of.items() if where == split} == set(raw[split])
    assert {s: [a, b - 1] for s, (a, b) in lists.slices_of.items()} == raw["slice_range_exceptions"]


def test_patients_that_the_lists_put_into_two_splits() -> None:
    assert BRATS.several() == TWICE
    assert IXI.several() == {}


def everything() -> Found:
    return on_disk(*BRATS.split_of)


def test_as_published_every_study_is_used() -> None:
    found, division = select(everything(), BRATS, rule="published")
    assert len(found.subjects) == 580 and not found.passed_over
    splits = division.divide({study.subject: study.patient for study in found.subjects})
    assert dict(splits.of_subject) == dict(BRATS.split_of)
    assert {patient: set(where) for patient, where in splits.several.items()} == {
        patient: set(where) for patient, where in TWICE.items()
    }
    facts = splits.as_dict()
    assert facts["split"] == "published" and set(facts["several_splits"]) == set(TWICE)
    assert "BraTS-GLI-00095" in facts["patients"]["train"] and "BraTS-GLI-00095" in facts["patients"]["test"]


def test_by_patient_test_and_validation_stay_and_training_loses_visits() -> None:
    found, division = select(everything(), BRATS, rule="patient")
    splits = division.divide({study.subject: study.patient for study in found.subjects})
    counts = Counter(splits.of_subject.values())
    assert (counts["val"], counts["test"]) == (40, 40)
    assert not splits.several
    left = {row.subject: row for row in found.passed_over}
    assert {patient_of([name]) for name in left} == set(TWICE)
    assert counts["train"] == 500 - len(left) == 495
    assert left["BraTS-GLI-00095-000"].code == "DATA_PATIENT"
    assert "its patient is in test" in left["BraTS-GLI-00095-000"].message
    assert splits.as_dict()["left_out"] == sorted(left)
    for subject, split in BRATS.split_of.items():
        assert subject in left or splits.of_subject[subject] == split


def test_the_rule_does_not_depend_on_what_is_on_disk() -> None:
    found, _ = select(on_disk("BraTS-GLI-00095-000", "BraTS-GLI-00005-000"), BRATS, rule="patient")
    assert [study.subject for study in found.subjects] == ["BraTS-GLI-00005-000"]


def test_slices_come_with_the_subject() -> None:
    found, _ = select(on_disk("IXI002-Guys-0828", "IXI012-HH-1211"), IXI)
    assert [study.slices for study in found.subjects] == [(20, 110), (11, 101)]


def test_nothing_disappears() -> None:
    found, division = select(
        on_disk("IXI002-Guys-0828", "IXI999-HH-0001", spoiled=("IXI013-HH-1212", "IXI998-HH-0002")), IXI
    )
    rows = {row.subject: (row.status, row.code) for row in found.passed_over}
    assert rows["IXI999-HH-0001"] == ("skipped", "DATA_UNLISTED")
    assert rows["IXI013-HH-1212"] == ("refused", "DATA_CONTRASTS")
    assert rows["IXI998-HH-0002"] == ("skipped", "DATA_CONTRASTS")  # nobody asked for it
    assert rows["IXI012-HH-1211"] == ("missing", "DATA_MISSING")
    assert len(rows) == 577 + 2 - 1
    assert dict(division.of_subject) == {"IXI002-Guys-0828": "train"}


@pytest.mark.parametrize("rule", ["patient", "published"])
def test_unlisted_studies_may_be_asked_for_but_never_of_a_patient_who_is_held_out(rule: str) -> None:
    names = ("BraTS-GLI-00005-000", "BraTS-GLI-99999-000", "BraTS-GLI-00095-007")
    found, division = select(on_disk(*names), BRATS, rule=rule, unlisted="train")
    assert dict(division.of_subject) == {"BraTS-GLI-00005-000": "train", "BraTS-GLI-99999-000": "train"}
    (row,) = [row for row in found.passed_over if row.status == "skipped"]
    assert (row.subject, row.code) == ("BraTS-GLI-00095-007", "DATA_PATIENT")


def test_none_of_the_lists() -> None:
    with pytest.raises(InputRefused, match="--split drawn") as caught:
        select(on_disk("BraTS2021_00005", "BraTS2021_00009"), BRATS)
    assert caught.value.code == "DATA_EMPTY"


def test_the_lists_are_pinned() -> None:
    """A changed list would change which people are held back."""
    for lists, digest in ((IXI, IXI_SHA256), (BRATS, BRATS_SHA256)):
        text = json.dumps([dict(sorted(lists.split_of.items())), dict(sorted(lists.slices_of.items())), lists.slices])
        assert hashlib.sha256(text.encode()).hexdigest() == digest


IXI_SHA256 = "3ea71140d8e88516d1efa471fc51d4ba149090c82c9cf3d8db77eebd26512e14"
BRATS_SHA256 = "c8633a3a48f3f7f70cd311b2d8e9a1eb8a1b6f03b113c3e558ecdf28b4778137"
