"""Contrasts of one examination on one grid: untouched where they are, else registered and resampled once.

Registration is rigid, or SyNRA where a published protocol has it so (:mod:`codebrain.imaging.synra`); both are
measured here, in the same way, so that their qualities compare.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from codebrain.errors import Notice, missing_extra, refusal
from codebrain.imaging.intensity import border_constant, foreground_mask
from codebrain.imaging.study import Study
from codebrain.imaging.volume import Volume, on_grid_of, same_grid
from codebrain.vocabulary import Modality

_log = logging.getLogger(__name__)

AlignMode = Literal["auto", "synra", "none"]
"""``auto``: rigid. ``synra``: rigid, affine and deformable, with ANTs. ``none``: refuse."""

Key = TypeVar("Key")

_WORKING_MM = 2.0
"""Registration works on voxels of about this size: a few seconds a contrast, a tenth of a voxel off."""

TRUSTED = 1.05
"""Normalised mutual information after registration: 1.052 to 1.128 for contrasts of one head (eleven pairs), 1.020
to 1.051 for two different heads (six pairs)."""

_FAR_MM, _FAR_DEG = 25.0, 20.0
"""Beyond any movement of a patient on the table; headers that are further apart may be another person's."""

_LEAST_OVERLAP, _MOST_SCALING, _FAR_DEFORMED_MM = 0.9, 0.1, 20.0
"""Of a registration with a deformation, which can hide a failure in it."""

_GAIN = 0.002
"""Less is no reason to distrust the headers, or a registration."""

_NEAR_MM = 3.0
_BINS = 48
_SEED = 20250701


@dataclass(frozen=True)
class Movement:
    """How one contrast came onto the reference grid.

    Attributes:
        transform: reference world millimetres (RAS+) to the contrast's own, ``(4, 4)``.
        similarity_before: normalised mutual information with the reference as the headers have it, 1 to 2.
        similarity_after: the same after the movement.
        shift_mm: length of the movement of the head's centre.
        rotation_deg: angle of the rotation.
        registered: ``False`` where the headers agreed at least as well, and were believed.
        start: where registration began: ``header``, ``centre of mass``.
        seconds: taken.
        overlap_before, overlap_after: Dice overlap of the two heads, 0 to 1.
        method: ``rigid`` or ``SyNRA``; of the latter the numbers above describe the affine part.
        scale: of lengths, by the affine part; 1 for rigid.
        deformation_mean_mm, deformation_max_mm: over the head, beyond the affine part.
    """

    transform: tuple[tuple[float, ...], ...]
    similarity_before: float
    similarity_after: float
    shift_mm: float
    rotation_deg: float
    registered: bool
    start: str
    seconds: float
    overlap_before: float = 0.0
    overlap_after: float = 0.0
    method: str = "rigid"
    scale: float = 1.0
    deformation_mean_mm: float = 0.0
    deformation_max_mm: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"transform": [list(row) for row in self.transform]}


@dataclass(frozen=True)
class AlignmentRecord:
    """What was moved onto which grid.

    Attributes:
        reference: the contrast whose grid it is.
        moved: by contrast; contrasts that were on the grid are absent.
        notices: doubtful registrations.
    """

    reference: Modality
    moved: Mapping[Modality, Movement]
    notices: tuple[Notice, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "reference": str(self.reference),
            "moved": {str(m): movement.as_dict() for m, movement in self.moved.items()},
            "notices": [notice.as_dict() for notice in self.notices],
        }


def align_study(
    study: Study, *, mode: AlignMode = "auto", reference: Modality | None = None
) -> tuple[Study, AlignmentRecord]:
    """Bring every contrast onto the grid of one of them.

    Contrasts on that grid (same shape, corners within a micrometre) are passed on as they are. Others are
    registered (rigidly: Mattes mutual information, three resolutions) and resampled once, linearly.

    Args:
        study: scans on any grids.
        mode: ``auto`` registers rigidly, ``synra`` with a deformation, ``none`` refuses instead.
        reference: by default the contrast with the finest coarsest edge, ties in vocabulary order.

    Raises:
        InputRefused: ``GEO_MISMATCH`` with mode ``none``, both shapes printed; ``GEO_ALIGN_FAILED`` when
            ``synra`` found no transform.
        UsageError: ``CONFIG`` when the reference is not in the study.
        EnvironmentRefused: ``ENV_EXTRA`` when SimpleITK, or ANTs for ``synra``, is missing.
    """
    home = choose_reference(study, reference)
    fixed = study.volumes[home]
    elsewhere = [m for m, volume in study.volumes.items() if not same_grid(fixed, volume)]
    if not elsewhere:
        return study, AlignmentRecord(home, {})
    if mode == "none":
        raise _mismatch(fixed, study.volumes[elsewhere[0]], home, elsewhere[0])
    with _one_thread(_simple_itk()) as sitk:
        target = Target(sitk, fixed)
        moved = {m: _register(target, study.volumes[m], mode) for m in elsewhere}
    volumes = {m: moved[m][0] if m in moved else volume for m, volume in study.volumes.items()}
    movements = {m: movement for m, (_, movement) in moved.items()}
    notices = tuple(n for m in elsewhere for n in _doubts(m, movements[m], volumes[m].name))
    return Study(study.name, volumes), AlignmentRecord(home, movements, notices)


