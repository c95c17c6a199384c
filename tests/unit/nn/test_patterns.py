from __future__ import annotations

import pytest
import torch

from codebrain.errors import InputRefused
from codebrain.nn.patterns import by_pattern, draw_patterns


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_pattern_for_the_batch() -> None:
    available = torch.ones(64, 4, dtype=torch.bool)
    seen = set()
    for seed in range(40):
        present = draw_patterns(available, _generator(seed), per="batch")
        assert (present == present[0]).all()
        seen.add(tuple(present[0].tolist()))
    assert len(seen) > 8


def test_one_pattern_for_the_batch_respects_gaps() -> None:
    available = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    for seed in range(100):
        present = draw_patterns(available, _generator(seed), per="batch")
        assert not (present & ~available).any()
        assert present.any(dim=1).all()
        assert (available & ~present).any(dim=1).all()


def test_same_state_same_patterns() -> None:
    available = torch.ones(50, 3, dtype=torch.bool)
    assert (draw_patterns(available, _generator(5)) == draw_patterns(available, _generator(5))).all()
    assert (draw_patterns(available, _generator(5)) != draw_patterns(available, _generator(6))).any()


@pytest.mark.parametrize("row", [[1, 0, 0], [0, 0, 0]])
def test_one_contrast_is_not_enough(row: list[int]) -> None:
    with pytest.raises(InputRefused) as caught:
        draw_patterns(torch.tensor([[1, 1, 1], row], dtype=torch.bool), _generator())
    assert caught.value.code == "DATA_CONTRASTS"


def _counts(available: torch.Tensor, **how) -> dict[tuple[int, ...], int]:
    drawn = draw_patterns(available, _generator(), **how).int()
    patterns, counts = drawn.unique(dim=0, return_counts=True)
    return {tuple(pattern): count for pattern, count in zip(patterns.tolist(), counts.tolist(), strict=True)}


def test_all_subsets_are_equally_likely_or_all_cardinalities() -> None:
    available = torch.ones(28_000, 4, dtype=torch.bool)
    subsets = _counts(available)
    assert len(subsets) == 14 and all(abs(count - 2000) < 250 for count in subsets.values())
    cardinality = _counts(available, choice="cardinality")
    by_size = [sum(count for pattern, count in cardinality.items() if sum(pattern) == size) for size in (1, 2, 3)]
    assert len(cardinality) == 14 and all(abs(count - 28_000 / 3) < 500 for count in by_size)


@pytest.mark.parametrize(("share", "hardest"), [(4 / 14, 10), (7 / 14, 7), (11 / 14, 3), (1.0, 0)])
def test_a_curriculum_draws_from_the_end_of_mm_gans_sorted_list(share: float, hardest: int) -> None:
    import itertools

    ordered = sorted(itertools.product((0, 1), repeat=4), key=sum)[1:-1]
    assert set(_counts(torch.ones(5000, 4, dtype=torch.bool), easiest=share)) == set(ordered[hardest:])


def test_samples_are_grouped_by_what_they_were_given() -> None:
    present = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    groups = {pattern: numbers.tolist() for pattern, numbers in by_pattern(present)}
    assert groups == {(True, False, True): [0, 2], (False, True, False): [1]}
