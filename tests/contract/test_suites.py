"""Every suite in the package can start, compares like with like, and finds the published numbers it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from codebrain.benchmark.budget import fit_budget, trained_stages
from codebrain.benchmark.paper import published
from codebrain.benchmark.publish import paper_numbers
from codebrain.benchmark.rows import TASKS
from codebrain.benchmark.scoring import parse_patterns
from codebrain.benchmark.suite import SUITES, Suite, load_suite, slug, suite_names
from codebrain.data.slices import SliceStore
from codebrain.errors import UsageError
from codebrain.models import build_model, with_settings
from codebrain.training.config import TrainConfig, load_config
from codebrain.vocabulary import ModalitySet
from fabricated import fabricate_store

Loaded = tuple[Suite, dict[str, TrainConfig]]
LARGE = [name for name in suite_names() if not name.endswith("_small")]
ABLATIONS = [name for name in LARGE if not name.startswith("table2")]


@pytest.fixture(scope="module", params=suite_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def loaded(name: str) -> Loaded:
    return load_suite(name)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SliceStore]:
    """A store with the contrasts of IXI and one with those of BraTS."""
    root = tmp_path_factory.mktemp("stores")
    return {
        names: fabricate_store(root / names, 2, modalities=names, val=[], test=["s00"])
        for names in ("T1,T2,PD", "FLAIR,T1,T2,T1Gd", "T1,T2,FLAIR,T1Gd")
    }


def planned(loaded: Loaded, stores: dict[str, SliceStore]) -> dict[str, TrainConfig]:
    """The methods' configurations as :func:`codebrain.benchmark.runner.run_suite` would train them."""
    suite, configs = loaded
    store = stores[",".join(suite.modalities or [])]
    made = {}
    for label, config in configs.items():
        stages = trained_stages(config, store)
        made[label] = fit_budget(config, stages, suite.budget, dict.fromkeys(stages, 0.5))
    return made


def test_what_its_header_says(name: str, loaded: Loaded) -> None:
    text = (SUITES / f"{name}.yaml").read_text(encoding="utf-8")
    header = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert header.startswith(f"codebrain benchmark {name} --data STORE -o OUT")
    for word in ("Budget", "Hardware"):
        assert word in header, word
    assert ("Expected" in header and "CVPR 2026" in header) or name.endswith("_small")
    assert parse_patterns(loaded[0].patterns, ModalitySet.parse(loaded[0].modalities or [])) is not None


def test_every_model_builds_with_the_contrasts_and_players_of_the_suite(loaded: Loaded) -> None:
    suite, configs = loaded
    modalities = ModalitySet.parse(suite.modalities or [])
    for label, config in configs.items():
        own = load_config(str(suite.methods[label].recipe)).modalities
        assert own in (None, suite.modalities), "the recipe was written for these contrasts, in this order"
        with torch.device("meta"):
            model = build_model(config.model, modalities, config.settings)
        for stage in model.stages:
            named = config.stages[stage].optimisers if stage in config.stages else {}
            assert set(named) == set(model.players(stage)), "each player has its optimiser, and no other is named"


def test_lines_that_share_weights_can(loaded: Loaded) -> None:
    suite, configs = loaded
    for label, method in suite.methods.items():
        if method.of is None or method.of not in configs:
            continue
        config = configs[method.of]
        with torch.device("meta"):
            model = build_model(config.model, ModalitySet.parse(suite.modalities or []), config.settings)
            other = with_settings(model, method.settings)
        assert other.settings != model.settings, f"{label} is {method.of} once more"


def test_equal_budgets(name: str, loaded: Loaded, stores: dict[str, SliceStore]) -> None:
    budget = loaded[0].budget
    seen, seconds = {}, {}
    for label, config in planned(loaded, stores).items():
        seen[label] = {stage: (s.steps or 0) * s.batch_size for stage, s in config.stages.items()}
        seconds[label] = sum(s.steps or 0 for s in config.stages.values()) * 0.5
        assert {-(-(s.steps or 0) // s.validate_every) for s in config.stages.values()} == {budget.validations}
    if budget.seconds is not None:
        assert list(seconds.values()) == pytest.approx([budget.seconds] * len(seconds), rel=0.01)
    elif budget.samples is not None:
        assert list(map(sum_of, seen.values())) == pytest.approx([budget.samples] * len(seen), rel=1e-4)
    else:
        for stages in seen.values():  # a binary condition has no second stage
            assert stages == {stage: count for stage, count in seen["CodeBrain"].items() if stage in stages}
    assert (budget.samples is not None) == name.startswith("table2")


def sum_of(stages: dict[str, int]) -> int:
    return sum(stages.values())


@pytest.mark.parametrize("other", ABLATIONS)
def test_codebrain_itself_is_the_same_training_in_every_table_of_a_data_set(
    other: str, stores: dict[str, SliceStore]
) -> None:
    main = "table2_" + other.rpartition("_")[2]
    assert planned(load_suite(main), stores)["CodeBrain"] == planned(load_suite(other), stores)["CodeBrain"]


@pytest.mark.parametrize("name", [name for name in LARGE if name.endswith("_ixi")])
def test_ixi_and_brats_are_compared_alike(name: str) -> None:
    (ixi, mine), (brats, theirs) = load_suite(name), load_suite(name.replace("_ixi", "_brats"))
    assert list(ixi.methods) == list(brats.methods) and ixi.layout == brats.layout
    assert ixi.budget == brats.budget and (ixi.middle, brats.middle) == (90, 80)
    assert [m.paper for m in ixi.methods.values()] == [m.paper for m in brats.methods.values()]
    for label in mine:
        assert mine[label].model == theirs[label].model and mine[label].precision == theirs[label].precision


def test_every_link_to_the_paper_finds_numbers_where_the_table_has_any(name: str, loaded: Loaded) -> None:
    suite = loaded[0]
    assert (suite.paper is None) == name.endswith("_small"), "small studies are not beside published numbers"
    linked = {label for label, method in suite.methods.items() if method.paper_lines}
    found = {label for task in TASKS for label, _, _ in paper_numbers(suite, task)}
    assert bool(linked) == (suite.paper is not None), "lines of a published table are linked to it"
    known = suite.paper is not None and published(suite.paper.table, suite.paper.dataset)
    assert found == (linked if known else set())


def test_labels_give_folders_of_their_own(loaded: Loaded) -> None:
    folders = [slug(label) for label in loaded[0].methods]
    assert len(set(folders)) == len(folders) and all(folders)


def test_null_takes_away_what_a_recipe_says(tmp_path: Path) -> None:
    def config(changes: dict) -> TrainConfig:
        content = {"title": "Trial", "methods": {"a": {"recipe": "codebrain_released_ixi", "changes": changes}}}
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(content))
        return load_suite(tmp_path / "suite.yaml")[1]["a"]

    whole = config({})
    assert list(config({"stages": {"grading": None}}).stages) == ["reconstruction"]
    assert config({"stages": {"grading": {"crop": None}}}).stages["grading"].crop is None
    assert config({"settings": None}).settings == {} != whole.settings
    assert config({"stages": {"grading": {"clip": None}}}) == whole, "what is not there need not be taken away"
    for wrong in ({"stages": {"gradng": None}}, {"settings": {"wide": None}}, {"mdl": None}):
        with pytest.raises(UsageError, match=r"gradng|wide|mdl"):
            config(wrong)
