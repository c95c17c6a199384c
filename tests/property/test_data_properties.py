from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from codebrain.data.splits import SPLITS, split_patients
from codebrain.nn.patterns import draw_patterns
from codebrain.vocabulary import strict_subsets

visits = st.dictionaries(st.text("abcdef0123-", min_size=1, max_size=6), st.sampled_from("ABCDEFGHIJKLM"), min_size=2)


@given(visits.filter(lambda people: len(set(people.values())) > 1), st.integers(0, 2**32 - 1), st.data())
def test_a_patient_is_never_in_two_splits(people: dict[str, str], seed: int, data: st.DataObject) -> None:
    patients = sorted(set(people.values()))
    test = data.draw(st.none() | st.lists(st.sampled_from(patients), max_size=len(patients) - 1, unique=True))
    splits = split_patients(people, seed=seed, test=test)
    for subject, patient in people.items():
        assert (splits.of_subject[subject],) == splits.of_patient[patient]
    parts = [set(splits.patients(split)) for split in SPLITS]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(patients)
    assert parts[0]
    if test is not None:
        assert parts[2] == set(test)
    elif len(patients) >= 3:
        assert parts[1] and parts[2]


@given(st.lists(st.booleans(), min_size=2, max_size=5).filter(lambda row: sum(row) >= 2), st.integers(0, 2**31))
def test_patterns_are_uniform_over_strict_subsets(row: list[bool], seed: int) -> None:
    expected = strict_subsets(tuple(row))
    count = 200 * len(expected)
    available = torch.tensor([row] * count)
    present = draw_patterns(available, torch.Generator().manual_seed(seed))
    seen = Counter(tuple(pattern) for pattern in present.tolist())
    assert set(seen) == set(expected)
    # Pearson's statistic has mean k - 1 and spread sqrt(2 (k - 1)): eight spreads never happen by chance.
    k = len(expected)
    statistic = sum((seen[pattern] - 200) ** 2 / 200 for pattern in expected)
    assert statistic < (k - 1) + 8 * (2 * (k - 1)) ** 0.5 + 8


@given(
    st.integers(2, 5).flatmap(
        lambda m: st.lists(
            st.lists(st.booleans(), min_size=m, max_size=m).filter(lambda row: sum(row) >= 2),
            min_size=1,
            max_size=9,
        )
    ),
    st.integers(0, 2**31),
    st.sampled_from(["sample", "batch"]),
)
def test_something_is_given_and_something_withheld(rows: list[list[bool]], seed: int, per: str) -> None:
    available = torch.tensor(rows)
    present = draw_patterns(available, torch.Generator().manual_seed(seed), per=per)  # type: ignore[arg-type]
    assert not (present & ~available).any()
    assert present.any(dim=1).all()
    assert (available & ~present).any(dim=1).all()