def _register(target: Target, moving: Volume, mode: AlignMode) -> tuple[Volume, Movement]:
    if mode != "synra":
        return target.register(moving)
    from codebrain.imaging.synra import register

    return register(target, moving)


def choose_reference(study: Study, wanted: Modality | None) -> Modality:
    """The contrast whose grid the others are brought onto; see :func:`align_study`.

    Raises:
        UsageError: ``CONFIG`` when ``wanted`` is not in the study.
    """
    if wanted is not None and wanted not in study.volumes:
        raise refusal("CONFIG", "the reference is not in the study", field="ref", found=wanted,
                      expected=", ".join(study.volumes))  # fmt: skip
    if wanted is not None:
        return wanted
    return finest({m: study.volumes[m] for m in Modality if m in study.volumes})


def finest(volumes: Mapping[Key, Volume]) -> Key:
    """Which scan has the finest coarsest edge; the first of equals."""
    # Rounded, so that 2.9985 mm and 3 mm are a tie.
    return min(volumes, key=lambda key: round(max(volumes[key].spacing), 1))


def movements_onto(fixed: Volume, others: Mapping[Key, Volume]) -> dict[Key, Movement]:
    """How :func:`align_study` would move each scan onto ``fixed``; nothing is resampled.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when SimpleITK is missing.
    """
    with _one_thread(_simple_itk()) as sitk:
        target = Target(sitk, fixed)
        return {key: target.find(volume)[1] for key, volume in others.items()}


def _mismatch(fixed: Volume, other: Volume, home: Modality, modality: Modality) -> Exception:
    def told(volume: Volume) -> str:
        size = " x ".join(map(str, volume.data.shape))
        return f"{size} voxels of {' x '.join(f'{mm:.4g}' for mm in volume.spacing)} mm, {volume.orientation}"

    return refusal(
        "GEO_MISMATCH", f"{modality} is not on the grid of {home}", file=other.file,
        found=told(other), expected=told(fixed), hint="Use --align auto, or resample the scans onto one grid.",
    )  # fmt: skip


def by_header(fixed: Volume, moving: Volume) -> Volume:
    """``moving`` on the grid of ``fixed`` where its header says it lies, linearly; what registration begins with."""
    with _one_thread(_simple_itk()) as sitk:
        grid, image = _to_sitk(sitk, fixed, fixed.data), _to_sitk(sitk, moving, moving.data)
        moved = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, float(moving.data.min()))
        data = np.asfortranarray(sitk.GetArrayFromImage(moved).transpose(2, 1, 0))
    return on_grid_of(moving, fixed, data)


def _simple_itk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise missing_extra("SimpleITK", "align", "bringing contrasts onto one grid") from error
    return SimpleITK


