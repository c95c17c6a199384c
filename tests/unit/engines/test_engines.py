"""Every engine computes what torch computes; an export is published only when it does."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch

from codebrain import engines
from codebrain.engines import _cache, choose_engine, exporting, network
from codebrain.errors import CodeBrainError
from codebrain.models import build_model, load_model, model_names, save_model
from codebrain.vocabulary import ModalitySet, Preparation

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A CodeBrain whose every block has a part in the result: new ones are identities."""
    torch.manual_seed(0)
    model = build_model("codebrain", ModalitySet.parse("T1,T2,FLAIR"), {"width": 2, "depth": 1, "critic_width": 2})
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("scale1", "scale2")):
                value.uniform_(0.1, 0.3)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(model, folder, preparation=Preparation(model.modalities))
    return load_model(folder)


@pytest.fixture(autouse=True)
def small_and_offline(monkeypatch, tmp_path_factory):
    """Small traces, a cache of our own, and no network: OpenVINO comes with telemetry."""

    def refuse(*_):
        raise AssertionError("an engine called somebody")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(network, "SIZE", (32, 48))
    monkeypatch.setattr(network.example, "__defaults__", ((32, 48), (0,)))
    monkeypatch.setattr(exporting, "SIZE", (32, 48))
    monkeypatch.setattr(exporting, "_OTHER_SIZE", (48, 24))
    monkeypatch.setattr(_cache, "cache_folder", lambda: tmp_path_factory.getbasetemp() / "networks")


