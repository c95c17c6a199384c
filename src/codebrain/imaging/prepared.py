"""The shared road of imputation and training: a study on one grid, in [0, 1], as slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codebrain.errors import Notice, refusal
from codebrain.imaging.align import AlignmentRecord, AlignMode, align_study
from codebrain.imaging.domain import judge_domain
from codebrain.imaging.frame import Frame, Slices
from codebrain.imaging.intensity import MinMax, Percentile, fit_normalisation, foreground_mask, to_unit
from codebrain.imaging.study import Study
from codebrain.imaging.volume import Volume
from codebrain.threads import in_threads
from codebrain.vocabulary import Modality, Preparation


@dataclass(frozen=True, eq=False)
class PreparedStudy:
    """A study as the network sees it, with every record that leads back.

    Attributes:
        name: the study's name.
        slices: ``(n, m, h, w)`` float32 in [0, 1]; 0 for absent contrasts, and outside the head unless it is kept.
        available: which of the preparation's contrasts the study has.
        frame: slices to grid and back.
        normalisations: scanner units to [0, 1] and back, by contrast.
        alignment: what was moved onto the reference grid.
        foreground: where any contrast shows the head, ``(i, j, k)`` on the reference grid.
        reference: the scan whose grid it is.
        reference_modality: its contrast.
        preparation: what asked for this form.
        notices: what was accepted with a warning, of every scan and step.
    """

    name: str
    slices: NDArray[np.float32]
    available: tuple[bool, ...]
    frame: Frame
    normalisations: Mapping[Modality, MinMax | Percentile]
    alignment: AlignmentRecord
    foreground: NDArray[np.bool_]
    reference: Volume
    reference_modality: Modality
    preparation: Preparation
    notices: tuple[Notice, ...] = ()


def prepare_study(
    study: Study,
    preparation: Preparation,
    *,
    align: AlignMode = "auto",
    reference: Modality | None = None,
    slices: Slices = None,
) -> PreparedStudy:
    """Bring a study to the form that a model was trained on.

    Args:
        study: checked scans, on any grids.
        preparation: channel order, normalisation, spacing.
        align: ``auto`` registers scans that are on other grids, ``none`` refuses them; see
            :func:`codebrain.imaging.align.align_study`.
        reference: whose grid; by default the contrast with the finest coarsest edge.
        slices: which transverse slices of the reference's grid; by default those with head.

    Raises:
        UsageError: ``MOD_NONE`` when the preparation knows none of the contrasts.
        InputRefused: ``GEO_MISMATCH``, ``GEO_ALIGN_FAILED``, ``IN_NO_SIGNAL``, ``DATA_SLICES``, ``MODEL_DOMAIN``.
        EnvironmentRefused: ``ENV_EXTRA`` when registration is needed and its library is missing.
    """
    known = _known(study, preparation)
    unlike = judge_domain(known.volumes, preparation.domain)
    aligned, alignment = align_study(known, mode=align, reference=reference)
    volumes = aligned.volumes
    masks = dict(zip(volumes, in_threads(foreground_mask, (v.data for v in volumes.values())), strict=True))
    foreground = np.logical_or.reduce(list(masks.values()))
    home = volumes[alignment.reference]
    frame = Frame.fit(foreground, home.affine, preparation, slices=slices)
    normalisations = {m: fit_normalisation(preparation, volume.data, masks[m]) for m, volume in volumes.items()}
    stack = np.zeros((frame.slice_shape[0], len(preparation.modalities), *frame.slice_shape[1:]), np.float32)

    def place(m: Modality) -> None:
        unit = to_unit(preparation, normalisations[m], volumes[m].data, masks[m])
        stack[:, preparation.modalities.index(m)] = frame.apply(unit)

    in_threads(place, volumes)
    return PreparedStudy(
        name=study.name,
        slices=stack,
        available=preparation.modalities.pattern(volumes),
        frame=frame,
        normalisations=normalisations,
        alignment=alignment,
        foreground=foreground,
        reference=home,
        reference_modality=alignment.reference,
        preparation=preparation,
        notices=(*(n for v in study.volumes.values() for n in v.notices), *unlike, *alignment.notices),
    )


def _known(study: Study, preparation: Preparation) -> Study:
    volumes = {m: v for m, v in study.volumes.items() if m in preparation.modalities}
    if not volumes:
        raise refusal(
            "MOD_NONE", "none of the study's contrasts is known to the model",
            found=", ".join(study.volumes), expected=f"at least one of {preparation.modalities}",
        )  # fmt: skip
    return Study(study.name, volumes)