@contextmanager
def _one_thread(sitk: Any) -> Iterator[Any]:
    """One thread, so that sums, and with them results, do not depend on the machine."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield sitk
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


class Target:
    """The reference scan, prepared once for all contrasts that are moved onto it."""

    def __init__(self, sitk: Any, fixed: Volume) -> None:
        self.sitk, self.fixed = sitk, fixed
        self.image = _to_sitk(sitk, fixed, fixed.data)
        self.small, self.mask, self.centre = _working(sitk, fixed)

    def register(self, moving: Volume) -> tuple[Volume, Movement]:
        """``moving`` on the reference grid, and how it came there."""
        begun = time.perf_counter()
        transform, movement = self.find(moving)
        data = self._resample(moving, transform)
        return on_grid_of(moving, self.fixed, data), replace(movement, seconds=time.perf_counter() - begun)

    def find(self, moving: Volume) -> tuple[Any, Movement]:
        """The transform that brings ``moving`` onto the reference, and how far it moves."""
        begun = time.perf_counter()
        small, mask, centre = _working(self.sitk, moving)
        still = self._rigid((0.0, 0.0, 0.0))
        before = self._similarity(small, still)
        best, after, start = still, before, "header"
        for name, shift in (("header", np.zeros(3)), ("centre of mass", centre - self.centre)):
            if name != "header" and (after > TRUSTED or np.linalg.norm(shift) < _NEAR_MM):
                continue
            found = self._optimise(small, self._rigid(shift))
            value = self._similarity(small, found)
            if value > after + _GAIN:
                best, after, start = found, value, name
        overlaps = self._overlap(small, mask, still), self._overlap(small, mask, best)
        registered, seconds = best is not still, time.perf_counter() - begun
        movement = self._movement(best, (before, after), overlaps, start, registered=registered, seconds=seconds)
        return best, movement

    def likeness(self, volume: Volume) -> tuple[float, float]:
        """Normalised mutual information with a scan as its header has it, and Dice overlap of the two heads."""
        small, mask, _ = _working(self.sitk, volume)
        still = self._rigid((0.0, 0.0, 0.0))
        return round(self._similarity(small, still), 5), self._overlap(small, mask, still)

    def _rigid(self, shift: Any) -> Any:
        transform = self.sitk.Euler3DTransform()
        transform.SetCenter([float(mm) for mm in self.centre])
        transform.SetTranslation([float(mm) for mm in shift])
        return transform

    def _optimise(self, small: Any, transform: Any) -> Any:
        method = self.sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(_BINS)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentagePerLevel([1.0, 0.5, 0.2], _SEED)
        method.SetInterpolator(self.sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.01, 60, 0.6)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([4.0, 2.0, 0.0])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(self.small, small)
        except RuntimeError as error:  # no overlap at this start
            _log.info("registration stopped: %s", error)
        return transform

    def _similarity(self, small: Any, transform: Any) -> float:
        """Normalised mutual information over the reference's head."""
        moved = self.sitk.Resample(small, self.small, transform, self.sitk.sitkLinear, 0.0)
        a = self.sitk.GetArrayViewFromImage(self.small)[self.mask]
        b = self.sitk.GetArrayViewFromImage(moved)[self.mask]
        return normalised_mutual_information(a, b)

    def _overlap(self, small: Any, mask: NDArray[np.bool_], transform: Any) -> float:
        """Dice overlap of the reference's head and the moved one, whose voxels may have another size."""
        head = self.sitk.GetImageFromArray(mask.astype(np.float32))
        head.CopyInformation(small)
        moved = self.sitk.Resample(head, self.small, transform, self.sitk.sitkLinear, 0.0)
        other = self.sitk.GetArrayViewFromImage(moved) > 0.5
        return round(2 * float((self.mask & other).sum()) / max(1.0, float(self.mask.sum() + other.sum())), 4)

    def _resample(self, moving: Volume, transform: Any) -> NDArray[np.float32]:
        constant = border_constant(moving.data)
        fill = float(moving.data.min()) if constant is None else constant
        image = _to_sitk(self.sitk, moving, moving.data)
        moved = self.sitk.Resample(image, self.image, transform, self.sitk.sitkLinear, fill)
        return np.asfortranarray(self.sitk.GetArrayFromImage(moved).transpose(2, 1, 0))

    def _movement(
        self,
        transform: Any,
        similarities: tuple[float, float],
        overlaps: tuple[float, float],
        start: str,
        *,
        registered: bool,
        seconds: float,
    ) -> Movement:
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
        matrix[:3, 3] = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
        shift, rotation, _ = movement_of(matrix, self.centre)
        return Movement(
            transform=tuple(tuple(float(v) for v in row) for row in matrix),
            similarity_before=round(similarities[0], 5),
            similarity_after=round(similarities[1], 5),
            shift_mm=shift,
            rotation_deg=rotation,
            registered=registered,
            start=start,
            seconds=seconds,
            overlap_before=overlaps[0],
            overlap_after=overlaps[1],
        )


def movement_of(matrix: NDArray[np.float64], centre: NDArray[np.float64]) -> tuple[float, float, float]:
    """What an affine ``(4, 4)`` does: millimetres at ``centre``, degrees of its rotation, scale of lengths."""
    left, sizes, right = np.linalg.svd(matrix[:3, :3])
    cosine = float(np.clip((np.trace(left @ right) - 1) / 2, -1, 1))
    shift = float(np.linalg.norm(matrix[:3, :3] @ centre + matrix[:3, 3] - centre))
    return shift, float(np.degrees(np.arccos(cosine))), float(np.prod(sizes) ** (1 / 3))


