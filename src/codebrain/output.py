"""The folder that a run writes: checked before the work, filled all at once, finished by ``run.json``.

A run writes into a hidden folder inside the output folder. Only when everything is there do the files take
their names, one rename each, ``run.json`` last. A folder without ``run.json`` is therefore unfinished and may
be redone; files of an older run stay byte for byte what they were until the new run is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from codebrain.errors import refusal
from codebrain.imaging import safe_files
from codebrain.parsing import parse_json, parse_json_object
from codebrain.vocabulary import Modality

RUN_FILE = "run.json"
RUN_SCHEMA_NAME = "codebrain run"
RUN_SCHEMA = 1
PREVIEW_FILE = "preview.png"
REPORT_FILE = "report.html"
FIGURES = "figures"

_LONGEST_STEM = 255 - len("_space-FLAIR_FLAIR_uncertainty.nii.gz") - len(".tmp-4194304-01234567") - 1


def image_name(stem: str, modality: Modality, space: Modality | None = None) -> str:
    """File name of an imputed contrast, on the reference grid or in the space of a given one."""
    return f"{_in_space(stem, space)}_{modality}_imputed.nii.gz"


def uncertainty_name(stem: str, modality: Modality, space: Modality | None = None) -> str:
    """File name of the doubt beside an imputed contrast, on the reference grid or in the space of a given one."""
    return f"{_in_space(stem, space)}_{modality}_uncertainty.nii.gz"


def sidecar_name(stem: str, modality: Modality, space: Modality | None = None) -> str:
    """File name of the facts about an imputed contrast, on the reference grid or in the space of a given one."""
    return f"{_in_space(stem, space)}_{modality}_imputed.json"


def _in_space(stem: str, space: Modality | None) -> str:
    return stem if space is None else f"{stem}_space-{space}"


def dicom_name(stem: str, modality: Modality, space: Modality | None = None) -> str:
    """Folder name of an imputed contrast as a DICOM series, on the reference grid or in the space of a given one."""
    return f"{_in_space(stem, space)}_{modality}_imputed_dicom"


def check_stem(stem: str) -> str:
    """The study's name, if files can be named after it.

    Raises:
        EnvironmentRefused: ``OUT_NAME`` for an empty, hidden, too long or path-like name.
    """
    plain = stem.strip() == stem and stem.isprintable() and not stem.startswith((".", "-"))
    if not stem or not plain or "/" in stem or "\\" in stem or len(stem.encode()) > _LONGEST_STEM:
        raise refusal(
            "OUT_NAME",
            "files cannot be named after this study name",
            field="name",
            found=repr(stem[:60]),
            expected=f"1 to {_LONGEST_STEM} bytes, no slash, not starting with a dot or a dash",
        )
    return stem


class RunFolder:
    """An output folder for one run; use as a context manager around the whole run.

    Args:
        folder: made when it does not exist (its parent must), and removed again if the run leaves it empty.
        overwrite: replace the results of an earlier, finished run.
        inputs: files that must not be written to and whose folders stay free of synthetic images.
        sources: folders that were given as raw data.
        need_bytes: an upper estimate of what the run will write.

    Raises:
        EnvironmentRefused: ``OUT_CLOBBER``, ``OUT_EXISTS``, ``OUT_SYMLINK``, ``OUT_PERMISSION``, ``OUT_SPACE``,
            ``LOCKED``; all on entering, before any work.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        overwrite: bool = False,
        inputs: Iterable[Path] = (),
        sources: Iterable[Path] = (),
        need_bytes: int = 0,
    ) -> None:
        self.path = Path(folder)
        self.overwrite = overwrite
        self.inputs = tuple(Path(file) for file in inputs)
        self.sources = tuple(Path(source) for source in sources)
        self.need_bytes = need_bytes
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        with contextlib.ExitStack() as exits:
            refuse_raw_data(self.path, inputs=self.inputs, sources=self.sources)
            self._refuse_finished()
            refuse_link_outside(self.path / FIGURES)
            if make_folder(self.path):
                exits.callback(self._remove_empty)
            safe_files.sweep_temporaries(self.path)
            exits.enter_context(safe_files.FolderLock(self.path))
            refuse_full(self.path, self.need_bytes)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *failure: object) -> None:
        self._exits.close()

    def _refuse_finished(self) -> None:
        if os.path.exists(self.path / RUN_FILE) and not self.overwrite:  # noqa: PTH110 (says no for impossible names)
            raise refusal(
                "OUT_EXISTS",
                "the output folder holds the results of an earlier run",
                file=self.path,
                hint="Give --overwrite to replace them, or choose another folder.",
            )

    def _remove_empty(self) -> None:
        remove_empty(self.path)

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path]:
        """A hidden folder to fill; on leaving without an error its files take their places.

        ``run.json`` must be among them. When the body raises, nothing changes.
        """
        with safe_files.staged(self.path, last=RUN_FILE, remove=self._stale) as stage:
            yield stage

    def _stale(self, stage: Path) -> set[Path]:
        """What only the earlier run wrote."""
        return _outputs(self.path) - _outputs(stage)


