"""``codebrain impute``: one study, from files to files."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from codebrain.app._common import (
    DebugOption,
    DeviceOption,
    EngineOption,
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
from codebrain.vocabulary import PRECISIONS, Modality

if TYPE_CHECKING:
    from codebrain.imaging.dicom.series import Series
    from codebrain.intake import Intake
    from codebrain.results import Imputation


def _contrast(*flags: str) -> Any:
    contrast = Modality.parse(flags[0].lstrip("-"))
    return typer.Option(*flags, metavar="FILE", help=f"The {contrast} scan: NIfTI, or a folder of one DICOM series.")


@dataclass(frozen=True)
class Request:
    """What was typed, checked for what can be checked without reading a scan."""

    files: Mapping[Modality, Path | Series]
    folder: Path | None
    out: Path
    model: str
    want: tuple[str, ...] | None
    name: str
    align: Literal["auto", "none"]
    reference: str | None
    space: str
    intensity: Literal["scanner", "unit"]
    precision: str
    engine: str
    device: str
    threads: int | None
    overwrite: bool
    evaluate: bool
    reading: Mapping[str, Any]
    dicom: bool = False
    keep_patient: bool = False


def register(app: typer.Typer) -> None:
    """Add ``codebrain impute``."""

    @app.command()
    def impute(
        out: OutOption,
        folder: Annotated[
            Path | None,
            typer.Argument(help="A folder of scans whose names tell contrasts, or a folder or zip of DICOM."),
        ] = None,
        t1: Annotated[list[Path] | None, _contrast("--t1", "--t1w", "--t1n")] = None,
        t2: Annotated[list[Path] | None, _contrast("--t2", "--t2w")] = None,
        pd: Annotated[list[Path] | None, _contrast("--pd", "--pdw")] = None,
        flair: Annotated[list[Path] | None, _contrast("--flair", "--t2f")] = None,
        t1gd: Annotated[list[Path] | None, _contrast("--t1gd", "--t1ce", "--t1c", "--t1post")] = None,
        inputs: Annotated[
            list[str] | None, typer.Option("--input", metavar="CONTRAST=FILE", help="A scan, by any name.")
        ] = None,
        series: Annotated[
            list[str] | None,
            typer.Option("--series", metavar="CONTRAST=NUMBER|none", help="Which DICOM series is a contrast."),
        ] = None,
        model: Annotated[str, typer.Option(help="A bundled model or a model folder.")] = "starter",
        want: Annotated[
            str | None,
            typer.Option(metavar="T2,T1Gd", help="What to impute; by default all that is missing."),
        ] = None,
        name: Annotated[str, typer.Option(metavar="STEM", help="Files are named after it.")] = "study",
        align: Annotated[str, typer.Option(metavar="auto|none", help="Register different grids.")] = "auto",
        ref: Annotated[str | None, typer.Option(metavar="CONTRAST", help="Whose grid to use.")] = None,
        space: Annotated[
            str,
            typer.Option(
                metavar="reference|native:CONTRAST[,...]", help="Also give results on the grid of a given scan."
            ),
        ] = "reference",
        intensity: Annotated[str, typer.Option(metavar="scanner|unit", help="Scanner units, or [0, 1].")] = "scanner",
        precision: Annotated[
            str,
            typer.Option(metavar="|".join(PRECISIONS), help="auto: the fastest that a check finds close to fp32."),
        ] = "auto",
        output_type: Annotated[
            str, typer.Option(metavar="nifti|nifti,dicom", help="Also a derived DICOM series, marked synthetic.")
        ] = "nifti",
        keep_patient: Annotated[
            bool, typer.Option("--keep-patient", help="Copy patient and examination into the DICOM output.")
        ] = False,
        evaluate: Annotated[
            bool, typer.Option("--evaluate", help="Withhold wanted contrasts that are given; score them.")
        ] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in OUT.")] = False,
        volume: Annotated[int | None, typer.Option(min=0, help="Which volume of four-dimensional files.")] = None,
        max_voxels: Annotated[int, typer.Option(min=1, help="Refuse larger files.")] = 2**28,
        accept_no_orientation: Annotated[
            bool, typer.Option("--accept-no-orientation", help="Accept files without orientation codes.")
        ] = False,
        accept_synthetic: Annotated[
            bool, typer.Option("--accept-synthetic", help="Accept inputs that a model computed.")
        ] = False,
        engine: EngineOption = "auto",
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
                files=gather_files(folder, flags, inputs or [], series or [], announce=not quiet, describe=verbose > 0),
                folder=folder,
                out=out,
                model=model,
                want=None if want is None else tuple(want.split(",")),
                name=name,
                align=cast("Any", _choice("align", align, ("auto", "none"))),
                reference=ref,
                space=space,
                intensity=cast("Any", _choice("intensity", intensity, ("scanner", "unit"))),
                precision=_choice("precision", precision, PRECISIONS),
                engine=engine,
                device=device,
                threads=threads,
                overwrite=overwrite,
                evaluate=evaluate,
                reading={
                    "max_voxels": max_voxels,
                    "volume_index": volume,
                    "accept_no_orientation": accept_no_orientation,
                    "accept_synthetic": accept_synthetic,
                },
                dicom="dicom" in _choice("output-type", output_type, ("nifti", "nifti,dicom")),
                keep_patient=keep_patient,
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
    series: Sequence[str] = (),
    *,
    announce: bool = False,
    describe: bool = False,
) -> dict[Modality, Path | Series]:
    """The file or DICOM series of each contrast: those recognised in a folder, replaced by those that were named.

    Args:
        folder: of named files, or a folder or zip archive of DICOM files.
        flags: files by contrast.
        inputs: ``CONTRAST=FILE``.
        series: ``CONTRAST=NUMBER`` of DICOM series in ``folder``.
        announce: say on stderr what was recognised.
        describe: with the descriptions of DICOM series, which may name a person.

    Raises:
        UsageError: ``MOD_DUPLICATE``, ``MOD_UNKNOWN``, ``MOD_NONE``, ``CONFIG``.
        InputRefused: when a folder's files are ambiguous.
    """
    named: dict[Modality, Path] = {}
    pairs = [(m, path) for m, paths in flags.items() for path in paths or ()]
    for modality, path in [*pairs, *((m, Path(file)) for m, file in (_pair(text) for text in inputs))]:
        if modality in named:
            raise refusal("MOD_DUPLICATE", f"{modality} is given twice", found=f"{named[modality]} and {path}")
        named[modality] = path
    wishes = dict(_pair(text, "--series", "CONTRAST=NUMBER") for text in series)
    if folder is None and wishes:
        raise refusal("CONFIG", "a series is chosen from a folder, and none was given", field="--series")
    found: Mapping[Modality, Path | Series] = {}
    if folder is not None:
        found, lines = _recognise(folder, {**wishes, **dict.fromkeys(named, "none")}, bool(wishes), describe=describe)
        for line in lines if announce else ():
            say(f"codebrain: {line}")
    files = {**found, **named}
    if not files:
        hint = "Name the scans, as in: codebrain impute --t1 t1.nii.gz --flair flair.nii.gz -o out."
        raise refusal("MOD_NONE", "no scan was given", hint=hint)
    return {m: files[m] for m in Modality if m in files}


def _recognise(
    folder: Path, wishes: Mapping[Modality, str], only_dicom: bool, *, describe: bool
) -> tuple[Mapping[Modality, Path | Series], list[str]]:
    """What lies in a folder or archive, and a line about each of it; ``wishes`` as for DICOM series."""
    from codebrain.imaging.dicom.find import find_examination
    from codebrain.imaging.study import find_files, find_session

    files = {} if folder.is_file() else find_files(folder)
    if files and not only_dicom:
        replaced = {m: " (replaced by the option)" if m in wishes else "" for m in files}
        return files, [f"{m}: {path.name}{replaced[m]}" for m, path in files.items()]
    examination = find_examination(folder, wishes)
    if examination is not None:
        return examination.chosen, examination.lines(describe=describe)
    if only_dicom:
        raise refusal("CONFIG", "there is no DICOM series here to choose from", file=folder, field="--series")
    files = find_session(folder)
    return files, [f"{m}: {path.name}" for m, path in files.items()]


def _pair(text: str, flag: str = "--input", form: str = "CONTRAST=FILE") -> tuple[Modality, str]:
    contrast, equals, value = text.partition("=")
    if not equals or not value:
        raise refusal("CONFIG", f"not of the form {form}", field=flag, found=text, expected=form)
    return Modality.parse(contrast), value


def impute_files(request: Request, *, as_json: bool, quiet: bool) -> None:
    """Check the output place, impute, write, say what was done."""
    from codebrain import output
    from codebrain.imaging.space import native_contrasts

    output.check_stem(request.name)
    if request.dicom:
        _require_dicom(request)
    elif request.keep_patient:
        hint = "Add --output-type nifti,dicom; nothing else that is written ever names a patient."
        raise refusal("CONFIG", "only a DICOM series can name its patient", field="--keep-patient", hint=hint)
    places = [file if isinstance(file, Path) else file.file for file in request.files.values()]
    sources = [place for place in places if os.path.isdir(place)]  # noqa: PTH112 (says no for impossible names)
    sources += [] if request.folder is None else [request.folder]
    copies = 2 * (1 + len(native_contrasts(request.space))) + request.dicom
    place = output.RunFolder(
        request.out,
        overwrite=request.overwrite,
        inputs=places,
        sources=sources,
        need_bytes=copies * sum(_size(file) for file in request.files.values()) + 2**23,
    )
    with place as folder:
        result = _impute(request, quiet=quiet)
        for notice in (n for n in result.notices if n.code != "LOW_CONFIDENCE"):  # which is the last word
            where = f"{notice.file}: " if notice.file else ""
            say(f"codebrain: warning: {notice.code}: {where}{notice.message}")
        if len(result):
            command = ["codebrain", *_without_dicom_paths(sys.argv[1:], request)]
            result.write(folder, command=command, dicom=request.dicom, keep_patient=request.keep_patient)
    report_result(result, request.out, as_json=as_json, quiet=quiet)


def _is_dicom(file: Path | Series) -> bool:
    from codebrain.imaging.dicom.store import open_store

    return not isinstance(file, Path) or open_store(file) is not None


def _size(file: Path | Series) -> int:
    """Bytes of a scan; of a folder, whose files nobody has looked at yet, those of all."""
    if not isinstance(file, Path):
        return sum(instance.size for instance in file.instances)
    try:
        if file.is_dir():
            return sum(path.stat().st_size for path in file.rglob("*") if path.is_file())
        return file.stat().st_size if file.is_file() else 0
    except OSError:  # a name that no file can have, of which the read says more
        return 0


def _require_dicom(request: Request) -> None:
    """``DCM_SOURCE``, before any work, where no DICOM series could carry the results."""
    from codebrain.imaging.space import native_contrasts

    reference = None if request.reference is None else Modality.parse(request.reference)
    native = native_contrasts(request.space)
    carriers = [file for m, file in request.files.items() if reference in (None, m) or m in native]
    if not any(_is_dicom(file) for file in carriers):
        raise refusal(
            "DCM_SOURCE", "a DICOM series can only be written on the slices of a DICOM series",
            field="--output-type", found="no DICOM input", hint="Give the scans as DICOM, or write NIfTI only.",
        )  # fmt: skip


def _without_dicom_paths(words: Sequence[str], request: Request) -> list[str]:
    """The command line for the record: names of DICOM folders and files, which may be a patient's, become DICOM."""
    given = [file for file in (*request.files.values(), request.folder) if isinstance(file, Path)]
    private = {path for path in given if _is_dicom(path)}
    return ["=".join("DICOM" if Path(part) in private else part for part in word.split("=")) for word in words]


