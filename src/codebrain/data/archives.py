"""The layouts of the IXI and BraTS archives, as they are unpacked.

IXI: ``IXI-T1/IXI002-Guys-0828-T1.nii.gz``, ``IXI-T2/...``, ``IXI-PD/...``; the archives hold bare files, so all in one
folder is as good. BraTS: a folder per study, up to two levels down, with files that begin with its name:
``BraTS-GLI-00005-000/BraTS-GLI-00005-000-t1n.nii.gz`` (2023), ``BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz`` (2021),
``BraTS20_Training_001_t1ce.nii`` (2020), ``HGG/Brats18_CBICA_AAB_1/Brats18_CBICA_AAB_1_t1ce.nii.gz`` (2018, 2019).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from codebrain.data.sources import Found, PassedOver, SubjectFiles, join, patient_of, require_folder, study_folders
from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging.study import modality_of
from codebrain.vocabulary import Modality

_IXI = re.compile(r"(?P<subject>IXI\d{3}-(?:Guys|HH|IOP)-\d{4})-(?P<contrast>T1|T2|PD)\.nii(?:\.gz)?", re.IGNORECASE)
_BRATS = re.compile(r"brats", re.IGNORECASE)
_DEPTH = 3


def find_ixi(sources: Sequence[Path]) -> Found:
    """The subjects of the IXI archive that have T1, T2 or PD.

    Raises:
        InputRefused: ``DATA_EMPTY`` when there is none, saying what was expected and what it looks like instead.
    """
    return join([_ixi(Path(root)) for root in sources])


def _ixi(root: Path) -> Found:
    require_folder(root, "Give the folder that holds IXI-T1, IXI-T2 and IXI-PD.")
    files: dict[str, dict[Modality, list[Path]]] = {}
    for path in _files(root, _DEPTH):
        if match := _IXI.fullmatch(path.name):
            contrasts = files.setdefault(match["subject"], {})
            contrasts.setdefault(Modality.parse(match["contrast"]), []).append(path)
    if not files:
        raise _nothing(root, "IXI", "IXI-T1/IXI002-Guys-0828-T1.nii.gz, IXI-T2/... and IXI-PD/...")
    subjects, passed = [], []
    for subject, found in sorted(files.items()):
        twice = next((paths for paths in found.values() if len(paths) > 1), None)
        if twice is None:
            one = {m: found[m][0] for m in Modality if m in found}
            subjects.append(SubjectFiles(subject, subject, one, root))
        else:
            names = ", ".join(path.relative_to(root).as_posix() for path in twice)
            passed.append(
                PassedOver(subject, "refused", "MOD_DUPLICATE", f"two files are one contrast: {names}", subject)
            )
    return Found(tuple(subjects), tuple(passed))


def find_brats(sources: Sequence[Path]) -> Found:
    """The studies of a BraTS archive, of any of its years.

    Raises:
        InputRefused: ``DATA_EMPTY`` when there is none, saying what was expected and what it looks like instead;
            ``DATA_DUPLICATE`` when two folders hold the same study.
    """
    return join([_brats(Path(root)) for root in sources])


def _brats(root: Path) -> Found:
    require_folder(root, "Give the folder that holds one folder per study.")
    subjects, passed = [], []
    for one in study_folders(root, root, _DEPTH):
        if isinstance(one, PassedOver):
            if match := _BRATS.search(one.subject):  # the folders above it are part of its name here
                name = one.subject[match.start() :]
                passed.append(replace(one, subject=name, patient=patient_of([name])))
            continue
        folder = next(iter(one.files.values())).parent.name
        if _BRATS.match(folder) and all(path.name.startswith(folder) for path in one.files.values()):
            subjects.append(SubjectFiles(folder, patient_of([folder]), one.files, root))
    if not subjects and not passed:
        raise _nothing(root, "BraTS", "BraTS-GLI-00005-000/BraTS-GLI-00005-000-t1n.nii.gz and so on")
    return Found(tuple(subjects), tuple(passed))


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Files below ``folder`` in the order of names; hidden folders are left out, the depth bounds loops of links."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not entry.is_dir():
            yield Path(entry.path)
        elif depth > 1 and not entry.name.startswith("."):
            yield from _files(Path(entry.path), depth - 1)


def _nothing(root: Path, archive: str, expected: str) -> CodeBrainError:
    """The refusal of a folder that is no such archive, with what it looks like."""
    names = [path.name for path in _files(root, _DEPTH)]
    guess = _guess(root, names)
    found = f"{len(names)} files" + (f", {names[0]} for example" if names else "")
    hint = (
        f"Did you mean `codebrain prepare {guess}`?" if guess else "Give the folder that the archive was unpacked into."
    )
    return refusal(
        "DATA_EMPTY", f"this is not the layout of the {archive} archive", file=root, found=found, expected=expected,
        hint=hint,
    )  # fmt: skip


def _guess(root: Path, names: Sequence[str]) -> str:
    """Which kind of source a folder looks like; empty when it looks like none."""
    if any(_IXI.fullmatch(name) for name in names):
        return "ixi"
    if (root / "dataset_description.json").is_file() or any(child.name.startswith("sub-") for child in root.iterdir()):
        return "bids"
    scans = [name for name in names if modality_of(name) is not None]
    if any(_BRATS.match(name) for name in scans):
        return "brats"
    return "folder" if scans else ""