def refuse_raw_data(folder: Path, *, inputs: Iterable[Path] = (), sources: Iterable[Path] = ()) -> None:
    """Real and synthetic scans stay apart.

    Args:
        folder: where results are to go.
        inputs: files whose folders stay free of results.
        sources: folders of raw data, likewise.

    Raises:
        EnvironmentRefused: ``OUT_CLOBBER``; also for a folder inside a raw BIDS data set, outside its ``derivatives``.
    """
    out = _real(folder)
    homes = {_real(file).parent for file in inputs}
    inside = [source for source in sources if out.is_relative_to(_real(source))]
    if out in homes or inside or _inside_raw_bids(out):
        raise refusal(
            "OUT_CLOBBER",
            "the output folder lies among the raw scans",
            file=folder,
            hint="Choose a folder outside the data set, so that real and synthetic scans stay apart.",
        )


def _real(path: Path) -> Path:
    """Where a path leads; unlike ``Path.resolve`` also for a loop of links, of which the read says more."""
    return Path(os.path.realpath(path))


def refuse_link_outside(folder: Path) -> None:
    """Results go where the path says. A link on the way there is the user's own; one at its end may be a trap.

    Raises:
        EnvironmentRefused: ``OUT_SYMLINK`` for a link that leads out of its folder.
    """
    linked = os.path.islink(folder)  # noqa: PTH114 (says no for impossible names)
    if linked and not _real(folder).is_relative_to(_real(folder.parent)):
        raise refusal(
            "OUT_SYMLINK", "the output folder is a link that leads elsewhere", file=folder,
            hint="Give the folder itself, so that nothing is written where nobody looks.",
        )  # fmt: skip


def make_folder(folder: Path) -> bool:
    """Make a folder whose parent exists, and prove that it can be written to; says whether it is new.

    Raises:
        EnvironmentRefused: ``OUT_SYMLINK``, ``OUT_PERMISSION``, ``OUT_SPACE``, ``OUT_NAME``.
    """
    refuse_link_outside(folder)
    new = not os.path.exists(folder)  # noqa: PTH110 (says no for impossible names)
    if not new and not folder.is_dir():
        raise refusal("OUT_PERMISSION", "the output is a file", file=folder, expected="a folder")
    try:
        if new:
            folder.mkdir()
        probe = folder / safe_files.temporary_name("probe")
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        with contextlib.suppress(OSError):
            if new:
                folder.rmdir()
        raise safe_files.output_refusal(error, folder) from error
    return new


def remove_empty(folder: Path) -> None:
    """Take away a folder that was made for nothing; one with anything in it stays."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def refuse_full(folder: Path, need_bytes: int) -> None:
    """``OUT_SPACE`` when the file system has less room than ``need_bytes``."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise refusal(
            "OUT_SPACE",
            "there is not enough room for the results",
            file=folder,
            found=f"{free / 2**20:.0f} MiB free",
            expected=f"{need_bytes / 2**20:.0f} MiB",
            hint="Free some space or choose another output folder.",
        )


def _outputs(folder: Path) -> set[Path]:
    """Files that ``run.json`` in ``folder`` says its run wrote; only plain names inside the folder count."""
    try:
        listed = parse_json((folder / RUN_FILE).read_bytes())["outputs"]
        names = {Path(output["file"], part) for output in listed for part in output.get("files", [""])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {name for name in names if not name.is_absolute() and ".." not in name.parts and "\0" not in str(name)}


def _inside_raw_bids(folder: Path) -> bool:
    """Whether the nearest data set around ``folder`` is a raw BIDS one."""
    for place in (folder, *folder.parents):
        description = place / "dataset_description.json"
        if os.path.isfile(description):  # noqa: PTH113 (says no for impossible names)
            kind = read_json(description).get("DatasetType", "raw")
            return kind == "raw" and "derivatives" not in folder.relative_to(place).parts
    return False


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object, or an empty one when the file holds none."""
    try:
        return parse_json_object(path.read_bytes())
    except (OSError, ValueError):
        return {}
