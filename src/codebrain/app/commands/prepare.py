"""``codebrain prepare``: raw studies to a slice store that training and evaluation read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrain.app._common import (
    DebugOption,
    JsonOption,
    OutOption,
    QuietOption,
    TimeoutOption,
    VerboseOption,
    emit,
    emit_json,
    one_line,
    progress,
    run,
    teller,
)
from codebrain.errors import refusal
from codebrain.machine import STUDY_TIMEOUT_S

if TYPE_CHECKING:
    from codebrain.data.datasets import DataSet
    from codebrain.data.slices import Manifest
    from codebrain.data.sources import Found
    from codebrain.vocabulary import Preparation

_OWN = "by default the protocol's"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def prepare(
        kind: Annotated[
            str,
            typer.Argument(
                metavar="ixi|brats|bids|folder",
                help="The IXI or BraTS archive as published, a BIDS data set, or a folder of study folders.",
            ),
        ],
        source: Annotated[list[Path], typer.Argument(metavar="SRC...", help="One or more sources.")],
        out: OutOption,
        contrasts: Annotated[
            str | None, typer.Option(help="Their order, as T1,T2,FLAIR; by default the protocol's, or all that occur.")
        ] = None,
        split: Annotated[
            str | None,
            typer.Option(
                metavar="patient|published|drawn",
                help="Published lists with whole patients (default), the lists as they are, or a seeded draw.",
            ),
        ] = None,
        unlisted: Annotated[
            str | None, typer.Option(metavar="train|val|test", help="Use studies that no list names, in this split.")
        ] = None,
        exclude: Annotated[
            str | None, typer.Option(metavar="ID,...", help="Subjects or patients to leave out.")
        ] = None,
        test: Annotated[
            str | None, typer.Option(metavar="ID,...|none", help="Held out for test; by default drawn.")
        ] = None,
        val: Annotated[
            str | None, typer.Option(metavar="ID,...|none", help="For validation; by default drawn.")
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
        normalisation: Annotated[
            str | None, typer.Option(metavar="percentile|min_max", help=f"To [0, 1]; {_OWN}.")
        ] = None,
        spacing: Annotated[
            str | None, typer.Option(metavar="MM|none", help=f"In-plane pixel spacing, or each study's own; {_OWN}.")
        ] = None,
        frame: Annotated[
            str | None, typer.Option(metavar="HxW|none", help=f"Pixels of every slice, or cut to the head; {_OWN}.")
        ] = None,
        background: Annotated[
            str | None, typer.Option(metavar="zero|kept", help=f"What lies around the head; {_OWN}.")
        ] = None,
        slices: Annotated[
            str | None,
            typer.Option(metavar="N|all", help=f"The middle N slices, of studies that no list names; {_OWN}."),
        ] = None,
        align: Annotated[
            str | None,
            typer.Option(
                metavar="auto|synra|none", help=f"Register rigidly, with a deformation (ANTs), or refuse; {_OWN}."
            ),
        ] = None,
        choose: Annotated[
            list[str] | None,
            typer.Option(
                "--filter", metavar="[CONTRAST:]ENTITY=LABEL", help="BIDS: which of several files; may be repeated."
            ),
        ] = None,
        no_validate: Annotated[
            bool, typer.Option("--no-validate", help="BIDS: accept a data set without dataset_description.json.")
        ] = False,
        reproducible: Annotated[
            bool, typer.Option("--reproducible", help="One thread per study, so that synra gives equal bytes again.")
        ] = False,
        jobs: Annotated[
            int | None, typer.Option(min=1, help="Studies at a time; by default up to 4, fewer if memory is short.")
        ] = None,
        study_timeout: TimeoutOption = STUDY_TIMEOUT_S,
        resume: Annotated[bool, typer.Option("--resume", help="Keep what is finished and unchanged.")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier store.")] = False,
        as_json: JsonOption = False,
        debug: DebugOption = False,
        verbose: VerboseOption = 0,
        quiet: QuietOption = False,
    ) -> None:
        """Align, normalise and cut studies into a slice store, split by patient.

        Exit status 6 when some studies were refused, 3 when all were; subjects.tsv says why.
        """
        choices = _Choices(
            contrasts, normalisation, spacing, frame, background, slices, align, split, unlisted, reproducible,
            tuple(choose or ()), no_validate,
        )  # fmt: skip
        run(
            lambda: _prepare(
                kind, source, out, choices, exclude=_ids(exclude) or [], seed=seed, val=_ids(val), test=_ids(test),
                jobs=jobs, study_timeout_s=study_timeout, resume=resume, overwrite=overwrite, as_json=as_json,
                quiet=quiet,
            ),
            as_json=as_json, debug=debug, verbose=verbose, quiet=quiet,
        )  # fmt: skip


@dataclass(frozen=True)
class _Choices:
    """What was typed instead of the protocol's own; ``None`` where nothing was."""

    contrasts: str | None
    normalisation: str | None
    spacing: str | None
    frame: str | None
    background: str | None
    slices: str | None
    align: str | None
    split: str | None
    unlisted: str | None
    reproducible: bool
    filters: tuple[str, ...]
    no_validate: bool


