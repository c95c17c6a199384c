"""What a scan shows, and whether a model was trained on the like: whole head, no face or bare brain; voxel sizes.

Two measures tell the kind of head. Both look at the shape and the layers of the head, so that neither how the air was
filled nor a resampling with soft edges decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from operator import or_
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from codebrain.errors import CodeBrainError, Notice, refusal
from codebrain.imaging.frame import ras_view
from codebrain.imaging.intensity import border_constant, foreground_mask
from codebrain.imaging.volume import Volume
from codebrain.threads import in_threads
from codebrain.vocabulary import Modality, TrainingDomain

HeadKind = Literal["stripped", "whole", "defaced", "unclear"]

SKULL_SCORE = 0.2
"""Measured 0.38 to 0.85 on 21 scans with skull and 0.00 to 0.11 on 20 bare brains (six sources); 0.35 to 0.75 and
0.00 to 0.08 when they were smoothed to 3 mm; 0.46 to 0.92 and 0.01 to 0.07 on 20 simulated scans of each."""

_SKULL_UNSURE = (0.15, 0.27)
FACE_SCORE = 0.13
"""Measured 0.18 to 0.31 on 18 defaced scans (eight visits), -0.02 to 0.00 on three with a face; 0.05 to 0.09 on 20
simulated ones, which have no nose."""

_FACE_UNSURE = (0.11, 0.15)

_COARSEST_MM = (1.5, 1.5, 2.0)
"""Voxels may be thinned out up to this size; the measures stay, and take a few tenths of a second."""

_COARSER, _ANISOTROPIC = 2.0, 3.0
"""Voxels twice as long as any in training, or three times as long as wide where training had none such, are warned
about: rows C13 of the list of bad inputs."""

_CALVARIA = (0.12, 0.5)
"""Levels below the top of the head, in lengths of the head, at which the skull is a closed ring."""

_DEEPEST_MM = 32
"""Scalp and skull end 8 to 20 mm under the surface; what follows is brain to compare with."""

_LEAST_VOXELS = 50
_UPPER_MM = 100.0
_FOREHEAD = (0.2, 0.5)
_FACE = (0.57, 0.67)
"""From the root of the nose to the upper lip. A turned field of view, which cuts the chin off, begins below."""

_MIDLINE = 0.08


@dataclass(frozen=True)
class Stripping:
    """Whether the skull was removed.

    Attributes:
        verdict: ``stripped``, ``whole``, or ``unclear`` near the threshold and where the air is noise, in which a
            dark scalp may be lost.
        score: how dark the layer under the scalp is, 0 (no such layer) to 1 (black); see :data:`SKULL_SCORE`.
        depth_mm: where it is darkest, from the surface.
    """

    verdict: Literal["stripped", "whole", "unclear"]
    score: float
    depth_mm: float

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Defacing:
    """Whether the face was removed.

    Attributes:
        verdict: ``defaced``, ``face``, or ``unclear`` near the threshold and where the scan ends above the face.
        score: how far the profile falls back behind the forehead, in lengths of the head; ``None`` out of view.
            See :data:`FACE_SCORE`.
    """

    verdict: Literal["defaced", "face", "unclear"]
    score: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def skull_stripped(volume: Volume) -> Stripping:
    """Whether a scan shows a bare brain.

    From the surface inwards a head is bright (scalp), dark (skull), bright (brain). The score is the depth of that
    valley in the median intensity by distance from the surface, over the levels of the calvaria, as a share of the
    lower of its two sides.
    """
    return _stripping(_Head.of(volume))


def defaced(volume: Volume) -> Defacing:
    """Whether a whole head has lost its face: below the forehead its profile falls back.

    A face that was replaced by an average one is not found. For a bare brain the answer means nothing.
    """
    return _defacing(_Head.of(volume))


def head_kind(volume: Volume) -> HeadKind:
    """Both answers as one word; a face that may be there, or is out of view, counts as there."""
    head = _Head.of(volume)
    stripping = _stripping(head)
    if stripping.verdict != "whole":
        return stripping.verdict
    return "defaced" if _defacing(head).verdict == "defaced" else "whole"


def training_domain(volumes: Iterable[Volume]) -> TrainingDomain:
    """What these scans are like; a head of unclear kind adds none."""
    return reduce(or_, map(_domain_of, volumes))


def _domain_of(volume: Volume) -> TrainingDomain:
    kind, edges = head_kind(volume), _edges(volume)
    return TrainingDomain(() if kind == "unclear" else (kind,), edges, round(edges[1] / edges[0], 3))


def _edges(volume: Volume) -> tuple[float, float]:
    return round(min(volume.spacing), 3), round(max(volume.spacing), 3)


def judge_domain(volumes: Mapping[Modality, Volume], domain: TrainingDomain | None) -> tuple[Notice, ...]:
    """Whether a model that was trained on ``domain`` can be given these scans.

    Returns:
        ``MODEL_DOMAIN`` for scans that are unlike those of the training and may still be used.

    Raises:
        InputRefused: ``MODEL_DOMAIN`` for a bare brain where the training had only heads, and the reverse.
    """
    if domain is None:
        return ()
    found = in_threads(lambda scan: tuple(_judge(*scan, domain)), volumes.items())
    return tuple(notice for notices in found for notice in notices)


def _judge(modality: Modality, volume: Volume, domain: TrainingDomain) -> Iterator[Notice]:
    strange = _coarseness(modality, volume, domain)
    if strange:
        yield Notice("MODEL_DOMAIN", strange, volume.name)
    if not domain.heads or {"stripped", "whole", "defaced"} <= set(domain.heads):
        return
    kind = head_kind(volume)
    if kind == "unclear" or kind in domain.heads:
        return
    if kind == "stripped" or set(domain.heads) == {"stripped"}:
        raise _other_heads(modality, kind, domain, volume)
    message = f"{modality} shows {_HEADS[kind]}; the model was trained on {_listed(domain.heads)}"
    yield Notice("MODEL_DOMAIN", message, volume.name)


_HEADS = {"stripped": "a bare brain", "whole": "a whole head", "defaced": "a head without its face"}
_PLURAL = {"stripped": "bare brains", "whole": "whole heads", "defaced": "heads without faces"}


def _listed(heads: Iterable[str]) -> str:
    return " and ".join(_PLURAL.get(kind, kind) for kind in heads)


def _other_heads(modality: Modality, kind: str, domain: TrainingDomain, volume: Volume) -> CodeBrainError:
    hint = "Give the scan with its skull, or use a model that was trained on bare brains."
    if kind != "stripped":
        hint = "Remove the skull first (for example with HD-BET or SynthStrip), or use a model trained on whole heads."
    return refusal(
        "MODEL_DOMAIN", f"{modality} shows {_HEADS[kind]}, which the model has never seen", file=volume.file,
        found=kind, expected=_listed(domain.heads), hint=hint,
    )  # fmt: skip


def _coarseness(modality: Modality, volume: Volume, domain: TrainingDomain) -> str:
    """What is said about voxels that are too long for the model; empty when they are not."""
    finest, coarsest = _edges(volume)
    flat = coarsest / finest >= _ANISOTROPIC and coarsest / finest > domain.anisotropy * 1.05
    if coarsest <= _COARSER * domain.edges_mm[1] and not flat:
        return ""
    size = " x ".join(f"{mm:.3g}" for mm in volume.spacing)
    return (
        f"{modality} has voxels of {size} mm; the model was trained on edges of up to {domain.edges_mm[1]:.3g} mm,"
        f" at most {domain.anisotropy:.3g}:1"
    )


@dataclass(frozen=True, eq=False)
class _Head:
    """A scan thinned out: from left to right, back to front, low to high.

    Attributes:
        data: intensities ``(x, y, z)``, the darkest percent at 0.
        mask: the head, same shape.
        spacing: voxel edges in millimetres.
        length: of the head from back to front, in millimetres.
        depth: of each level below the top of the head, in lengths of the head.
        clean_air: whether one value fills the border.
    """

    data: NDArray[np.float32]
    mask: NDArray[np.bool_]
    spacing: NDArray[np.float64]
    length: float
    depth: NDArray[np.float64]
    clean_air: bool

    @classmethod
    def of(cls, volume: Volume) -> _Head:
        data, spacing = ras_view(volume.data, volume.affine)
        steps = [max(1, int(most / mm)) for most, mm in zip(_COARSEST_MM, spacing, strict=True)]
        data, spacing = np.ascontiguousarray(data[tuple(slice(None, None, step) for step in steps)]), spacing * steps
        mask = foreground_mask(data)
        levels = np.flatnonzero(mask.any(axis=(0, 1)))
        top = int(levels[-1]) if levels.size else 0
        below = (top - np.arange(mask.shape[2])) * spacing[2]
        upper = np.asarray(mask[:, :, (below >= 0) & (below <= _UPPER_MM)].any(axis=0))
        length = max((_extent(upper[:, level]) for level in range(upper.shape[1])), default=0) * float(spacing[1])
        darkest = np.float32(np.percentile(data, 1))
        clean = border_constant(data) is not None
        return cls(data - darkest, mask, spacing, length, below / max(length, 1.0), clean)

    def levels(self, between: tuple[float, float]) -> NDArray[np.bool_]:
        """Which levels lie at a depth, in lengths of the head."""
        return (self.depth >= between[0]) & (self.depth <= between[1])


def _extent(line: NDArray[np.bool_]) -> int:
    """Voxels from the first to the last of a line."""
    places = np.flatnonzero(line)
    return int(places[-1] - places[0]) + 1 if places.size else 0


def _stripping(head: _Head) -> Stripping:
    layers = _layers(head)
    sides = np.minimum(np.maximum.accumulate(layers), np.maximum.accumulate(layers[::-1])[::-1])
    valley = (sides - layers) / np.maximum(sides, 1e-30)
    place = int(valley.argmax()) if valley.size else 0
    score = float(valley[place]) if valley.size else 0.0
    bare = score < SKULL_SCORE
    unsure = not valley.size or _SKULL_UNSURE[0] < score < _SKULL_UNSURE[1] or (bare and not head.clean_air)
    return Stripping("unclear" if unsure else "stripped" if bare else "whole", round(score, 4), float(place))


def _layers(head: _Head) -> NDArray[np.float64]:
    """Median intensity by whole millimetres from the surface. In plane, so that thick slices do not matter."""
    ring = head.levels(_CALVARIA)
    mask, data = head.mask[:, :, ring], head.data[:, :, ring]
    around = np.pad(mask, ((1, 1), (1, 1), (0, 0)))
    distances = [
        scipy.ndimage.distance_transform_edt(around[:, :, k], sampling=head.spacing[:2])[1:-1, 1:-1]
        for k in range(mask.shape[2])
    ]
    if not mask.any():
        return np.empty(0)
    depth, values = np.stack(distances, axis=-1)[mask].astype(int), data[mask]
    layers = [values[depth == mm] for mm in range(_DEEPEST_MM)]
    return np.array([float(np.median(layer)) for layer in layers if layer.size > _LEAST_VOXELS])


def _defacing(head: _Head) -> Defacing:
    front = _profile(head)
    forehead, face = (front[head.levels(between)] for between in (_FOREHEAD, _FACE))
    forehead, face = forehead[np.isfinite(forehead)], face[np.isfinite(face)]
    if not forehead.size or not face.size:
        return Defacing("unclear", None)
    score = float(forehead.max() - np.median(face)) / head.length
    unsure = _FACE_UNSURE[0] < score < _FACE_UNSURE[1]
    return Defacing("unclear" if unsure else "defaced" if score > FACE_SCORE else "face", round(score, 4))


def _profile(head: _Head) -> NDArray[np.float64]:
    """The foremost point of each level near the midline in millimetres; NaN where there is no head."""
    across = np.flatnonzero(head.mask[:, :, head.levels(_CALVARIA)].any(axis=(1, 2)))
    if not across.size:
        return np.full(head.mask.shape[2], np.nan)
    off = np.abs(np.arange(head.mask.shape[0]) - (across[0] + across[-1]) / 2) * head.spacing[0]
    middle = head.mask[off <= _MIDLINE * head.length + head.spacing[0] / 2].any(axis=0)
    foremost = middle.shape[0] - 1 - middle[::-1].argmax(axis=0)
    return np.where(middle.any(axis=0), foremost * head.spacing[1], np.nan)
