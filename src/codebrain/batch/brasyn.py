"""Cases of the BraTS synthesis challenge (BraSyn): four contrasts of which one is missing, one file as the answer.

The input folder holds a folder for each case, or the files of all cases side by side::

    BraTS-GLI-01667-000/BraTS-GLI-01667-000-t1n.nii.gz  -t2f.nii.gz  -t2w.nii.gz

The output folder holds ``BraTS-GLI-01667-000-t1c.nii.gz`` for each, and no folders.

Source: the challenge's own tutorial for 2025 (github.com/hongweilibran/BraSyn_tutorial), "Expected input and output
folder structures".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from codebrain.batch.folder import read_records
from codebrain.batch.layouts import BatchStudy
from codebrain.errors import CodeBrainError, refusal
from codebrain.results import Imputation
from codebrain.vocabulary import Modality

WORDS = {Modality.T1: "t1n", Modality.T1GD: "t1c", Modality.T2: "t2w", Modality.FLAIR: "t2f"}
"""What the challenge calls the contrasts."""

CONTRASTS = tuple(WORDS)
_FILE = re.compile(r"(?P<case>.+)-(?P<word>t1n|t1c|t2w|t2f)\.nii\.gz")
_BY_WORD = {word: modality for modality, word in WORDS.items()}


def file_name(case: str, modality: Modality) -> str:
    """For example ``BraTS-GLI-01667-000-t1c.nii.gz``."""
    return f"{case}-{WORDS[modality]}.nii.gz"


def find_cases(folder: Path) -> list[BatchStudy]:
    """The cases in a folder, in the order of names; segmentations and other files are passed over.

    Raises:
        InputRefused: ``IN_NOT_A_FILE`` when the folder cannot be listed, ``DATA_EMPTY`` when it holds no case.
    """
    try:
        entries = sorted(folder.iterdir())
        homes = [folder, *(entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))]
        files = [path for home in homes for path in sorted(home.iterdir()) if not path.is_dir()]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise refusal("IN_NOT_A_FILE", f"the folder cannot be listed: {reason}", file=folder) from error
    cases: dict[str, list[tuple[Modality, Path]]] = {}
    for path in files:
        if match := _FILE.fullmatch(path.name):
            cases.setdefault(match["case"], []).append((_BY_WORD[match["word"]], path))
    # The folder of a case without any scan of ours is a case too: it would be missed in the output.
    known = {path.parent for found in cases.values() for _, path in found}
    bare = [home.name for home in homes[1:] if home not in known and home.name not in cases]
    cases |= {name: [] for name in bare if name.startswith("BraTS-")}
    if not any(cases.values()):
        raise refusal("DATA_EMPTY", "there is no case", file=folder,
                      expected="files such as BraTS-GLI-00001-000-t1n.nii.gz, side by side or in folders of cases",
                      hint="Give the challenge's input folder.")  # fmt: skip
    return [_case(folder, name, found) for name, found in sorted(cases.items())]


def _case(folder: Path, name: str, found: Sequence[tuple[Modality, Path]]) -> BatchStudy:
    files = dict(sorted(found, key=lambda pair: CONTRASTS.index(pair[0])))
    shown = {modality: path.relative_to(folder).as_posix() for modality, path in files.items()}
    return BatchStudy(name, files, shown, _problem(found))


def _problem(found: Sequence[tuple[Modality, Path]]) -> CodeBrainError | None:
    """Why a case is not one of the challenge's."""
    words = [WORDS[modality] for modality, _ in found]
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        return refusal("MOD_DUPLICATE", f"{', '.join(twice)} is there twice", expected="one file each")
    missing = [word for word in WORDS.values() if word not in words]
    if len(missing) == 1:
        return None
    what = f"{', '.join(missing)} are missing" if missing else "no contrast is missing"
    return refusal("MOD_COUNT", what, found=", ".join(words) or "no scan", expected="three of t1n, t1c, t2w, t2f")


@dataclass(frozen=True)
class BrasynLayout:
    """One file for each case, named as the challenge wants it, and nothing else."""

    name: str = "brasyn"
    table: str | None = None

    def check(self, study: BatchStudy) -> None:
        """Every case will do."""

    def write(self, study: BatchStudy, result: Imputation, stage: Path) -> None:
        for modality, contrast in result.contrasts.items():
            contrast.write_image(stage / file_name(study.name, modality))


def refuse_existing(out: Path, cases: Iterable[BatchStudy]) -> None:
    """Refuse an output folder with answers that no record of ours explains.

    Raises:
        EnvironmentRefused: ``OUT_EXISTS``.
    """
    known = {str(row["file"]) for record in read_records(out) for row in record.outputs}
    for case in cases:
        for modality in CONTRASTS:
            name = file_name(case.name, modality)
            if name not in known and (out / name).exists():
                raise refusal("OUT_EXISTS", "the output folder holds an answer already", file=out / name,
                              hint="Give --overwrite to replace it, or choose another folder.")  # fmt: skip
