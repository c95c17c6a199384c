"""``codebrain-bids``: a BIDS App, https://bids-apps.neuroimaging.io, BIDS_DIR OUT participant|group."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from codebrain.app import _batch
from codebrain.app._common import (
    DebugOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    TimeoutOption,
    VerboseOption,
    emit,
    emit_json,
    leave,
    run,
    say,
)
from codebrain.app.cli import invoke, show_version
from codebrain.errors import refusal
from codebrain.machine import STUDY_TIMEOUT_S
from codebrain.marks import RESEARCH_USE_ONLY

if TYPE_CHECKING:
    from codebrain.batch.engine import BatchSettings

_SEVERAL = ("--participant-label", "--session-label", "--filter")
"""Options that take several words, as in other BIDS Apps: ``--participant-label 01 02``."""


@dataclass(frozen=True)
class Selection:
    """Which studies of the data set."""

    participants: list[str] | None
    sessions: list[str] | None
    filters: list[str]
    validate: bool


def build_app() -> typer.Typer:
    """The command line of the BIDS App."""
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"]},
    )  # fmt: skip

    @app.command(no_args_is_help=True)
    def bids(
        bids_dir: Annotated[Path, typer.Argument(help="The BIDS data set.")],
        out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the derivative data set goes.")],
        level: Annotated[str, typer.Argument(metavar="participant|group", help="Impute, or sum up what was imputed.")],
        participants: Annotated[
            list[str] | None,
            typer.Option("--participant-label", metavar="LABEL...", help="Only these, with or without sub-."),
        ] = None,
        sessions: Annotated[
            list[str] | None,
            typer.Option("--session-label", metavar="LABEL...", help="Only these, with or without ses-."),
        ] = None,
        filters: Annotated[
            list[str] | None,
            typer.Option(
                "--filter",
                metavar="[CONTRAST:]ENTITY=LABEL...",
                help="Which of several files of one contrast, as T1:run=2 or acq=none.",
            ),
        ] = None,
        no_validate: Annotated[
            bool,
            typer.Option(
                "--no-validate",
                "--skip-bids-validation",
                "--skip_bids_validator",
                help="Accept a data set without dataset_description.json.",
            ),
        ] = False,
        model: _batch.ModelOption = "starter",
        want: _batch.WantOption = None,
        align: _batch.AlignOption = "auto",
        intensity: _batch.IntensityOption = "scanner",
        precision: _batch.PrecisionOption = "auto",
        engine: EngineOption = "auto",
        jobs: _batch.JobsOption = None,
        study_timeout: TimeoutOption = STUDY_TIMEOUT_S,
        overwrite: _batch.OverwriteOption = False,
        device: DeviceOption = "auto",
        threads: ThreadsOption = None,
        as_json: JsonOption = False,
        debug: DebugOption = False,
        verbose: VerboseOption = 0,
        quiet: QuietOption = False,
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True)
        ] = False,
    ) -> None:
        """Impute the missing contrasts of every session of a BIDS data set (SYNTHETIC images; research use only).

        Exit status 0 when all went well, 6 when some studies were refused or failed: the others are complete, and
        the same command does only what is left.
        """

        def work() -> None:
            selection = Selection(participants, sessions, filters or [], not no_validate)
            if level == "participant":
                how = _batch.settings(model=model, want=want, align=align, intensity=intensity, precision=precision,
                                      engine=engine, device=device, threads=threads)  # fmt: skip
                participant(bids_dir, out, selection, how, jobs=jobs, study_timeout=study_timeout,
                            overwrite=overwrite, as_json=as_json, quiet=quiet)  # fmt: skip
            elif level == "group":
                group(bids_dir, out, selection, as_json=as_json, quiet=quiet)
            else:
                raise refusal("CONFIG", "no such analysis level", found=level, expected="participant or group")

        run(work, as_json=as_json, debug=debug, verbose=verbose, quiet=quiet)

    return app


def participant(
    bids_dir: Path,
    out: Path,
    selection: Selection,
    settings: BatchSettings,
    *,
    jobs: int | None,
    study_timeout: float,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Impute what is missing in every session."""
    from codebrain.batch.derivatives import DerivativeLayout, batch_studies, begin_dataset
    from codebrain.imaging.bids_dataset import Filter, read_dataset
    from codebrain.models import model_facts

    filters = [Filter.parse(text) for text in selection.filters]
    _, _, modalities = model_facts(settings.model)
    dataset = read_dataset(
        bids_dir, validate=selection.validate, participants=selection.participants, sessions=selection.sessions,
        filters=filters, contrasts=modalities,
    )  # fmt: skip
    for notice in dataset.notices:
        say(f"codebrain: warning: {notice.code}: " + (f"{notice.file}: " if notice.file else "") + notice.message)
    home = bids_dir.resolve() / "derivatives"
    if out.resolve().parent == home and not home.exists():
        _make_derivatives(home)
    inside = [] if out.resolve().is_relative_to(home) else [bids_dir]
    _batch.work(
        batch_studies(dataset), out, DerivativeLayout(), settings=settings, jobs=jobs, study_timeout=study_timeout,
        overwrite=overwrite, sources=inside, prepare=lambda folder: begin_dataset(folder, dataset),
        as_json=as_json, quiet=quiet, report=DerivativeLayout().table,
    )  # fmt: skip


def _make_derivatives(home: Path) -> None:
    from codebrain.imaging.safe_files import output_refusal

    try:
        home.mkdir()
    except OSError as error:
        raise output_refusal(error, home) from error


def group(bids_dir: Path, out: Path, selection: Selection, *, as_json: bool, quiet: bool) -> None:
    """Sum up what the participant level has done: one table, one page."""
    from codebrain.batch.group import write_group

    summed = write_group(out, participants=selection.participants, sessions=selection.sessions)
    if as_json:
        emit_json(summed)
    elif not quiet:
        emit(", ".join(f"{count} {status}" for status, count in summed["counts"].items()))
        emit(f"{out / summed['table']}\n{out / summed['page']}\n{RESEARCH_USE_ONLY}")


def spread(argv: Sequence[str]) -> list[str]:
    """``--participant-label 01 02`` as ``--participant-label 01 --participant-label 02``; underscores are dashes."""
    words: list[str] = []
    several, used = "", True
    for word in argv:
        if not word.startswith("-"):
            words += [several, word] if several else [word]
            used = True
            continue
        words += [] if used else [several]  # without a label it is refused and not passed over
        name, equals, value = word.partition("=")
        dashed = name.replace("_", "-")
        name = dashed if dashed in _SEVERAL else name
        several, used = (name, False) if name in _SEVERAL and not equals else ("", True)
        words += [] if several else [name + equals + value]
    return words if used else [*words, several]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the BIDS App and return its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return invoke(build_app(), "codebrain-bids", spread(arguments))


def entry() -> NoReturn:
    """The program ``codebrain-bids``."""
    leave(main())


if __name__ == "__main__":
    entry()
