"""``codebrain phantom``: studies simulated from MR physics, with the truth beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codebrain.app._common import (
    DebugOption,
    JsonOption,
    OutOption,
    QuietOption,
    VerboseOption,
    emit,
    emit_json,
    progress,
    run,
)
from codebrain.marks import RESEARCH_USE_ONLY


def register(app: typer.Typer) -> None:
    """Add ``codebrain phantom``."""

    @app.command()
    def phantom(
        out: OutOption,
        subjects: Annotated[int, typer.Option(min=1, help="How many studies.")] = 1,
        seed: Annotated[int, typer.Option(min=0, help="Of the first; the next studies count up.")] = 0,
        lesion: Annotated[str, typer.Option(metavar="none|ms|tumour|mixed", help="Kind of lesion.")] = "none",
        spacing: Annotated[float, typer.Option(metavar="MM", help="Voxel edge, 0.5 to 6 mm.")] = 1.0,
        head: Annotated[bool, typer.Option("--head/--no-head", help="With skull and scalp.")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace phantoms in OUT.")] = False,
        as_json: JsonOption = False,
        debug: DebugOption = False,
        verbose: VerboseOption = 0,
        quiet: QuietOption = False,
    ) -> None:
        """Simulate multi-contrast studies from MR physics; no scan of a person is used."""

        def work() -> None:
            from codebrain.data.phantom import write_phantom

            choice: Any = lesion
            with progress("simulating", quiet=quiet) as advance:
                folders = write_phantom(
                    out, subjects=subjects, seed=seed, lesion=choice, head_fraction=float(head),
                    spacing_mm=spacing, overwrite=overwrite, progress=advance,
                )  # fmt: skip
            _report(folders, out, as_json=as_json, quiet=quiet)

        run(work, as_json=as_json, debug=debug, verbose=verbose, quiet=quiet)


def _report(folders: list[Path], out: Path, *, as_json: bool, quiet: bool) -> None:
    files = {folder.name: sorted(file.name for file in folder.iterdir()) for folder in folders}
    if as_json:
        emit_json({"out": str(out), "synthetic": True, "studies": files, "note": RESEARCH_USE_ONLY})
    elif not quiet:
        emit(f"SYNTHETIC phantom: {len(folders)} simulated studies in {out}")
        for name, names in files.items():
            emit(f"{name}  {' '.join(names)}")
