"""A suite: which methods meet, with what budget, on which slices; read from YAML, checked before any work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from codebrain.benchmark.paper import published
from codebrain.benchmark.references import REFERENCES
from codebrain.errors import CodeBrainError, refusal
from codebrain.models import model_class
from codebrain.settings import flat, parse_settings
from codebrain.training.config import Count, Measure, TrainConfig, Whole, load_config, named_file, read_yaml
from codebrain.vocabulary import ModalitySet

SUITES = Path(__file__).parents[1] / "suites"

Layout = Literal["methods", "scenarios", "ablation", "codes"]


@dataclass(frozen=True)
class Budget:
    """What every trained method may spend; at most one of the two, and without either its recipe's own length.

    A method's stages share the budget in proportion to the length its recipe gives them.

    Attributes:
        samples: slices seen, over all stages.
        seconds: of training steps, as measured on a few steps before the run; the number of steps is then
            fixed, so a busy machine changes the time and not the training.
        validations: per stage; the best weights of a stage are kept.
    """

    samples: Count | None = None
    seconds: Measure | None = None
    validations: Count = 4

    def __post_init__(self) -> None:
        if self.samples is not None and self.seconds is not None:
            raise ValueError("a budget is a number of samples or of seconds, not both")


@dataclass(frozen=True)
class Method:
    """One line of the table; exactly one of ``recipe``, ``folder``, ``reference`` and ``of``.

    Attributes:
        recipe: trained here, by the name of a recipe or a YAML file (beside the suite, if its path is relative).
        changes: of the recipe; what is not named stays as it is there, and null takes a key away (a stage, say).
        folder: a trained model (relative to the suite), or a bundled one by name.
        reference: ``zeros``, ``mean`` or ``polynomial``, fitted to the training patients where it has to be.
        of: another method of the suite, whose weights are used with other ``settings``.
        settings: of the model that do not change its weights (sampling steps, temperature, decoding).
        paper: the line of the paper's table that it is to be compared with, ``method`` or ``method, setting``; or
            several, where the table names one model for each comparison.
    """

    recipe: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None
    reference: str | None = None
    of: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    paper: str | tuple[str, ...] = ()

    @property
    def paper_lines(self) -> tuple[str, ...]:
        """The lines of the paper's table that are about this method."""
        return (self.paper,) if isinstance(self.paper, str) else self.paper

    def __post_init__(self) -> None:
        sources = [self.recipe, self.folder, self.reference, self.of]
        if sum(source is not None for source in sources) != 1:
            raise ValueError("a method has exactly one of recipe, folder, reference and of")
        if self.changes and self.recipe is None:
            raise ValueError("only a recipe can have changes; a trained model has settings")


@dataclass(frozen=True)
class Paper:
    """The published table beside which the results are set.

    Attributes:
        table: one of :data:`codebrain.benchmark.paper.TABLES`.
        dataset: ``IXI`` or ``BraTS``.
    """

    table: str
    dataset: str


@dataclass(frozen=True)
class Suite:
    """A whole comparison.

    Attributes:
        title: heading of the tables.
        methods: by label, in the order of the table.
        modalities: contrasts that all methods are trained and judged on; ``None`` takes the slice store's.
        split: which patients are scored.
        patterns: ``all``, ``leave-one-out`` or present contrasts as ``T1;T1,FLAIR``.
        middle: only the middle N slices of each study.
        budget: of every trained method.
        seed: of every training, in place of the recipes'.
        precision: of every training, in place of the recipes'.
        layout: which tables and figures are wanted.
        reference: the method that the others are tested against; the first when absent.
        paper: published numbers to show beside.
    """

    title: str
    methods: dict[str, Method]
    modalities: list[str] | None = None
    split: Literal["train", "val", "test"] = "test"
    patterns: str = "all"
    middle: Count | None = None
    budget: Budget = field(default_factory=Budget)
    seed: Whole | None = None
    precision: Literal["fp32", "bf16"] | None = None
    layout: tuple[Layout, ...] = ("methods", "scenarios")
    reference: str | None = None
    paper: Paper | None = None

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("a suite needs at least one method")
        if self.reference is not None and self.reference not in self.methods:
            raise ValueError(f"the reference {self.reference!r} is none of the methods")

    @property
    def bases(self) -> dict[str, Method]:
        """The methods with weights of their own."""
        return {label: method for label, method in self.methods.items() if method.of is None}

    def family(self, label: str) -> list[str]:
        """A base method and those that use its weights."""
        return [name for name, method in self.methods.items() if label in (name, method.of)]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for ``run.json``; folders are cut from paths, which may name people."""
        plain = asdict(self)
        for method in plain["methods"].values():
            for name in ("recipe", "folder"):
                method[name] = method[name] and Path(method[name]).name
        return plain


def suite_names() -> list[str]:
    """The suites in the package."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load_suite(source: str | Path) -> tuple[Suite, dict[str, TrainConfig]]:
    """Read a suite by name or a YAML file, and the configuration of every method that is trained.

    Raises:
        UsageError: ``CONFIG`` for no such suite, bad YAML, an unknown key, model, recipe or reference;
            ``MOD_UNKNOWN`` for an unknown contrast.
    """
    path = named_file(source, SUITES, what="suite")
    suite = read_yaml(Suite, path)
    if suite.modalities is not None:
        ModalitySet.parse(suite.modalities)
    suite = replace(suite, methods={label: _beside(method, path.parent) for label, method in suite.methods.items()})
    _refuse_strangers(suite, path)
    _refuse_bad_paper(suite, path)
    configs = {label: _config(suite, label, path) for label, method in suite.methods.items() if method.recipe}
    for label, method in suite.methods.items():
        base = configs.get(method.of or label)
        if base is not None and method.settings:
            with _telling(f"methods.{label}", path):
                _check_settings(base.model, {**base.settings, **method.settings})
    return suite, configs


