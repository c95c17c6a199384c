"""``codebrain impute``: one study, from files to files."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

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
from codebrain.errors import one_line, refusal
from codebrain.vocabulary import Modality

if TYPE_CHECKING:
    from codebrain.results import Imputation


def _contrast(*flags: str) -> Any:
    return typer.Option(*flags, metavar="FILE", help=f"The {Modality.parse(flags[0].lstrip('-'))} scan.")


@dataclass(frozen=True)
class Request:
    """What was typed, checked for what can be checked without reading a scan."""

    files: Mapping[Modality, Path]
    folder: Path | None
    out: Path
    model: str
    want: tuple[str, ...] | None
    name: str
    align: Literal["auto", "none"]
    reference: str | None
    intensity: Literal["scanner", "unit"]
    precision: str
    device: str
    threads: int | None
    overwrite: bool
    evaluate: bool
    reading: Mapping[str, Any]


def register(app: typer.Typer) -> None:
    """Add ``codebrain impute``."""

    @app.command()
    def impute(
        out: OutOption,
        folder: Annotated[Path | None, typer.Argument(help="A folder whose file names tell contrasts.")] = None,
        t1: Annotated[list[Path] | None, _contrast("--t1", "--t1w", "--t1n")] = None,
        t2: Annotated[list[Path] | None, _contrast("--t2", "--t2w")] = None,
        pd: Annotated[list[Path] | None, _contrast("--pd", "--pdw")] = None,
        flair: Annotated[list[Path] | None, _contrast("--flair", "--t2f")] = None,
        t1gd: Annotated[list[Path] | None, _contrast("--t1gd", "--t1ce", "--t1c", "--t1post")] = None,
        inputs: Annotated[
            list[str] | None, typer.Option("--input", metavar="CONTRAST=FILE", help="A scan, by any name.")
        ] = None,
        model: Annotated[str, typer.Option(help="A bundled model or a model folder.")] = "starter",
        want: Annotated[
            str | None,
            typer.Option(metavar="T2,T1Gd", help="What to impute; by default all that is missing."),
        ] = None,
        name: Annotated[str, typer.Option(metavar="STEM", help="Files are named after it.")] = "study",
        align: Annotated[str, typer.Option(metavar="auto|none", help="Register different grids.")] = "auto",
        ref: Annotated[str | None, typer.Option(metavar="CONTRAST", help="Whose grid to use.")] = None,
        intensity: Annotated[str, typer.Option(metavar="scanner|unit", help="Scanner units, or [0, 1].")] = "scanner",
        precision: Annotated[str, typer.Option(metavar="auto|fp32|bf16")] = "auto",
        evaluate: Annotated[
            bool, typer.Option("--evaluate", help="Withhold wanted contrasts that are given; score them.")
        ] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in OUT.")] = False,
        volume: Annotated[int | None, typer.Option(min=0, help="Which volume of four-dimensional files.")] = None,
        max_voxels: Annotated[int, typer.Option(min=1, help="Refuse larger files.")] = 2**28,
        accept_no_orientation: Annotated[
            bool, typer.Option("--accept-no-orientation", help="Accept files without orientation codes.")
        ] = False,
        device: DeviceOption = "auto",
        threads: ThreadsOption = None,
        as_json: JsonOption = False,
        debug: DebugOption = False,
        verbose: VerboseOption = 0,
        quiet: QuietOption = False,
    ) -> None:
        """Impute the missing contrasts of one study.

        codebrain impute --t1 t1.nii.gz --flair flair.nii.gz -o out
        """

        def work() -> None:
            flags = {
                Modality.T1: t1, Modality.T2: t2, Modality.PD: pd, Modality.FLAIR: flair, Modality.T1GD: t1gd
            }  # fmt: skip
            request = Request(
                files=gather_files(folder, flags, inputs or [], announce=not quiet),
                folder=folder,
                out=out,
                model=model,
                want=None if want is None else tuple(want.split(",")),
                name=name,
                align=cast("Any", _choice("align", align, ("auto", "none"))),
                reference=ref,
                intensity=cast("Any", _choice("intensity", intensity, ("scanner", "unit"))),
                precision=_choice("precision", precision, ("auto", "fp32", "bf16")),
                device=device,
                threads=threads,
                overwrite=overwrite,
                evaluate=evaluate,
                reading={
                    "max_voxels": max_voxels,
                    "volume_index": volume,
                    "accept_no_orientation": accept_no_orientation,
                },
            )
            impute_files(request, as_json=as_json, quiet=quiet)

        run(work, as_json=as_json, debug=debug, verbose=verbose, quiet=quiet)


def _choice(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        expected = " or ".join(allowed)
        raise refusal("CONFIG", "no such choice", field=f"--{field}", found=value, expected=expected)
    return value


def gather_files(
    folder: Path | None,
    flags: Mapping[Modality, Sequence[Path] | None],
    inputs: Sequence[str],
    *,
    announce: bool = False,
) -> dict[Modality, Path]:
    """The file of each contrast: those recognised in a folder, replaced by those that were named.

    Raises:
        UsageError: ``MOD_DUPLICATE``, ``MOD_UNKNOWN``, ``MOD_NONE``, ``CONFIG``.
        InputRefused: when a folder's files are ambiguous.
    """
    named: dict[Modality, Path] = {}
    pairs = [(m, path) for m, paths in flags.items() for path in paths or ()] + [_pair(text) for text in inputs]
    for modality, path in pairs:
        if modality in named:
            raise refusal("MOD_DUPLICATE", f"{modality} is given twice", found=f"{named[modality]} and {path}")
        named[modality] = path
    found: dict[Modality, Path] = {}
    if folder is not None:
        from codebrain.imaging.study import find_files

        found = find_files(folder)
        for modality, path in found.items() if announce else ():
            say(f"codebrain: {modality}: {path.name}" + (" (replaced by the option)" if modality in named else ""))
    files = found | named
    if not files:
        hint = "Name the scans, as in: codebrain impute --t1 t1.nii.gz --flair flair.nii.gz -o out."
        raise refusal("MOD_NONE", "no scan was given", hint=hint)
    return {m: files[m] for m in Modality if m in files}


def _pair(text: str) -> tuple[Modality, Path]:
    contrast, equals, file = text.partition("=")
    if not equals or not file:
        raise refusal("CONFIG", "not a contrast and a file", field="--input", found=text, expected="CONTRAST=FILE")
    return Modality.parse(contrast), Path(file)


def impute_files(request: Request, *, as_json: bool, quiet: bool) -> None:
    """Check the output place, impute, write, say what was done."""
    from codebrain import output

    output.check_stem(request.name)
    sizes = [_size(file) for file in request.files.values()]
    place = output.RunFolder(
        request.out,
        overwrite=request.overwrite,
        inputs=request.files.values(),
        sources=[] if request.folder is None else [request.folder],
        need_bytes=2 * sum(sizes) + 2**23,
    )
    with place as folder:
        result = _impute(request, quiet=quiet)
        for notice in result.notices:
            where = f"{notice.file}: " if notice.file else ""
            say(f"codebrain: warning: {notice.code}: {where}{notice.message}")
        if len(result):
            result.write(folder, command=["codebrain", *sys.argv[1:]])
    report_result(result, request.out, as_json=as_json, quiet=quiet)


def _size(file: Path) -> int:
    """Bytes of a file; 0 for one that is not there or cannot be, of which the read says more."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _impute(request: Request, *, quiet: bool) -> Imputation:
    from codebrain.impute import Imputer

    imputer = Imputer.from_pretrained(
        request.model, device=request.device, threads=request.threads, precision=request.precision
    )
    with progress("imputing", quiet=quiet) as advance:
        return imputer(
            request.files,
            request.want,
            name=request.name,
            align=request.align,
            reference=request.reference,
            intensity=request.intensity,
            evaluate=request.evaluate,
            advance=advance,
            **request.reading,
        )


