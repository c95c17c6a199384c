"""BIDS file names: their entities, and which contrast a scan is.

The rules, in one place and tested as a table; everything that a name says is taken at its word, nothing guessed:

==========================  ==========================================================================
``T1w T2w PDw FLAIR``       T1, T2, PD, FLAIR
``ce-<gadolinium>_T1w``     T1Gd, and nothing else is; gadolinium is a label that begins with gd or gad
``ce-`` anything else       not used: another agent, or a contrast that enhancement has changed
``part-``                   only ``part-mag`` is used; phase, real and imaginary parts never
``inv-``, ``UNIT1``         not used: one inversion of MP2RAGE, or its ratio image, is no T1w scan
``mt-on``                   not used: magnetisation transfer changes the contrast
``desc-`` or ``rec-`` that  not used: no synthesis from synthesis
say imputed, synthetic ..
``acq- rec- run- echo-`` …  say which of several scans of one contrast a file is; they never change the contrast
==========================  ==========================================================================

Source: Brain Imaging Data Structure 1.10, "Magnetic Resonance Imaging" and appendix "Entities".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from codebrain.vocabulary import Modality

SUFFIXES: dict[str, Modality] = {
    "T1w": Modality.T1,
    "T2w": Modality.T2,
    "PDw": Modality.PD,
    "FLAIR": Modality.FLAIR,
}
"""Suffixes of anatomical scans that are contrasts of ours."""

SCAN = re.compile(r"(?P<stem>.+)\.nii(\.gz)?$", re.IGNORECASE)
LABEL = re.compile(r"[0-9A-Za-z+]+")
"""What BIDS allows as a label: letters, digits and plus."""

CHOICES = ("ses", "sample", "acq", "rec", "dir", "run", "echo", "flip", "mt", "part", "proc", "hemi", "space", "split",
           "chunk", "seg", "res", "den", "desc")  # fmt: skip
"""Entities by which two files of one subject and contrast may differ, in the order that BIDS gives them."""

_PAIR = re.compile(r"(?:^|(?<=_))([A-Za-z]+)-([0-9A-Za-z+]+)(?=_|$)")
_GADOLINIUM = re.compile(r"gd|gad", re.IGNORECASE)
_MADE_UP = re.compile(r"imputed|uncertainty|synthetic|synth", re.IGNORECASE)
_NEVER: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("part", re.compile(r"(phase|real|imag)$", re.IGNORECASE), "only the magnitude of a scan is used"),
    ("inv", re.compile(""), "one inversion of a series is no contrast of its own"),
    ("mt", re.compile("on$", re.IGNORECASE), "magnetisation transfer changes the contrast"),
    ("desc", _MADE_UP, "it is synthetic"),
    ("rec", _MADE_UP, "it is synthetic"),
)
_OTHER_SUFFIXES = {
    "UNIT1": "the ratio image of MP2RAGE is no T1w scan",
    "T2starw": "T2* is another contrast than T2",
    "PDT2": "it holds two contrasts in one file",
    "inplaneT1": "it shows a part of the head",
    "inplaneT2": "it shows a part of the head",
}
_WARNS = re.compile(r"gd|gad|post(?!erior)|contrast|enhanc", re.IGNORECASE)


@dataclass(frozen=True)
class BidsName:
    """A file name that follows BIDS.

    Attributes:
        entities: label by entity, in the order of the name; ``sub`` is the first.
        suffix: the last word, for example ``T1w``.
        extension: from the first dot on.
    """

    entities: Mapping[str, str]
    suffix: str
    extension: str

    @property
    def is_scan(self) -> bool:
        """Whether it is a NIfTI file."""
        return self.extension in (".nii", ".nii.gz")


def parse_name(file_name: str) -> BidsName | None:
    """The parts of a BIDS file name; ``None`` for any other name."""
    stem, dot, extension = file_name.partition(".")
    *pairs, suffix = stem.split("_")
    entities: dict[str, str] = {}
    for pair in pairs:
        key, dash, label = pair.partition("-")
        if not key.isalpha() or not dash or not LABEL.fullmatch(label) or key in entities:
            return None
        entities[key] = label
    if next(iter(entities), "") != "sub" or not suffix.isalnum():
        return None
    return BidsName(entities, suffix, dot + extension)


def contrast_of(name: BidsName) -> tuple[Modality | None, str]:
    """Which contrast a BIDS name says, and, where that is none that can be used, why not.

    The reason is empty for files that nobody would take for one of our contrasts.
    """
    if name.suffix not in SUFFIXES:
        return None, _OTHER_SUFFIXES.get(name.suffix, "")
    return with_entities(SUFFIXES[name.suffix], name.entities)


def with_entities(modality: Modality, entities: Mapping[str, str]) -> tuple[Modality | None, str]:
    """What ``modality`` becomes under the entities of the file's name; ``None`` and the reason for what is not used."""
    for entity, pattern, reason in _NEVER:
        if entity in entities and pattern.match(entities[entity]):
            return None, reason
    agent = entities.get("ce")
    if agent is None:
        return modality, ""
    if not _GADOLINIUM.match(agent):
        return None, f"ce-{agent} is not gadolinium"
    if modality in (Modality.T1, Modality.T1GD):
        return Modality.T1GD, ""
    return None, f"a contrast agent has changed this {modality}"


def entities_in(stem: str) -> dict[str, str]:
    """The pairs ``entity-label`` of any name, BIDS or not; the last one of a kind counts."""
    return {key.lower(): label for key, label in _PAIR.findall(stem)}


def looks_enhanced(name: BidsName) -> str:
    """The label of a T1w file without ``ce-`` that still speaks of a contrast agent; empty where none does."""
    if name.suffix != "T1w" or "ce" in name.entities:
        return ""
    found = [f"{key}-{name.entities[key]}" for key in ("acq", "rec") if _WARNS.search(name.entities.get(key, ""))]
    return " ".join(found)
