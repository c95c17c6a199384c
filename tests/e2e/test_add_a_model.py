"""docs/how-to/add-a-model.md, as a reader follows it: its file, recipe and suite, word for word."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from test_models import (  # collected here once more, for the model of this page
    MODALITIES,
    test_a_few_steps_lower_every_generator_loss,  # noqa: F401
    test_a_study_is_completed_alike_alone_and_in_a_batch,  # noqa: F401
    test_any_subset_in_complete_set_out,  # noqa: F401
    test_evaluation_repeats_with_the_same_generator,  # noqa: F401
    test_saved_and_loaded_is_the_same_model,  # noqa: F401
    test_the_sources_are_named,  # noqa: F401
    test_what_an_absent_channel_holds_has_no_influence,  # noqa: F401
)

from codebrain.app.cli import main
from codebrain.benchmark.suite import load_suite
from codebrain.models import build_model, load_model, model_names
from codebrain.models._contract import ImputationModel
from fabricated import fabricate_store

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "add-a-model.md").read_text(encoding="utf-8")
FILES = ("small_unet.py", "small_unet.yaml", "my_suite.yaml")


@pytest.fixture(scope="module", autouse=True)
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's folder, named in the environment."""
    folder = tmp_path_factory.mktemp("reader") / "my_models"
    folder.mkdir()
    blocks = re.findall(r"^```(?:python|yaml)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for name, block in zip(FILES, blocks, strict=True):
        assert f"`my_models/{name}`" in PAGE, "the page says where a block goes"
        (folder / name).write_text(block, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODEBRAIN_MODELS", str(folder))
        yield folder
    sys.modules.pop("codebrain.models.small_unet", None)
    assert "small_unet" not in model_names()


@pytest.fixture
def model() -> ImputationModel:
    """Stands in for the contract tests' own fixture."""
    torch.manual_seed(0)
    return build_model("small_unet", MODALITIES, {"width": 4}).eval()


def test_it_is_a_complete_model_in_under_sixty_lines(mine: Path) -> None:
    assert len((mine / "small_unet.py").read_text().splitlines()) < 60


def test_the_suite_of_the_page_can_start(mine: Path) -> None:
    suite, configs = load_suite(mine / "my_suite.yaml")
    assert configs["Small U-Net"].model == "small_unet" and suite.reference == "Small U-Net"


def test_it_is_trained_and_scored_beside_the_others(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = yaml.safe_load((mine / "my_suite.yaml").read_text())
    suite |= {"budget": {"samples": 36, "validations": 1}, "methods": {
        label: suite["methods"][label] for label in ("zeros", "Small U-Net")
    }}  # fmt: skip
    (mine / "short.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    store = fabricate_store(tmp_path / "store", 4, shape=(3, 24, 16), val=["s00"], test=["s01", "s02"])
    out = tmp_path / "out"
    words = ["benchmark", mine / "short.yaml", "--data", store.root, "-o", out, "--device", "cpu", "--threads", 1]
    assert main([*map(str, words), "--jobs", "1", "-q"]) == 0

    spent = json.loads((out / "run.json").read_text())["methods"]["Small U-Net"]
    assert (spent["steps"], spent["samples"]) == (3, 36)
    table = (out / "table.md").read_text()
    assert "| Small U-Net |" in table and "| zeros |" in table and "Small U-Net" in capsys.readouterr().out

    trained = out / "runs" / "small-u-net" / "model"
    assert load_model(trained).architecture == "small_unet"
    assert main(["models"]) == 0
    assert "small_unet" in capsys.readouterr().out