def outputs(engine, size, given):
    images, present = network.example(3, size, given)
    completed, grades = engine(images.repeat(2, 1, 1, 1), present.expand(2, -1))
    return [completed, *grades]


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_engines_compute_what_torch_computes(name, tiny):
    plain = choose_engine(tiny, "torch", device=CPU, precision="fp32")
    engine = choose_engine(tiny, name, device=CPU, precision="fp32")
    assert engine.name == name
    for size, given in (((32, 48), (0,)), ((40, 16), (1, 2))):
        for ours, theirs in zip(outputs(engine, size, given), outputs(plain, size, given), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_torch_in_bfloat16_is_near(tiny):
    plain, reduced = (choose_engine(tiny, "torch", device=CPU, precision=p) for p in ("fp32", "bf16"))
    difference = (outputs(plain, (32, 48), (0,))[1] - outputs(reduced, (32, 48), (0,))[1]).abs().max()
    assert 0 < difference < 0.05


def test_a_converted_network_is_kept_and_a_damaged_one_made_again(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(_cache, "cache_folder", lambda: tmp_path / "networks")
    made = []

    def convert(model):
        made.append(model.name)
        return b"a network"

    assert [_cache.cached(tiny, convert) for _ in range(2)] == [b"a network"] * 2
    assert made == ["tiny"]
    (file,) = (tmp_path / "networks").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert _cache.cached(tiny, convert) == b"a network"
    assert made == ["tiny"] * 2
    assert file.read_bytes().endswith(b"network")


def test_other_settings_are_another_network(tiny):
    key = _cache._key(tiny)
    monkey = replace(tiny.settings, decoding="expected")
    other = build_model("codebrain", tiny.modalities, {"width": 2, "depth": 1, "critic_width": 2})
    other.sha256, other.settings = tiny.sha256, monkey
    assert _cache._key(other) != key


def test_a_cache_that_cannot_be_written_is_none(tiny, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(_cache, "cache_folder", lambda: tmp_path / "file" / "networks")
    assert _cache.cached(tiny, lambda model: b"a network") == b"a network"


def refused(code, call, *arguments, **options):
    with pytest.raises(CodeBrainError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code
    return str(caught.value)


def test_what_an_engine_cannot_do_is_refused(tiny, monkeypatch):
    assert "torch, openvino, onnx" in refused("CONFIG", choose_engine, tiny, "tensorrt", device=CPU, precision="fp32")
    assert "GPU" in refused("CONFIG", choose_engine, tiny, "onnx", device=torch.device("cuda"), precision="fp32")
    assert "fp32" in refused("CONFIG", choose_engine, tiny, "onnx", device=CPU, precision="bf16")
    monkeypatch.setitem(engines._EXTRA, "onnx", ("no_such_package",))
    sentence = refused("ENV_EXTRA", choose_engine, tiny, "onnx", device=CPU, precision="fp32")
    assert "codebrain-mri[engines]" in sentence


@pytest.mark.parametrize("kind", exporting.FORMATS)
def test_an_export_says_how_to_run_it_and_is_what_the_model_is(kind, tiny, tmp_path):
    facts = exporting.export_model(tiny, tmp_path, kind=kind)
    assert json.loads((tmp_path / "network.json").read_text()) == facts
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*facts["files"], "network.json"])
    assert facts["contrasts"] == ["T1", "T2", "FLAIR"] and facts["model"]["weights_sha256"] == tiny.sha256
    assert facts["size"].startswith("h and w")
    assert min(row["psnr_db"] for row in facts["parity"]) >= 80
    assert len(facts["parity"]) == 4


def test_half_precision_is_near_and_only_for_openvino(tiny, tmp_path):
    facts = exporting.export_model(tiny, tmp_path, kind="openvino", precision="fp16")
    assert min(row["psnr_db"] for row in facts["parity"]) >= 40
    assert "fp16" in refused("CONFIG", exporting.export_model, tiny, tmp_path, kind="onnx", precision="fp16")


def test_an_export_that_computes_something_else_is_not_published(tiny, tmp_path, monkeypatch):
    runner = exporting._RUNNERS["torchscript"]

    def wrong(stage):
        run = runner(stage)
        return lambda images, present: [part + np.float32(0.01) for part in run(images, present)]

    monkeypatch.setitem(exporting._RUNNERS, "torchscript", wrong)
    assert "at least 80 dB" in refused("CKPT_EXPORT", exporting.export_model, tiny, tmp_path, kind="torchscript")
    assert not list(tmp_path.iterdir())


SMALL = {
    "codebrain": {"width": 2, "depth": 1},
    "hf_gan": {"width": 8, "multipliers": [1, 1, 2], "layers": 1, "heads": 2, "grid": 4, "critic_width": 8,
               "critic_halvings": 2},
    "m2dn": {"width": 4, "sampling_steps": 3, "validation_steps": 2},
    "mm_gan": {"width": 4, "depth": 3, "critic_width": 2},
    "mmhvae": {"size": 16, "levels": [4, 8], "head_width": 4, "head_blocks": 1, "critic_width": 4, "critic_layers": 2},
    "mmt": {"dim": 16, "heads": [1, 2, 2, 4], "window": 2, "critic_width": 2},
    "nafnet": {"width": 2, "depth": 1},
    "unified_synthesis": {"width": 4, "critic_width": 4},
}  # fmt: skip
"""Sizes that are quick; a model that is not here is exported as it is."""

EXPORTED = {"codebrain", "mean", "mm_gan", "nafnet", "polynomial", "zeros"}
"""The others draw at random, or go another way for every pattern, which a trace cannot."""


@pytest.mark.parametrize("name", model_names())
def test_every_architecture_is_exported_as_it_is_or_refused_in_a_sentence(name, tmp_path, capfd):
    sizes = SMALL.get(name, {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(name, ModalitySet.parse("T1,T2,FLAIR"), sizes).eval().requires_grad_(False)
    if name in EXPORTED:
        facts = exporting.export_model(model, tmp_path, kind="torchscript")
        assert min(row["psnr_db"] for row in facts["parity"]) >= 80
    else:
        assert name in refused("CKPT_EXPORT", exporting.export_model, model, tmp_path, kind="torchscript")
        assert name in refused("CKPT_EXPORT", exporting.export_model, model, tmp_path, kind="onnx")
        assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
