"""``codebrain benchmark``: several models, equal budget, one table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrain.app._common import (
    DebugOption,
    DeviceOption,
    JsonOption,
    OutOption,
    QuietOption,
    ThreadsOption,
    VerboseOption,
    emit,
    emit_json,
    progress,
    run,
    teller,
)
from codebrain.errors import CodeBrainError, Notice, refusal

if TYPE_CHECKING:
    from codebrain.benchmark.runner import Results
    from codebrain.benchmark.suite import Suite
    from codebrain.data.slices import SliceStore

SCHEMA_VERSION = 1
_SUITES = ", ".join(sorted(path.stem for path in (Path(__file__).parents[2] / "suites").glob("*.yaml")))


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog=f"Suites in the package: {_SUITES}.")
    def benchmark(
        suite: Annotated[str, typer.Argument(metavar="SUITE|FILE.yaml", help="Which methods meet, and how.")],
        data: Annotated[Path, typer.Option(metavar="DST", help="A slice store made by `codebrain prepare`.")],
        out: OutOption,
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on in OUT: finished trainings and patterns are kept.")
        ] = False,
        jobs: Annotated[
            int | None,
            typer.Option(min=1, help="Methods at a time, each in a process of its own; by default one for each GPU."),
        ] = None,
        batch: Annotated[int, typer.Option(min=1, help="Slices that a model gets at a time when scored.")] = 8,
        device: DeviceOption = "auto",
        threads: ThreadsOption = None,
        as_json: JsonOption = False,
        debug: DebugOption = False,
        verbose: VerboseOption = 0,
        quiet: QuietOption = False,
    ) -> None:
        """Train and score several models under one budget: rows, tables, figures.

        Exit status 6 when a method failed; the others' results are complete. Add a method to the suite and go
        on with --resume: only the new one is trained.
        """
        request = Request(suite, data, out, resume, jobs, batch, device, threads, as_json, quiet)
        run(lambda: _benchmark(request), as_json=as_json, debug=debug, verbose=verbose, quiet=quiet)


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    suite: str
    data: Path
    out: Path
    resume: bool
    jobs: int | None
    batch: int
    device: str
    threads: int | None
    as_json: bool
    quiet: bool

    def command(self) -> list[str]:
        """The request as words; folders are cut from paths, which may name people."""
        words = ["codebrain", "benchmark", Path(self.suite).name, "--data", self.data.name, "-o", self.out.name]
        words += ["--jobs", str(self.jobs)] if self.jobs else []
        return [*words, "--device", self.device]


def _benchmark(request: Request) -> None:
    from codebrain.benchmark.suite import load_suite

    suite, configs = load_suite(request.suite)  # wrong names are refused before anything heavy is imported

    from codebrain.benchmark.budget import PLAN
    from codebrain.benchmark.runner import run_suite
    from codebrain.data.slices import SliceStore
    from codebrain.machine import choose_device
    from codebrain.output import RunFolder

    device = choose_device(request.device)
    store = SliceStore.open(request.data)
    _refuse_confusion(request.out, PLAN, resume=request.resume)
    begun = time.perf_counter()
    with RunFolder(request.out, overwrite=request.resume, sources=[request.data]) as folder:
        with progress("benchmark", quiet=request.quiet or request.as_json) as bar:
            results = run_suite(
                suite, configs, request.data, folder.path, device=request.device, threads=request.threads,
                jobs=request.jobs, batch=request.batch,
                progress=teller(bar, as_json=request.as_json, quiet=request.quiet, unit="part"),
            )  # fmt: skip
        if not results.rows:
            raise _incomplete(suite, results)
        record = _facts(request, suite, results, store)
        with folder.staged() as stage, progress("drawing", quiet=request.quiet or request.as_json):
            record |= {"device": str(device), "seconds": round(time.perf_counter() - begun, 2)}
            table, missing = _write(stage, suite, results, store, device, record)
    emit_json(record) if request.as_json else emit(table)
    if results.errors:
        raise _incomplete(suite, results)
    if missing:
        raise missing[0]


def _refuse_confusion(out: Path, plan: str, *, resume: bool) -> None:
    """A run that was begun is gone on with, and only such a one, when that is asked for."""
    begun = (out / plan).is_file()
    if begun and not resume:
        raise refusal("OUT_EXISTS", "a benchmark was begun here", file=out,
                      hint="Use --resume to go on, or another folder.")  # fmt: skip
    if resume and not begun:
        raise refusal("CKPT_NONE", "there is no benchmark to resume", file=out, hint="Leave out --resume to start.")


def _incomplete(suite: Suite, results: Results) -> CodeBrainError:
    failed = "; ".join(f"{label}: {error.code}: {error}" for label, error in results.errors.items())
    # A disk that is full for one method is full for all of them.
    code = next((error.code for error in results.errors.values() if error.code.startswith("OUT_")), "BATCH")
    return refusal(code, f"{len(results.errors)} of {len(suite.methods)} methods failed. {failed}",
                   hint="Mend the cause and go on with --resume; what is finished is kept.")  # fmt: skip


def _facts(request: Request, suite: Suite, results: Results, store: SliceStore) -> dict[str, Any]:
    """What run.json says about where the numbers come from."""
    import numpy as np
    import torch

    import codebrain
    from codebrain.marks import RESEARCH_USE_ONLY

    return {
        "schema_version": SCHEMA_VERSION,
        "notice": RESEARCH_USE_ONLY,
        "versions": {"codebrain": codebrain.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "command": request.command(),
        "suite": suite.as_dict(),
        "data": {"fingerprint": store.fingerprint, "split": suite.split,
                 "patients": sorted({row.patient for row in results.rows}), "middle": suite.middle},
        "methods": results.facts,
        "machine": results.machine,
        "failures": {label: {"code": error.code, "message": error.brief} for label, error in results.errors.items()},
    }  # fmt: skip


def _write(
    stage: Path, suite: Suite, results: Results, store: SliceStore, device: Any, record: dict[str, Any]
) -> tuple[str, list[CodeBrainError]]:
    """Write everything into ``stage``; returns the tables, and what kept some files from being written."""
    from codebrain.benchmark.publish import publish
    from codebrain.imaging import safe_files
    from codebrain.output import RUN_FILE

    table, missing = publish(stage, suite, results, store, device=device)
    record["notices"] = [Notice(error.code, error.brief).as_dict() for error in missing]
    record["outputs"] = [
        {"file": str(path.relative_to(stage)), "sha256": safe_files.sha256_file(path)}
        for path in sorted(stage.rglob("*"))
        if path.is_file()
    ]
    safe_files.write_json(stage / RUN_FILE, record)
    return table, missing
