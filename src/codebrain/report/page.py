"""The page of one run: a single file without scripts or network, pictures inside, everything escaped."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from codebrain import output
from codebrain.errors import one_line, refusal
from codebrain.imaging import safe_files
from codebrain.marks import DOUBT_MEANING, LOW_CONFIDENCE, LOW_DOUBT_IS_NO_PROOF, NO_DOUBT_LIMIT
from codebrain.report.preview import colour_bar, png

PICTURES_LIMIT = 2_000_000
"""Bytes of PNG pictures above which they go into the page as JPEG, so that a page stays under 3 MB."""

_HERE = Path(__file__).parent
_STEP_NAMES = {
    "read": "Reading and checking",
    "prepare": "Alignment and preparation",
    "model": "Model",
    "restore": "Back to the scanner's grid",
    "score": "Scoring",
    "native": "Into native spaces",
    "write": "Writing",
}


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from ``run.json`` and the pictures in ``folder``.

    Raises:
        InputRefused: ``IN_FORMAT`` when the folder holds no finished run.
    """
    run = read_run(folder)
    try:
        page = render(run, {str(f["file"]): _picture(folder, str(f["file"])) for f in run["figures"]}).encode()
    except (jinja2.UndefinedError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise _no_run(folder, f"run.json is not complete: {error}") from error
    target = folder / output.REPORT_FILE
    safe_files.sweep_temporaries(folder)
    safe_files.write_bytes(target, page)
    return target


def read_run(folder: Path) -> dict[str, Any]:
    """The record of the finished run in ``folder``.

    Raises:
        InputRefused: ``IN_FORMAT`` when there is none, or one that this version cannot read.
    """
    run = dict(output.read_json(folder / output.RUN_FILE))
    if run.get("schema") != output.RUN_SCHEMA_NAME:
        raise _no_run(folder, "no finished run is in this folder")
    if run.get("schema_version") != output.RUN_SCHEMA:
        raise _no_run(folder, f"run.json has schema version {run.get('schema_version')!r}")
    return run


def _no_run(folder: Path, sentence: str) -> Exception:
    hint = "Give the folder that codebrain impute or codebrain demo wrote."
    return refusal("IN_FORMAT", sentence, file=folder, expected=f"run.json, version {output.RUN_SCHEMA}", hint=hint)


def _picture(folder: Path, name: str) -> bytes:
    """A picture of the run; only names inside the folder's figures count."""
    path = folder / output.FIGURES / Path(name).name
    try:
        return path.read_bytes()
    except OSError as error:
        raise _no_run(folder, f"the picture {path.name} is missing") from error


def render(run: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page as HTML.

    Args:
        run: the run's record.
        pictures: PNG files by the name they have in the record.
    """
    style = style_sheet()
    heavy = sum(map(len, pictures.values())) > PICTURES_LIMIT
    figures = [dict(f) | {"data": _data_uri(pictures[f["file"]], heavy)} for f in run["figures"]]
    metrics = list(dict.fromkeys(row["metric"] for row in run["scores"]))
    return template("study.html.j2").render(
        run=dict(run) | {"inputs": [_with_movement(entry) for entry in run["inputs"]]},
        style=Markup(style),
        style_hash=csp_hash(style),
        figures=figures,
        imputed=run["imputed"],
        given=[entry["contrast"] for entry in run["inputs"] if entry["role"] == "given"],
        scores=_score_table(run["scores"]),
        metrics=metrics,
        steps={_STEP_NAMES.get(k, k): f"{v:.1f} s" for k, v in run["seconds"].items()},
        total_seconds=f"{sum(run['seconds'].values()):.1f} s",
        peak_memory=f"{run['peak_memory_bytes'] / 2**30:.2f} GiB",
        doubt_meaning=DOUBT_MEANING,
        doubt=_doubt_strip(run.get("uncertainty")),
        low_confidence=LOW_CONFIDENCE,
        no_limit=NO_DOUBT_LIMIT,
        no_proof=LOW_DOUBT_IS_NO_PROOF,
        sentence=_sentence,
        bar=_data_uri(png(colour_bar()), heavy=False),
    )


_STRIP_HEIGHT = 100


def _doubt_strip(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the drawing of doubt by slice needs: a bar for every slice, in a box of ``count`` x 100; None without doubt.

    Args:
        facts: ``uncertainty`` of the run's record; older records have none.
    """
    if not facts or facts["score"] is None:
        return None
    values, limit = list(facts["per_slice"]), facts["limit"]
    bars = [
        {"x": x, "y": round(_STRIP_HEIGHT * (1 - value), 2), "height": round(_STRIP_HEIGHT * value, 2),
         "over": limit is not None and value > limit}
        for x, value in enumerate(values) if value is not None
    ]  # fmt: skip
    return {
        "score": f"{facts['score']:.3f}",
        "limit": None if limit is None else f"{limit:.3f}",
        "limit_y": None if limit is None else round(_STRIP_HEIGHT * (1 - limit), 2),
        "low_confidence": facts["low_confidence"],
        "bars": bars,
        "count": len(values),
        "first": facts["first_slice"],
        "last": facts["first_slice"] + len(values) - 1,
    }


def _sentence(words: Sequence[str]) -> str:
    """``A``, ``A and B`` or ``A, B and C``."""
    return " and ".join([*filter(None, [", ".join(words[:-1])]), *words[-1:]])


def style_sheet() -> str:
    """What every page looks like."""
    return (_HERE / "style.css").read_text(encoding="utf-8")


def template(name: str) -> jinja2.Template:
    """A template of this folder: everything escaped, nothing undefined passes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown
    )
    return environment.get_template(name)


def _shown(value: Any) -> Any:
    """Names from files as they are; control and bidirectional characters in them, which can mislead, escaped."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(one_line(line) for line in value.split("\n"))


def csp_hash(style: str) -> Markup:
    """What a content security policy calls the one style that a page may use."""
    return Markup("sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode())


def _data_uri(picture: bytes, heavy: bool) -> str:
    kind = "png"
    if heavy:
        stream = io.BytesIO()
        Image.open(io.BytesIO(picture)).convert("RGB").save(stream, "JPEG", quality=85)
        picture, kind = stream.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _with_movement(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An input with its registration in words."""
    moved = entry.get("alignment") or {}
    numbers = {"shift": moved.get("shift_mm"), "rotation": moved.get("rotation_deg")}
    return dict(entry) | {key: "–" if value is None else f"{value:.1f}" for key, value in numbers.items()}


def _score_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        digits = 2 if str(row["metric"]).startswith("PSNR") else 4
        table.setdefault(str(row["contrast"]), {})[str(row["metric"])] = f"{row['value']:.{digits}f}"
    return table
