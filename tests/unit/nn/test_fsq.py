from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codebrain.errors import UsageError
from codebrain.nn.fsq import FiniteScalarQuantiser

counts = st.lists(st.integers(2, 32), min_size=1, max_size=3)


@pytest.mark.parametrize("count", range(2, 33))
def test_every_count_of_levels_has_exactly_that_many_values(count: int) -> None:
    quantiser = FiniteScalarQuantiser([count])
    code = quantiser(torch.linspace(-20, 20, 20001)[:, None])
    level = quantiser.level(code)
    assert level.unique().tolist() == list(range(count))
    assert code.min() == -1


@given(counts)
def test_level_code_and_index_agree_both_ways(levels: list[int]) -> None:
    quantiser = FiniteScalarQuantiser(levels)
    size = int(torch.tensor(levels).prod())
    index = torch.arange(size)
    level = quantiser.level_of_index(index)
    assert torch.equal(quantiser.index(level), index)
    assert torch.equal(quantiser.level(quantiser.code(level)), level)
    assert (level >= 0).all() and (level < torch.tensor(levels)).all()


def test_the_gradient_passes_the_rounding() -> None:
    quantiser = FiniteScalarQuantiser([8, 5])
    features = torch.tensor([[0.3, -0.2]], requires_grad=True)
    quantiser(features).sum().backward()
    smooth = features.detach().clone().requires_grad_(True)
    (quantiser.bound(smooth) / quantiser.half_width).sum().backward()
    assert torch.allclose(features.grad, smooth.grad)


def test_one_level_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        FiniteScalarQuantiser([8, 1])
    assert caught.value.code == "CONFIG"