def _beside(method: Method, folder: Path) -> Method:
    """The method with paths that were meant from the suite's own folder."""
    recipe, trained = (
        str(folder / name) if name is not None and (folder / name).exists() else name
        for name in (method.recipe, method.folder)
    )
    return replace(method, recipe=recipe, folder=trained)


def _refuse_strangers(suite: Suite, path: Path) -> None:
    for label, method in suite.methods.items():
        place = f"methods.{label}"
        if method.of is not None and (method.of not in suite.methods or suite.methods[method.of].of is not None):
            raise refusal("CONFIG", f"{method.of!r} is no method with weights of its own", file=path,
                          field=f"{place}.of", expected=", ".join(suite.bases))  # fmt: skip
        if method.reference is not None and method.reference not in REFERENCES:
            raise refusal("CONFIG", f"{method.reference!r} is no reference", file=path,
                          field=f"{place}.reference", expected=", ".join(REFERENCES))  # fmt: skip
    folders = [slug(label) for label in suite.methods]
    twice = next((label for label in suite.methods if folders.count(slug(label)) > 1), None)
    if twice is not None:
        raise refusal("CONFIG", "two labels would share the folder " + slug(twice), file=path, field="methods",
                      found=twice, expected="labels that differ in letters or digits")  # fmt: skip


def _refuse_bad_paper(suite: Suite, path: Path) -> None:
    if suite.paper is None:
        return
    with _telling("paper", path):
        published(suite.paper.table, suite.paper.dataset)
    lines = [line for method in suite.methods.values() for line in method.paper_lines]
    if len({*lines}) < len(lines):
        raise refusal("CONFIG", "two methods name the same line of the paper's table", file=path, field="methods",
                      found=max(lines, key=lines.count))  # fmt: skip


def _config(suite: Suite, label: str, path: Path) -> TrainConfig:
    """The recipe of a method under the suite's seed and precision."""
    method = suite.methods[label]
    with _telling(f"methods.{label}", path):
        changes = [f"{key}={json.dumps(value)}" for key, value in flat(method.changes).items()]
        config = load_config(str(method.recipe), changes)
        _check_settings(config.model, config.settings)
    return replace(
        config,
        modalities=suite.modalities or config.modalities,
        seed=config.seed if suite.seed is None else suite.seed,
        precision=suite.precision or config.precision,
    )


def _check_settings(model: str, settings: dict[str, Any]) -> None:
    parse_settings(model_class(model).Settings, settings, where=f"settings of {model}")


@contextmanager
def _telling(place: str, path: Path) -> Iterator[None]:
    """Say at which place of the suite a refusal arose."""
    try:
        yield
    except CodeBrainError as error:
        field = f"{place}, {error.field}" if error.field else place
        raise refusal(error.code, error.message, file=error.file or path, field=field,
                      found=error.found, expected=error.expected, hint=error.hint) from error  # fmt: skip


def slug(label: str) -> str:
    """A label as the name of a folder: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.") or "method"
