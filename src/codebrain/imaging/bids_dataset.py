"""A BIDS data set: which studies it holds, and the one scan of each contrast, or why there is none.

A study is one session of one subject. Nothing is ever chosen by being first:

1. sessions are studies of their own;
2. where several files are one contrast, the caller's filters decide, and only there;
3. what is still several is treated apart when every contrast of the session has the same ``acq-``, ``rec-`` and
   ``run-`` labels, once each: then each set of labels is a study of its own;
4. anything else is refused with ``BIDS_AMBIGUOUS`` and the list of files.

Indexing reads names only and writes nothing, so that read-only data sets and ten thousand subjects are fine. Sidecars
are read per study (:func:`check_sidecars`), by whoever works on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codebrain.errors import CodeBrainError, Notice, refusal
from codebrain.imaging.bids import CHOICES, LABEL, BidsName, contrast_of, looks_enhanced, parse_name
from codebrain.parsing import parse_json_object
from codebrain.vocabulary import Modality

DESCRIPTION = "dataset_description.json"
PARTICIPANTS = "participants.tsv"
SIDECAR_LIMIT = 4 << 20
"""Bytes: the longest sidecars of scanners are a few hundred kilobytes."""

_APART = ("acq", "rec", "run")
_SHOWN = 20  # labels in a sentence


@dataclass(frozen=True)
class BidsFile:
    """A scan that is one of our contrasts.

    Attributes:
        path: where it is.
        name: its parsed name.
        modality: which contrast.
    """

    path: Path
    name: BidsName
    modality: Modality

    @property
    def labels(self) -> dict[str, str]:
        """The entities that tell it from other files of its contrast."""
        return {key: self.name.entities[key] for key in CHOICES if key in self.name.entities}


@dataclass(frozen=True)
class BidsStudy:
    """One study of a data set: scans, or why it cannot be used.

    Attributes:
        root: the data set.
        subject: label without ``sub-``.
        session: label without ``ses-``; None without sessions.
        apart: the ``acq``, ``rec`` and ``run`` labels that set it apart from its sister studies.
        files: the one file of each contrast, in vocabulary order; empty when refused or when there is none.
        refused: why it cannot be used.
        notices: what was accepted with a warning, or passed over.
        shared: names of the sidecars at the top of the data set, which may hold facts about every study.
    """

    root: Path
    subject: str
    session: str | None = None
    apart: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Modality, Path] = field(default_factory=dict)
    refused: CodeBrainError | None = None
    notices: tuple[Notice, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For example ``sub-01_ses-2_run-1``: what files of it are named after."""
        session = {} if self.session is None else {"ses": self.session}
        pairs = {"sub": self.subject, **session, **self.apart}
        return "_".join(f"{key}-{label}" for key, label in pairs.items())

    @property
    def folder(self) -> str:
        """Relative to the data set, for example ``sub-01/ses-2``."""
        return f"sub-{self.subject}" + ("" if self.session is None else f"/ses-{self.session}")

    def relative(self, modality: Modality) -> str:
        """The file of ``modality`` as records name it: relative to the data set."""
        return self.files[modality].relative_to(self.root).as_posix()


@dataclass(frozen=True)
class Filter:
    """Decides between several files of one contrast: ``run=1``, ``T1:acq=mprage``, ``echo=none``.

    Attributes:
        entity: for example ``run``.
        label: the label that stays; None for files without the entity.
        modality: the contrast it is about; None for all.
    """

    entity: str
    label: str | None
    modality: Modality | None = None

    @classmethod
    def parse(cls, text: str) -> Filter:
        """From ``[CONTRAST:]ENTITY=LABEL``.

        Raises:
            UsageError: ``CONFIG``, ``MOD_UNKNOWN``.
        """
        contrast, colon, rest = text.rpartition(":")
        entity, equals, label = rest.partition("=")
        entity, label = entity.strip().lower(), label.strip().removeprefix(f"{entity.strip()}-")
        if not equals or entity not in CHOICES or not LABEL.fullmatch(label):
            raise refusal(
                "CONFIG", "this does not choose between files", field="--filter", found=text,
                expected="[CONTRAST:]ENTITY=LABEL with an entity of " + ", ".join(CHOICES),
                hint="For example --filter T1:run=2, or --filter acq=none for files without acq-.",
            )  # fmt: skip
        return cls(entity, None if label == "none" else label, Modality.parse(contrast) if colon else None)

    def keeps(self, file: BidsFile) -> bool:
        """Whether ``file`` stays; numbers are compared as numbers, as BIDS does for runs."""
        if self.modality is not None and file.modality is not self.modality:
            return True
        return _plain(file.name.entities.get(self.entity)) == _plain(self.label)