def report_result(result: Imputation, out: Path, *, as_json: bool, quiet: bool = False) -> None:
    """Say on stdout what was imputed and where it is."""
    from codebrain import output

    if not len(result):
        if as_json:
            emit_json({"study": result.name, "imputed": [], "outputs": []})
        elif not quiet:
            emit("Nothing to impute: the study has every contrast of the model.")
        return
    if as_json:
        emit_json({"folder": str(out), **output.read_json(out / output.RUN_FILE)})
        return
    record = result.record
    given, model = ", ".join(result.given), record["model"]["name"]
    seconds = sum(record["seconds"].values())
    emit(f"SYNTHETIC {', '.join(result)} imputed from {given} with {model} in {seconds:.1f} s")
    for modality in result:
        emit(f"  {modality:<6} {one_line(str(out / output.image_name(result.name, modality)))}")
    if record["enhancement"]:
        emit(f"  T1Gd: {record['enhancement']}")
    for line in score_lines(record["scores"]):
        emit(line)
    emit(f"Report: {one_line(str(out / output.REPORT_FILE))}")
    emit(record["notice"])


def score_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A small table of scores, one contrast a line; nothing without scores."""
    if not rows:
        return []
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        table.setdefault(row["contrast"], {})[row["metric"]] = row["value"]
    head = f"  {'':<6}" + "".join(f"{metric:>10}" for metric in metrics)
    body = [f"  {c:<6}" + "".join(f"{values[m]:>10.4g}" for m in metrics) for c, values in table.items()]
    return [head, *body]
