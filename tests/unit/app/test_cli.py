"""The command line as a shell: fast, silent about torch, one line per failure."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys

import pytest
import typer

import codebrain
from codebrain.app import cli
from codebrain.app._common import Terminated, one_line, report_error, run
from codebrain.errors import refusal


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_help_and_info_import_no_torch():
    code = """
import sys, io, contextlib
from codebrain.app.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    for argv in (["--help"], ["--version"], ["info", "--json"], ["impute", "--help"], ["demo", "--help"]):
        assert main(argv) == 0, argv
heavy = [name for name in ("torch", "numpy", "nibabel", "scipy", "SimpleITK") if name in sys.modules]
assert not heavy, heavy
"""
    done = in_a_new_process(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_nothing_heavy():
    done = in_a_new_process("import codebrain, sys; assert not {'torch', 'numpy', 'nibabel'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_public_names_are_there_and_only_those_are_listed():
    assert sorted(codebrain.__all__) == codebrain.__all__ == dir(codebrain)
    for name in codebrain.__all__:
        assert getattr(codebrain, name) is not None
    with pytest.raises(AttributeError):
        _ = codebrain.nothing_of_this_name


def test_version_says_what_it_is_not_for(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"codebrain {codebrain.__version__}\nResearch use only; not a medical device\n"


def test_info(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cores"] >= 1
    assert set(facts["extras"]) == {"align", "phantom", "train", "bench", "dicom", "engines"}
    assert cli.main(["info"]) == 0
    assert "not a medical device" in capsys.readouterr().out


WRONG = (
    ["--nonsense"],
    ["nonsense"],
    ["impute", "--nonsense"],
    ["impute"],
    ["info", "x"],
    ["impute", "--threads", "0", "-o", "x"],
)


@pytest.mark.parametrize("argv", WRONG)
def test_wrong_usage_is_one_line_and_exit_2(argv, capsys):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("codebrain: CONFIG: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_wrong_usage_in_json(capsys):
    assert cli.main(["impute", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "CONFIG"


def status(work, **kwargs):
    try:
        run(work, **kwargs)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def raises(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (refusal("MOD_UNKNOWN", "x"), "MOD_UNKNOWN", 2),
        (refusal("IN_CHECKSUM", "x"), "IN_CHECKSUM", 3),
        (refusal("OUT_SPACE", "x"), "OUT_SPACE", 4),
        (refusal("CKPT_CORRUPT", "x"), "CKPT_CORRUPT", 5),
        (refusal("BATCH", "x"), "BATCH", 6),
        (refusal("DIVERGED", "x"), "DIVERGED", 7),
        (MemoryError(), "ENV_MEMORY", 4),
        (ZeroDivisionError("x"), "BUG", 1),
    ],
)
def test_every_failure_is_one_line_with_its_status(error, code, exit_code, capsys):
    assert status(raises(error), as_json=True) == exit_code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"codebrain: {code}: ") and captured.err.count("\n") == 1
    assert json.loads(captured.out)["error"]["code"] == code


def test_the_traceback_is_for_debugging(capsys):
    report_error(ZeroDivisionError("x"))
    assert "Traceback" not in capsys.readouterr().err
    status(lambda: 1 / 0, debug=True)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.row("E9")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_unwind_and_handlers_come_back(number, expected, capsys):
    before = signal.getsignal(number)
    cleaned = []

    def work():
        try:
            signal.raise_signal(number)
        except (KeyboardInterrupt, Terminated):
            cleaned.append(True)
            assert signal.getsignal(number) is signal.SIG_DFL, "a second one ends at once"
            raise

    assert status(work) == expected
    assert cleaned and signal.getsignal(number) is before
    assert "Traceback" not in capsys.readouterr().err


def test_the_log_is_heard_during_a_command_and_left_as_it_was(capsys):
    logger = logging.getLogger("codebrain")
    before = logger.level, list(logger.handlers)
    assert status(lambda: logger.warning("heard"), quiet=False) == 0
    assert status(lambda: logger.warning("not heard"), quiet=True) == 0
    assert status(lambda: logger.info("heard too"), verbose=1) == 0
    assert capsys.readouterr().err == "codebrain: heard\ncodebrain: heard too\n"
    assert (logger.level, logger.handlers) == before


@pytest.mark.row("D9")
def test_a_reader_that_went_away_is_no_error():
    code = "import sys\nfrom codebrain.app.cli import main\nsys.exit(main(['info']))"
    command = f'{sys.executable} -c "{code}" | true; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""


def test_names_from_files_cannot_steer_the_terminal():
    assert one_line("a\x1b[31m\nb\u202ec") == "a\\x1b[31m\\nb\\u202ec"
    assert one_line("Müller 研究") == "Müller 研究"


def test_the_page_on_batches_names_options_that_exist(capsys):
    from pathlib import Path

    from codebrain.app import bids_app

    text = (Path(__file__).parents[3] / "docs" / "how-to" / "bids.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(--[a-z-]+)", text))
    assert bids_app.main(["--help"]) == 0
    assert cli.main(["brasyn", "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert len(named) > 10 and named <= known


def test_a_command_that_is_asked_for_by_name_is_built_alone():
    code = """
import sys, io, contextlib
from codebrain.app.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    assert main(["info", "--json"]) == 0
    built = [name for name in sys.modules if name.startswith("codebrain.app.commands.")]
    assert built == ["codebrain.app.commands.info"], built
    assert main(["--help"]) == 0
assert all(name in out.getvalue() for name in ("impute", "train", "doctor")), out.getvalue()
"""
    done = in_a_new_process(code)
    assert done.returncode == 0, done.stderr
