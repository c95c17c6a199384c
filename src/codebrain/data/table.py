"""What people read of a slice store: ``subjects.tsv``, a line per study, and ``quality.tsv``, one per registration."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from codebrain.data.manifest import SubjectRecord, SubjectRow

_SUBJECTS = (
    "subject patient split status code message contrasts slices first_slice last_slice height width foreground"
    " reference moved heads notices seconds"
)
_QUALITY = (
    "subject split contrast reference method verdict similarity_before similarity_after overlap_before overlap_after"
    " shift_mm rotation_deg scale deformation_mean_mm deformation_max_mm reason"
)


def subjects_table(
    rows: Sequence[SubjectRow], records: Iterable[SubjectRecord], seconds: Mapping[str, float] | None = None
) -> str:
    """One line per study: what became of it. ``seconds`` by subject, of those that were prepared just now."""
    by_name = {record.subject: record for record in records}
    lines = [asdict(row) | _facts(by_name.get(row.subject)) for row in rows]
    taken = seconds or {}
    return _written(_SUBJECTS.split(), [line | {"seconds": taken.get(line["subject"], "")} for line in lines])


def _facts(record: SubjectRecord | None) -> dict[str, Any]:
    if record is None:
        return {}
    first, end = record.frame.get("slices", ("", 0))
    return {
        "contrasts": ",".join(record.inputs),
        "slices": record.shape[0],
        "first_slice": first,
        "last_slice": end - 1,
        "height": record.shape[2],
        "width": record.shape[3],
        "foreground": f"{record.foreground_fraction:.3f}",
        "reference": record.reference,
        "moved": ",".join(record.alignment.get("moved", {})),
        "heads": ",".join(record.domain.heads) if record.domain else "",
        "notices": ",".join(notice.code for notice in record.notices),
    }


def quality_rows(rows: Iterable[SubjectRow], records: Iterable[SubjectRecord]) -> list[dict[str, Any]]:
    """A row per registered contrast: similarity and overlap before and after, what it moved, and the verdict.

    The verdict is that of the rule in :mod:`codebrain.imaging.align`: ``pass``, or ``fail`` with the reason.
    """
    split = {row.subject: row.split for row in rows}
    found = []
    for record in records:
        doubts = {notice["message"].split()[0]: notice["message"] for notice in record.alignment.get("notices", ())}
        for contrast, movement in record.alignment.get("moved", {}).items():
            found.append(
                {
                    "subject": record.subject,
                    "split": split.get(record.subject, ""),
                    "contrast": contrast,
                    "reference": record.reference,
                    "verdict": "fail" if contrast in doubts else "pass",
                    "reason": doubts.get(contrast, ""),
                    **{key: _rounded(value) for key, value in movement.items() if key in _QUALITY.split()},
                }
            )
    return found


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def quality_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """:func:`quality_rows` as tab-separated text."""
    return _written(_QUALITY.split(), rows)


def _written(columns: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: " ".join(str(value).split()) for key, value in line.items()})
    return stream.getvalue()
