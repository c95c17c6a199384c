"""DICOM on the doctor's table: which series there are, what each is taken for, and what is wrong with them."""

from __future__ import annotations

import shlex
from pathlib import Path

from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging.dicom.find import find_examination
from codebrain.imaging.dicom.series import judge_series
from codebrain.imaging.examine import Examination, Finding
from codebrain.imaging.mending import Mending
from codebrain.imaging.volume import MAX_VOXELS


def examine_dicom(path: Path, *, max_voxels: int = MAX_VOXELS) -> Examination:
    """Examine a folder, archive or file of DICOM as ``impute`` would choose from it; no pixel is decoded.

    Args:
        path: as typed.
        max_voxels: see :func:`codebrain.imaging.dicom.series.judge_series`.
    """
    try:
        found = find_examination(path)
        if found is None:
            raise refusal("IN_FORMAT", "there is no DICOM image here", file=path, hint="Give scans as NIfTI or DICOM.")
    except CodeBrainError as error:
        return Examination(path, None, None, (_refused(path, error),))
    findings = []
    for series in found.chosen.values():
        try:
            notices = judge_series(series, max_voxels=max_voxels)
        except CodeBrainError as error:
            findings.append(_refused(path, error))
        else:
            findings += [Finding(n.code, "warning", f"series {series.handle}: {n.message}") for n in notices]
    return Examination(path, None, None, tuple(findings), series=tuple(found.lines()))


def _refused(path: Path, error: CodeBrainError) -> Finding:
    hint = error.hint or ""
    by_hand = Mending(
        f"dcm2niix -z y -o OUT {shlex.quote(str(path))}", "to convert the series by hand and look at them"
    )
    return Finding(error.code, "refused", error.brief.removesuffix(hint).strip(), (by_hand,), hint)
