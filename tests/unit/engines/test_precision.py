"""Which precision computes a study, and that the faster ones keep what the exact one promises."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from codebrain.engines import check, choose_engine, precisions
from codebrain.engines.check import choose_precision
from codebrain.engines.reduced_engine import ReducedEngine
from codebrain.engines.slice_threads import SliceThreads
from codebrain.errors import CodeBrainError
from codebrain.impute import Imputer
from codebrain.machine import integer_products, short_floats
from codebrain.models import build_model, load_model
from codebrain.vocabulary import ModalitySet, Preparation

CPU = torch.device("cpu")
MODALITIES = ModalitySet.parse("T1,T2,FLAIR")
needs_fast_products = pytest.mark.skipif(
    not (short_floats() and integer_products()), reason="this CPU has no fast products"
)


class Shifted:
    """An engine whose answer is off by so much in the imputed channel inside the head, and by far more elsewhere."""

    def __init__(self, by: float) -> None:
        self.by, self.name, self.seen = by, "torch", []

    def __call__(self, images, present):
        self.seen.append(images.clone())
        answer = images + self.by * 100
        answer[:, 1, 2:4, 2:4] = images[:, 1, 2:4, 2:4] + self.by
        return answer, []


def chosen(errors: dict[str, float], candidates=("int8", "bf16")):
    engines = {"fp32": Shifted(0.0)} | {name: Shifted(by) for name, by in errors.items()}
    slices = torch.rand(9, 3, 8, 8)
    head = torch.zeros(9, 8, 8, dtype=torch.bool)
    head[2:7, 2:3, 2:3] = True
    head[4, 2:4, 2:4] = True
    found = choose_precision(
        engines.__getitem__, candidates, slices, torch.tensor([True, False, True]), head=head, targets=[1]
    )
    return found, engines


def test_the_fastest_that_is_close_inside_the_head_is_taken():
    found, engines = chosen({"int8": 10 ** (-51 / 20), "bf16": 0.0})
    assert found.used == "int8" and not engines["bf16"].seen
    assert found.as_dict() == {
        "asked": "auto", "psnr_to_fp32_db": {"int8": 51.0}, "limit_db": 50.0, "slices": [4, 2],
    }  # fmt: skip


def test_the_next_is_tried_and_float32_is_what_is_left():
    found, engines = chosen({"int8": 10 ** (-49 / 20), "bf16": 10 ** (-60 / 20)})
    assert found.used == "bf16" and found.decibels == pytest.approx({"int8": 49, "bf16": 60}, abs=1e-3)
    assert len(engines["fp32"].seen) == 1, "the exact answer is computed once"
    found, _ = chosen({"int8": 0.1, "bf16": 0.1})
    assert found.used == "fp32" and set(found.decibels) == {"int8", "bf16"}


def test_an_answer_that_is_not_finite_is_not_close():
    found, _ = chosen({"int8": float("nan"), "bf16": float("inf")})
    assert found.used == "fp32" and found.as_dict()["psnr_to_fp32_db"] == {"int8": None, "bf16": None}


def test_without_candidates_nothing_is_computed():
    found, engines = chosen({}, candidates=())
    assert found.used == "fp32" and not found.slices and not engines["fp32"].seen


def test_a_small_network_stays_exact_and_is_refused_in_integers():
    model = build_model("codebrain", MODALITIES, {"width": 2, "depth": 1}).eval()
    assert precisions(model, "torch", CPU) == ()
    with pytest.raises(CodeBrainError, match="8-bit integers") as caught:
        Imputer(model, precision="int8")
    assert caught.value.code == "CONFIG"


@needs_fast_products
def test_another_engine_and_another_device_have_no_choice():
    model = load_model("starter")
    assert precisions(model, "auto", CPU) == ("int8", "bf16")
    assert precisions(model, "auto", torch.device("cuda")) == ()


# --- the engines ---


@pytest.fixture(scope="module")
def slices():
    """A disc that grows from nothing."""
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(80.0), indexing="ij")
    radius = ((rows - 50) ** 2 + (columns - 33) ** 2).sqrt()
    waves = torch.stack([torch.sin(rows / (4 + k)) * torch.cos(columns / 5) for k in range(5)]) / 3 + 0.5
    return torch.stack([waves * (radius < r) for r in (0, 8, 25)])


@needs_fast_products
@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_given_contrasts_come_back_bit_for_bit_and_absent_ones_close(precision, slices):
    model = load_model("starter")
    present = torch.tensor([[True, False, False, True, False]]).expand(3, -1)
    exact, _ = choose_engine(model, "torch", device=CPU, precision="fp32")(slices, present)
    fast, grades = choose_engine(model, "torch", device=CPU, precision=precision)(slices, present)
    assert fast.dtype == torch.float32 and fast.shape == exact.shape
    assert torch.equal(fast[:, [0, 3]], slices[:, [0, 3]])
    head = slices[1:, :1] > 0
    assert float((fast - exact)[1:].square()[head.expand(-1, 5, -1, -1)].mean()) < 1e-5
    assert not fast[0].any() and not any(channel[0].any() for channel in grades), "nothing in an empty slice"
    assert all(channel.shape[-2:] == (12, 10) and channel[2].max() > 0 for channel in grades)


@needs_fast_products
def test_what_absent_contrasts_hold_has_no_influence(slices):
    engine = ReducedEngine(load_model("starter"), "int8")
    present = torch.tensor([[True, False, False, True, False]])
    other = slices[2:].clone()
    other[:, [1, 2, 4]] = torch.nan
    assert torch.equal(engine(slices[2:], present)[0], engine(other, present)[0])


@needs_fast_products
def test_threads_do_not_share_their_windows(slices):
    """Each of several different slices at a time gives what it gives alone."""
    engine = ReducedEngine(load_model("starter"), "bf16")
    present = torch.tensor([[True, False, False, True, False]])
    several = torch.cat([slices[1:].roll(8 * k, dims=2) for k in range(4)])
    together, _ = SliceThreads(engine, 4)(several, present.expand(len(several), -1))
    for image, answer in zip(several, together, strict=True):
        torch.testing.assert_close(engine(image[None], present)[0][0], answer, rtol=0, atol=2e-3)


def test_slices_keep_their_order_and_errors_arrive():
    seen = set()

    class Engine:
        name = "torch"

        def __call__(self, images, present):
            seen.add(threading.current_thread().name)
            if images.max() > 6:
                raise MemoryError("too much")
            return images * 2, []

    engine = SliceThreads(Engine(), 3)
    images = torch.arange(7.0)[:, None, None, None].expand(-1, 2, 4, 4)
    completed, grades = engine(images, torch.ones(7, 2, dtype=torch.bool))
    assert torch.equal(completed, images * 2) and grades == []
    assert engine.at_once == 12 and all(name.startswith("slices") for name in seen)
    with pytest.raises(MemoryError):
        engine(images + 1, torch.ones(7, 2, dtype=torch.bool))


def test_more_cores_than_slices_share_them():
    engine = SliceThreads(Shifted(0.0), 32)
    assert engine.at_once == 32
    assert engine.pool.submit(torch.get_num_threads).result() == 4


# --- the record ---


@pytest.fixture
def large_enough():
    """The smallest CodeBrain with products that are quantised, on slices as they are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("codebrain", MODALITIES, {"width": 8, "depth": 1, "decoding": "expected"})
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name.endswith(("scale1", "scale2")):
                    value.uniform_(0.1, 0.2)
    model.preparation = Preparation(MODALITIES, pixel_spacing_mm=None)
    return model.eval()


