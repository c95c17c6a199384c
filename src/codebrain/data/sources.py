"""Where raw studies come from: folders of study folders, and which patient each study belongs to.

The patient decides the split, so the rule leans towards grouping too much rather than too little:

1. a table ``subjects.tsv`` or ``participants.tsv`` in the source, with columns ``subject`` and ``patient``,
   decides for the subjects it names;
2. a path with a BIDS label ``sub-<label>`` belongs to the patient ``sub-<label>``, whatever the session;
3. a name that ends in a number after another number is a visit: ``mslong-01-1`` and ``mslong-01-2`` are the
   patient ``mslong-01``, ``BraTS-GLI-00005-000`` is the patient ``BraTS-GLI-00005`` (``_`` counts as ``-``);
4. any other name is a patient of its own (``ms-07``, ``phantom-0001``, ``IXI002-Guys-0828``).

Names that number the site and then the person (``TCGA-02-0006``) look like visits: give them a table.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codebrain.errors import CodeBrainError, Notice, refusal
from codebrain.imaging.frame import Slices
from codebrain.imaging.study import find_files
from codebrain.vocabulary import Modality, ModalitySet

_VISIT = re.compile(r"(?P<patient>.*[-_]\d+)[-_]\d+")
_BIDS = re.compile(r"sub-[A-Za-z0-9+]+")
_TABLES = ("subjects.tsv", "participants.tsv")
_DEPTH = 3  # sub-01 / ses-1 / anat


@dataclass(frozen=True)
class SubjectFiles:
    """One study on disk.

    Attributes:
        subject: name of the study, unique in its source; file names in the slice store begin with it.
        patient: whose study it is; a patient is never in two splits.
        files: the file of each contrast.
        root: the source folder that ``files`` are recorded relative to.
        slices: which transverse slices a protocol uses, see :data:`codebrain.imaging.frame.Slices`; ``None`` leaves
            the choice to whoever prepares.
        notices: what was accepted with a warning when the study was found.
        check: reads what lies beside the scans, and refuses the study for it; called by whoever prepares it.
    """

    subject: str
    patient: str
    files: Mapping[Modality, Path]
    root: Path
    slices: Slices = None
    notices: tuple[Notice, ...] = ()
    check: Callable[[], None] | None = None

    def relative(self, modality: Modality) -> str:
        """The file of ``modality`` as records write it: without the machine's own path."""
        return self.files[modality].relative_to(self.root).as_posix()


@dataclass(frozen=True)
class PassedOver:
    """A folder that gives no subject, and why.

    Attributes:
        status: ``skipped`` (nothing wrong, not used), ``refused`` (something to mend) or ``missing`` (listed, but
            not there).
        patient: whose study it is, where that is known.
    """

    subject: str
    status: str
    code: str
    message: str
    patient: str = ""


