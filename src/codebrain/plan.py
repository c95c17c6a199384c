"""Which contrasts a model is shown, which it imputes, which are kept back as truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from codebrain.errors import Notice, refusal
from codebrain.vocabulary import Modality, ModalitySet


@dataclass(frozen=True)
class Plan:
    """Which contrasts the model sees, which it imputes, which are kept as truth.

    Attributes:
        given: contrasts shown to the model.
        targets: contrasts to impute, in the model's order; none when nothing is missing.
        withheld: targets that the study has: truth for an evaluation.
        notices: contrasts that the model does not know.
    """

    given: tuple[Modality, ...]
    targets: tuple[Modality, ...]
    withheld: tuple[Modality, ...] = ()
    notices: tuple[Notice, ...] = ()


def plan_study(
    available: Iterable[Modality],
    known: ModalitySet,
    want: Iterable[str | Modality] | None = None,
    *,
    evaluate: bool = False,
) -> Plan:
    """Decide what to impute.

    Args:
        available: the contrasts of the study.
        known: the model's contrasts.
        want: contrasts to impute; by default those of the model that the study lacks.
        evaluate: wanted contrasts that the study has are withheld from the model and used as truth.

    Raises:
        InputRefused: ``MOD_TARGET_UNKNOWN`` (not a contrast of the model), ``MOD_TARGET_GIVEN`` (the study
            has it and ``evaluate`` is off).
        UsageError: ``MOD_UNKNOWN``, ``MOD_DUPLICATE``, ``MOD_NONE`` (nothing is left to impute from).
    """
    have = [m for m in Modality if m in set(available)]
    wanted = _wanted(have, known, want)
    withheld = tuple(m for m in wanted if m in have)
    if withheld and not evaluate:
        raise refusal(
            "MOD_TARGET_GIVEN",
            f"{', '.join(withheld)} is wanted and also given",
            field="want",
            hint="Leave it out, or give --evaluate to withhold it from the model and score against it.",
        )
    given = tuple(m for m in have if m in known and m not in withheld)
    if not given:
        raise refusal(
            "MOD_NONE", "no contrast to impute from was given", found=", ".join(have) or "none",
            expected=f"at least one of {', '.join(known)}",
        )  # fmt: skip
    unused = [m for m in have if m not in known]
    notices = tuple(Notice("MOD_UNUSED", f"the model does not know {m}; it was not used") for m in unused)
    return Plan(given, tuple(m for m in known if m in wanted), withheld, notices)


def _wanted(have: list[Modality], known: ModalitySet, want: Iterable[str | Modality] | None) -> tuple[Modality, ...]:
    if want is None:
        return tuple(m for m in known if m not in have)
    wanted = ModalitySet.parse(want).members
    check_targets(wanted, known)
    return wanted


def check_targets(wanted: Iterable[Modality], known: ModalitySet) -> None:
    """Refuse a wish that the model cannot grant, whatever the study has.

    Raises:
        InputRefused: ``MOD_TARGET_UNKNOWN``.
    """
    for target in wanted:
        if target not in known:
            raise refusal(
                "MOD_TARGET_UNKNOWN",
                "the model cannot impute this contrast",
                field="want",
                found=target,
                expected=f"one of {', '.join(known)}",
            )
