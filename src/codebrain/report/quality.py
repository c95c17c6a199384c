"""The page on which a person looks at every registration of a slice store: one file, pictures inside, no network."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from codebrain.data.prepare import PICTURES
from codebrain.data.slices import SliceStore
from codebrain.data.table import quality_rows
from codebrain.imaging.align import quality_rule
from codebrain.imaging.safe_files import write_text
from codebrain.marks import RESEARCH_USE_ONLY
from codebrain.report.page import csp_hash, style_sheet, template

QUALITY_FILE = "quality.html"


def write_quality_page(store: Path) -> Path | None:
    """Write ``quality.html`` into a finished slice store; ``None`` when nothing in it was registered.

    Subjects that fail the rule come first, then the others by falling similarity of their worst contrast.

    Raises:
        InputRefused: ``DATA_NONE``, ``DATA_CORRUPT``; see :meth:`SliceStore.open`.
    """
    manifest = SliceStore.open(store).manifest
    rows = quality_rows(manifest.rows, manifest.records)
    if not rows:
        return None
    by_subject: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_subject.setdefault(row["subject"], []).append(row)
    subjects = [
        {"name": name, "rows": own, "failed": _failed(own), "picture": _picture(store, name)}
        for name, own in sorted(by_subject.items(), key=lambda item: (not _failed(item[1]), _worst(item[1]), item[0]))
    ]
    others = [row for row in manifest.rows if row.status in ("refused", "missing")]
    style = style_sheet()
    page = template("quality.html.j2").render(
        store=store.resolve().name,
        subjects=subjects,
        failed=[subject["name"] for subject in subjects if subject["failed"]],
        rule=quality_rule(manifest.align),
        counts=Counter(row.status for row in manifest.rows),
        refused=[row for row in others if row.status == "refused"],
        splits=manifest.splits,
        protocol=manifest.protocol,
        created_by=manifest.created_by,
        style=Markup(style),
        style_hash=csp_hash(style),
        notice=RESEARCH_USE_ONLY,
    )
    target = store / QUALITY_FILE
    write_text(target, page)
    return target


def _failed(rows: list[dict[str, Any]]) -> bool:
    return any(row["verdict"] == "fail" for row in rows)


def _worst(rows: list[dict[str, Any]]) -> float:
    return min(_number(row, "similarity_after") for row in rows)


def _number(row: Mapping[str, Any], name: str) -> float:
    return float(row.get(name) or 0.0)


def _picture(store: Path, subject: str) -> str:
    """The subject's picture as it stands in the page; empty when it is gone."""
    try:
        content = (store / PICTURES / f"{subject}.jpg").read_bytes()
    except OSError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
