"""``codebrain``: finds the commands, starts one, answers with its exit status.

A command is any module in :mod:`codebrain.app.commands` with ``register(app)``. Nothing heavy is imported
here or there at module level, so ``codebrain --help`` answers without torch.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from codebrain.app import commands
from codebrain.app._common import emit, leave, report_error, say
from codebrain.errors import refusal
from codebrain.marks import RESEARCH_USE_ONLY

_Complaint: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""click's base error: typer carries a click of its own from 0.20 on, so it is found through typer."""


def build_app(only: str | None = None) -> typer.Typer:
    """The command line with every command registered.

    Args:
        only: the name of the one command that will be asked for; the others are then neither imported nor built,
            which takes a third of the time that a command needs before its work.
    """
    app = typer.Typer(
        name="codebrain",
        help=f"Impute the missing contrasts of a brain-MRI study. {RESEARCH_USE_ONLY}.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help"]},
    )
    app.callback()(_options)
    found = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    for name in [only] if only in found else found:
        importlib.import_module(f"{commands.__name__}.{name}").register(app)
    return app


def show_version(asked: bool) -> None:
    """Print the version and end, when it was asked for."""
    if asked:
        from codebrain import __version__

        emit(f"codebrain {__version__}\n{RESEARCH_USE_ONLY}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status; never raises for what a user can do wrong."""
    arguments = sys.argv[1:] if argv is None else argv
    return invoke(build_app(only=arguments[0] if arguments else None), "codebrain", arguments)


def entry() -> NoReturn:
    """The program ``codebrain``."""
    leave(main())


def invoke(app: typer.Typer, name: str, argv: Sequence[str]) -> int:
    """Run the arguments ``argv`` of the program ``name``; returns the exit status."""
    arguments = list(argv)
    try:
        status = app(arguments, prog_name=name, standalone_mode=False)
    except _Complaint as error:
        return _usage(error, arguments, name)
    except (typer.Abort, KeyboardInterrupt):
        say("codebrain: stopped")
        return 130
    return status if isinstance(status, int) else 0


def _usage(error: Exception, arguments: Sequence[str], program: str) -> int:
    """click's complaint about the command line, in our form; the help when nothing was asked for."""
    context, text = getattr(error, "ctx", None), getattr(error, "message", str(error))
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        emit(context.get_help())
        return 2
    command = context.command_path if context is not None else program
    describe = getattr(error, "format_message", lambda: text)
    known = refusal("CONFIG", describe(), hint=f"See `{command} --help`.")
    return report_error(known, as_json="--json" in arguments)


if __name__ == "__main__":
    entry()
