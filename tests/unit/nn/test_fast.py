"""The fast layers compute what the plain ones compute, to the precision that they state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from codebrain.machine import integer_products, short_floats
from codebrain.nn import fast
from codebrain.nn.fast import Pooling, accelerate, quantised
from codebrain.nn.naf import NafDecoder, NafEncoder

pytestmark = pytest.mark.skipif(not (short_floats() and integer_products()), reason="this CPU has no fast products")

PRECISIONS = ["bf16", "int8"]


def alive(network: nn.Module) -> nn.Module:
    """Every block has a part in the result: new ones are identities."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith(("scale1", "scale2")):
                value.uniform_(0.1, 0.3)
            elif "norm" in name:
                value.add_(torch.rand_like(value) / 5)
    return network.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def seed_and_quantise_small_products(monkeypatch):
    monkeypatch.setattr(fast, "SMALLEST", 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def decibels(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Signal to error."""
    return float(10 * (wanted.square().mean() / (got.float() - wanted).square().mean()).log10())


def test_an_encoder_in_bfloat16_errs_as_little_as_one_under_autocast():
    encoder = alive(NafEncoder(3, width=16, depth=2))
    images = torch.rand(2, 3, 40, 56)
    exact = encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        usual = decibels(encoder(images), exact)
    assert decibels(accelerate(encoder, "bf16")(images), exact) > max(usual - 3, 35)


def test_the_errors_of_integer_products_add_up_and_no_more():
    encoder = alive(NafEncoder(3, width=16, depth=2))
    images = torch.rand(2, 3, 40, 56)
    quick = accelerate(encoder, "int8")
    products = sum(isinstance(part, fast.QuantisedLinear) for part in quick.modules())
    assert products > 10
    # A normal variable in 256 steps over five deviations to each side has 40 dB.
    assert decibels(quick(images), encoder(images)) > 40 - 10 * math.log10(products)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_decoder_with_a_code_and_one_without(precision):
    for channels in (6, 0):
        decoder = alive(NafDecoder(3, code_channels=channels, width=16, depth=1))
        common, code = torch.randn(1, 5, 7, 128), torch.rand(1, 5, 7, 6) * 2 - 1
        inputs = (code if channels else None, common)
        assert decibels(accelerate(decoder, precision)(*inputs), decoder(*inputs)) > 33


def test_an_encoder_of_grades_is_not_quantised_and_its_last_layer_is_exact():
    encoder = alive(NafEncoder(3, width=16, depth=1, outputs=33))
    quick = accelerate(encoder, "int8")
    assert not any(isinstance(part, fast.QuantisedLinear) for part in quick.modules())
    assert quick.stages[-1].linear is encoder.stages[-1]


def test_the_original_stays_as_it_was():
    encoder = alive(NafEncoder(3, width=16, depth=1))
    images, before = torch.rand(1, 3, 16, 16), {name: value.clone() for name, value in encoder.state_dict().items()}
    exact = encoder(images)
    accelerate(encoder, "int8")(images)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(encoder(images), exact)


def test_slices_of_a_batch_do_not_see_each_other_in_bfloat16():
    encoder = accelerate(alive(NafEncoder(3, width=16, depth=1)), "bf16")
    images = torch.rand(2, 3, 24, 32)
    together = encoder(images)
    for k in range(2):
        torch.testing.assert_close(encoder(images[k : k + 1])[0], together[k], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("values", [[-3.0, 1.0], [0.5, 2.0], [-4.0, -1.0], [0.0, 0.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantising_is_right_to_half_a_step_and_keeps_zero(values, dtype):
    pixels = torch.linspace(*values, 960).view(20, 48).to(dtype)
    pixels[3, 4] = 0
    whole, step, zero = quantised(pixels.clone())
    back = (whole.float() - zero) * step
    assert float((back - pixels.float()).abs().max()) <= 0.501 * step + 1e-30
    assert whole.dtype == torch.uint8 and float(back[3, 4]) == 0


def test_a_product_of_zeros_is_the_bias():
    layer = fast.QuantisedLinear(torch.randn(64, 48), torch.arange(64.0))
    torch.testing.assert_close(layer(torch.zeros(5, 48)).float(), torch.arange(64.0).expand(5, -1))


@pytest.mark.parametrize("kind", [fast.FastLinear, fast.QuantisedLinear])
def test_a_product_is_added_to_the_stream(kind):
    layer, pixels, stream = kind(torch.randn(64, 48) / 7, torch.randn(64)), torch.randn(30, 48), torch.randn(30, 64)
    wanted = stream + layer(pixels.clone()).float()
    got = layer.add(pixels.clone(), stream)
    assert got is stream
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.02)


def test_pooling_is_the_mean_and_counts_cells_as_often_as_it_is_told():
    features = torch.randn(2, 6, 8, 5)
    pooling = Pooling()
    torch.testing.assert_close(pooling.mean(features), features.mean((1, 2)))
    pooling.rows, pooling.columns = torch.tensor([1.0, 4.0, 1.0]), torch.tensor([1.0, 2.0])
    rows, columns = np.repeat([1, 4, 1], 2), np.repeat([1, 2], 4)
    repeated = features[:, np.repeat(np.arange(6), rows)][:, :, np.repeat(np.arange(8), columns)]
    torch.testing.assert_close(pooling.mean(features), repeated.mean((1, 2)))
