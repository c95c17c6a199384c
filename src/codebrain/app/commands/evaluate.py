"""``codebrain evaluate``: models on held-out patients, every pattern, beside the references."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
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
    say,
)
from codebrain.errors import CodeBrainError, Notice

if TYPE_CHECKING:
    import torch

    from codebrain.benchmark import Row
    from codebrain.data.slices import SliceStore
    from codebrain.models._contract import ImputationModel
    from codebrain.vocabulary import ModalitySet

SCHEMA_VERSION = 1
BESIDE = ("zeros", "polynomial")
"""The references that ``--references`` adds."""

_GENERIC = {"model", "best", "last", "final"}


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def evaluate(
        models: Annotated[
            list[str],
            typer.Argument(metavar="MODEL...", help="Model folders, bundled models, zeros, mean or polynomial."),
        ],
        data: Annotated[Path, typer.Option(metavar="DST", help="A slice store made by `codebrain prepare`.")],
        out: OutOption,
        split: Annotated[str, typer.Option(metavar="train|val|test")] = "test",
        patterns: Annotated[
            str, typer.Option(metavar="all|leave-one-out|LIST", help='What is given, as "T1;T1,FLAIR".')
        ] = "all",
        references: Annotated[
            bool,
            typer.Option(help="Score zeros and a voxelwise polynomial fitted to the training patients too."),
        ] = True,
        middle: Annotated[
            int | None, typer.Option(min=1, help="Only the middle N slices of each study; by default all.")
        ] = None,
        batch: Annotated[int, typer.Option(min=1, help="Slices that the model gets at a time.")] = 8,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
        device: DeviceOption = "auto",
        threads: ThreadsOption = None,
        as_json: JsonOption = False,
        debug: DebugOption = False,
        verbose: VerboseOption = 0,
        quiet: QuietOption = False,
    ) -> None:
        """Score models on held-out patients: rows.csv, table.md, table.tex, figures, run.json.

        PSNR, SSIM and MAE of whole 2-D slices for every pattern and absent contrast, averaged as the paper's
        code does; also inside the foreground only and per volume.
        """
        request = Request(tuple(models), data, out, split, patterns, references, middle, batch, overwrite, quiet)
        run(
            lambda: _evaluate(request, device=device, threads=threads, as_json=as_json),
            as_json=as_json, debug=debug, verbose=verbose, quiet=quiet,
        )  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    models: tuple[str, ...]
    data: Path
    out: Path
    split: Any
    patterns: str
    references: bool
    middle: int | None
    batch: int
    overwrite: bool
    quiet: bool

    def command(self) -> list[str]:
        """The request as words; folders are cut from paths, which may name people."""
        words = ["codebrain", "evaluate", *(Path(model).name for model in self.models)]
        words += ["--data", self.data.name, "--split", self.split, "--patterns", self.patterns]
        words += ["--middle", str(self.middle)] if self.middle else []
        return [*words, "--references" if self.references else "--no-references", "-o", self.out.name]


@dataclass
class Entrant:
    """A model in the comparison, and how long its scoring took."""

    label: str
    model: ImputationModel
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "label": self.label,
            "architecture": self.model.architecture,
            "sha256": self.model.sha256 or None,
            "modalities": list(self.model.modalities),
            "seconds": round(self.seconds, 2),
        }


def _evaluate(request: Request, *, device: str, threads: int | None, as_json: bool) -> None:
    from codebrain.benchmark.scoring import parse_patterns
    from codebrain.data.slices import SliceStore
    from codebrain.machine import choose_device, set_threads
    from codebrain.output import RunFolder

    begun = time.perf_counter()
    place, used = choose_device(device), set_threads(threads)
    store = SliceStore.open(request.data)
    patterns = parse_patterns(request.patterns, store.preparation.modalities)
    with RunFolder(request.out, overwrite=request.overwrite, sources=[request.data]) as folder:
        notices: list[Notice] = []
        entrants = _entrants(request, store, notices)
        rows = _score(request, store, entrants, patterns, place)
        record = {
            **_facts(request, store, entrants, rows), "device": str(place), "threads": used,
            "seconds": round(time.perf_counter() - begun, 2),
        }  # fmt: skip
        with folder.staged() as stage:
            table, failure = _write(stage, request, store, entrants, rows, place, record, notices)
    for notice in notices:
        say(f"codebrain: {notice.code}: {notice.message}")
    emit_json(record) if as_json else emit(table)
    if failure is not None:
        raise failure


def labels(sources: list[str]) -> list[str]:
    """A short name for every model: the folder's, with its parent's where that says too little."""
    paths = [Path(source).resolve() for source in sources]
    names = [path.name for path in paths]
    return [
        f"{path.parent.name}/{name}" if name in _GENERIC or names.count(name) > 1 else name
        for path, name in zip(paths, names, strict=True)
    ]


def _entrants(request: Request, store: SliceStore, notices: list[Notice]) -> list[Entrant]:
    """Load the models, then make the references ready for the contrasts that all of them know."""
    from codebrain.benchmark import REFERENCES
    from codebrain.models import load_model

    sources = list(dict.fromkeys(request.models))
    names = dict(zip(sources, labels(sources), strict=True))
    loaded = {source: load_model(source) for source in sources if source not in REFERENCES}
    known = _common(store.preparation.modalities, list(loaded.values()))
    added = [name for name in BESIDE if request.references and name not in sources]
    entrants = []
    for source in [*sources, *added]:
        model = loaded.get(source) or _reference(source, store, known, request, source in added, notices)
        if model is not None:
            entrants.append(Entrant(names.get(source, source), model))
    return entrants


def _common(store: ModalitySet, models: list[ImputationModel]) -> ModalitySet:
    from codebrain.vocabulary import ModalitySet

    shared = tuple(m for m in store if all(m in model.modalities for model in models))
    return ModalitySet(shared) if len(shared) > 1 else store


def _reference(
    name: str, store: SliceStore, known: ModalitySet, request: Request, added: bool, notices: list[Notice]
) -> ImputationModel | None:
    """A fitted reference; one that nobody named is left out with a notice when it cannot be fitted."""
    from codebrain.benchmark import reference_model

    try:
        with progress("fitting", quiet=request.quiet) as advance:
            return reference_model(name, store, modalities=known, progress=advance)
    except CodeBrainError as error:
        if not added or error.code != "DATA_SPLIT":
            raise
        notices.append(Notice(error.code, f"the reference {name} is left out: {error.message}"))
        return None


def _score(
    request: Request, store: SliceStore, entrants: list[Entrant], patterns: Any, device: torch.device
) -> list[Row]:
    from codebrain.benchmark import evaluate

    rows = []
    for entrant in entrants:
        begun = time.perf_counter()
        with progress(f"scoring {entrant.label}", quiet=request.quiet) as advance:
            rows += evaluate(
                entrant.model,
                store,
                split=request.split,
                patterns=patterns,
                device=device,
                batch=request.batch,
                middle=request.middle,
                label=entrant.label,
                progress=advance,
            )
        entrant.model.cpu()
        entrant.seconds = time.perf_counter() - begun
    return rows


def _facts(request: Request, store: SliceStore, entrants: list[Entrant], rows: list[Row]) -> dict[str, Any]:
    """What run.json says about where the numbers come from, and the numbers of the tables."""
    import numpy as np
    import torch

    import codebrain
    from codebrain.marks import RESEARCH_USE_ONLY

    versions = {"codebrain": codebrain.__version__, "torch": torch.__version__, "numpy": np.__version__}
    return {
        "schema_version": SCHEMA_VERSION,
        "notice": RESEARCH_USE_ONLY,
        "versions": versions,
        "command": request.command(),
        "data": {"fingerprint": store.fingerprint, "split": request.split,
                 "patients": sorted({row.patient for row in rows}), "middle": request.middle},
        "patterns": request.patterns,
        "models": [entrant.as_dict() for entrant in entrants],
        "summary": _summary(rows, [entrant.label for entrant in entrants]),
    }  # fmt: skip


def _summary(rows: list[Row], models: list[str]) -> list[dict[str, Any]]:
    from codebrain.benchmark import summarise
    from codebrain.benchmark.rows import REGIONS, TASKS
    from codebrain.benchmark.tables import GIVENS, UNITS

    return [
        {"model": model, "task": task, "region": region, "given": name, "metric": metric, **asdict(score)}
        for model in models
        for task in TASKS
        for region in REGIONS
        for given, name in GIVENS.items()
        for metric in UNITS
        if (score := summarise(rows, metric=metric, model=model, task=task, region=region, given=given))
    ]


def _write(
    stage: Path, request: Request, store: SliceStore, entrants: list[Entrant], rows: list[Row],
    device: torch.device, record: dict[str, Any], notices: list[Notice],
) -> tuple[str, CodeBrainError | None]:  # fmt: skip
    """Write everything into ``stage``; returns the table, and what kept the figures from being drawn."""
    from codebrain.benchmark import rows_to_csv, tables
    from codebrain.imaging import safe_files
    from codebrain.machine import peak_memory
    from codebrain.output import RUN_FILE

    remarks = tables.notes(rows, split=request.split, middle=request.middle)
    remarks += [f"{e.label}: {type(e.model).label}." for e in entrants if type(e.model).label]
    table = tables.markdown(rows, remarks)
    safe_files.write_text(stage / "rows.csv", rows_to_csv(rows))
    safe_files.write_text(stage / "table.md", table)
    safe_files.write_text(stage / "table.tex", tables.latex(rows, remarks))
    failure = None
    try:
        for name, picture in _figures(request, store, entrants, rows, device).items():
            safe_files.write_bytes(stage / name, picture)
    except CodeBrainError as error:
        if error.code != "ENV_EXTRA":
            raise
        failure = error
    kinds = {".csv": "rows", ".md": "table", ".tex": "table", ".png": "figure"}
    record["outputs"] = [
        {"file": path.name, "kind": kinds[path.suffix], "sha256": safe_files.sha256_file(path)}
        for path in sorted(stage.iterdir())
    ]
    record["notices"] = [notice.as_dict() for notice in notices]
    record["notices"] += [Notice(failure.code, str(failure)).as_dict()] if failure else []
    record["peak_memory_bytes"] = peak_memory()
    safe_files.write_json(stage / RUN_FILE, record)
    return table, failure


def _figures(
    request: Request, store: SliceStore, entrants: list[Entrant], rows: list[Row], device: torch.device
) -> dict[str, bytes]:
    from codebrain.benchmark.figures import examples_figure, examples_of, scores_figure

    shown = entrants[0]
    examples = examples_of(shown.model, store, split=request.split, device=device)
    return {"scores.png": scores_figure(rows), "examples.png": examples_figure(examples, shown.label)}
