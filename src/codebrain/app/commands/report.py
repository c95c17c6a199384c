"""``codebrain report``: rebuild the page of a run, or of the registrations of a slice store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codebrain.app._common import DebugOption, JsonOption, emit, emit_json, run
from codebrain.errors import refusal


def register(app: typer.Typer) -> None:
    """Add ``codebrain report``."""

    @app.command()
    def report(
        out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a finished run, or a slice store.")],
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Rebuild report.html from run.json and the pictures beside it; of a slice store, quality.html."""

        def work() -> None:
            page = _write(out)
            emit_json({"report": str(page)}) if as_json else emit(str(page))

        run(work, as_json=as_json, debug=debug)


def _write(out: Path) -> Path:
    """The page of whatever lies in the folder."""
    if not (out / "manifest.json").is_file():
        from codebrain.report.page import write_report

        return write_report(out)
    from codebrain.report.quality import write_quality_page

    page = write_quality_page(out)
    if page is None:
        raise refusal(
            "DATA_EMPTY", "nothing was registered in this slice store, so there is no page of it", file=out,
            hint="subjects.tsv says what became of every study.",
        )  # fmt: skip
    return page