def _plain(label: str | None) -> str | None:
    return str(int(label)) if label is not None and label.isdecimal() else label


@dataclass(frozen=True)
class BidsDataset:
    """An indexed data set.

    Attributes:
        root: its folder.
        description: ``dataset_description.json``; empty when there is none and that was accepted.
        studies: every session of every subject asked for, in the order of names.
        notices: what was accepted with a warning.
    """

    root: Path
    description: Mapping[str, Any]
    studies: tuple[BidsStudy, ...]
    notices: tuple[Notice, ...] = ()


def read_dataset(
    root: Path | str,
    *,
    validate: bool = True,
    participants: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    filters: Iterable[Filter] = (),
    contrasts: Iterable[Modality] | None = None,
) -> BidsDataset:
    """Index a data set; nothing but names, the description and the table of participants is read.

    Args:
        root: folder with ``sub-*`` folders.
        validate: refuse a data set without a description.
        participants: labels of subjects, with or without ``sub-``; all by default.
        sessions: labels of sessions, with or without ``ses-``; all by default.
        filters: decide between several files of one contrast.
        contrasts: those of interest; files of others are never ambiguous.

    Raises:
        InputRefused: ``BIDS_DESCRIPTION`` (none, or not readable), ``IN_SYNTHETIC`` (made by codebrain),
            ``IN_NOT_A_FILE`` (not a folder), ``DATA_EMPTY`` (no subject).
        UsageError: ``CONFIG`` for a participant or session that the data set does not have.
    """
    root = Path(root).expanduser()
    description, notices = _description(root, validate=validate)
    subjects = _folders(root, "sub")
    if not subjects:
        raise refusal("DATA_EMPTY", "the data set has no subject", file=root, expected="folders sub-<label>",
                      hint="Give the folder that holds dataset_description.json.")  # fmt: skip
    notices += _participants(root, subjects)
    wanted = _chosen(participants, subjects, "sub", "participant")
    chosen = tuple(filters)
    kinds = set(Modality if contrasts is None else contrasts)
    shared = tuple(_names(root, ".json"))
    studies = [replace(study, shared=shared) for label in wanted for study in _subject(root, label, chosen, kinds)]
    if sessions is not None:
        known = sorted({study.session for study in studies if study.session is not None})
        kept = set(_chosen(sessions, known, "ses", "session"))
        studies = [study for study in studies if study.session in kept]
    return BidsDataset(root, description, tuple(studies), tuple(notices))


