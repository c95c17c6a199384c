"""The group level of the BIDS App: one table and one page over all studies of a derivative data set."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from codebrain.batch.folder import StudyRecord, read_records
from codebrain.errors import refusal
from codebrain.imaging import safe_files
from codebrain.report.group import render_group

TABLE = "group_metrics.tsv"
PAGE = "group_report.html"
COLUMNS = ("participant_id", "session_id", "study", "status", "code", "message", "given", "contrast", "doubt",
           "low_confidence", "report")  # fmt: skip


def write_group(
    out: Path, *, participants: Sequence[str] | None = None, sessions: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write ``group_metrics.tsv`` and ``group_report.html``.

    Args:
        out: a folder that the participant level has filled.
        participants: labels, with or without ``sub-``; all by default.
        sessions: labels, with or without ``ses-``; all by default.

    Returns:
        Counts by status, the doubt of each contrast, and the names of the files.

    Raises:
        InputRefused: ``DATA_EMPTY`` when nothing was imputed there.
        EnvironmentRefused: ``LOCKED``, ``OUT_*``.
    """
    records = read_records(out) if out.is_dir() else []
    kept = _chosen(_chosen(records, "sub", participants), "ses", sessions)
    if not kept:
        raise refusal("DATA_EMPTY", "there are no results to sum up", file=out,
                      hint="Run the participant level into this folder first.")  # fmt: skip
    doubts = doubt_by_contrast(kept)
    with safe_files.FolderLock(out):
        safe_files.sweep_temporaries(out, alone=True)
        safe_files.write_text(out / TABLE, _table(kept))
        safe_files.write_text(out / PAGE, render_group([_row(record) for record in kept], doubts, counts(kept)))
    return {"table": TABLE, "page": PAGE, "counts": counts(kept), "doubt": doubts}


def entities(study: str) -> dict[str, str]:
    """The labels in a study's name."""
    return dict(pair.split("-", 1) for pair in study.split("_") if "-" in pair)


def _chosen(records: Iterable[StudyRecord], entity: str, labels: Sequence[str] | None) -> list[StudyRecord]:
    wanted = None if labels is None else {label.removeprefix(f"{entity}-") for label in labels}
    return [record for record in records if wanted is None or entities(record.study).get(entity) in wanted]


def counts(records: Iterable[StudyRecord]) -> dict[str, int]:
    """How many studies ended how."""
    ends = [record.status for record in records]
    return {end: ends.count(end) for end in ("done", "nothing", "skipped", "refused", "failed") if end in ends}


def doubt_by_contrast(records: Iterable[StudyRecord]) -> list[dict[str, Any]]:
    """Over the studies in which a contrast was imputed: their number, median and largest doubt, and where."""
    found: dict[str, list[tuple[float, str]]] = {}
    number: dict[str, int] = {}
    for record in records:
        for contrast in record.facts.get("imputed", ()) if record.status == "done" else ():
            number[contrast] = number.get(contrast, 0) + 1
            if record.facts.get("doubt") is not None:
                found.setdefault(contrast, []).append((float(record.facts["doubt"]), record.study))
    rows = []
    for contrast, count in sorted(number.items()):
        doubts = sorted(found.get(contrast, []))
        row: dict[str, Any] = {"contrast": contrast, "studies": count, "median": None, "most": None, "study": None}
        if doubts:
            row |= {"median": round(statistics.median(doubt for doubt, _ in doubts), 4), "most": doubts[-1][0],
                    "study": doubts[-1][1]}  # fmt: skip
        rows.append(row)
    return rows


def _row(record: StudyRecord) -> dict[str, Any]:
    facts: Mapping[str, Any] = record.facts
    return {"study": record.study, "status": record.status, "code": record.code, "message": record.message,
            "given": list(facts.get("given", ())), "imputed": list(facts.get("imputed", ())),
            "doubt": facts.get("doubt"), "low_confidence": bool(facts.get("low_confidence")),
            "report": facts.get("report"), "warnings": len(facts.get("warnings", ())),
            "model": facts.get("model")}  # fmt: skip


def _table(records: Iterable[StudyRecord]) -> str:
    """One line for each imputed contrast, and one for each study without any."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        labels, facts = entities(record.study), record.facts
        session = f"ses-{labels['ses']}" if "ses" in labels else "n/a"
        for contrast in facts.get("imputed") or ["n/a"]:
            doubt = facts.get("doubt")
            writer.writerow([
                f"sub-{labels.get('sub', '')}", session, record.study, record.status, record.code or "n/a",
                record.message or "n/a", ",".join(facts.get("given", ())) or "n/a", contrast,
                "n/a" if doubt is None else f"{doubt:.4f}", str(bool(facts.get("low_confidence"))).lower(),
                facts.get("report") or "n/a",
            ])  # fmt: skip
    return stream.getvalue()
