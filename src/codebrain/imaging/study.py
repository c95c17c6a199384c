"""A study: which scan is which contrast of one patient."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging import bids
from codebrain.imaging.dicom.convert import agreeing_series, read_series
from codebrain.imaging.dicom.find import only_series
from codebrain.imaging.dicom.series import Series
from codebrain.imaging.volume import MAX_VOXELS, Volume, read_volume
from codebrain.threads import in_threads
from codebrain.vocabulary import Modality


@dataclass(frozen=True)
class Study:
    """Checked scans by contrast.

    Attributes:
        name: files that are written are named after it.
        volumes: in the order in which they were given; possibly on different grids.
    """

    name: str
    volumes: Mapping[Modality, Volume]

    @classmethod
    def read(
        cls,
        files: Mapping[Any, Any],
        *,
        name: str = "study",
        max_voxels: int = MAX_VOXELS,
        volume_index: int | None = None,
        accept_no_orientation: bool = False,
        accept_synthetic: bool = False,
    ) -> Study:
        """Read and check every scan.

        Args:
            files: by contrast (aliases accepted) the path of a NIfTI file or of a folder, zip or file with one
                DICOM series, a nibabel image, or a :class:`~codebrain.imaging.dicom.series.Series`.
            name: the study's name.
            max_voxels: see :func:`codebrain.imaging.volume.read_volume`.
            volume_index: likewise.
            accept_no_orientation: likewise; all scans must then lack orientation and have one shape.
            accept_synthetic: likewise.

        Raises:
            UsageError: ``MOD_NONE``, ``MOD_UNKNOWN``, ``MOD_DUPLICATE``.
            InputRefused: ``MOD_SAME_FILE``, or what a single scan is refused for.
        """
        named = _by_modality(files)
        _refuse_same_source(named)

        def read(modality: Modality) -> Volume:
            source = named[modality]
            return _read_scan(
                source,
                name=None if isinstance(source, str | Path) else str(modality),
                max_voxels=max_voxels,
                volume_index=volume_index,
                accept_no_orientation=accept_no_orientation,
                accept_synthetic=accept_synthetic,
            )

        volumes = dict(zip(named, in_threads(read, named), strict=True))
        _refuse_same_content(volumes)
        _require_agreement_without_orientation(volumes)
        return cls(name, agreeing_series(volumes))


def _read_scan(source: Any, **reading: Any) -> Volume:
    """A volume from whatever a scan is given as."""
    if isinstance(source, str | Path):
        source = only_series(Path(source).expanduser()) or source
    return read_series(source, **reading) if isinstance(source, Series) else read_volume(source, **reading)


def _by_modality(files: Mapping[Any, Any]) -> dict[Modality, Any]:
    if not files:
        raise refusal("MOD_NONE", "the study has no scan", expected="at least one contrast",
                      hint="Give scans, for example --t1 FILE --flair FILE.")  # fmt: skip
    named: dict[Modality, Any] = {}
    for key, source in files.items():
        modality = Modality.parse(str(key))
        if modality in named:
            raise refusal("MOD_DUPLICATE", f"{modality} is given twice", found=key)
        named[modality] = source
    return named


def _same_file(modality: Modality, other: Modality, source: Any) -> CodeBrainError:
    return refusal(
        "MOD_SAME_FILE", f"the same scan is given as {other} and as {modality}",
        file=source if isinstance(source, str | Path) else None,
        hint="Give each contrast its own scan.",
    )  # fmt: skip


def _refuse_same_source(named: Mapping[Modality, Any]) -> None:
    """By object, or by device and inode, which sees through links and spellings of a path."""
    seen: dict[Any, Modality] = {}
    for modality, source in named.items():
        key: Any = id(source)
        if isinstance(source, str | Path):
            try:
                status = Path(source).expanduser().stat()
            except OSError:
                continue  # the read says what is wrong with it
            key = (status.st_dev, status.st_ino)
        if key in seen:
            raise _same_file(modality, seen[key], source)
        seen[key] = modality


def _refuse_same_content(volumes: Mapping[Modality, Volume]) -> None:
    seen: dict[str, Modality] = {}
    for modality, volume in volumes.items():
        if volume.sha256 in seen:
            raise _same_file(modality, seen[volume.sha256], volume.file)
        seen[volume.sha256] = modality


def _require_agreement_without_orientation(volumes: Mapping[Modality, Volume]) -> None:
    bare = {m for m, v in volumes.items() if any(n.code == "GEO_NO_ORIENTATION" for n in v.notices)}
    if not bare:
        return
    if len(bare) < len(volumes) or len({v.data.shape for v in volumes.values()}) > 1:
        modality = next(iter(bare))
        raise refusal(
            "GEO_NO_ORIENTATION", "only scans that all lack orientation and have one shape can be assumed to agree",
            file=volumes[modality].file, found=", ".join(f"{m}: {v.data.shape}" for m, v in volumes.items()),
            hint="Convert the scans again with their orientation, for example with dcm2niix.",
        )  # fmt: skip


def find_files(folder: Path | str) -> dict[Modality, Path]:
    """The scans of a study folder, recognised by their names.

    Known: ``T1.nii.gz``; BraTS ``case-t1n.nii.gz`` and ``case_t1ce.nii.gz``; IXI
    ``IXI002-Guys-0828-T1.nii.gz``; BIDS ``sub-01_T1w.nii.gz`` and ``sub-01_ce-gadolinium_T1w.nii.gz``, also
    in a folder ``anat``. Other files (segmentations, imputed contrasts, phase images) are passed over.

    Returns:
        By contrast in vocabulary order; empty when nothing was recognised.

    Raises:
        InputRefused: ``IN_NOT_A_FILE`` when the folder cannot be listed, ``BIDS_AMBIGUOUS`` when several
            BIDS-named files are one contrast.
        UsageError: ``MOD_DUPLICATE`` when several other files are one contrast.
    """
    folder = Path(folder).expanduser()
    found = _candidates(folder)
    if not found and (folder / "anat").is_dir():
        found = _candidates(folder / "anat")
    for modality, paths in found.items():
        if len(paths) > 1:
            raise _ambiguous(modality, paths, folder)
    return {modality: found[modality][0] for modality in Modality if modality in found}


def _candidates(folder: Path) -> dict[Modality, list[Path]]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise refusal("IN_NOT_A_FILE", f"the folder cannot be listed: {reason}", file=folder,
                      hint="Give a folder with the scans of one study.") from error  # fmt: skip
    found: dict[Modality, list[Path]] = {}
    for path in paths:
        modality = modality_of(path.name)
        if modality is not None and not path.is_dir():
            found.setdefault(modality, []).append(path)
    return found


def modality_of(file_name: str) -> Modality | None:
    """The contrast that a file's name says, by its last word; ``None`` where it says none.

    BIDS entities count in any name; see :mod:`codebrain.imaging.bids`.
    """
    match = bids.SCAN.match(os.fspath(file_name))
    if match is None or file_name.startswith("."):
        return None
    if (name := bids.parse_name(file_name)) is not None and name.suffix in bids.SUFFIXES:
        return bids.contrast_of(name)[0]
    try:
        modality = Modality.parse(re.split(r"[-_. ]", match["stem"])[-1])
    except CodeBrainError:
        return None
    return bids.with_entities(modality, bids.entities_in(match["stem"]))[0]


def find_session(folder: Path | str) -> dict[Modality, Path]:
    """As :func:`find_files`, also for the folder of a BIDS subject with one session.

    Raises:
        InputRefused: as :func:`find_files`; ``BIDS_AMBIGUOUS`` for several sessions, or for a whole data set.
    """
    folder = Path(folder).expanduser()
    found = find_files(folder)
    if found:
        return found
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    inside = [name for name in names if re.fullmatch(r"(ses|sub)-[0-9A-Za-z+]+", name)]
    if len(inside) == 1 and inside[0].startswith("ses-"):
        return find_files(folder / inside[0])
    if inside:
        subjects = inside[0].startswith("sub-")
        raise refusal(
            "BIDS_AMBIGUOUS", f"the folder holds {len(inside)} {'subjects' if subjects else 'sessions'}", file=folder,
            found=", ".join(inside[:20]) + (", ..." if len(inside) > 20 else ""), expected="one study",
            hint="Give one of these folders, or impute them all with codebrain-bids.",
        )  # fmt: skip
    return {}


def _ambiguous(modality: Modality, paths: Sequence[Path], folder: Path) -> CodeBrainError:
    named = any(set(bids.CHOICES) & set(bids.entities_in(path.name.partition(".")[0])) for path in paths)
    return refusal(
        "BIDS_AMBIGUOUS" if named else "MOD_DUPLICATE",
        f"{len(paths)} files are named as {modality}",
        file=folder,
        found=", ".join(path.name for path in paths),
        expected="one file per contrast",
        hint=f"Choose one, for example with --{modality.lower()} {paths[0].name}.",
    )