def _folders(folder: Path, kind: str) -> list[str]:
    """Labels of the folders ``<kind>-<label>`` in ``folder``, valid or not, sorted."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(f"{kind}-") and entry.is_dir()]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise refusal("IN_NOT_A_FILE", f"the folder cannot be listed: {reason}", file=folder,
                      hint="Give the folder of a BIDS data set.") from error  # fmt: skip
    return sorted(name.removeprefix(f"{kind}-") for name in names)


def _description(root: Path, *, validate: bool) -> tuple[Mapping[str, Any], list[Notice]]:
    path = root / DESCRIPTION
    if not path.exists() and not path.is_symlink():
        if validate:
            raise refusal(
                "BIDS_DESCRIPTION", f"the data set has no {DESCRIPTION}", file=root,
                hint="Give the top folder of the data set, write the file, or accept it with --no-validate.",
            )  # fmt: skip
        return {}, [Notice("BIDS_DESCRIPTION", f"the data set has no {DESCRIPTION}; accepted as asked")]
    try:
        description = read_sidecar(path)
    except CodeBrainError as error:
        if validate:
            raise refusal("BIDS_DESCRIPTION", error.message, file=path, found=error.found, hint=error.hint) from None
        return {}, [Notice("BIDS_DESCRIPTION", f"{error.message}; accepted as asked", DESCRIPTION)]
    makers = description.get("GeneratedBy")
    names = [str(maker.get("Name", "")) for maker in makers or () if isinstance(maker, dict)] if isinstance(
        makers, list) else []  # fmt: skip
    if "codebrain" in names:
        raise refusal("IN_SYNTHETIC", "this data set holds synthetic images that codebrain made", file=root,
                      hint="Give the data set of the real scans.")  # fmt: skip
    return description, []


def _participants(root: Path, subjects: Sequence[str]) -> list[Notice]:
    """The table is not needed, but one that is absent, unreadable or of other subjects is worth a word."""
    try:
        lines = (root / PARTICIPANTS).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return [Notice("BIDS_PARTICIPANTS", f"the data set has no {PARTICIPANTS}")]
    except (OSError, UnicodeDecodeError):
        return [Notice("BIDS_PARTICIPANTS", f"{PARTICIPANTS} cannot be read", PARTICIPANTS)]
    columns = lines[0].split("\t") if lines else []
    if "participant_id" not in columns:
        return [Notice("BIDS_PARTICIPANTS", f"{PARTICIPANTS} has no column participant_id", PARTICIPANTS)]
    place = columns.index("participant_id")
    listed = {cells[place].strip().removeprefix("sub-") for line in lines[1:]
              if len(cells := line.split("\t")) > place and line.strip()}  # fmt: skip
    found = []
    if missing := set(subjects) - listed:
        found.append(Notice("BIDS_PARTICIPANTS", f"{len(missing)} of the subjects are not in it", PARTICIPANTS))
    if absent := listed - set(subjects):
        found.append(Notice("BIDS_PARTICIPANTS", f"{len(absent)} of its subjects have no folder", PARTICIPANTS))
    return found


def _chosen(asked: Sequence[str] | None, known: Sequence[str], kind: str, what: str) -> list[str]:
    """The labels asked for, in the order of ``known``; all by default."""
    if asked is None:
        return list(known)
    labels = [label.strip().removeprefix(f"{kind}-") for label in asked]
    for label in labels:
        if label not in known:
            shown = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
            raise refusal("CONFIG", f"the data set has no such {what}", field=f"--{what}-label", found=label,
                          expected=shown or "none: it has no sessions")  # fmt: skip
    return [label for label in known if label in labels]


def _subject(root: Path, label: str, filters: tuple[Filter, ...], kinds: set[Modality]) -> Iterator[BidsStudy]:
    """The studies of one subject; a subject without any folder of scans is one study without files."""
    whole = BidsStudy(root, label)
    try:
        if not LABEL.fullmatch(label):
            raise _odd_label(f"sub-{label}")
        sessions = _folders(root / whole.folder, "ses")
    except CodeBrainError as error:
        yield replace(whole, refused=error)
        return
    if (root / whole.folder / "anat").is_dir() or not sessions:
        yield from _session(whole, filters, kinds)
    for session in sessions:
        study = replace(whole, session=session)
        if LABEL.fullmatch(session):
            yield from _session(study, filters, kinds)
        else:
            yield replace(study, refused=_odd_label(f"ses-{session}"))


def _odd_label(name: str) -> CodeBrainError:
    return refusal("BIDS_NAME", "the label is not one that BIDS allows", found=name, expected="letters and digits",
                   hint="Rename the folder and its files.")  # fmt: skip


def _session(study: BidsStudy, filters: tuple[Filter, ...], kinds: set[Modality]) -> list[BidsStudy]:
    try:
        found, notices = _scans(study, kinds)
        groups = _groups(found, filters, study)
    except CodeBrainError as error:
        return [replace(study, refused=error)]
    return [
        replace(
            study,
            apart=apart,
            files={modality: files[modality].path for modality in Modality if modality in files},
            notices=(*notices, *_enhanced(files.values())),
        )
        for apart, files in groups
    ]


def _names(folder: Path, ending: str) -> list[str]:
    """Names in ``folder`` with this ending, sorted; none where there is no folder.

    Raises:
        InputRefused: ``IN_PERMISSION``.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(ending))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise refusal("IN_PERMISSION", f"the folder cannot be listed: {(error.strerror or str(error)).lower()}",
                      file=folder, hint="Ask its owner.") from error  # fmt: skip