@dataclass(frozen=True)
class Found:
    """What a search found; nothing that looked like a study is left out.

    Attributes:
        subjects: the studies.
        passed_over: what is no study, and why.
        notices: what was accepted with a warning about the source as a whole.
    """

    subjects: tuple[SubjectFiles, ...]
    passed_over: tuple[PassedOver, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def modalities(self) -> ModalitySet:
        """The contrasts that occur, in the order of the vocabulary."""
        return ModalitySet(tuple(m for m in Modality if any(m in found.files for found in self.subjects)))

    def restricted_to(self, modalities: ModalitySet) -> Found:
        """Only these contrasts; a subject left with fewer than two of them is passed over."""
        kept, passed = [], list(self.passed_over)
        for subject in self.subjects:
            files = {m: path for m, path in subject.files.items() if m in modalities}
            if len(files) >= 2:
                kept.append(replace(subject, files=files))
            else:
                passed.append(too_few(subject.subject, list(files), subject.patient))
        return replace(self, subjects=tuple(kept), passed_over=tuple(passed))

    def complete(self, modalities: ModalitySet) -> Found:
        """Only studies with all of these contrasts; the others are refused, because a protocol needs them."""
        kept, passed = [], list(self.passed_over)
        for subject in self.subjects:
            lacking = [str(m) for m in modalities if m not in subject.files]
            if lacking:
                message = f"{', '.join(lacking)} is missing: the protocol needs {modalities}"
                passed.append(PassedOver(subject.subject, "refused", "DATA_CONTRASTS", message, subject.patient))
            else:
                kept.append(subject)
        return replace(self, subjects=tuple(kept), passed_over=tuple(passed))

    def without(self, names: Collection[str]) -> Found:
        """Without these subjects or patients, which are passed over as asked.

        Raises:
            InputRefused: ``DATA_SPLIT`` for a name that no subject or patient has.
        """
        everybody: list[SubjectFiles | PassedOver] = [*self.subjects, *self.passed_over]
        known = {name for one in everybody for name in (one.subject, one.patient)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise refusal(
                "DATA_SPLIT", "no subject or patient has the name to leave out", field="exclude",
                found=", ".join(unknown), hint="Use names of the list that codebrain prepare prints.",
            )  # fmt: skip
        out = [one for one in self.subjects if {one.subject, one.patient} & set(names)]
        rows = [PassedOver(one.subject, "skipped", "DATA_EXCLUDED", "left out as asked", one.patient) for one in out]
        kept = tuple(one for one in self.subjects if one not in out)
        return replace(self, subjects=kept, passed_over=(*self.passed_over, *rows))


Finder = Callable[[Sequence[Path]], Found]


def find_subjects(source: Path | Sequence[Path]) -> Found:
    """The studies in one or more folders of study folders.

    A study folder is a folder, up to three levels below the source, with files that
    :func:`codebrain.imaging.study.find_files` recognises. Its subject name is its relative path joined by
    ``_``, without ``anat``: ``ms-07``, ``sub-01_ses-2``.

    Raises:
        InputRefused: ``DATA_EMPTY`` when a source is not a folder or holds no study, ``DATA_DUPLICATE`` when
            two studies have the same name, ``DATA_TABLE`` when the table of patients cannot be read.
    """
    roots = [Path(source)] if isinstance(source, Path | str) else [Path(item) for item in source]
    return join(_search(root) for root in roots)


def patient_of(parts: Iterable[str]) -> str:
    """The patient that a relative path belongs to (rules 2 to 4 above)."""
    names = list(parts)
    for name in names:
        if label := _BIDS.match(name):
            return label.group()
    name = "_".join(names)
    visit = _VISIT.fullmatch(name)
    return visit["patient"] if visit else name


def join(found: Iterable[Found]) -> Found:
    """Several sources as one.

    Raises:
        InputRefused: ``DATA_DUPLICATE`` when two studies have the same name.
    """
    parts = list(found)
    everything = Found(
        tuple(subject for part in parts for subject in part.subjects),
        tuple(passed for part in parts for passed in part.passed_over),
        tuple(notice for part in parts for notice in part.notices),
    )
    _refuse_duplicates(everything)
    return everything


def _search(root: Path) -> Found:
    require_folder(root)
    table = _patient_table(root)
    subjects: list[SubjectFiles] = []
    passed: list[PassedOver] = []
    for one in study_folders(root, root, _DEPTH):
        if isinstance(one, PassedOver):
            passed.append(one)
        elif len(one.files) < 2:
            passed.append(too_few(one.subject, list(one.files), one.patient))
        else:
            subjects.append(replace(one, patient=table.get(one.subject) or one.patient))
    if not subjects and not passed:
        raise _nothing_found(root)
    return Found(tuple(subjects), tuple(passed))


def require_folder(root: Path, hint: str = "Give a folder that holds one folder per study.") -> None:
    """``DATA_EMPTY`` when the source is not a folder."""
    if not root.is_dir():
        raise refusal("DATA_EMPTY", "the source is not a folder", file=root, hint=hint)


def study_folders(root: Path, folder: Path, depth: int) -> Iterator[SubjectFiles | PassedOver]:
    """Study folders below ``folder``, in the order of names; nothing is looked for inside a study folder.

    Hidden folders are left out; the depth bounds loops of links.
    """
    for child in sorted(folder.iterdir()):
        if not child.is_dir() or child.name.startswith("."):
            continue
        parts = [part for part in child.relative_to(root).parts if part != "anat"]
        subject = "_".join(parts)
        try:
            files = find_files(child)
        except CodeBrainError as error:
            yield PassedOver(subject, "refused", error.code, error.message)
            continue
        if files:
            yield SubjectFiles(subject, patient_of(parts), files, root)
        elif depth > 1:
            yield from study_folders(root, child, depth - 1)


def too_few(subject: str, modalities: list[Modality], patient: str = "") -> PassedOver:
    """The row of a study with fewer than two contrasts."""
    what = f"one contrast ({modalities[0]})" if modalities else "none of the wanted contrasts"
    return PassedOver(subject, "skipped", "DATA_CONTRASTS", f"{what}: nothing to learn imputation from", patient)


def _nothing_found(root: Path) -> CodeBrainError:
    try:
        itself = bool(find_files(root))
    except CodeBrainError:
        itself = True
    if itself:
        return refusal(
            "DATA_EMPTY", "the source is a study folder, not a folder of study folders", file=root,
            hint="Give the folder above it.",
        )  # fmt: skip
    return refusal(
        "DATA_EMPTY", "no study folder was found in the source", file=root,
        expected="folders with files such as T1.nii.gz and FLAIR.nii.gz",
        hint="Give a folder that holds one folder per study.",
    )  # fmt: skip


def _refuse_duplicates(found: Found) -> None:
    seen: dict[str, str] = {}
    for subject in found.subjects:
        # Compared without case: on some file systems A.npy and a.npy are one file.
        key = subject.subject.casefold()
        if key in seen:
            raise refusal(
                "DATA_DUPLICATE", "two studies have the same name", field="subject", found=subject.subject,
                hint="Rename one of the folders, or prepare the sources apart.",
            )  # fmt: skip
        seen[key] = subject.subject


def _patient_table(root: Path) -> dict[str, str]:
    """Patient by subject from the source's table; BIDS' own ``participants.tsv`` without them is none."""
    for name in _TABLES:
        path = root / name
        if not path.is_file():
            continue
        try:
            rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), delimiter="\t"))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise refusal("DATA_TABLE", "the table of patients is not tab-separated UTF-8", file=path) from error
        columns = set(rows[0]) if rows else set()
        if {"subject", "patient"} <= columns:
            return {row["subject"]: row["patient"].strip() for row in rows if (row["patient"] or "").strip()}
        if name == "subjects.tsv":
            raise refusal(
                "DATA_TABLE", "the table of patients lacks a column", file=path,
                found=", ".join(sorted(str(c) for c in columns)), expected="subject, patient",
            )  # fmt: skip
    return {}
