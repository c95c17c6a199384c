"""Training, validation and test: whole patients, drawn once from a seed or taken from published lists, and recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np

from codebrain.errors import CodeBrainError, refusal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Splits:
    """Which split every patient and every subject is in.

    Attributes:
        of_patient: split by patient; more than one only where published lists have it so.
        of_subject: split by subject.
        seed: of the draw.
        fractions: of the patients that were drawn for validation and test.
        asked: patients or subjects that were asked for by name; ``None`` where they were drawn.
        rule: how they were divided, for people.
        facts: what else there is to say about it.
    """

    of_patient: Mapping[str, tuple[Split, ...]]
    of_subject: Mapping[str, Split]
    seed: int | None = None
    fractions: tuple[float, float] | None = None
    asked: Mapping[str, tuple[str, ...] | None] = field(default_factory=lambda: {"val": None, "test": None})
    rule: str = "whole patients, seeded shuffle"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def patients(self, split: Split) -> tuple[str, ...]:
        """The patients in ``split``, sorted."""
        return tuple(sorted(patient for patient, where in self.of_patient.items() if split in where))

    @property
    def several(self) -> dict[str, tuple[Split, ...]]:
        """Patients in more than one split, which only published lists have."""
        return {patient: where for patient, where in sorted(self.of_patient.items()) if len(where) > 1}

    @property
    def sha256(self) -> str:
        """Of the assignment of patients; two stores with the same value hold the same people back."""
        assigned = {patient: "+".join(where) for patient, where in sorted(self.of_patient.items())}
        text = json.dumps(assigned, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """JSON form, with the rule."""
        return {
            "rule": self.rule,
            "seed": self.seed,
            "fractions": None if self.fractions is None else dict(zip(("val", "test"), self.fractions, strict=True)),
            "asked": {split: None if ids is None else list(ids) for split, ids in self.asked.items()},
            "sha256": self.sha256,
            "patients": {split: list(self.patients(split)) for split in SPLITS},
            **self.facts,
        }


class Division(Protocol):
    """A rule that divides studies."""

    def check(self, patient_of: Mapping[str, str]) -> None:
        """Refuse before the work what could not be divided after it; patient by subject that was found."""

    def divide(self, patient_of: Mapping[str, str]) -> Splits:
        """The splits of the subjects that could be prepared."""


@dataclass(frozen=True)
class Drawn:
    """Patients drawn from a seed, or asked for by name; see :func:`split_patients`."""

    seed: int = 0
    val: Sequence[str] | None = None
    test: Sequence[str] | None = None

    def check(self, patient_of: Mapping[str, str]) -> None:
        """``DATA_SPLIT`` for unknown names and too few patients."""
        split_patients(patient_of, seed=self.seed, val=self.val, test=self.test)

    def divide(self, patient_of: Mapping[str, str]) -> Splits:
        """Of those asked for by name, at least one must have been prepared.

        Raises:
            InputRefused: ``DATA_SPLIT``.
        """
        known = set(patient_of) | set(patient_of.values())
        asked = {"val": self.val, "test": self.test}
        kept = {split: None if ids is None else [i for i in ids if i in known] for split, ids in asked.items()}
        for split, ids in asked.items():
            if ids and not kept[split]:
                raise refusal(
                    "DATA_SPLIT", f"every study asked for in {split} was refused", field=split,
                    found=", ".join(ids),
                    hint="subjects.tsv in the output folder says why.",
                )  # fmt: skip
        return split_patients(patient_of, seed=self.seed, val=kept["val"], test=kept["test"])


@dataclass(frozen=True)
class Listed:
    """Splits of published lists.

    Attributes:
        of_subject: split by subject.
        rule: ``published`` as they are, ``patient`` without patients in two splits.
        source: where the lists come from.
        left_out: studies that the rule left out.
    """

    of_subject: Mapping[str, Split]
    rule: str
    source: str
    left_out: tuple[str, ...] = ()

    def check(self, patient_of: Mapping[str, str]) -> None:
        """Lists divide whatever there is; a store for testing alone is fine."""

    def divide(self, patient_of: Mapping[str, str]) -> Splits:
        """The listed split of every subject that could be prepared."""
        of_subject = {subject: self.of_subject[subject] for subject in sorted(patient_of)}
        of_patient: dict[str, tuple[Split, ...]] = {}
        for split in SPLITS:
            for patient in {patient_of[subject] for subject, where in of_subject.items() if where == split}:
                of_patient[patient] = (*of_patient.get(patient, ()), split)
        several = {patient: list(where) for patient, where in sorted(of_patient.items()) if len(where) > 1}
        meaning = {
            "patient": "published lists, whole patients: test over validation over training",
            "published": "published lists as they are",
        }
        facts = {"split": self.rule, "lists": self.source, "left_out": list(self.left_out), "several_splits": several}
        return Splits(of_patient, of_subject, rule=meaning[self.rule], facts=facts)


def split_patients(
    patient_of: Mapping[str, str],
    *,
    seed: int = 0,
    val: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    fractions: tuple[float, float] = (0.1, 0.1),
) -> Splits:
    """Divide patients into training, validation and test.

    Patients are shuffled with ``seed`` and the first are taken for test, the next for validation. With three
    patients or more, each drawn split gets at least one; with two, the second is for test.

    Args:
        patient_of: patient by subject.
        seed: of the shuffle.
        val: patients or subjects for validation; empty for none; ``None`` draws them.
        test: the same for test.
        fractions: of all patients, for validation and test where they are drawn.

    Raises:
        InputRefused: ``DATA_SPLIT`` when there are fewer than two patients, a name is unknown, a patient is
            asked for in both splits, or nobody is left to train on.
    """
    patients = sorted(set(patient_of.values()))
    if len(patients) < 2:
        raise refusal(
            "DATA_SPLIT", "a split by patient needs at least two patients", found=len(patients),
            hint="Add studies of other people; several visits of one person count once.",
        )  # fmt: skip
    chosen = {"val": _named(val, patient_of, "val"), "test": _named(test, patient_of, "test")}
    both = (chosen["val"] or set()) & (chosen["test"] or set())
    if both:
        raise refusal("DATA_SPLIT", "a patient cannot be in validation and in test", found=", ".join(sorted(both)))
    of_patient = _assign(patients, chosen, seed, fractions)
    if "train" not in of_patient.values():
        raise refusal(
            "DATA_SPLIT", "no patient is left to train on", found=f"{len(patients)} patients",
            hint="Ask for fewer patients in validation and test.",
        )  # fmt: skip
    return Splits(
        of_patient={patient: (split,) for patient, split in of_patient.items()},
        of_subject={subject: of_patient[patient] for subject, patient in sorted(patient_of.items())},
        seed=seed,
        fractions=fractions,
        asked={"val": None if val is None else tuple(val), "test": None if test is None else tuple(test)},
    )


def _assign(
    patients: list[str], chosen: Mapping[str, set[str] | None], seed: int, fractions: tuple[float, float]
) -> dict[str, Split]:
    taken = (chosen["val"] or set()) | (chosen["test"] or set())
    free = [patient for patient in patients if patient not in taken]
    order = [free[i] for i in np.random.default_rng(seed).permutation(len(free))]
    val_count, test_count = (_count(len(patients), fraction) for fraction in fractions)
    test = chosen["test"] if chosen["test"] is not None else _take(order, test_count)
    val = chosen["val"] if chosen["val"] is not None else _take(order, val_count)
    return {p: "test" if p in test else "val" if p in val else "train" for p in patients}


def _take(order: list[str], count: int) -> set[str]:
    """Remove the first ``count`` patients from ``order``, but never the last one, who is for training."""
    count = min(count, len(order) - 1)
    taken = order[: max(count, 0)]
    del order[: max(count, 0)]
    return set(taken)


def _count(patients: int, fraction: float) -> int:
    return max(1, round(patients * fraction)) if fraction > 0 else 0


def _named(names: Sequence[str] | None, patient_of: Mapping[str, str], split: str) -> set[str] | None:
    """The patients that names of patients or subjects stand for."""
    if names is None:
        return None
    known = set(patient_of.values())
    unknown = [name for name in names if name not in known and name not in patient_of]
    if unknown:
        raise unknown_ids(unknown, patient_of, split)
    return {name if name in known else patient_of[name] for name in names}


def unknown_ids(unknown: Iterable[str], known: Collection[str], split: str) -> CodeBrainError:
    """The refusal for names that no subject or patient has."""
    shown = sorted(known)
    some = ", ".join(shown[:30]) + (f" and {len(shown) - 30} more" if len(shown) > 30 else "")
    return refusal(
        "DATA_SPLIT", f"no patient or subject has the name asked for in {split}", field=split,
        found=", ".join(unknown), expected=some, hint="Use names of the list.",
    )  # fmt: skip
