"""``codebrain prepare``: raw studies to a slice store that training and evaluation read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from codebrain.app._common import (
    DebugOption,
    JsonOption,
    OutOption,
    QuietOption,
    VerboseOption,
    emit,
    emit_json,
    one_line,
    progress,
    run,
)
from codebrain.errors import refusal

if TYPE_CHECKING:
    from codebrain.data.slices import Manifest
    from codebrain.data.sources import Found
    from codebrain.vocabulary import Preparation


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def prepare(
        kind: Annotated[str, typer.Argument(metavar="folder", help="Kind of source: a `folder` of study folders.")],
        source: Annotated[list[Path], typer.Argument(metavar="SRC...", help="One or more sources.")],
        out: OutOption,
        contrasts: Annotated[
            str | None, typer.Option(help="Their order, as T1,T2,FLAIR; by default all that occur.")
        ] = None,
        test: Annotated[
            str | None, typer.Option(metavar="ID,...|none", help="Held out for test; by default drawn.")
        ] = None,
        val: Annotated[
            str | None, typer.Option(metavar="ID,...|none", help="For validation; by default drawn.")
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
        normalisation: Annotated[str, typer.Option(metavar="percentile|min_max")] = "percentile",
        spacing: Annotated[
            str, typer.Option(metavar="MM|none", help="In-plane pixel spacing; none keeps each study's own.")
        ] = "1.0",
        align: Annotated[
            str, typer.Option(metavar="auto|none", help="Register contrasts on different grids, or refuse.")
        ] = "auto",
        jobs: Annotated[int | None, typer.Option(min=1, help="Studies at a time; by default up to 4.")] = None,
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
        run(
            lambda: _prepare(
                kind, source, out,
                contrasts=contrasts, normalisation=normalisation, spacing=spacing,
                align=_one_of("align", align, ("auto", "none")), seed=seed, val=_ids(val), test=_ids(test),
                jobs=jobs, resume=resume, overwrite=overwrite, as_json=as_json, quiet=quiet,
            ),
            as_json=as_json, debug=debug, verbose=verbose, quiet=quiet,
        )  # fmt: skip


def _prepare(
    kind: str,
    source: list[Path],
    out: Path,
    *,
    contrasts: str | None,
    normalisation: str,
    spacing: str,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    from codebrain.data.prepare import prepare_store
    from codebrain.data.sources import finder
    from codebrain.machine import allotted_cores

    find = finder(kind)
    wanted = None if contrasts is None else _modalities(contrasts)
    found = find(source)
    preparation = _preparation(found, wanted, normalisation, spacing)
    with progress("preparing", quiet=quiet) as advance:
        manifest = prepare_store(
            found, out, sources=source, preparation=preparation, progress=advance,
            jobs=jobs or min(4, allotted_cores()), **settings,
        )  # fmt: skip
    if as_json:
        emit_json(_summary(manifest, out))
    else:
        _print(manifest, out)
    refused = manifest.count("refused")
    if refused:
        raise refusal(
            "BATCH", f"{refused} of {len(manifest.rows)} studies were refused",
            hint="The others are prepared; subjects.tsv says why. Mend them and use --resume.",
        )  # fmt: skip


def _modalities(contrasts: str) -> Any:
    from codebrain.vocabulary import ModalitySet

    modalities = ModalitySet.parse(contrasts)
    if len(modalities) < 2:
        raise refusal("CONFIG", "imputation needs at least two contrasts", field="contrasts", found=contrasts)
    return modalities


def _preparation(found: Found, wanted: Any, normalisation: str, spacing: str) -> Preparation:
    from codebrain.vocabulary import Preparation

    method: Any = _one_of("normalisation", normalisation, ("percentile", "min_max"))
    return Preparation(
        wanted if wanted is not None else found.modalities,
        normalisation=method,
        pixel_spacing_mm=_spacing(spacing),
    )


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


def _ids(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [] if text == "none" else [part.strip() for part in text.split(",") if part.strip()]


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> Literal["auto", "none"]:
    if value not in allowed:
        raise refusal("CONFIG", f"{name} cannot be {value!r}", field=name, expected=" or ".join(allowed))
    return value  # type: ignore[return-value]


def _summary(manifest: Manifest, out: Path) -> dict[str, Any]:
    records = manifest.records
    return {
        "store": str(out),
        "contrasts": list(manifest.preparation.modalities),
        "prepared": manifest.count("prepared"),
        "skipped": manifest.count("skipped"),
        "refused": manifest.count("refused"),
        "slices": sum(record.shape[0] for record in records),
        "bytes": sum(record.slices_bytes + record.brain_bytes for record in records),
        "patients": manifest.splits["patients"],
        "splits_sha256": manifest.splits["sha256"],
        "fingerprint": manifest.fingerprint,
        "subjects": [row.__dict__ for row in manifest.rows],
    }


def _print(manifest: Manifest, out: Path) -> None:
    facts = _summary(manifest, out)
    for row in manifest.rows:
        tail = row.split if row.status == "prepared" else f"{row.code}: {row.message}"
        emit(one_line(f"{row.subject}  {row.status}  {tail}"))
    people = ", ".join(f"{split} {len(ids)}" for split, ids in facts["patients"].items())
    emit(f"{facts['prepared']} prepared, {facts['skipped']} skipped, {facts['refused']} refused")
    emit(f"contrasts {','.join(facts['contrasts'])}; patients: {people}")
    emit(f"{facts['slices']} slices, {facts['bytes'] / 1e6:.0f} MB in {out}")
