"""The words of the house: which contrasts exist, which subset is given, how images were prepared."""

from __future__ import annotations

import difflib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal, get_args

from codebrain.errors import refusal
from codebrain.parsing import parse_json_object

Precision = Literal["auto", "fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def parse_precision(name: str) -> Precision:
    """A precision by name.

    Raises:
        UsageError: ``CONFIG``.
    """
    for known in PRECISIONS:
        if name == known:
            return known
    raise refusal("CONFIG", "no such precision", field="precision", found=name, expected=", ".join(PRECISIONS))


Pattern = tuple[bool, ...]
"""Which contrasts of a :class:`ModalitySet` are present, in its order."""


class Modality(StrEnum):
    """A contrast of a brain-MRI examination."""

    T1 = "T1"
    T2 = "T2"
    PD = "PD"
    FLAIR = "FLAIR"
    T1GD = "T1Gd"

    @classmethod
    def parse(cls, text: str) -> Modality:
        """The contrast that ``text`` names, aliases and any case accepted.

        Raises:
            UsageError: ``MOD_UNKNOWN``, with the nearest known name.
        """
        key = text.strip().lower()
        if key in _ALIASES:
            return _ALIASES[key]
        near = difflib.get_close_matches(key, _ALIASES, n=1)
        guess = f"Did you mean {_ALIASES[near[0]]}?" if near else ""
        raise refusal("MOD_UNKNOWN", f"no contrast is called {text!r}", expected=", ".join(cls), hint=guess or None)


_ALIASES: dict[str, Modality] = {
    **dict.fromkeys(("t1", "t1w", "t1n"), Modality.T1),
    **dict.fromkeys(("t2", "t2w"), Modality.T2),
    **dict.fromkeys(("pd", "pdw"), Modality.PD),
    **dict.fromkeys(("flair", "t2f"), Modality.FLAIR),
    **dict.fromkeys(("t1gd", "t1ce", "t1c", "t1post", "t1wks"), Modality.T1GD),
}


@dataclass(frozen=True)
class ModalitySet:
    """An ordered set of contrasts: the channels of a model or a slice store."""

    members: tuple[Modality, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise refusal("MOD_NONE", "no contrast was named", expected="at least one")
        for member in self.members:
            if self.members.count(member) > 1:
                raise refusal("MOD_DUPLICATE", f"{member} is named twice", found=", ".join(self.members))

    @classmethod
    def parse(cls, names: str | Iterable[str]) -> ModalitySet:
        """From ``"T1,T2,PD"`` or a sequence of names; order is kept."""
        parts = names.split(",") if isinstance(names, str) else list(names)
        return cls(tuple(Modality.parse(part) for part in parts if part.strip()))

    def __iter__(self) -> Iterator[Modality]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, modality: object) -> bool:
        return modality in self.members

    def __str__(self) -> str:
        return ",".join(self.members)

    def index(self, modality: Modality) -> int:
        """Channel of ``modality``."""
        return self.members.index(modality)

    def pattern(self, present: Iterable[Modality]) -> Pattern:
        """Which members are in ``present``."""
        given = set(present)
        return tuple(member in given for member in self.members)

    def present(self, pattern: Pattern) -> tuple[Modality, ...]:
        """The members that ``pattern`` marks present."""
        return tuple(m for m, here in zip(self.members, pattern, strict=True) if here)

    def absent(self, pattern: Pattern) -> tuple[Modality, ...]:
        """The members that ``pattern`` marks absent."""
        return tuple(m for m, here in zip(self.members, pattern, strict=True) if not here)


def strict_subsets(available: Pattern) -> list[Pattern]:
    """Every non-empty strict subset of the available contrasts, fewest first.

    For three available contrasts six patterns, for four fourteen (paper, section 3.1).
    """
    places = [i for i, here in enumerate(available) if here]
    return [
        tuple(i in chosen for i in range(len(available)))
        for size in range(1, len(places))
        for chosen in itertools.combinations(places, size)
    ]


def pattern_name(modalities: ModalitySet, pattern: Pattern) -> str:
    """For example ``T1+FLAIR``."""
    return "+".join(modalities.present(pattern)) or "none"


_Normalisation = Literal["min_max", "percentile"]
_Background = Literal["zero", "kept"]
_SPACINGS = (0.1, 20.0)
_LARGEST_MULTIPLE, _LARGEST_FRAME = 1024, 4096


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


YOUNGER_FIELDS: dict[str, Any] = {"frame": None, "background": "zero"}
"""Fields of a :class:`Preparation` by which slices differ and that came later; what holds where a record lacks them."""


@dataclass(frozen=True)
class TrainingDomain:
    """What the scans were like that a model was trained on.

    Attributes:
        heads: kinds of head among them, of ``stripped``, ``whole`` and ``defaced``.
        edges_mm: the smallest and the largest voxel edge.
        anisotropy: the largest ratio of a scan's longest to its shortest voxel edge.
    """

    heads: tuple[str, ...]
    edges_mm: tuple[float, float]
    anisotropy: float

    def __or__(self, other: TrainingDomain) -> TrainingDomain:
        """The domain of both sets of scans together."""
        return TrainingDomain(
            heads=tuple(sorted({*self.heads, *other.heads})),
            edges_mm=(min(self.edges_mm[0], other.edges_mm[0]), max(self.edges_mm[1], other.edges_mm[1])),
            anisotropy=max(self.anisotropy, other.anisotropy),
        )

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TrainingDomain:
        """From its JSON form.

        Raises:
            KeyError, TypeError, ValueError: when ``raw`` is not one.
        """
        finest, coarsest = raw["edges_mm"]
        return cls(tuple(map(str, raw["heads"])), (float(finest), float(coarsest)), float(raw["anisotropy"]))


@dataclass(frozen=True)
class Preparation:
    """How images were turned into slices in [0, 1]; travels with slice stores and model folders.

    Attributes:
        modalities: channel order.
        normalisation: ``min_max`` (the paper's) or ``percentile`` (robust, see ``percentiles``).
        percentiles: lower and upper percentile of the foreground that map to 0 and 1.
        pixel_spacing_mm: in-plane spacing the network sees; ``None`` leaves the grid's own.
        multiple: slices are padded to a multiple of this (the network halves three times: 8).
        frame: pixels ``(h, w)`` of every slice: the middle of the grid, cut or padded; ``None`` cuts slices to the
            head. Published data sets have one (IXI 256 x 256, BraTS 240 x 240).
        background: what lies around the head is ``zero``, or ``kept`` as it was scanned. Kept, ``min_max`` is over
            the whole volume, as published.
        intensity_scale: per contrast, the training median of the scanner value that maps to 1;
            gives imputed contrasts a scale in scanner units. Empty before training data was seen.
        domain: what the training scans were like; ``None`` where that was not recorded: then no scan is judged.
    """

    modalities: ModalitySet
    normalisation: _Normalisation = "percentile"
    percentiles: tuple[float, float] = (0.1, 99.9)
    pixel_spacing_mm: float | None = 1.0
    multiple: int = 8
    frame: tuple[int, int] | None = None
    background: _Background = "zero"
    intensity_scale: dict[str, float] = field(default_factory=dict)
    domain: TrainingDomain | None = None

    def __post_init__(self) -> None:
        """Refuse what no image can be prepared with; records come from files that others may have made.

        Raises:
            ValueError: naming the field.
        """
        if self.normalisation not in get_args(_Normalisation):
            raise ValueError(f"no normalisation is called {self.normalisation!r}")
        if len(self.percentiles) != 2 or not all(map(_is_number, self.percentiles)):
            raise ValueError("percentiles are two numbers")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles rise from 0 to 100")
        spacing = self.pixel_spacing_mm
        if spacing is not None and not (_is_number(spacing) and _SPACINGS[0] <= spacing <= _SPACINGS[1]):
            raise ValueError(f"the pixel spacing is {_SPACINGS[0]} to {_SPACINGS[1]} mm, or absent")
        if type(self.multiple) is not int or not 1 <= self.multiple <= _LARGEST_MULTIPLE:
            raise ValueError(f"slices are padded to a multiple of 1 to {_LARGEST_MULTIPLE}")
        if self.frame is not None and not all(0 < size <= _LARGEST_FRAME for size in self.frame):
            raise ValueError(f"a frame has 1 to {_LARGEST_FRAME} pixels a side")
        if self.background not in get_args(_Background):
            raise ValueError(f"no background is called {self.background!r}")
        if not isinstance(self.intensity_scale, dict) or not all(map(_is_number, self.intensity_scale.values())):
            raise ValueError("the intensity scale is a number per contrast")

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, so that equal preparations give equal bytes.

        ``frame``, ``background`` and ``domain`` are younger than the first models and stores, whose records and
        fingerprints lack them; they are written only where they say something else than was then the rule.
        """
        raw: dict[str, Any] = asdict(self)
        raw["modalities"] = list(self.modalities)
        for name, was in {**YOUNGER_FIELDS, "domain": None}.items():
            if raw[name] == was:
                del raw[name]
        return json.dumps(raw, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Preparation:
        """Inverse of :meth:`to_json`.

        Raises:
            ModelRefused: ``CKPT_CORRUPT`` when the text is not a preparation.
        """
        try:
            raw = parse_json_object(text)
            raw["modalities"] = ModalitySet.parse(raw["modalities"])
            raw["percentiles"] = tuple(raw["percentiles"])
            if raw.get("frame") is not None:
                h, w = raw["frame"]
                raw["frame"] = (int(h), int(w))
            if raw.get("domain") is not None:
                raw["domain"] = TrainingDomain.from_dict(raw["domain"])
            return cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise refusal("CKPT_CORRUPT", f"this is not a preparation record: {error}") from error
