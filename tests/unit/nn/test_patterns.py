from __future__ import annotations

import pytest
import torch

from codebrain.nn.patterns import draw_patterns
from codebrain.errors import InputRefused


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
