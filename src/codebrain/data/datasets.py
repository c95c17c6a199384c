"""What ``codebrain prepare ixi``, ``brats``, ``bids`` and ``folder`` mean: where studies lie, and the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codebrain.data.archives import find_brats, find_ixi
from codebrain.data.bids_source import find_bids
from codebrain.data.lists import PublishedLists, SplitRule, select
from codebrain.data.sources import Finder, Found, find_subjects
from codebrain.data.splits import Division, Drawn, Split
from codebrain.errors import refusal
from codebrain.imaging.align import AlignMode
from codebrain.imaging.frame import Slices
from codebrain.vocabulary import Modality, ModalitySet, Preparation


@dataclass(frozen=True)
class Protocol:
    """How the studies of one store are prepared.

    Attributes:
        preparation: contrasts, normalisation, frame.
        align: how contrasts on other grids are treated.
        reference: the contrast whose grid is kept; by default the one with the finest coarsest edge.
        reproducible: one thread of ITK, so that two runs give equal bytes also with ``synra``.
    """

    preparation: Preparation
    align: AlignMode = "auto"
    reference: Modality | None = None
    reproducible: bool = False


@dataclass(frozen=True)
class DataSet:
    """A kind of source.

    Attributes:
        name: what the command takes.
        find: finds its studies.
        modalities: the contrasts that a published protocol needs, in channel order; ``None`` takes what occurs.
        lists: of published subjects and slices.
        normalisation, pixel_spacing_mm, frame, background, align, reference: defaults of the protocol.
        slices: which transverse slices of studies that no list names.
    """

    name: str
    find: Finder
    modalities: ModalitySet | None = None
    lists: str | None = None
    normalisation: str = "percentile"
    pixel_spacing_mm: float | None = 1.0
    frame: tuple[int, int] | None = None
    background: str = "zero"
    align: AlignMode = "auto"
    reference: Modality | None = None
    slices: Slices = None

    def studies(
        self, sources: Sequence[Path], *, split: str, unlisted: Split | None, exclude: Sequence[str], drawn: Drawn
    ) -> tuple[Found, Division]:
        """The studies to prepare, with a row for every one that is not, and how they are divided.

        Args:
            sources: folders.
            split: ``patient`` or ``published`` with lists, else ``drawn``.
            unlisted: the split for studies that no list names.
            exclude: subjects or patients to leave out.
            drawn: the draw, for ``drawn``.

        Raises:
            InputRefused: as the finder, :func:`codebrain.data.lists.select` and :meth:`Found.without`.
        """
        found = self.find(sources)
        found = found.complete(self.modalities) if self.lists and self.modalities else found
        found = found.without(exclude) if exclude else found
        if self.slices is not None:
            found = replace(found, subjects=tuple(replace(one, slices=self.slices) for one in found.subjects))
        if self.lists is None or split == "drawn":
            return found, drawn
        rule: SplitRule = "published" if split == "published" else "patient"
        return select(found, PublishedLists.named(self.lists), rule=rule, unlisted=unlisted)


_PUBLISHED = {"normalisation": "min_max", "pixel_spacing_mm": None, "background": "kept"}
"""Of both data sets. Source: Wu et al., CodeBrain, section 4 (min-max to [0, 1], nothing resampled in plane)."""

FOLDER = DataSet("folder", find_subjects)
IXI = DataSet(
    "ixi", find_ixi, ModalitySet.parse("T1,T2,PD"), "ixi", frame=(256, 256), align="synra", reference=Modality.T2,
    slices=90, **_PUBLISHED,  # type: ignore[arg-type]
)  # fmt: skip
"""T1 registered to T2 by SyNRA, not skull-stripped, 90 middle slices, 256 x 256. Source: as above."""
BRATS = DataSet(
    "brats", find_brats, ModalitySet.parse("FLAIR,T1,T2,T1Gd"), "brats2023", frame=(240, 240), align="none",
    slices=80, **_PUBLISHED,  # type: ignore[arg-type]
)  # fmt: skip
"""Registered and skull-stripped by its makers; 80 middle slices, 240 x 240. Source: as above."""

BIDS = DataSet("bids", find_bids)

DATASETS = {dataset.name: dataset for dataset in (IXI, BRATS, BIDS, FOLDER)}


def dataset_named(name: str) -> DataSet:
    """The kind of source by the name that ``codebrain prepare`` takes.

    Raises:
        UsageError: ``CONFIG`` for a kind that this version does not read.
    """
    if name not in DATASETS:
        raise refusal(
            "CONFIG",
            f"this version has no source {name!r}",
            expected=", ".join(DATASETS),
            hint="Put one folder per study with files such as T1.nii.gz into a folder, and use `folder`.",
        )
    return DATASETS[name]
