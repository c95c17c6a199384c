"""A BIDS data set as a source of studies: a session is a study, a subject is a patient whatever its sessions.

Which file is which contrast, and what is ambiguous, is said by :mod:`codebrain.imaging.bids_dataset` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from codebrain.data.sources import Found, PassedOver, SubjectFiles, join, too_few
from codebrain.imaging.bids_dataset import BidsStudy, Filter, check_sidecars, read_dataset


def find_bids(sources: Sequence[Path], *, validate: bool = True, filters: Iterable[Filter] = ()) -> Found:
    """The studies of one or more BIDS data sets.

    Args:
        sources: folders of data sets; two with a subject of the same label are refused.
        validate: refuse a data set without a description.
        filters: decide between several files of one contrast.

    Raises:
        InputRefused: as :func:`codebrain.imaging.bids_dataset.read_dataset`; ``DATA_DUPLICATE``.
    """
    return join([_data_set(Path(root), validate, tuple(filters)) for root in sources])


def _data_set(root: Path, validate: bool, filters: tuple[Filter, ...]) -> Found:
    data_set = read_dataset(root, validate=validate, filters=filters)
    found = list(_studies(data_set.studies))
    return Found(
        tuple(one for one in found if isinstance(one, SubjectFiles)),
        tuple(one for one in found if isinstance(one, PassedOver)),
        data_set.notices,
    )


def _studies(studies: Iterable[BidsStudy]) -> Iterator[SubjectFiles | PassedOver]:
    for study in studies:
        patient = f"sub-{study.subject}"
        if study.refused is not None:
            yield PassedOver(study.name, "refused", study.refused.code, study.refused.brief, patient)
        elif len(study.files) < 2:
            yield too_few(study.name, list(study.files), patient)
        else:
            yield SubjectFiles(
                study.name, patient, study.files, study.root,
                notices=study.notices, check=partial(check_sidecars, study),
            )  # fmt: skip
