"""``codebrain doctor``: what is wrong with a scan, and what to type to mend it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrain.app._common import (
    DebugOption,
    JsonOption,
    QuietOption,
    VerboseOption,
    emit,
    emit_json,
    progress,
    run,
)
from codebrain.errors import CodeBrainError, one_line

if TYPE_CHECKING:
    from codebrain.imaging.compare import Comparison, Placed
    from codebrain.imaging.examine import Examination, Finding, HeaderFacts, ImageFacts

Line = tuple[str, str, str]
"""Label, text, and how it looks on a terminal."""

_LABEL = 14


def register(app: typer.Typer) -> None:
    """Add ``codebrain doctor``."""

    @app.command()
    def doctor(
        files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Scans, or folders of them.")],
        compare: Annotated[
            bool, typer.Option("--compare/--no-compare", help="See whether several scans show one head in one place.")
        ] = True,
        volume: Annotated[int | None, typer.Option(min=0, help="Which volume of four-dimensional files.")] = None,
        max_voxels: Annotated[int, typer.Option(min=1, help="Refuse larger files.")] = 2**28,
        accept_no_orientation: Annotated[
            bool, typer.Option("--accept-no-orientation", help="Accept files without orientation codes.")
        ] = False,
        accept_synthetic: Annotated[
            bool, typer.Option("--accept-synthetic", help="Accept images that a model computed.")
        ] = False,
        as_json: JsonOption = False,
        debug: DebugOption = False,
        verbose: VerboseOption = 0,
        quiet: QuietOption = False,
    ) -> None:
        """Say what a scan is, what is wrong with it, and the command that mends it.

        Exit status 0 when impute would take every file, 3 when it would refuse one.
        """
        reading = {
            "max_voxels": max_voxels,
            "volume_index": volume,
            "accept_no_orientation": accept_no_orientation,
            "accept_synthetic": accept_synthetic,
        }
        run(
            lambda: _doctor(files, reading, comparing=compare, as_json=as_json, quiet=quiet),
            as_json=as_json, debug=debug, verbose=verbose, quiet=quiet,
        )  # fmt: skip


def _doctor(files: Sequence[Path], reading: dict[str, Any], *, comparing: bool, as_json: bool, quiet: bool) -> None:
    from codebrain.imaging.compare import compare

    groups = list(_groups(files))
    total, done, usable = sum(len(group) for group in groups), 0, True
    documents: list[dict[str, Any]] = []
    comparisons: list[Comparison] = []
    with progress("examining", quiet=quiet or as_json) as advance:
        for group in groups:
            examined: list[Examination] = []
            for path, kind in group:
                passed_over = kind == "passed over"
                found, notes = _examined(path, kind, reading)
                examined += found
                done += 1
                advance(done, total, path.name)
                for one in found:
                    usable = usable and (one.usable or passed_over)
                    documents.append({**one.as_dict(), "passed_over": passed_over})
                    if not as_json:
                        _print(page(one, passed_over=passed_over))
                if notes and not as_json:
                    _print([("", f"{path}: what the DICOM headers say", "bold"), *(("", f"  {n}", "") for n in notes)])
            beside = compare(examined) if comparing and len(examined) > 1 else None
            if beside is not None:
                comparisons.append(beside)
                if not as_json:
                    _print(beside_page(beside, examined))
    if as_json:
        emit_json({"usable": usable, "files": documents, "groups": [c.as_dict() for c in comparisons]})
    if not usable:
        raise typer.Exit(3)


def _examined(path: Path, kind: str, reading: dict[str, Any]) -> tuple[list[Examination], list[str]]:
    """One file as one examination, DICOM as one of each series that is a contrast."""
    from codebrain.imaging.dicom.store import open_store
    from codebrain.imaging.examine import empty_folder, examine, examine_dicom

    if kind == "empty":
        return [empty_folder(path)], []
    dicom = examine_dicom(path, **reading) if kind == "dicom" or _may_be_dicom(path, open_store) else None
    return dicom if dicom is not None else ([examine(path, **reading)], [])


def _may_be_dicom(path: Path, open_store: Callable[[Path], object]) -> bool:
    try:
        return open_store(path) is not None
    except CodeBrainError:  # cannot be read; the examination says why
        return False


def _groups(files: Sequence[Path]) -> Iterator[list[tuple[Path, str]]]:
    """Files that belong together: those named one by one, and those of one folder below a named folder.

    Of a folder with files that are named after contrasts, ``impute`` passes over the others, such as segmentations.
    """
    from codebrain.imaging.examine import find_scans
    from codebrain.imaging.study import modality_of

    named = [(path, "scan") for path in files if not os.path.isdir(path)]  # noqa: PTH112 (says no for any name)
    if named:
        yield named
    for folder in (path for path in files if os.path.isdir(path)):  # noqa: PTH112
        scans, dicom = find_scans(folder)
        if not scans and not dicom:
            yield [(folder, "empty")]
        for home in dict.fromkeys(path.parent for path in scans):
            here = [path for path in scans if path.parent == home]
            named_here = {path for path in here if modality_of(path.name) is not None} or set(here)
            yield [(path, "scan" if path in named_here else "passed over") for path in here]
        if dicom:
            yield [(folder, "dicom")]


def _print(lines: Iterable[Line]) -> None:
    """Words in columns; in colour on a terminal only. A long line is never cut or broken."""
    if not sys.stdout.isatty():
        for label, text, _ in lines:
            emit(f"{_column(label)}{one_line(text)}".rstrip())
        emit("")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for label, text, style in lines:
        console.print(Text().append(_column(label), "dim").append(one_line(text), style))
    console.print()


def _column(label: str) -> str:
    return f"{label:<{_LABEL}}" if label else ""


def page(found: Examination, *, passed_over: bool = False) -> list[Line]:
    """All that is known of one scan, a line each."""
    refused = sum(finding.severity == "refused" for finding in found.findings)
    warned = len(found.findings) - refused
    verdict = "would be refused" if refused else "usable"
    verdict += f", {warned} warning{'s' if warned > 1 else ''}" if warned else ""
    verdict += "; impute passes it over, because its name says no contrast" if passed_over else ""
    lines: list[Line] = [("", f"{found.path}: {verdict}", "bold red" if refused else "bold green")]
    lines += [] if found.header is None else _header_lines(found.header)
    lines += [] if found.image is None else _image_lines(found.image)
    for finding in found.findings:
        lines += _finding_lines(finding)
    return lines


def _header_lines(header: HeaderFacts) -> Iterator[Line]:
    from codebrain.imaging.examine import code_name

    scaled = "" if header.scaling is None else f", scaled by {header.scaling[0]:g} plus {header.scaling[1]:g}"
    yield "  file", f"{header.format}, {_bytes(header.bytes)}, {header.dtype}{scaled}", ""
    grid = _times(header.shape, "voxels")
    if header.spacing:
        grid += f" of {_times(header.spacing, 'mm')}, field of view {_times(header.field_of_view, 'mm')}"
    yield "  grid", grid, ""
    apart = header.forms_apart
    forms = f"qform {code_name(header.qform)}, sform {code_name(header.sform)}"
    if apart is not None:
        agree = "they agree" if apart <= 0.1 else f"{apart:.2g} voxels apart"
        forms += ", the qform is impossible" if apart == float("inf") else f", {agree}"
    yield "  orientation", f"{header.orientation or 'unknown'}; {forms}", ""
    if header.texts:
        yield "  texts", "the header holds words, which are never copied to an output", ""


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count} bytes"


def _times(values: Sequence[float], unit: str) -> str:
    return f"{' x '.join(f'{value:.4g}' if value < 1e4 else f'{value:.0f}' for value in values)} {unit}"


def _image_lines(image: ImageFacts) -> Iterator[Line]:
    inside = image.percentiles
    yield (
        "  range",
        f"{image.least:.5g} to {image.most:.5g}; in the head 1 % {inside[1.0]:.5g}, half {inside[50.0]:.5g},"
        f" 99 % {inside[99.0]:.5g}",
        "",
    )
    air = f"{image.background:.5g} fills it" if image.background is not None else f"noise around {image.air:.5g}"
    yield "  background", f"{air}; the head is {image.head_litres:.2f} l, {image.head_share:.0%} of the image", ""
    kinds = {"stripped": "skull-stripped", "whole": "whole, with skull", "defaced": "with skull, defaced"}
    yield "  head", f"{kinds.get(image.kind, 'unclear whether skull-stripped')} ({image.kind_reason})", ""
    looks = image.looks_like
    yield "  looks like", f"{looks} ({looks.reason})", "bold" if looks.confidence == "likely" else ""


def _finding_lines(finding: Finding) -> Iterator[Line]:
    bad = finding.severity == "refused"
    yield f"  {finding.severity}", f"{finding.code}: {_sentence(finding.message)}", "red" if bad else "yellow"
    if finding.advice:
        yield "", f"{' ' * _LABEL}{finding.advice}", ""
    for mending in finding.mendings:
        when = f"   # {'' if mending.when.startswith('to ') else 'if '}{mending.when}" if mending.when else ""
        yield "    mend", mending.command + when, "cyan"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def beside_page(beside: Comparison, examined: Sequence[Examination]) -> list[Line]:
    """Several scans beside each other, and how to impute from them."""
    count = len(beside.scans)
    grids = "on one grid" if beside.one_grid else "not on one grid; impute brings them onto that of the reference"
    lines: list[Line] = [("", f"{count} scans together: {grids}", "bold")]
    lines += [(f"  {_short(scan)}", f"{scan.path.name}{_where(scan)}", "") for scan in beside.scans]
    for finding in beside.findings:
        lines += _finding_lines(finding)
    command = _impute_command(examined)
    return [*lines, ("  impute", command, "cyan")] if command else lines


def _short(scan: Placed) -> str:
    if scan.place == "reference":
        return "reference"
    return "same grid" if scan.same_grid else "own grid"


def _where(scan: Placed) -> str:
    if scan.movement is None:
        return ""
    if scan.place == "in place" and not scan.movement.registered:
        return ": lies on it as the headers say"
    if scan.place == "in place":
        return f": lies on it within {max(scan.movement.shift_mm, 0.1):.1f} mm"
    moved = f"{scan.movement.shift_mm:.1f} mm and {scan.movement.rotation_deg:.1f} degrees"
    alike = f"similarity {scan.movement.similarity_before:.3f}, then {scan.movement.similarity_after:.3f}"
    return f": its head lies {moved} off ({alike})"


def _impute_command(examined: Sequence[Examination]) -> str:
    """How the usable scans would be given; empty where a contrast is not sure or comes twice."""
    if any(scan.header is not None and scan.header.format.startswith("DICOM") for scan in examined):
        return f"codebrain impute {shlex.quote(str(examined[0].path.parent))} -o OUT"
    flags: dict[str, str] = {}
    for scan in examined:
        if scan.image is None or (contrast := _contrast(scan.image)) is None:
            continue
        if contrast in flags:
            return ""
        flags[contrast] = shlex.quote(str(scan.path))
    words = " ".join(f"--{contrast.lower()} {path}" for contrast, path in flags.items())
    return f"codebrain impute {words} -o OUT" if len(flags) > 1 else ""


def _contrast(image: ImageFacts) -> str | None:
    """The contrast that name and image agree on, or that the image alone shows."""
    candidates = image.looks_like.candidates
    if image.named is not None and (not candidates or image.named in candidates):
        return image.named
    return str(candidates[0]) if len(candidates) == 1 and image.named is None else None
