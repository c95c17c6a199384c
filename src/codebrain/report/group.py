"""The page over many studies: what was imputed, how sure the model was, what failed, a link to every report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from codebrain.marks import DOUBT_MEANING, ENHANCEMENT_UNKNOWN, RESEARCH_USE_ONLY
from codebrain.report.page import csp_hash, style_sheet, template


def render_group(
    rows: Sequence[Mapping[str, Any]], doubts: Sequence[Mapping[str, Any]], counts: Mapping[str, int]
) -> str:
    """The page as HTML: one file, no script, no network.

    Args:
        rows: a study each: study, status, code, message, given, imputed, doubt, report, warnings, model.
        doubts: a contrast each: contrast, studies, median, most, study.
        counts: studies by status.
    """
    style = style_sheet()
    models = sorted({f"{row['model']['name']} ({row['model']['sha256'][:12]})" for row in rows if row["model"]})
    return template("group.html.j2").render(
        style=Markup(style),
        style_hash=csp_hash(style),
        notice=RESEARCH_USE_ONLY,
        enhancement=ENHANCEMENT_UNKNOWN if any("T1Gd" in row["imputed"] for row in rows) else None,
        doubt_meaning=DOUBT_MEANING,
        studies=[{**row, "link": quote(row["report"]) if row["report"] else None} for row in rows],
        bad=[row for row in rows if row["status"] in ("refused", "failed")],
        doubts=doubts,
        counts=counts,
        models=models,
    )
