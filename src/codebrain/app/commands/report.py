"""``codebrain report``: rebuild the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codebrain.app._common import DebugOption, JsonOption, emit, emit_json, run


def register(app: typer.Typer) -> None:
    """Add ``codebrain report``."""

    @app.command()
    def report(
        out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a finished run.")],
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Rebuild report.html from run.json and the pictures beside it."""

        def work() -> None:
            from codebrain.report.page import write_report

            page = write_report(out)
            emit_json({"report": str(page)}) if as_json else emit(str(page))

        run(work, as_json=as_json, debug=debug)