def _scans(study: BidsStudy, kinds: set[Modality]) -> tuple[dict[Modality, list[BidsFile]], list[Notice]]:
    """The session's files of each contrast, and a notice for what looks like one and is not used.

    Raises:
        InputRefused: ``BIDS_DUPLICATE``, ``BIDS_NAME``.
    """
    folder = study.root / study.folder / "anat"
    found: dict[Modality, list[BidsFile]] = {}
    notices = []
    for file_name in _names(folder, ""):
        name = parse_name(file_name)
        if name is None or not name.is_scan:
            continue
        modality, reason = contrast_of(name)
        if modality is None and reason:
            notices.append(Notice("BIDS_UNUSED", f"not used: {reason}", file_name))
        if modality in kinds and modality is not None:
            _refuse_stray(name, file_name, study)
            found.setdefault(modality, []).append(BidsFile(folder / file_name, name, modality))
    _refuse_twins(found, study)
    return found, notices


def _refuse_stray(name: BidsName, file_name: str, study: BidsStudy) -> None:
    """A file under another's folder could be another person's scan."""
    if (name.entities["sub"], name.entities.get("ses")) != (study.subject, study.session):
        raise refusal("BIDS_NAME", f"{file_name} lies in the folder of another subject or session",
                      found=study.folder, hint="Move or rename it; the scan could be another person's.")  # fmt: skip


def _refuse_twins(found: Mapping[Modality, Sequence[BidsFile]], study: BidsStudy) -> None:
    for files in found.values():
        stems = [file.path.name.partition(".")[0] for file in files]
        for stem in stems:
            if stems.count(stem) > 1:
                raise refusal("BIDS_DUPLICATE", f"{stem} is there as .nii and as .nii.gz", found=study.folder,
                              expected="one of them", hint="Remove the one that is out of date.")  # fmt: skip


Group = tuple[dict[str, str], dict[Modality, BidsFile]]


def _groups(
    found: Mapping[Modality, Sequence[BidsFile]], filters: Sequence[Filter], study: BidsStudy
) -> Sequence[Group]:
    """One file per contrast, for each study that the session holds (rules 2 to 4).

    Raises:
        InputRefused: ``BIDS_AMBIGUOUS``, ``BIDS_FILTER`` when a filter leaves nothing of a contrast.
    """
    left = {modality: _filtered(modality, files, filters, study) for modality, files in found.items()}
    if all(len(files) == 1 for files in left.values()):
        return [({}, {modality: files[0] for modality, files in left.items()})]
    keys = {modality: [_key(file) for file in files] for modality, files in left.items()}
    first = next(iter(keys.values()))
    alike = all(set(of_one) == set(first) and len(set(of_one)) == len(of_one) for of_one in keys.values())
    if not alike:
        raise _ambiguous(left, study)
    varying = [i for i in range(len(_APART)) if len({key[i] for key in first}) > 1]
    return [
        (
            {_APART[i]: label for i in varying if (label := key[i]) is not None},
            {modality: files[keys[modality].index(key)] for modality, files in left.items()},
        )
        for key in first
    ]


