"""Which series of an examination is which contrast: by its label, or as the user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging.dicom.labels import SYNTHETIC_REASON, Label, label
from codebrain.imaging.dicom.series import Series, find_series
from codebrain.imaging.dicom.store import open_store
from codebrain.vocabulary import Modality

LEAVE_OUT = "none"
"""Said instead of a series' number, so that a contrast is not taken from this examination."""


@dataclass(frozen=True)
class Examination:
    """What lies in a folder or an archive of DICOM files.

    Attributes:
        path: as given.
        series: every stack, with its label.
        chosen: by contrast.
    """

    path: Path
    series: tuple[tuple[Series, Label], ...]
    chosen: Mapping[Modality, Series]

    def lines(self, *, describe: bool = False) -> list[str]:
        """What was found, a line a series: ``series 3: T1: gradient echo, TR 2300 ms, ...``.

        Args:
            describe: with the description from the header, which may name a person: for a terminal only.
        """
        taken = {id(series): modality for modality, series in self.chosen.items()}
        return [
            f"series {series.handle}: {_shown(found, taken.get(id(series)))}"
            + (f" [{series.parameters.words}]" if describe and series.parameters.words else "")
            for series, found in self.series
        ]


def _shown(found: Label, taken: Modality | None) -> str:
    if taken is not None:
        return f"{taken}: {found.reason}" if found.contrast is taken else f"{taken}: as asked for ({found.reason})"
    return f"not used: {found.contrast or ''}{', ' if found.contrast else ''}{found.reason}"


def find_examination(path: Path, wishes: Mapping[Modality, str] | None = None) -> Examination | None:
    """The series of a folder or zip archive, and which of them is which contrast.

    Args:
        path: a folder, an archive or a DICOM file.
        wishes: the handle of a series by contrast, or ``none``, for contrasts that the user decides.

    Returns:
        None where there is no DICOM file.

    Raises:
        InputRefused: ``DCM_AMBIGUOUS`` (several series are one contrast), ``DCM_MIXED`` (a contrast lies in a
            series of several stacks; series of several patients), ``DCM_MODALITY`` (no MR at all), ``DCM_UNKNOWN`` (no
            contrast was recognised), ``IN_SYNTHETIC`` (nothing measured), and what reading headers is refused for.
        UsageError: ``CONFIG`` for a series that is not there.
    """
    store = open_store(path)
    labelled = [] if store is None else [(series, label(series)) for series in find_series(store)]
    if not labelled:
        return None
    wishes = wishes or {}
    chosen = {**_by_label(labelled, wishes, path), **_by_wish(labelled, wishes, path)}
    if not chosen and LEAVE_OUT not in wishes.values():
        raise _nothing(labelled, path)
    if len({series.first.person for series in chosen.values() if series.first.person}) > 1:
        raise refusal("DCM_MIXED", "the series are of several patients", file=path,
                      found=", ".join(f"{m}: series {s.handle}" for m, s in chosen.items()),
                      expected="one patient", hint="Give the folder of one examination.")  # fmt: skip
    return Examination(path, tuple(labelled), {m: chosen[m] for m in Modality if m in chosen})


def _nothing(labelled: Sequence[tuple[Series, Label]], path: Path) -> CodeBrainError:
    """Why an examination without a single usable series is refused."""
    if not any(series.first.modality == "MR" for series, _ in labelled):
        return refusal("DCM_MODALITY", "no series is MR", file=path, field="Modality",
                       found=", ".join(dict.fromkeys(found.reason for _, found in labelled)), expected="MR",
                       hint="Give a folder with MR series.")  # fmt: skip
    if all(found.reason == SYNTHETIC_REASON for _, found in labelled):
        return refusal("IN_SYNTHETIC", "every series was computed by a model, not measured", file=path,
                       hint="Give the measured series.")  # fmt: skip
    return refusal(
        "DCM_UNKNOWN", "no series could be told to be a contrast", file=path,
        found="; ".join(f"series {series.handle}: {found.reason}" for series, found in labelled),
        hint=f"Say which is which, for example with --series T1={labelled[0][0].handle}.",
    )  # fmt: skip


def _by_label(
    labelled: Sequence[tuple[Series, Label]], wishes: Mapping[Modality, str], path: Path
) -> dict[Modality, Series]:
    """The one series of each contrast that the user left to us, of the series that the user has not placed."""
    chosen = {}
    left = [(series, found) for series, found in labelled if series.handle not in wishes.values()]
    for modality in Modality:
        candidates = [(s, found) for s, found in left if found.contrast is modality or modality in found.maybe]
        if modality in wishes or not candidates:
            continue
        series, found = candidates[0]
        if len(candidates) > 1 or found.contrast is None or not series.alone:
            raise _ambiguous(modality, candidates, path)
        chosen[modality] = series
    return chosen


def _ambiguous(modality: Modality, candidates: Sequence[tuple[Series, Label]], path: Path) -> CodeBrainError:
    mixed = not all(series.alone for series, _ in candidates)
    listed = "; ".join(f"series {s.handle}: {len(s.planes)} slices, {found.reason}" for s, found in candidates)
    count = f"{len(candidates)} series are or may be" if len(candidates) > 1 else "one series may be"
    return refusal(
        "DCM_MIXED" if mixed else "DCM_AMBIGUOUS",
        f"{modality} lies in a series of several stacks" if mixed else f"{count} {modality}",
        file=path, found=listed, expected="one series per contrast",
        hint=f"Choose one, for example with --series {modality}={candidates[0][0].handle},"
        f" or leave the contrast out with --series {modality}={LEAVE_OUT}.",
    )  # fmt: skip


def _by_wish(
    labelled: Sequence[tuple[Series, Label]], wishes: Mapping[Modality, str], path: Path
) -> dict[Modality, Series]:
    known = {series.handle: series for series, _ in labelled}
    chosen: dict[Modality, Series] = {}
    for modality, handle in wishes.items():
        if handle.lower() == LEAVE_OUT and LEAVE_OUT not in known:
            continue
        if handle not in known:
            raise refusal("CONFIG", "no such series", file=path, field="--series", found=f"{modality}={handle}",
                          expected=f"one of {', '.join(known)}, or {LEAVE_OUT}")  # fmt: skip
        chosen[modality] = known[handle]
    return chosen


def only_series(path: Path) -> Series | None:
    """The one series in a folder, archive or file that is given for a contrast; None where there is no DICOM.

    Raises:
        InputRefused: ``DCM_MIXED`` with the list where there are several, and what reading headers is refused for.
    """
    store = open_store(path)
    series = [] if store is None else find_series(store)
    if len(series) > 1:
        listed = "; ".join(f"series {s.handle}: {len(s.planes)} slices, {label(s).reason}" for s in series)
        raise refusal(
            "DCM_MIXED", f"there are {len(series)} stacks of slices here", file=path, found=listed,
            expected="one series", hint="Give the folder of one series; or the folder of the examination and, for"
            f" example, --series T1={series[0].handle}.",
        )  # fmt: skip
    return series[0] if series else None
