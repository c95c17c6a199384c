"""Same weights, same input: codebrain and the released code agree. Answers were made by make_released.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from codebrain.app.cli import main
from codebrain.models import build_model, load_model
from codebrain.vocabulary import ModalitySet

GOLDEN = load_file(Path(__file__).with_name("released.safetensors"))
CASES = {
    "ixi": ("T1,T2,PD", "8,8,8,5,5,5"),
    "brats": ("flair,t1,t2,t1ce", "8,8,8,5,5,5"),
    "other": ("T1,T2,PD", "4,7,2"),
}


def write_checkpoint(case: str, file: Path) -> Path:
    prefix = f"{case}/weights/"
    content: dict[str, dict[str, torch.Tensor]] = {"rec_model": {}, "grad_model": {}}
    for key, value in GOLDEN.items():
        if key.startswith(prefix):
            part, _, name = key.removeprefix(prefix).partition("/")
            content[part][name] = value
    torch.save(content, file)
    return file


@pytest.mark.parametrize("case", CASES)
def test_an_imported_checkpoint_answers_as_the_released_code_does(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modalities, levels = CASES[case]
    file = write_checkpoint(case, tmp_path / "released.pth")
    command = ["models", "import", str(file), "--modalities", modalities, "--levels", levels]
    assert main([*command, "-o", str(tmp_path / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modalities"] == list(ModalitySet.parse(modalities))
    model = load_model(tmp_path / "model")
    images, present = GOLDEN[f"{case}/images"], GOLDEN[f"{case}/present"].bool()
    assert torch.equal(model.code_indices(images).int(), GOLDEN[f"{case}/indices"])
    assert torch.equal(model.levels(images, present).int(), GOLDEN[f"{case}/levels"])
    reconstruction = model.reconstruct(images, present)
    assert (reconstruction - GOLDEN[f"{case}/reconstruction"]).abs().max() < 1e-4
    absent = ~present[:, :, None, None].expand_as(images)
    completed = model(images, present)
    assert (completed - GOLDEN[f"{case}/imputed"])[absent].abs().max() < 1e-4
    assert torch.equal(completed[~absent], images[~absent])


def test_parameter_counts_of_the_published_size() -> None:
    model = build_model("codebrain", ModalitySet.parse("T1,T2,PD"))
    counted = {
        name: sum(parameter.numel() for parameter in getattr(model, name).parameters())
        for name in ("posterior_encoder", "common_encoder", "decoder", "prior_encoder", "critic")
    }
    assert counted == {
        "posterior_encoder": 3_136_038,
        "common_encoder": 27_853_920,
        "decoder": 104_695_107,
        "prior_encoder": 27_879_297,
        "critic": 2_784_192,
    }
