"""How the results of a study are named and laid out in the output folder of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from codebrain import output
from codebrain.errors import CodeBrainError, Notice
from codebrain.results import Imputation
from codebrain.vocabulary import Modality


@dataclass(frozen=True)
class BatchStudy:
    """One study of a batch.

    Attributes:
        name: unique in the batch, also without regard to case; files are named after it.
        files: the file of each contrast.
        shown: how records name each file, relative to the data set.
        refused: why it cannot be used, when that is known already.
        notices: what was accepted with a warning on the way here.
        source: what the layout needs to know about it.
    """

    name: str
    files: Mapping[Modality, Path]
    shown: Mapping[Modality, str]
    refused: CodeBrainError | None = None
    notices: tuple[Notice, ...] = ()
    source: Any = field(default=None, repr=False)


class Layout(Protocol):
    """What a kind of output folder decides; an object that can be sent to workers."""

    @property
    def name(self) -> str:
        """Goes into the settings of the batch."""
        ...

    @property
    def table(self) -> str | None:
        """Where the table of all studies goes, relative to the output folder."""
        ...

    def check(self, study: BatchStudy) -> None:
        """Called in the worker before a study is read; raises what it is refused for."""
        ...

    def write(self, study: BatchStudy, result: Imputation, stage: Path) -> str | None:
        """Fill ``stage``, an empty folder, with files at the paths that they will have in the output folder.

        Returns:
            The report's file, relative to the output folder.
        """
        ...


@dataclass(frozen=True)
class FolderLayout:
    """A folder for each study, filled as ``codebrain impute`` fills it."""

    name: str = "folders"
    table: str | None = "studies.tsv"

    def check(self, study: BatchStudy) -> None:
        """Any study will do."""

    def write(self, study: BatchStudy, result: Imputation, stage: Path) -> str:
        folder = stage / study.name
        folder.mkdir()
        result.fill(folder)
        return f"{study.name}/{output.REPORT_FILE}"
