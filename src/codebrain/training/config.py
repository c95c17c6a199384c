"""What a training run is: one frozen tree of settings, read from a recipe or a YAML file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field

from codebrain.errors import CodeBrainError, refusal
from codebrain.parsing import read_small
from codebrain.settings import parse_settings

RECIPES = Path(__file__).parents[1] / "recipes"

T = TypeVar("T")

_MOST_VALUES = 10_000

Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Portion = Annotated[float, Field(gt=0, le=1)]


class _Loader(yaml.SafeLoader):
    """The safe loader, but ``1e-4`` is a number (YAML 1.1 wants ``1.0e-4``) and a key may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for node_of_key, _ in node.value:
            key = self.construct_object(node_of_key, deep=True)
            if not isinstance(key, Hashable):
                break  # the safe loader says so, with the line
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} stands twice", problem_mark=node_of_key.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class OptimiserConfig:
    """How one player descends, and its learning rate over the stage; shares are of the stage's steps.

    Attributes:
        kind: ``adamw`` (Adam, when nothing decays) or ``adamax``.
        lr: at the start.
        lr_end: at the end of the decay from ``lr``; ``None`` keeps ``lr`` constant.
        betas: running means. (0.9, 0.9) is the released code's and NAFNet's: quicker to adapt than the usual
            0.999, which matters for the short cosines of small runs.
        weight_decay: decoupled.
        warmup_steps: steps over which the rate rises from zero,
        warmup: or the share of the stage.
        decay: shape of the way from ``lr`` to ``lr_end``.
        hold: share of the stage during which the rate stays at ``lr`` before it decays.
        renew_at: share after which the optimiser forgets its running means and starts anew (MMHVAE).
    """

    kind: Literal["adamw", "adamax"] = "adamw"
    lr: Measure = 5e-4
    lr_end: Measure | None = None
    betas: tuple[Share, Share] = (0.9, 0.9)
    weight_decay: Measure = 0.0
    warmup_steps: Whole = 0
    warmup: Share = 0.0
    decay: Literal["cosine", "linear"] = "cosine"
    hold: Share = 0.0
    renew_at: Share | None = None

    def __post_init__(self) -> None:
        if self.warmup_steps and self.warmup:
            raise ValueError("a warm-up is a number of steps or a share of the stage, not both")


@dataclass(frozen=True)
class StageConfig:
    """One stage of a model.

    Attributes:
        steps: how many optimiser steps; or else ``epochs``.
        epochs: passes over the training slices.
        batch_size: slices per step, over all processes.
        crop: edge of random square crops in pixels; ``None`` trains on whole slices.
        optimisers: by player; a player that is not named gets the defaults.
        clip: largest norm of a player's gradient; ``None`` leaves it.
        validate_every: steps between validations; one always follows the last step.
        curriculum: pairs (until, easiest): before that fraction of the stage only the easiest share of the
            patterns, those with most contrasts present, is drawn (MM-GAN); afterwards all.
    """

    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count = 8
    crop: Count | None = None
    optimisers: dict[str, OptimiserConfig] = field(default_factory=dict)
    clip: Measure | None = None
    validate_every: Count = 1000
    curriculum: tuple[tuple[Portion, Portion], ...] = ()

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("a stage has a number of steps or of epochs, not both")
        if list(self.curriculum) != sorted(self.curriculum):
            raise ValueError("the parts of a curriculum come in the order of their ends")

    def easiest(self, progress: float) -> float:
        """The share of the patterns that may be drawn at this fraction of the stage."""
        return next((share for until, share in self.curriculum if progress < until), 1.0)


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
        model: a file of ``codebrain/models``.
        settings: of the model; what is not named keeps the model's default.
        stages: by name, for the stages that have players.
        modalities: contrasts in channel order; ``None`` takes the slice store's.
        seed: of all chance.
        precision: ``fp32`` or ``bf16`` (autocast; weights and losses stay float32).
        compile: translate the NAF blocks with torch.compile, which needs a C++ compiler (CPU) or Triton (GPU).
        patterns: a pattern per ``sample`` or one per ``batch`` (the released code).
        choice: all ``subsets`` are equally likely, or every ``cardinality`` and then its subsets (MMT).
        augmentation: see :mod:`codebrain.data.augment`.
        sampling: draw ``slices`` evenly, or ``subjects`` evenly and then one of their slices.
        validation_slices: at most this many, evenly spaced over the validation patients.
        checkpoint_steps: at most this many steps are lost to a kill,
        checkpoint_minutes: or this many minutes.
    """

    model: str
    stages: dict[str, StageConfig] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    modalities: list[str] | None = None
    seed: Whole = 1337
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    patterns: Literal["sample", "batch"] = "sample"
    choice: Literal["subsets", "cardinality"] = "subsets"
    augmentation: str = "none"
    sampling: Literal["slices", "subjects"] = "slices"
    validation_slices: Count = 64
    checkpoint_steps: Count = 500
    checkpoint_minutes: Measure = 10.0

    def to_yaml(self) -> str:
        """The resolved whole, as written beside a run."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False)


