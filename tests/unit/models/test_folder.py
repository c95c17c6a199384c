"""A model folder is refused for what is wrong with it (bad-inputs F1, F2, F3, F5, F6, F7)."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codebrain.errors import ModelRefused
from codebrain.models import build_model, load_model, save_model
from codebrain.vocabulary import ModalitySet, Preparation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    modalities = ModalitySet.parse("T1,T2,PD")
    model = build_model("codebrain", modalities, {"width": 1, "depth": 1})
    save_model(model, tmp_path / "model", preparation=Preparation(modalities))
    return tmp_path / "model"


class Canary:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        import os

        return os.system, (f"touch {self.file}",)


def edit(file: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def permute(content: dict) -> None:
    content["modalities"] = ["T2", "T1", "PD"]


SPOILED = {
    "truncated": ("CKPT_CORRUPT", lambda f: _cut(f / "model.safetensors")),
    "bit flipped": ("CKPT_CORRUPT", lambda f: _flip(f / "model.safetensors")),
    "empty": ("CKPT_CORRUPT", lambda f: (f / "model.safetensors").write_bytes(b"")),
    "a JPEG": ("CKPT_CORRUPT", lambda f: (f / "model.safetensors").write_bytes(b"\xff\xd8\xff\xe0" * 99)),
    "header of 2^63": (
        "CKPT_CORRUPT",
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f"),
    ),
    "no weights": ("CKPT_CORRUPT", lambda f: (f / "model.safetensors").unlink()),
    "config not JSON": ("CKPT_CORRUPT", lambda f: (f / "config.json").write_text("{")),
    "preparation not JSON": ("CKPT_CORRUPT", lambda f: (f / "preparation.json").write_text("[]")),
    "permuted contrasts": ("CKPT_MISMATCH", lambda f: edit(f / "config.json", permute)),
    "other contrasts": (
        "CKPT_MISMATCH",
        lambda f: edit(f / "config.json", lambda c: c.update(modalities=["T1", "T2", "FLAIR"])),
    ),
    "other architecture": (
        "CKPT_MISMATCH",
        lambda f: edit(f / "config.json", lambda c: c.update(architecture="mean", settings={})),
    ),
    "other normalisation": (
        "CKPT_MISMATCH",
        lambda f: edit(f / "preparation.json", lambda c: c.update(normalisation="min_max")),
    ),
    "newer format": ("CKPT_FORMAT", lambda f: edit(f / "config.json", lambda c: c.update(format=99))),
}


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(bytes(content))


@pytest.mark.row("F1", "F3", "F5", "F6")
@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_folder_is_refused(case: str, folder: Path) -> None:
    code, spoil = SPOILED[case]
    spoil(folder)
    with pytest.raises(ModelRefused) as caught:
        load_model(folder)
    assert caught.value.code == code


def test_the_sentence_names_the_field(folder: Path) -> None:
    edit(folder / "config.json", permute)
    with pytest.raises(ModelRefused, match=r"modalities T2,T1,PD.*modalities T1,T2,PD"):
        load_model(folder)


@pytest.mark.row("F7")
def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    modalities = ModalitySet.parse("T1,T2")
    model = build_model("codebrain", modalities, {"width": 1, "depth": 1})
    model.decoder.fuse.bias.data[0] = float("nan")
    save_model(model, tmp_path, preparation=Preparation(modalities))
    with pytest.raises(ModelRefused) as caught:
        load_model(tmp_path)
    assert caught.value.code == "CKPT_NONFINITE"


@pytest.mark.parametrize("name", ["evil.pt", "evil.pth", "evil.ckpt", "evil.pkl", "evil.npz"])
@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_is_never_loaded(name: str, archive: bool, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    if archive:
        torch.save({"rec_model": canary, "grad_model": canary}, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(canary))
    with pytest.raises(ModelRefused) as caught:
        load_model(tmp_path / name)
    assert caught.value.code == "CKPT_UNSAFE"
    from codebrain.models._released import read_released

    with pytest.raises(ModelRefused) as caught:
        read_released(tmp_path / name, ModalitySet.parse("T1,T2,PD"))
    assert caught.value.code == "CKPT_UNSAFE"
    assert not canary.file.exists()


def test_a_pickle_renamed_to_safetensors_is_never_loaded(folder: Path) -> None:
    canary = Canary(folder.parent / "canary")
    (folder / "model.safetensors").write_bytes(pickle.dumps(canary))
    with pytest.raises(ModelRefused) as caught:
        load_model(folder)
    assert caught.value.code == "CKPT_UNSAFE" and not canary.file.exists()


def test_what_is_not_there_names_the_bundled_models(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused) as caught:
        load_model(tmp_path / "nowhere")
    assert caught.value.code == "CKPT_NONE"


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    from codebrain.models._released import read_released

    torch.save({"rec_model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ModelRefused) as caught:
        read_released(tmp_path / "other.pth", ModalitySet.parse("T1,T2,PD"))
    assert caught.value.code == "CKPT_MISMATCH"


def test_half_precision_storage_keeps_the_answers_close(folder: Path) -> None:
    full = load_model(folder)
    save_model(full, folder.parent / "half", preparation=full.preparation, half=True)
    half = load_model(folder.parent / "half")
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, folder.parent / "half")]
    assert sizes[1] < 0.7 * sizes[0]
    images, present = torch.rand(1, 3, 16, 16), torch.tensor([[True, True, False]])
    assert (half.reconstruct(images, present) - full.reconstruct(images, present)).abs().max() < 1e-2


def rewrite_header(folder: Path, change: Callable[[dict], None]) -> None:
    """The weights file as another version of codebrain would have written it, and config.json in step."""
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    weights = len(text).to_bytes(8, "little") + text + content[8 + size :]
    (folder / "model.safetensors").write_bytes(weights)
    edit(folder / "config.json", lambda c: c.update(weights_sha256=hashlib.sha256(weights).hexdigest()))


def forget(facts: dict, *names: str) -> None:
    settings = json.loads(facts["settings"])
    facts["settings"] = json.dumps({name: value for name, value in settings.items() if name not in names})


@pytest.mark.row("F6")
def test_a_folder_from_before_a_setting_existed_has_its_default(folder: Path) -> None:
    new = load_model(folder)
    rewrite_header(folder, lambda facts: forget(facts, "condition"))
    edit(folder / "config.json", lambda c: c["settings"].pop("condition"))
    old = load_model(folder)
    assert old.settings == new.settings
    images, present = torch.rand(1, 3, 16, 16), torch.tensor([[True, True, False]])
    assert torch.equal(old(images, present), new(images, present))


@pytest.mark.parametrize("setting", [{"decoding": "expected"}, {"grading": "classification"}])
@pytest.mark.parametrize("old", [False, True], ids=["in the header", "not in the header"])
def test_other_settings_in_the_configuration_are_refused(setting: dict, old: bool, folder: Path) -> None:
    if old:
        rewrite_header(folder, lambda facts: forget(facts, *setting))
    edit(folder / "config.json", lambda c: c["settings"].update(setting))
    with pytest.raises(ModelRefused, match="settings") as caught:
        load_model(folder)
    assert caught.value.code == "CKPT_MISMATCH"


def test_a_header_without_settings_is_refused(folder: Path) -> None:
    rewrite_header(folder, lambda facts: facts.pop("settings"))
    with pytest.raises(ModelRefused) as caught:
        load_model(folder)
    assert caught.value.code == "CKPT_MISMATCH"


def test_a_fixed_frame_travels_with_the_model(folder: Path) -> None:
    model = load_model(folder)
    preparation = replace(model.preparation, frame=(256, 240), background="kept")
    save_model(model, folder, preparation=preparation)
    assert load_model(folder).preparation == preparation


@pytest.mark.parametrize("field", ["frame", "background"])
def test_another_frame_than_the_weights_declare_is_refused(field: str, folder: Path) -> None:
    model = load_model(folder)
    preparation = replace(model.preparation, frame=(256, 240), background="kept")
    save_model(model, folder, preparation=preparation)
    edit(folder / "preparation.json", lambda raw: raw.pop(field))
    with pytest.raises(ModelRefused, match=field) as caught:
        load_model(folder)
    assert caught.value.code == "CKPT_MISMATCH"


def test_weights_from_before_frames_existed_have_none(folder: Path) -> None:
    rewrite_header(folder, lambda facts: [facts.pop(name) for name in ("frame", "background")])
    assert load_model(folder).preparation.frame is None
    edit(folder / "preparation.json", lambda raw: raw.update(frame=[256, 256]))
    with pytest.raises(ModelRefused, match="frame"):
        load_model(folder)


def declare(folder: Path, doubt: object) -> None:
    (folder / "metrics.json").write_text(json.dumps({"doubt": doubt}))


def test_limits_of_doubt_are_read_and_may_be_absent(folder: Path) -> None:
    assert load_model(folder).doubt_limits == {}
    declare(folder, {"limits": {"1": 0.8, "3": 0.5}, "rule": "as measured"})
    assert load_model(folder).doubt_limits == {1: 0.8, 3: 0.5}
    (folder / "metrics.json").unlink()
    assert load_model(folder).doubt_limits == {}


@pytest.mark.parametrize(
    "doubt", [5, {"limits": [0.5]}, {"limits": {"1": "0.5"}}, {"limits": {"1": 1.5}}, {"limits": {"one": 0.5}},
              {"limits": {"1": True}}, {"limits": {"1": float("nan")}}],
)  # fmt: skip
def test_limits_of_doubt_that_are_none_are_refused(doubt: object, folder: Path) -> None:
    declare(folder, doubt)
    with pytest.raises(ModelRefused) as caught:
        load_model(folder)
    assert caught.value.code == "CKPT_CORRUPT" and "metrics.json" in str(caught.value)