def _filtered(
    modality: Modality, files: Sequence[BidsFile], filters: Sequence[Filter], study: BidsStudy
) -> Sequence[BidsFile]:
    if len(files) == 1:
        return files
    left = [file for file in files if all(one.keeps(file) for one in filters)]
    if not left:
        raise refusal("BIDS_FILTER", f"the filters leave no {modality} of {study.name}",
                      found=", ".join(file.path.name for file in files))  # fmt: skip
    return left


def _key(file: BidsFile) -> tuple[str | None, ...]:
    return tuple(file.name.entities.get(entity) for entity in _APART)


def _ambiguous(left: Mapping[Modality, Sequence[BidsFile]], study: BidsStudy) -> CodeBrainError:
    modality, files = next((m, files) for m, files in left.items() if len(files) > 1)
    labels = [file.labels for file in files]
    differs = [entity for entity in CHOICES if len({each.get(entity) for each in labels}) > 1]
    entity = differs[0] if differs else "run"
    example = labels[0].get(entity, "none")
    return refusal(
        "BIDS_AMBIGUOUS", f"{study.name} has {len(files)} files of {modality}",
        found=", ".join(file.path.name for file in files),
        expected="one, or the same acq-, rec- and run- labels for every contrast",
        hint=f"Choose with --filter, for example --filter {modality}:{entity}={example}.",
    )  # fmt: skip


def _enhanced(files: Iterable[BidsFile]) -> Iterator[Notice]:
    for file in files:
        if said := looks_enhanced(file.name):
            message = f"{said} sounds like a contrast agent, but only ce- makes a T1w scan T1Gd; it is taken as T1"
            yield Notice("BIDS_CONTRAST_AGENT", message, file.path.name)


# Sidecars


def sidecars_of(study: BidsStudy, modality: Modality) -> list[Path]:
    """The JSON files that hold facts about a scan, from the data set's top down (BIDS: inheritance principle)."""
    scan = parse_name(study.files[modality].name)
    if scan is None:
        return []
    subject, home = study.root / f"sub-{study.subject}", study.root / study.folder
    places = {study.root: study.shared} | {
        place: _names(place, ".json") for place in (subject, home, study.files[modality].parent)
    }
    return [place / name for place, names in places.items() for name in names if _concerns(name, scan)]


def _concerns(sidecar: str, scan: BidsName) -> bool:
    """Whether every entity of a sidecar's name is one of the scan's."""
    *pairs, suffix = sidecar.removesuffix(".json").split("_")
    words = {f"{key}-{label}" for key, label in scan.entities.items()}
    return suffix == scan.suffix and set(pairs) <= words


def check_sidecars(study: BidsStudy) -> None:
    """Read every sidecar of a study's scans.

    Raises:
        InputRefused: ``BIDS_SIDECAR`` for one that cannot be trusted, ``IN_SYNTHETIC`` for a scan that is itself
            synthetic.
    """
    for modality in study.files:
        for path in sidecars_of(study, modality):
            facts = read_sidecar(path)
            if facts.get("SyntheticImage") is True or facts.get("Synthetic") is True:
                raise refusal("IN_SYNTHETIC", "the sidecar says that this scan is synthetic", file=path,
                              hint="Give real scans only.")  # fmt: skip


def read_sidecar(path: Path) -> dict[str, Any]:
    """One JSON object, strictly: UTF-8 without a byte-order mark, no NaN, no key twice, of reasonable size.

    Raises:
        InputRefused: ``BIDS_SIDECAR``.
    """

    def wrong(what: str) -> CodeBrainError:
        return refusal("BIDS_SIDECAR", what, file=path, expected="a JSON object", hint="Mend or remove the file.")

    try:
        size = path.stat().st_size
        if size > SIDECAR_LIMIT:
            raise wrong(f"the file has {size} bytes, more than a sidecar may have")
        return parse_json_object(path.read_bytes(), strict=True)
    except OSError as error:
        fetched = "; the content was not fetched, use datalad get" if path.is_symlink() else ""
        raise wrong(f"the file cannot be read: {(error.strerror or str(error)).lower()}{fetched}") from error
    except ValueError as error:
        raise wrong(f"this is not JSON as a sidecar must be: {str(error)[:120]}") from error
