from __future__ import annotations

import pytest

from codebrain.data.splits import SPLITS, split_patients
from codebrain.errors import InputRefused

VISITS = {"a-1": "a", "a-2": "a", "b": "b", "c": "c", "d": "d"}


def test_tenths_by_default() -> None:
    splits = split_patients({f"p{i}": f"p{i}" for i in range(50)}, seed=1)
    assert [len(splits.patients(split)) for split in SPLITS] == [40, 5, 5]


def test_three_patients_fill_three_splits() -> None:
    splits = split_patients({p: p for p in "abc"})
    assert [len(splits.patients(split)) for split in SPLITS] == [1, 1, 1]


def test_two_patients_train_and_test() -> None:
    splits = split_patients({p: p for p in "ab"})
    assert [len(splits.patients(split)) for split in SPLITS] == [1, 0, 1]


def test_seed_decides() -> None:
    people = {f"p{i}": f"p{i}" for i in range(30)}
    assert split_patients(people, seed=3) == split_patients(people, seed=3)
    assert split_patients(people, seed=3).sha256 != split_patients(people, seed=4).sha256


def test_order_of_subjects_does_not_matter() -> None:
    people = {f"p{i}": f"p{i}" for i in range(30)}
    assert split_patients(dict(reversed(people.items()))) == split_patients(people)


def test_a_subject_name_takes_its_whole_patient() -> None:
    splits = split_patients(VISITS, test=["a-1"], val=[])
    assert splits.of_subject == {"a-1": "test", "a-2": "test", "b": "train", "c": "train", "d": "train"}


def test_named_test_and_drawn_validation() -> None:
    splits = split_patients(VISITS, test=["a"])
    assert splits.patients("test") == ("a",)
    assert len(splits.patients("val")) == 1
    assert splits.as_dict()["asked"] == {"val": None, "test": ["a"]}


@pytest.mark.row("F12")
@pytest.mark.parametrize(
    ("people", "options", "word"),
    [
        ({}, {}, "at least two"),
        ({"a": "a"}, {}, "at least two"),
        ({"a-1": "a", "a-2": "a"}, {}, "several visits"),
        (VISITS, {"test": ["zz"]}, "zz"),
        (VISITS, {"test": ["zz"]}, "a-2, b, c, d"),
        (VISITS, {"test": ["a"], "val": ["a-2"]}, "cannot be in validation and in test"),
        ({"a": "a", "b": "b"}, {"test": ["a"], "val": ["b"]}, "left to train"),
    ],
)
def test_refusals_explain(people: dict[str, str], options: dict[str, list[str]], word: str) -> None:
    with pytest.raises(InputRefused, match=word) as caught:
        split_patients(people, **options)  # type: ignore[arg-type]
    assert caught.value.code == "DATA_SPLIT"
