"""What commands for many studies share: options, the work, what is said about each study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrain.app._common import emit, emit_json, one_line, progress, say, teller
from codebrain.errors import refusal
from codebrain.marks import ENHANCEMENT_UNKNOWN, LOW_CONFIDENCE, RESEARCH_USE_ONLY
from codebrain.vocabulary import PRECISIONS

if TYPE_CHECKING:
    from codebrain.batch.engine import BatchResult, BatchSettings
    from codebrain.batch.folder import StudyRecord
    from codebrain.batch.layouts import BatchStudy, Layout

ModelOption = Annotated[str, typer.Option("--model", help="A bundled model or a model folder.")]
WantOption = Annotated[
    str | None, typer.Option("--want", metavar="T2,T1Gd", help="What to impute where it is missing; by default all.")
]
AlignOption = Annotated[str, typer.Option("--align", metavar="auto|none", help="Register different grids.")]
IntensityOption = Annotated[str, typer.Option("--intensity", metavar="scanner|unit", help="Scanner units, or [0, 1].")]
PrecisionOption = Annotated[str, typer.Option("--precision", metavar="|".join(PRECISIONS))]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "--n-cpus", "--n_cpus", min=0,
                 help="Worker processes, each with the model loaded once; by default what fits; 0 works in this one."),
]  # fmt: skip
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Make again what was made with another model or other settings.")
]


def settings(
    *,
    model: str,
    want: str | None,
    align: str,
    intensity: str,
    precision: str,
    engine: str,
    device: str,
    threads: int | None,
) -> BatchSettings:
    """The settings that were typed.

    Raises:
        UsageError: ``CONFIG``, ``MOD_UNKNOWN``, ``MOD_DUPLICATE``.
        EnvironmentRefused: ``ENV_EXTRA`` for an engine that is not installed.
    """
    from codebrain.batch.engine import BatchSettings
    from codebrain.engines import engine_name
    from codebrain.vocabulary import ModalitySet

    engine_name(engine)
    choices = {"align": (align, ("auto", "none")), "intensity": (intensity, ("scanner", "unit")),
               "precision": (precision, PRECISIONS)}  # fmt: skip
    for field, (value, allowed) in choices.items():
        if value not in allowed:
            expected = " or ".join(allowed)
            raise refusal("CONFIG", "no such choice", field=f"--{field}", found=value, expected=expected)
    wanted = None if want is None else ModalitySet.parse(want).members
    free: Any = {"align": align, "intensity": intensity}
    return BatchSettings(model, wanted, precision=precision, engine=engine, device=device, threads=threads, **free)


def work(
    studies: Sequence[BatchStudy],
    out: Path,
    layout: Layout,
    *,
    settings: BatchSettings,
    jobs: int | None,
    study_timeout: float,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    sources: Sequence[Path] = (),
    prepare: Callable[[Path], None] = lambda folder: None,
    report: str | None = None,
) -> None:
    """Impute the studies and say what became of each.

    Raises:
        BatchIncomplete: ``BATCH`` when some were refused or failed.
        CodeBrainError: as :func:`codebrain.batch.engine.run_batch`.
    """
    from codebrain.batch.engine import run_batch

    with progress("imputing", quiet=quiet) as bar:
        result = run_batch(
            studies, out, settings=settings, layout=layout, jobs=jobs, study_timeout_s=study_timeout,
            overwrite=overwrite, sources=sources, prepare=prepare,
            progress=teller(bar, as_json=as_json, quiet=quiet, unit="study", units="studies"),
        )  # fmt: skip
    for notice in result.notices:
        say(f"codebrain: warning: {notice.code}: {notice.message}")
    if as_json:
        emit_json({"folder": str(out), **summary(result)})
    elif not quiet:
        show(result, out)
    if result.bad:
        where = f" {report} in the output folder says why." if report else ""
        raise refusal("BATCH", f"{len(result.bad)} of {len(result.records)} studies were not imputed",
                      hint=f"The others are complete.{where} Mend them and type the command again.")  # fmt: skip


def summary(result: BatchResult) -> dict[str, Any]:
    """What became of the studies, for ``--json``."""
    records = [{**record.as_dict(), "kept": record.study in result.kept} for record in result.records]
    return {"counts": counts(result), "studies": records, "notice": RESEARCH_USE_ONLY}


def counts(result: BatchResult) -> dict[str, int]:
    """How many studies ended how."""
    ends = ["kept" if record.study in result.kept else record.status for record in result.records]
    return {end: ends.count(end) for end in dict.fromkeys(ends)}


def show(result: BatchResult, out: Path) -> None:
    """A line for each study, then a sum."""
    for record in result.records:
        emit(one_line(f"{record.study}  {_line(record, kept=record.study in result.kept)}"))
    emit(", ".join(f"{count} {end}" for end, count in counts(result).items()) + f"; {out}")
    if any(record.facts.get("enhancement") for record in result.records):
        emit(f"T1Gd: {ENHANCEMENT_UNKNOWN}")
    emit(RESEARCH_USE_ONLY)


def _line(record: StudyRecord, *, kept: bool) -> str:
    if record.status == "nothing":
        return "nothing to impute: it has every contrast asked for"
    if record.status != "done":
        return f"{record.status} {record.code}: {record.message}"
    facts = record.facts
    doubt = "" if facts.get("doubt") is None else f", doubt {facts['doubt']:.2f}"
    doubt += f", {LOW_CONFIDENCE}" if facts.get("low_confidence") else ""
    how = "kept from an earlier run" if kept else f"{facts['seconds']:.1f} s"
    return f"SYNTHETIC {', '.join(facts['imputed'])} from {', '.join(facts['given'])}{doubt}, {how}"