def recipe_names() -> list[str]:
    """The recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe by name or a YAML file, with ``a.b=value`` overrides; ``a.b=null`` takes a key of the file away.

    Raises:
        UsageError: ``CONFIG`` for no such recipe, bad YAML (with its line), an unknown key or a wrong type.
    """
    return read_yaml(TrainConfig, named_file(source, RECIPES, what="recipe"), overrides)


def read_yaml(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read a dataclass from a YAML file, with ``a.b=value`` overrides.

    Raises:
        UsageError: ``CONFIG`` for bad YAML (with its line), an unknown key or a wrong type.
    """
    try:
        text = read_small(path).decode()
        raw = _loaded(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        place = getattr(error, "problem_mark", None)
        line = f"line {place.line + 1}" if place is not None else None
        raise refusal(
            "CONFIG", f"not readable as YAML: {' '.join(str(error).split())}", file=path, field=line
        ) from error
    if not isinstance(raw, Mapping):
        raise refusal("CONFIG", "not a mapping of settings", file=path, found=type(raw).__name__)
    tree = _plain(raw)
    for override in overrides:
        _override(tree, override)
    try:
        return parse_settings(cls, tree, where=path.name)
    except CodeBrainError as error:
        overridden = any((error.field or "").startswith(override.partition("=")[0]) for override in overrides)
        raise error if overridden else _with_line(error, text) from error


def _loaded(text: str) -> Any:
    """What a YAML document holds.

    Raises:
        yaml.YAMLError: for bad YAML.
        ValueError: for dates and numbers that do not exist, and for what is nested too deeply.
    """
    try:
        document = yaml.load(text, Loader=_Loader)
        _count(document, _MOST_VALUES)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (AttributeError, TypeError, LookupError) as error:  # PyYAML's, for a tag like !!timestamp before a word
        raise ValueError(f"a value does not fit its tag: {error}") from error
    return document


def _count(value: Any, left: int) -> int:
    """``left`` less the values in a document; a few aliases of aliases can stand for more than memory holds.

    Raises:
        ValueError: when none is left, and for dates, sets and bytes, which no setting is.
    """
    if left <= 0:
        raise ValueError(f"it holds more than {_MOST_VALUES} values")
    if not isinstance(value, str | int | float | Mapping | list | tuple | None):
        raise ValueError(f"it holds a {type(value).__name__}")
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        left = _count(part, left)
    return left - 1


def named_file(source: str | Path, folder: Path, *, what: str) -> Path:
    """The YAML file in ``folder`` that is called ``source``, or the file at that path.

    Raises:
        UsageError: ``CONFIG`` when there is neither, with the nearest name.
    """
    bundled = folder / f"{source}.yaml"
    if bundled.is_file():
        return bundled
    path = Path(source)
    if not path.is_file():
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        near = difflib.get_close_matches(str(source), names, n=1)
        raise refusal(
            "CONFIG",
            f"{str(source)!r} is neither a {what} nor a YAML file",
            expected=", ".join(names),
            hint=f"Did you mean {near[0]}?" if near else None,
        )
    return path


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise refusal("CONFIG", "an override is written a.b=value", field="--set", found=text)
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise refusal("CONFIG", f"{parent} holds a value, not settings", field="--set", found=text)
    try:
        changed = _loaded(value)
    except (ValueError, yaml.YAMLError) as error:
        raise refusal("CONFIG", "the value is not YAML", field="--set", found=text) from error
    if changed is None and last in tree:
        del tree[last]  # its default holds; a key that was not there stays, to be refused if it is unknown
    else:
        tree[last] = changed


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _with_line(error: CodeBrainError, text: str) -> CodeBrainError:
    """The same error with the line of the file at which its field stands; as it is for one that is not there."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for part in (error.field or "").split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        keys = {key.value: (key, value) for key, value in pairs if isinstance(key, yaml.ScalarNode)}
        if part not in keys:
            break
        key, node = keys[part]
        line = key.start_mark.line + 1
    if line is None:
        return error
    return refusal(
        error.code, error.message, field=f"line {line}, {error.field}",
        found=error.found, expected=error.expected, hint=error.hint,
    )  # fmt: skip
