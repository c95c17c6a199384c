"""What command tests share: a tiny model with random weights, a way to type commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A CodeBrain of width 2 for all five contrasts, untrained, as a model folder."""
    import torch

    from codebrain.models import build_model, save_model
    from codebrain.vocabulary import ModalitySet, Preparation

    modalities = ModalitySet.parse("T1,T2,PD,FLAIR,T1Gd")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("codebrain", modalities, {"width": 2, "depth": 1})
    scale = {str(m): 100.0 * (i + 1) for i, m in enumerate(modalities)}
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(model, folder, preparation=Preparation(modalities, pixel_spacing_mm=None, intensity_scale=scale))
    return folder


@dataclass(frozen=True)
class Typed:
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def code(self) -> str:
        """The code in the last line on stderr."""
        words = self.err.strip().splitlines()[-1].split(": ") if self.err.strip() else ["", ""]
        return words[1] if words[0] == "codebrain" and len(words) > 1 else ""

    @property
    def json(self):
        """The document on stdout."""
        return json.loads(self.out)


@pytest.fixture
def typed(capfd):
    """Type a command line in this process."""
    from codebrain.app.cli import main

    def type_command(*words, program=main) -> Typed:
        capfd.readouterr()
        status = program([str(word) for word in words])
        return Typed(status, *capfd.readouterr())

    return type_command


@pytest.fixture
def impute(typed, tiny_model):
    """Type ``codebrain impute --model <the tiny one> ...``; a later ``--model`` wins."""
    return lambda *words: typed("impute", "--model", tiny_model, *words)
