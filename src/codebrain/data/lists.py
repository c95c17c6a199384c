"""Published lists of subjects and slices, and what they make of the studies on disk.

The lists of BraTS 2023 put visits of the patients 00095 and 00774 into training and test, and of 00520, 00548 and
00608 into training and validation. There are two rules:

- ``published``: the lists as they are, for numbers that are to stand beside published ones; the store says which
  patients are in two splits.
- ``patient`` (the default): test over validation over training. A study whose patient also has a study in a stronger
  split is left out, so that test and validation sets stay the published ones and training loses a few visits.

Nothing disappears: studies that are listed and not there, there and not listed, or left out, have rows of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Literal

from codebrain.data.sources import Found, PassedOver, SubjectFiles, patient_of
from codebrain.data.splits import SPLITS, Listed, Split
from codebrain.errors import refusal

SplitRule = Literal["patient", "published"]
_STRONGEST: tuple[Split, ...] = ("test", "val", "train")


@dataclass(frozen=True)
class PublishedLists:
    """Which subjects and slices a paper used.

    Attributes:
        dataset: its name.
        source: where the lists come from.
        split_of: split by subject.
        slices: first slice and one past the last, counted from 0, of most subjects.
        slices_of: of those that differ.
    """

    dataset: str
    source: str
    split_of: Mapping[str, Split]
    slices: tuple[int, int]
    slices_of: Mapping[str, tuple[int, int]]

    @classmethod
    @cache
    def named(cls, name: str) -> PublishedLists:
        """The lists in ``codebrain/data/published/<name>.json``, where both ends of a range are inclusive."""
        raw = json.loads((files("codebrain.data") / "published" / f"{name}.json").read_text(encoding="utf-8"))
        split_of = {subject: split for split in SPLITS for subject in raw["splits"][split]}
        first, last = raw["slices"]
        others = {subject: (a, b + 1) for subject, (a, b) in raw["slices_of"].items()}
        return cls(raw["dataset"], raw["source"], split_of, (first, last + 1), others)

    def several(self) -> dict[str, tuple[Split, ...]]:
        """Patients with studies in more than one split, strongest first."""
        found: dict[str, set[Split]] = {}
        for subject, split in self.split_of.items():
            found.setdefault(patient_of([subject]), set()).add(split)
        return {p: tuple(s for s in _STRONGEST if s in where) for p, where in sorted(found.items()) if len(where) > 1}


def select(
    found: Found, lists: PublishedLists, *, rule: SplitRule = "patient", unlisted: Split | None = None
) -> tuple[Found, Listed]:
    """The studies that the lists name, with their slices, and the splits they are in.

    Args:
        found: studies by the names that the lists use.
        lists: published ones.
        rule: see above.
        unlisted: the split for studies that no list names; by default they are not used.

    Raises:
        InputRefused: ``DATA_EMPTY`` when none of the studies is in a list.
    """
    named = [study for study in found.subjects if study.subject in lists.split_of]
    others = [study for study in found.subjects if study.subject not in lists.split_of]
    spoiled = [one for one in found.passed_over if one.subject in lists.split_of]
    if not named and not spoiled and unlisted is None:
        raise refusal(
            "DATA_EMPTY", f"none of the {len(others)} studies is in the published lists of {lists.dataset}",
            found=", ".join(study.subject for study in others[:3]),
            expected=", ".join(list(lists.split_of)[:2]) + " ...",
            hint="Use --split drawn to divide these studies by patient.",
        )  # fmt: skip
    wanted = {study.subject: lists.split_of[study.subject] for study in named}
    kept = [replace(study, slices=lists.slices_of.get(study.subject, lists.slices)) for study in named]
    if unlisted is not None:
        wanted |= {study.subject: unlisted for study in others}
        kept += others
    strongest = _strongest(lists)
    # A study of no list is held to the patient whatever the rule: the lists did not ask for it.
    judged = kept if rule == "patient" else [study for study in kept if study.subject not in lists.split_of]
    left = {study.subject: _left_out(study, wanted[study.subject], strongest, lists) for study in judged}
    out = {subject: row for subject, row in left.items() if row is not None}
    kept = [study for study in kept if study.subject not in out]
    rows = [*spoiled, *out.values(), *_unlisted(found, lists, unlisted), *_missing(found, lists)]
    listed = Listed(
        of_subject={study.subject: wanted[study.subject] for study in kept},
        rule=rule,
        source=lists.source,
        left_out=tuple(sorted(out)),
    )
    return replace(found, subjects=tuple(kept), passed_over=tuple(rows)), listed


def _strongest(lists: PublishedLists) -> dict[str, Split]:
    """The strongest split by patient, by the lists alone: what is on disk does not change it."""
    strongest: dict[str, Split] = {}
    for split in reversed(_STRONGEST):
        strongest |= {patient_of([subject]): split for subject, where in lists.split_of.items() if where == split}
    return strongest


def _left_out(
    study: SubjectFiles, split: Split, strongest: Mapping[str, Split], lists: PublishedLists
) -> PassedOver | None:
    theirs = strongest.get(study.patient, split)
    if _STRONGEST.index(theirs) >= _STRONGEST.index(split):
        return None
    why = f"listed for {split}" if study.subject in lists.split_of else f"meant for {split}"
    message = f"{why}, but its patient is in {theirs}: left out, so that no patient is in two splits"
    return PassedOver(study.subject, "skipped", "DATA_PATIENT", message, study.patient)


def _unlisted(found: Found, lists: PublishedLists, unlisted: Split | None) -> Iterable[PassedOver]:
    message = "in none of the published lists; --unlisted train would use it"
    if unlisted is None:
        for study in found.subjects:
            if study.subject not in lists.split_of:
                yield PassedOver(study.subject, "skipped", "DATA_UNLISTED", message, study.patient)
    for one in found.passed_over:
        if one.subject not in lists.split_of:
            # What is wrong with a study that nobody asked for is no failure.
            yield one if unlisted is not None else replace(one, status="skipped")


def _missing(found: Found, lists: PublishedLists) -> Iterable[PassedOver]:
    there = {study.subject for study in found.subjects} | {one.subject for one in found.passed_over}
    for subject, split in lists.split_of.items():
        if subject not in there:
            message = f"listed for {split}, but not in the source"
            yield PassedOver(subject, "missing", "DATA_MISSING", message, patient_of([subject]))
