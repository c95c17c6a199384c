"""One series becomes a checked volume, by dcm2niix.

dcm2niix knows what vendors do to headers and pixels (scaling by frame, odd bits, enhanced objects) better than
we ever shall. It is given a private folder with copies of the files under numbers, no shell, no defaults of the
user's, and a time limit; what it gives must have the slices and the geometry that the headers promise, and is
then read as any other NIfTI file is.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from codebrain.errors import CodeBrainError, Notice, missing_extra, refusal
from codebrain.imaging import safe_files
from codebrain.imaging._geometry import corners
from codebrain.imaging.dicom.labels import label
from codebrain.imaging.dicom.series import DECODED, Layout, Series, judge_series
from codebrain.imaging.volume import MAX_VOXELS, Volume, read_volume, same_grid
from codebrain.vocabulary import Modality

TIME_LIMIT_S = 300
"""A head of 512 MB takes dcm2niix some seconds."""

_APART_MM = 0.01
"""Between the corners that the headers give and those of the converted volume."""

_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
_WARNING = re.compile(r"^\s*(?:Warning|Error)\b", re.MULTILINE)
_HARMLESS = re.compile(
    r"empty protocol name|patient position|unable to (?:determine|detect) (?:slice|phase|manufacturer|vendor)"
    r"|slice timing|phase encod|bids|acquisition (?:date|time)|sequence name|unknown manufacturer|readout"
    r"|check that 2d images|unable to determine manufacturer",
    re.IGNORECASE,
)  # fmt: skip
"""Warnings about what is of no use here: fields of the sidecar that dcm2niix writes for others."""


def read_series(
    series: Series, *, max_voxels: int = MAX_VOXELS, accept_synthetic: bool = False, **_other: Any
) -> Volume:
    """Convert and check one series.

    Args:
        series: as found.
        max_voxels: refuse larger ones from the headers alone.
        accept_synthetic: take a series that says it was computed.
        **_other: of :func:`codebrain.imaging.volume.read_volume`; they do not concern DICOM.

    Returns:
        A volume that names its series by number, and whose SHA-256 is that of its files (see :func:`_copy`).

    Raises:
        InputRefused: ``DCM_*`` and ``IN_*`` as :func:`codebrain.imaging.dicom.series.judge_series` and
            :func:`codebrain.imaging.volume.read_volume` say; ``DCM_UNSUPPORTED`` and ``DCM_CODEC`` where dcm2niix
            cannot convert it; ``DCM_GEOMETRY`` where it gives another geometry than the headers.
        EnvironmentRefused: ``ENV_EXTRA`` without dcm2niix.
    """
    notices = judge_series(series, max_voxels=max_voxels, accept_synthetic=accept_synthetic)
    with tempfile.TemporaryDirectory(prefix="codebrain-dicom-") as scratch:
        source, target = Path(scratch) / "in", Path(scratch) / "out"
        source.mkdir()
        target.mkdir()
        sha256 = _copy(series, source)
        image, warned = _convert(series, source, target)
        try:
            # Converted under our own eyes from a source that was judged: a mark cannot sit here.
            volume = read_volume(image, name=series.name, max_voxels=max_voxels)
        except CodeBrainError as error:
            raise _of_series(error, series) from error
    _judge_result(series, series.layout, volume)
    found = (*notices, *warned, *volume.notices)
    return replace(volume, file=series.file, sha256=sha256, notices=found, series=series)


def _of_series(error: CodeBrainError, series: Series) -> CodeBrainError:
    """The refusal of a converted volume, told of its series and not of a file that is gone."""
    return refusal(error.code, f"series {series.handle}: {error.message}", file=series.file, field=error.field,
                   found=error.found, expected=error.expected, hint=error.hint)  # fmt: skip


def _copy(series: Series, folder: Path) -> str:
    """Copy the files that hold the slices into ``folder`` under numbers.

    Returns:
        SHA-256 over the sorted SHA-256 of the files, so that names and order do not count.

    Raises:
        InputRefused: ``IN_CHANGED`` when a file is not as long as it was.
    """
    needed = {plane.file for plane in series.layout.planes}
    digests = []
    for number, instance in enumerate(i for i in series.instances if i.file in needed):
        digest = hashlib.sha256()
        with series.store.stream(instance.file) as stream:
            copied = safe_files.write_scratch(
                folder / f"{number:06d}.dcm", _hashed(stream.chunks(instance.size), digest)
            )
        if copied != instance.size:
            raise refusal("IN_CHANGED", f"series {series.handle}: a file changed while it was read", file=series.file,
                          hint="Wait until it is complete and try again.")  # fmt: skip
        digests.append(digest.hexdigest())
    return safe_files.sha256_bytes("".join(sorted(digests)).encode())


def _hashed(chunks: Iterator[bytes], digest: Any) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _program() -> str:
    try:
        import dcm2niix
    except ImportError as error:
        raise missing_extra("dcm2niix", "dicom", "reading DICOM") from error
    return str(dcm2niix.bin)


def _convert(series: Series, source: Path, target: Path) -> tuple[Path, list[Notice]]:
    """The one NIfTI file that dcm2niix makes of ``source``, and whether it warned of something that counts here."""
    command = [
        _program(), "-g", "i", "-d", "0", "-x", "i", "-z", "n", "-b", "n", "-ba", "y", "-c", "", "-l", "o", "-i", "n",
        "-f", "volume", "-o", os.fspath(target), os.fspath(source),
    ]  # fmt: skip
    environment = {
        key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR") if key in os.environ
    }
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=TIME_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _failed(series, f"dcm2niix did not end within {TIME_LIMIT_S} s") from None
    images = sorted(target.glob("*.nii"))
    if done.returncode < 0 or not images:
        raise _failed(series, f"dcm2niix could not convert it (status {done.returncode})")
    if len(images) > 1:
        raise refusal(
            "DCM_MIXED", f"series {series.handle}: dcm2niix makes {len(images)} volumes of it", file=series.file,
            expected="one volume", hint="Convert it with dcm2niix and give the NIfTI file that is meant.",
        )  # fmt: skip
    said = done.stdout + done.stderr
    count = sum(1 for line in said.splitlines() if _WARNING.match(line) and not _HARMLESS.search(line))
    note = f"dcm2niix gave {count} warning(s) on this series; run it by hand to read them"
    return images[0], [Notice("DCM_CONVERTER", note, series.name)] if count else []


def _failed(series: Series, sentence: str) -> CodeBrainError:
    syntax = series.first.syntax
    compressed = syntax in DECODED - _NATIVE
    hint = "Decompress the series first, for example with: gdcmconv --raw IN OUT." if compressed else (
        "Convert the series by hand and give the NIfTI file.")  # fmt: skip
    return refusal("DCM_CODEC" if compressed else "DCM_UNSUPPORTED", f"series {series.handle}: {sentence}",
                   file=series.file, found=f"transfer syntax {syntax}", hint=hint)  # fmt: skip


def _judge_result(series: Series, layout: Layout, volume: Volume) -> None:
    """``DCM_GEOMETRY`` unless the volume has the slices of the headers, and its corners lie where theirs do."""
    rows, columns, _ = series.first.shape
    promised = (columns, rows, len(layout.planes))
    same = sorted(volume.data.shape) == sorted(promised)
    apart = _furthest(corners(layout.affine, promised), corners(volume.affine, volume.data.shape))
    if not same or apart > _APART_MM:
        raise refusal(
            "DCM_GEOMETRY", f"series {series.handle}: dcm2niix gives another geometry than the headers",
            file=series.file, found=f"{' x '.join(map(str, volume.data.shape))}, corners {apart:.3f} mm off",
            expected=f"{' x '.join(map(str, promised))}, within {_APART_MM} mm",
            hint="Convert the series by hand, look at it, and give the NIfTI file.",
        )  # fmt: skip


def _furthest(corners_a: Any, corners_b: Any) -> float:
    """How far the furthest corner of one box is from the nearest of the other, mm."""
    distances = np.linalg.norm(corners_a[:, None] - corners_b[None], axis=2)
    return float(distances.min(axis=1).max())


def agreeing_series(volumes: Mapping[Modality, Volume]) -> dict[Modality, Volume]:
    """The contrasts of one study, with a notice on those that may not lie where their headers say.

    Raises:
        InputRefused: ``DCM_MIXED`` when they are of several patients.
    """
    home = next((volume for volume in volumes.values() if volume.series is not None), None)
    return {m: volume if home is None else _agreeing(m, volume, home) for m, volume in volumes.items()}


def _agreeing(modality: Modality, volume: Volume, home: Volume) -> Volume:
    if volume.series is None or home.series is None:
        return volume
    one, other, told = home.series.first, volume.series.first, label(volume.series)
    if one.person and other.person and one.person != other.person:
        raise refusal("DCM_MIXED", f"{home.name} and {volume.name} are of different patients", file=volume.file,
                      expected="series of one patient", hint="Give the scans of one patient.")  # fmt: skip
    notices = list(volume.notices)
    if told.contrast not in (None, modality):
        note = f"given as {modality}, but it looks like {told.contrast}: {told.reason}"
        notices.append(Notice("DCM_LABEL", note, volume.name))
    if one.study != other.study:
        notices.append(Notice("DCM_STUDY", f"{modality} is from another examination than {home.name}", volume.name))
    if one.frame_of_reference != other.frame_of_reference and not same_grid(volume, home):
        note = f"its frame of reference is not that of {home.name}; the patient may have been moved between them"
        notices.append(Notice("DCM_FRAME", note, volume.name))
    return replace(volume, notices=tuple(notices))
