"""Models outside the package, in the folders of CODEBRAIN_MODELS."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import codebrain.models
from codebrain.errors import CodeBrainError, UsageError
from codebrain.models import build_model, load_model, model_class, model_names, save_model
from codebrain.vocabulary import ModalitySet, Preparation

MODALITIES = ModalitySet.parse("T1,T2,PD")

GOOD = '''
"""Source: this test."""
from dataclasses import dataclass
import torch
from codebrain.models._contract import ImputationModel, keep_present
{more}

@dataclass(frozen=True)
class GreySettings:
    level: float = 0.5

class Grey(ImputationModel):
    Settings = GreySettings
    stages = ()

    def __init__(self, modalities, settings):
        super().__init__(modalities, settings)
        self.register_buffer("level", torch.tensor(settings.level))

    def forward(self, images, present, generator=None):
        return keep_present(self.level.expand_as(images), images, present)

    def players(self, stage):
        return {{}}

    def loss(self, player, batch, shared, *, stage, progress):
        return None
'''

Write = Callable[..., Path]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write model files into a folder and name it; ``own(grey=TEXT, folder="b")``."""
    before = set(sys.modules)

    def write(folder: str = "mine", **files: str) -> Path:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for name, text in files.items():
            (place / f"{name}.py").write_text(text)
        named = os.environ.get("CODEBRAIN_MODELS", "").split(os.pathsep)
        if str(place) not in named:
            monkeypatch.setenv("CODEBRAIN_MODELS", os.pathsep.join([*named, str(place)]))
        return place

    monkeypatch.delenv("CODEBRAIN_MODELS", raising=False)
    yield write
    monkeypatch.undo()
    model_names()
    for name in set(sys.modules) - before:
        if name.startswith("codebrain.models."):
            del sys.modules[name]
            vars(codebrain.models).pop(name.rpartition(".")[2], None)


def test_a_file_in_a_named_folder_is_a_model(own: Write) -> None:
    bundled = model_names()
    own(grey=GOOD.format(more="from codebrain.models._shade import SHADE"), _shade="SHADE = 1\n")
    own(folder="second", silver=GOOD.format(more=""))
    assert model_names() == sorted([*bundled, "grey", "silver"]), "helpers with an underscore are no models"
    model = build_model("grey", MODALITIES, {"level": 0.25})
    assert model.architecture == "grey"
    completed = model(torch.ones(1, 3, 8, 8), torch.tensor([[True, False, False]]))
    assert completed[0, :, 0, 0].tolist() == [1.0, 0.25, 0.25]


def test_a_model_folder_of_it_loads_and_without_the_file_says_what_is_missing(
    own: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(grey=GOOD.format(more=""))
    digest = save_model(build_model("grey", MODALITIES), tmp_path / "saved", preparation=Preparation(MODALITIES))
    loaded = load_model(tmp_path / "saved")
    assert loaded.sha256 == digest and type(loaded).__name__ == "Grey"
    monkeypatch.delenv("CODEBRAIN_MODELS")
    with pytest.raises(UsageError, match=r"no model is called 'grey'.*CODEBRAIN_MODELS names its folder"):
        load_model(tmp_path / "saved")


def test_the_command_lists_it(own: Write, capsys: pytest.CaptureFixture[str]) -> None:
    from codebrain.app.cli import main

    own(grey=GOOD.format(more=""))
    assert main(["models"]) == 0
    assert any(line.split() == ["grey", "Source:", "this", "test."] for line in capsys.readouterr().out.splitlines())


LACKING = GOOD.format(more="").replace("def loss", "def losses").replace("    stages = ()\n", "")
BAD = {
    "a mistake": ({"broken": "x = 1 / 0\n"}, "broken", r"broken\.py.*ZeroDivisionError: division by zero"),
    "not Python": ({"broken": "class:\n"}, "broken", r"broken\.py.*SyntaxError"),
    "a missing package": ({"broken": "import no_such_package\n"}, "broken", r"broken\.py.*no_such_package"),
    "no model": ({"empty": "x = 1\n"}, "empty", r"empty\.py.*no ImputationModel"),
    "half a model": ({"half": LACKING}, "half", r"half\.py.*Grey lacks loss, stages"),
    "no settings": ({"half": GOOD.format(more="").replace("Settings = ", "Options = ")}, "half", "lacks Settings"),
    "a bundled name": ({"mmt": GOOD.format(more="")}, "codebrain", r"mine/mmt\.py.*'mmt' is the name of another"),
    "a name inside": ({"_folder": ""}, "codebrain", r"mine/_folder\.py.*'_folder' is the name of another"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(case: str, own: Write) -> None:
    files, asked, expected = BAD[case]
    own(**files)
    with pytest.raises(CodeBrainError, match=expected) as caught:
        model_class(asked)
    assert caught.value.code == "CONFIG" and "\n" not in str(caught.value)


def test_two_folders_must_not_hold_the_same_name(own: Write) -> None:
    own(grey=GOOD.format(more=""))
    own(folder="second", grey=GOOD.format(more=""))
    with pytest.raises(UsageError, match="second/grey"):
        model_names()


def test_a_folder_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODEBRAIN_MODELS", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"nowhere.*CODEBRAIN_MODELS: there is no such folder"):
        model_names()


def test_empty_and_repeated_names_are_nothing(monkeypatch: pytest.MonkeyPatch, own: Write, tmp_path: Path) -> None:
    place = own(grey=GOOD.format(more=""))
    monkeypatch.setenv("CODEBRAIN_MODELS", os.pathsep.join(["", str(place), str(place), ""]))
    assert "grey" in model_names()


def test_files_are_summed_up_without_being_run(own: Write) -> None:
    own(loud='"""Prints\nwhen run.\n\nSource: this test."""\nraise SystemExit("run")\n', torn="def (")
    summaries = codebrain.models.model_summaries()
    assert summaries["loud"] == "Prints when run."
    assert summaries["torn"].startswith("cannot be read: ")
    assert "Zhang-style" in summaries["unified_synthesis"], "a reconstruction is called one wherever it is named"