@needs_fast_products
def test_a_study_says_how_its_precision_was_chosen(monkeypatch, large_enough):
    import nibabel as nib

    import scans

    image = nib.Nifti1Image.from_bytes(scans.nifti(scans.head("T1")))
    imputer = Imputer(large_enough, precision="auto")
    result = imputer({"T1": image}, want=["T2"])
    exact = Imputer(imputer.model)({"T1": image}, want=["T2"])
    assert exact.record["precision"] == "fp32"
    assert exact.record["precision_check"]["psnr_to_fp32_db"] == {}
    told = result.record["precision_check"]
    assert result.record["precision"] == "int8" and told["psnr_to_fp32_db"]["int8"] >= told["limit_db"] == 50
    inside = exact["T2"].data > 0
    assert inside.any(), "and this model's 1 is 1: it records no median"
    assert 0 < np.square(result["T2"].data - exact["T2"].data)[inside].mean() < 1e-5
    monkeypatch.setattr(check, "LIMIT_DB", 200.0)
    strict = imputer({"T1": image}, want=["T2"])
    assert strict.record["precision"] == "fp32" and len(strict.record["precision_check"]["psnr_to_fp32_db"]) == 2
    np.testing.assert_allclose(strict["T2"].data, exact["T2"].data, atol=1e-5)


@needs_fast_products
def test_a_check_that_does_not_fit_into_memory_leaves_float32(monkeypatch, large_enough):
    import nibabel as nib

    import scans

    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("codebrain.impute.choose_precision", full)
    image = nib.Nifti1Image.from_bytes(scans.nifti(scans.head("T1")))
    result = Imputer(large_enough, precision="auto")({"T1": image}, want=["T2"])
    assert result.record["precision"] == "fp32"


def test_fewer_slices_at_a_time_where_memory_is_short(monkeypatch):
    from codebrain import impute

    for have, fit in ((None, 8), (2**33, 8), (2**31, 4), (2**20, 1)):
        monkeypatch.setattr(impute, "available_memory", lambda have=have: have)
        assert impute.slices_that_fit(8, CPU) == fit
    assert impute.slices_that_fit(8, torch.device("cuda")) == 8, "which says itself when it is full"