def _to_sitk(sitk: Any, volume: Volume, data: NDArray[np.float32]) -> Any:
    """A volume for ITK. World coordinates stay RAS; a reflected grid is a direction matrix like any other."""
    image = sitk.GetImageFromArray(data.T)
    left, _, right = np.linalg.svd(volume.affine[:3, :3] / volume.spacing)
    image.SetDirection((left @ right).ravel().tolist())
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.affine[:3, 3].tolist())
    return image


def _working(sitk: Any, volume: Volume) -> tuple[Any, NDArray[np.bool_], NDArray[np.float64]]:
    """A small image for registration (robust range, air at 0), its head mask in ITK's order, the head's centre."""
    shrink = [max(1, int(_WORKING_MM / mm + 0.25)) for mm in volume.spacing]
    shrunk = sitk.BinShrink(_to_sitk(sitk, volume, volume.data), shrink)
    data = sitk.GetArrayFromImage(shrunk)
    mask = foreground_mask(data)
    low, high = np.percentile(data[mask], (0.5, 99.5)) if mask.any() else (0.0, 1.0)
    unit = np.clip((data - low) / max(high - low, 1e-30), 0, 1) * mask
    small = sitk.GetImageFromArray(unit.astype(np.float32))
    small.CopyInformation(shrunk)
    middle = [float(places.mean()) if places.size else 0.0 for places in np.nonzero(mask)][::-1]
    return small, mask, np.array(small.TransformContinuousIndexToPhysicalPoint(middle))


def normalised_mutual_information(a: NDArray[Any], b: NDArray[Any], bins: int = 48) -> float:
    """(H(a) + H(b)) / H(a, b) of paired samples: 1 for independent, 2 for equal.

    Source: Studholme, Hill and Hawkes 1999, equation 8.
    """
    joint, _, _ = np.histogram2d(np.ravel(a), np.ravel(b), bins)
    share = joint / max(1.0, joint.sum())

    def entropy(p: NDArray[np.float64]) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    both = entropy(share.ravel())
    return (entropy(share.sum(0)) + entropy(share.sum(1))) / both if both > 0 else 1.0


def quality_rule(mode: str) -> str:
    """The rule of :func:`_doubts` for people."""
    rule = (
        f"A registration passes when the normalised mutual information after it is at least {TRUSTED} and it moved"
        f" the head by at most {_FAR_MM:.0f} mm and {_FAR_DEG:.0f} degrees."
    )
    if mode != "synra":
        return rule
    return (
        f"{rule[:-1]}, when the mutual information did not fall by more than {_GAIN}, when the two heads overlap by at"
        f" least {_LEAST_OVERLAP} (Dice) or by no less than before, when the affine part changes lengths by at most"
        f" {_MOST_SCALING:.0%}, and when the deformation is at most {_FAR_DEFORMED_MM:.0f} mm anywhere in the head."
    )


def _doubts(modality: Modality, movement: Movement, file: str) -> Iterator[Notice]:
    """The quality gate: a similarity or movement that two different heads show as well proves nothing."""
    found = [*_moved_too_far(movement), *(_deformed_too_far(movement) if movement.method == "SyNRA" else ())]
    if not found:
        return
    message = (
        f"{modality} may not lie on the reference: after moving it by {movement.shift_mm:.0f} mm and"
        f" {movement.rotation_deg:.0f} degrees {', '.join(found)}; look at the preview"
    )
    yield Notice("GEO_ALIGN_POOR", message, file)


def _moved_too_far(movement: Movement) -> Iterator[str]:
    far = movement.shift_mm > _FAR_MM or movement.rotation_deg > _FAR_DEG
    if movement.similarity_after < TRUSTED or far:
        yield f"their similarity is {movement.similarity_after:.3f} (contrasts of one head usually reach {TRUSTED})"


def _deformed_too_far(movement: Movement) -> Iterator[str]:
    if movement.similarity_after < movement.similarity_before - _GAIN:
        yield f"it was {movement.similarity_before:.3f} before"
    # A dark scalp is no part of the head in one contrast, so a small overlap alone proves nothing.
    if movement.overlap_after < min(_LEAST_OVERLAP, movement.overlap_before):
        yield f"the heads overlap by {movement.overlap_after:.2f} (expected {_LEAST_OVERLAP})"
    if abs(movement.scale - 1) > _MOST_SCALING:
        yield f"lengths were changed by a factor of {movement.scale:.2f}"
    if movement.deformation_max_mm > _FAR_DEFORMED_MM:
        yield f"the head was deformed by up to {movement.deformation_max_mm:.0f} mm"
