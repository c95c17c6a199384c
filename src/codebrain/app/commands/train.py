"""``codebrain train``: all stages of a model, from a recipe and a slice store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from codebrain.app._common import (
    DebugOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    VerboseOption,
    emit,
    emit_json,
    progress,
    run,
    teller,
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def train(
        recipe: Annotated[str, typer.Argument(metavar="RECIPE|FILE.yaml", help="What to train.")],
        data: Annotated[Path, typer.Option("--data", metavar="DST", help="A slice store made by prepare.")],
        out: Annotated[Path, typer.Option("-o", "--out", metavar="RUN", help="Folder of the run.")],
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting; repeatable.")
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
        accept_changes: Annotated[
            bool, typer.Option("--accept-changes", help="Resume with another configuration or data.")
        ] = False,
        device: DeviceOption = "auto",
        threads: ThreadsOption = None,
        as_json: JsonOption = False,
        verbose: VerboseOption = 0,
        quiet: QuietOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Train all stages of a model."""

        def work() -> None:
            _train(recipe, data, out, overrides or [], resume, accept_changes, device, threads, as_json, quiet)

        run(work, as_json=as_json, debug=debug, verbose=max(verbose, 0 if quiet else 1), quiet=quiet)


def _train(
    recipe: str,
    data: Path,
    out: Path,
    overrides: list[str],
    resume: bool,
    accept_changes: bool,
    device: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from codebrain.training.config import load_config

    config = load_config(recipe, overrides)

    import torch

    from codebrain.data.slices import SliceStore
    from codebrain.training.loop import train

    if threads is not None:
        torch.set_num_threads(threads)
    store = SliceStore.open(data)
    with progress("training", quiet=quiet or as_json) as bar:
        model = train(
            config, store, out, device=device, resume=resume, accept_changes=accept_changes,
            progress=teller(bar, as_json=as_json, quiet=quiet),
        )  # fmt: skip
    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process speaks for all
        return
    if as_json:
        emit_json({"model": str(model), "done": True})
    else:
        emit(f"{model}")