def _impute(request: Request, *, quiet: bool) -> Imputation:
    """Read and prepare the scans while torch and the model are loaded."""
    from codebrain.data.beside import beside
    from codebrain.machine import default_threads

    with beside(partial(_take_in, request), threads=request.threads or default_threads()) as taken_in:
        from codebrain.impute import Imputer

        imputer = Imputer.from_pretrained(
            request.model,
            device=request.device,
            threads=request.threads,
            precision=request.precision,
            engine=request.engine,
        )
        with progress("imputing", quiet=quiet) as advance:
            return imputer.impute(taken_in(), intensity=request.intensity, advance=advance)


def _take_in(request: Request) -> Intake:
    from codebrain.intake import take_in
    from codebrain.models._config import read_preparation

    return take_in(
        request.files,
        read_preparation(request.model),
        request.want,
        name=request.name,
        align=request.align,
        reference=request.reference,
        space=request.space,
        evaluate=request.evaluate,
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
        say_low_confidence(result)
        return
    record = result.record
    given, model = ", ".join(result.given), record["model"]["name"]
    seconds = sum(record["seconds"].values())
    emit(f"SYNTHETIC {', '.join(result)} imputed from {given} with {model} on {record['device']} in {seconds:.1f} s")
    for modality in result:
        for space in (None, *result.native):
            emit(f"  {modality:<6} {one_line(str(out / output.image_name(result.name, modality, space)))}")
    for row in dicom_rows(out):
        emit(f"  {row['contrast']:<6} {one_line(str(out / row['file']))} ({row['kind']})")
    if record["enhancement"]:
        emit(f"  T1Gd: {record['enhancement']}")
    for line in score_lines(record["scores"]):
        emit(line)
    emit(f"Report: {one_line(str(out / output.REPORT_FILE))}")
    emit(record["notice"])
    say_low_confidence(result)


def say_low_confidence(result: Imputation) -> None:
    """The last line on stderr, also under ``--quiet`` and ``--json``, where the doubt is over the limit."""
    for notice in result.notices:
        if notice.code == "LOW_CONFIDENCE":
            say(f"codebrain: {notice.message}")


def dicom_rows(out: Path) -> list[Mapping[str, Any]]:
    """The DICOM series that the run in ``out`` wrote, as its record has them."""
    from codebrain import output

    return [row for row in output.read_json(out / output.RUN_FILE).get("outputs", []) if "files" in row]


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
