"""Registration with a deformation, as the published IXI protocol has it: rigid, affine, then SyN, by ANTs.

Two contrasts of one visit need no deformation in principle; it takes up what two sequences distort differently, and
can also invent one. CodeBrain registers IXI in this way, so stores that are to be compared with it are made with it;
everything else is moved rigidly (:mod:`codebrain.imaging.align`).

Source: Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Medical Image Analysis
2008; ANTsPy's ``SyNRA`` with its defaults (Mattes mutual information, 32 bins, 40 x 20 x 0 steps of SyN). The
protocol names ANTsPy and SyNRA and no setting.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codebrain.errors import CodeBrainError, missing_extra, refusal
from codebrain.imaging.align import Movement, Target, movement_of
from codebrain.imaging.intensity import foreground_mask
from codebrain.imaging.volume import Volume, on_grid_of

_log = logging.getLogger(__name__)

_SEED = 20250701
"""Of the sampling. With one ITK thread two runs give equal bytes; with several, sums differ in their last digits."""


def register(target: Target, moving: Volume) -> tuple[Volume, Movement]:
    """``moving`` on the grid of the target, resampled once, linearly, and how it came there.

    ITK takes its threads from ``ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS`` when it is first used. Transforms go through
    a temporary folder, as ANTs has it.

    Raises:
        InputRefused: ``GEO_ALIGN_FAILED`` when ANTs gives up.
        EnvironmentRefused: ``ENV_EXTRA`` when antspyx is missing.
    """
    begun = time.perf_counter()
    ants, fixed = _ants(), target.fixed
    similarity, overlap = target.likeness(moving)
    with tempfile.TemporaryDirectory(prefix="synra-") as folder:
        try:
            found = ants.registration(
                _image(ants, fixed), _image(ants, moving), type_of_transform="SyNRA", outprefix=f"{folder}/"
            )
            data = np.asfortranarray(found["warpedmovout"].numpy().astype(np.float32))
            matrix = _affine(ants, found["fwdtransforms"])
            mean, largest = _deformation(ants, found["fwdtransforms"], foreground_mask(fixed.data))
        except (RuntimeError, ValueError, OSError) as error:
            raise _failed(moving, str(error)) from error
    if not np.isfinite(data).all() or not data.any():
        raise _failed(moving, "nothing of the scan lies on the reference")
    warped = on_grid_of(moving, fixed, data)
    after = target.likeness(warped)
    shift, rotation, scale = movement_of(matrix, target.centre)
    movement = Movement(
        transform=tuple(tuple(float(v) for v in row) for row in matrix),
        similarity_before=similarity,
        similarity_after=after[0],
        shift_mm=shift,
        rotation_deg=rotation,
        registered=True,
        start="centre of mass",
        seconds=time.perf_counter() - begun,
        overlap_before=overlap,
        overlap_after=after[1],
        method="SyNRA",
        scale=scale,
        deformation_mean_mm=mean,
        deformation_max_mm=largest,
    )
    return warped, movement


def _ants() -> Any:
    try:
        import ants
    except ImportError as error:
        raise missing_extra("antspyx", "ixi", "registration as published (SyNRA)") from error
    # The second argument alone: the first would refuse every transform but one.
    ants.config.set_ants_deterministic(on=False, seed_value=_SEED)
    return ants


def _image(ants: Any, volume: Volume) -> Any:
    """A volume for ANTs. World coordinates stay RAS; a reflected grid is a direction matrix like any other."""
    left, _, right = np.linalg.svd(volume.affine[:3, :3] / volume.spacing)
    return ants.from_numpy(
        volume.data, origin=volume.affine[:3, 3].tolist(), spacing=volume.spacing, direction=left @ right
    )


def _affine(ants: Any, files: Sequence[str]) -> NDArray[np.float64]:
    """The affine part, reference millimetres to the scan's own, ``(4, 4)``."""
    (name,) = [file for file in files if file.endswith(".mat")]
    transform = ants.read_transform(name)
    turn, shift = np.reshape(transform.parameters[:9], (3, 3)), np.asarray(transform.parameters[9:])
    centre = np.asarray(transform.fixed_parameters)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, shift + centre - turn @ centre
    return matrix


def _deformation(ants: Any, files: Sequence[str], head: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean and largest length of the displacement beyond the affine part, over the head, in millimetres."""
    (name,) = [file for file in files if file.endswith("Warp.nii.gz")]
    field = ants.image_read(name).numpy()
    lengths = np.sqrt(sum(field[..., axis][head] ** 2 for axis in range(3)))
    return round(float(lengths.mean()), 3), round(float(lengths.max()), 3)


def _failed(moving: Volume, why: str) -> CodeBrainError:
    _log.info("registration of %s stopped: %s", moving.name, why)
    return refusal(
        "GEO_ALIGN_FAILED", "ANTs found no transform onto the reference", file=moving.file,
        hint="Look at the scan; leave the subject out with --exclude.",
    )  # fmt: skip