def _prepare(
    kind: str,
    source: list[Path],
    out: Path,
    choices: _Choices,
    *,
    exclude: list[str],
    seed: int,
    val: list[str] | None,
    test: list[str] | None,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    from codebrain.data.datasets import dataset_named
    from codebrain.data.prepare import prepare_store
    from codebrain.data.splits import Drawn
    from codebrain.machine import allotted_cores

    dataset = _chosen(dataset_named(kind), choices)
    split, unlisted = _split(dataset, choices, drawn=val is not None or test is not None)
    found, division = dataset.studies(
        source, split=split, unlisted=unlisted, exclude=exclude, drawn=Drawn(seed, val, test)
    )
    with progress("preparing", quiet=quiet) as bar:
        manifest = prepare_store(
            found, out, protocol=_protocol(dataset, found, choices), division=division, kind=kind, sources=source,
            progress=teller(bar, as_json=as_json, quiet=quiet, unit="study"),
            jobs=jobs or min(4, allotted_cores()), **settings,
        )  # fmt: skip
    page = _quality_page(out)
    if as_json:
        emit_json(_summary(manifest, out, page))
    else:
        _print(manifest, out, page)
    refused = manifest.count("refused")
    if refused:
        raise refusal(
            "BATCH", f"{refused} of {len(manifest.rows)} studies were refused",
            hint="The others are prepared; subjects.tsv says why. Mend them and use --resume.",
        )  # fmt: skip


def _chosen(dataset: DataSet, choices: _Choices) -> DataSet:
    """The kind of source with what was typed instead of its own."""
    changes: dict[str, Any] = {}
    if choices.contrasts is not None:
        changes["modalities"] = _modalities(choices.contrasts)
    if choices.normalisation is not None:
        changes["normalisation"] = _one_of("normalisation", choices.normalisation, ("percentile", "min_max"))
    if choices.background is not None:
        changes["background"] = _one_of("background", choices.background, ("zero", "kept"))
    if choices.align is not None:
        changes["align"] = _one_of("align", choices.align, ("auto", "synra", "none"))
    if choices.spacing is not None:
        changes["pixel_spacing_mm"] = _spacing(choices.spacing)
    if choices.frame is not None:
        changes["frame"] = _frame(choices.frame)
    if choices.slices is not None:
        changes["slices"] = _slices(choices.slices)
    if choices.filters or choices.no_validate:
        changes["find"] = _bids_finder(dataset, choices)
    return replace(dataset, **changes)


def _bids_finder(dataset: DataSet, choices: _Choices) -> Any:
    from codebrain.data.bids_source import find_bids
    from codebrain.imaging.bids_dataset import Filter

    if dataset.name != "bids":
        raise refusal("CONFIG", "only BIDS data sets are filtered and validated", field="--filter, --no-validate",
                      found=dataset.name)  # fmt: skip
    return partial(
        find_bids, validate=not choices.no_validate, filters=[Filter.parse(text) for text in choices.filters]
    )


def _split(dataset: DataSet, choices: _Choices, *, drawn: bool) -> tuple[str, Any]:
    """The rule, and the split of studies that no list names."""
    default = "patient" if dataset.lists else "drawn"
    allowed = ("patient", "published", "drawn") if dataset.lists else ("drawn",)
    split = _one_of("split", choices.split or default, allowed)
    if split != "drawn" and drawn:
        raise refusal("CONFIG", "--val and --test choose from a draw, not from published lists", field="split",
                      found=split, hint="Use --split drawn with them.")  # fmt: skip
    if choices.unlisted is None:
        return split, None
    if split == "drawn":
        raise refusal("CONFIG", "without published lists every study is drawn", field="unlisted",
                      found=choices.unlisted)  # fmt: skip
    return split, _one_of("unlisted", choices.unlisted, ("train", "val", "test"))


def _protocol(dataset: DataSet, found: Found, choices: _Choices) -> Any:
    from codebrain.data.datasets import Protocol
    from codebrain.vocabulary import Preparation

    normalisation: Any = dataset.normalisation
    background: Any = dataset.background
    preparation: Preparation = Preparation(
        dataset.modalities or found.modalities,
        normalisation=normalisation,
        pixel_spacing_mm=dataset.pixel_spacing_mm,
        frame=dataset.frame,
        background=background,
    )
    reference = dataset.reference if dataset.reference in preparation.modalities else None
    return Protocol(preparation, dataset.align, reference, choices.reproducible)


def _quality_page(out: Path) -> Path | None:
    from codebrain.report.quality import write_quality_page

    return write_quality_page(out)


def _modalities(contrasts: str) -> Any:
    from codebrain.vocabulary import ModalitySet

    modalities = ModalitySet.parse(contrasts)
    if len(modalities) < 2:
        raise refusal("CONFIG", "imputation needs at least two contrasts", field="contrasts", found=contrasts)
    return modalities


def _spacing(text: str) -> float | None:
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 10:
        raise refusal(
            "CONFIG",
            "this is no pixel spacing",
            field="spacing",
            found=text,
            expected="0.1 to 10 mm, or none",
        )
    return value


_STEP, _LARGEST = 8, 1024


def _frame(text: str) -> tuple[int, int] | None:
    """``256x240``; pixels that the networks, which halve three times, can take."""
    if text == "none":
        return None
    parts = text.lower().split("x")
    sizes = [int(part) for part in parts if part.isdecimal()]
    if len(sizes) != 2 or len(parts) != 2 or any(size % _STEP or not _STEP <= size <= _LARGEST for size in sizes):
        raise refusal(
            "CONFIG", "this is no frame for slices", field="frame", found=text,
            expected=f"HxW, multiples of {_STEP} up to {_LARGEST}, or none",
        )  # fmt: skip
    return sizes[0], sizes[1]


def _slices(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or not int(text):
        raise refusal("CONFIG", "this is no number of slices", field="slices", found=text, expected="1 or more, or all")
    return int(text)


def _ids(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [] if text == "none" else [part.strip() for part in text.split(",") if part.strip()]


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise refusal("CONFIG", f"{name} cannot be {value!r}", field=name, expected=" or ".join(allowed))
    return value


def _summary(manifest: Manifest, out: Path, page: Path | None) -> dict[str, Any]:
    records = manifest.records
    return {
        "store": str(out),
        "contrasts": list(manifest.preparation.modalities),
        "prepared": manifest.count("prepared"),
        "skipped": manifest.count("skipped"),
        "refused": manifest.count("refused"),
        "missing": manifest.count("missing"),
        "doubtful": _doubtful(manifest),
        "quality_page": None if page is None else str(page),
        "slices": sum(record.shape[0] for record in records),
        "bytes": sum(record.slices_bytes + record.brain_bytes for record in records),
        "patients": manifest.splits["patients"],
        "rule": manifest.splits["rule"],
        "several_splits": manifest.splits.get("several_splits", {}),
        "splits_sha256": manifest.splits["sha256"],
        "fingerprint": manifest.fingerprint,
        "subjects": [row.__dict__ for row in manifest.rows],
    }


def _doubtful(manifest: Manifest) -> list[str]:
    """Subjects with a registration that fails the rule."""
    from codebrain.data.table import quality_rows

    failed = (row for row in quality_rows(manifest.rows, manifest.records) if row["verdict"] == "fail")
    return sorted({row["subject"] for row in failed})


_SHOWN_MISSING = 5


def _print(manifest: Manifest, out: Path, page: Path | None) -> None:
    facts = _summary(manifest, out, page)
    missing = [row.subject for row in manifest.rows if row.status == "missing"]
    for row in manifest.rows:
        if row.status != "missing":
            tail = row.split if row.status == "prepared" else f"{row.code}: {row.message}"
            emit(one_line(f"{row.subject}  {row.status}  {tail}"))
    if missing:
        more = f" and {len(missing) - _SHOWN_MISSING} more" if len(missing) > _SHOWN_MISSING else ""
        emit(f"missing: {', '.join(missing[:_SHOWN_MISSING])}{more}")
    people = ", ".join(f"{split} {len(ids)}" for split, ids in facts["patients"].items())
    emit(f"{facts['prepared']} prepared, {facts['skipped']} skipped, {facts['refused']} refused"
         + (f", {len(missing)} missing" if missing else ""))  # fmt: skip
    emit(f"contrasts {','.join(facts['contrasts'])}; patients: {people} ({facts['rule']})")
    if facts["doubtful"]:
        emit(f"registration to look at: {', '.join(facts['doubtful'])}")
    if page is not None:
        emit(f"quality of registration: {page}")
    emit(f"{facts['slices']} slices, {facts['bytes'] / 1e6:.0f} MB in {out}")
