"""Things put into the anatomy of a simulated patient: vessels, plaques, a tumour.

All of it is placed in template space (mm, RAS+), so that it is deformed with the patient. Simplified: vessels are
random thin tubes along a few main courses and along folds; plaques are lumpy ellipsoids near the ventricles and
the cortex; a tumour is three nested lumpy shells that push the brain aside.

Labels of lesion maps: 1 necrotic core, 2 oedema, 3 enhancing tumour (the numbers of the BraTS challenge since
2023); plaques are 1 (not enhancing) and 3 (enhancing). What a lesion map holds is said in ``truth.json``.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from codebrain.data.phantom_anatomy import Array, Template, smooth_field, step, swell

NECROSIS, OEDEMA, ENHANCING = 1, 2, 3
PLAQUE = 1

_MAIN_COURSES: tuple[tuple[tuple[float, float, float], ...], ...] = (
    ((13, -5, -38), (15, -3, -26), (14, 1, -20), (26, 2, -18), (38, 2, -12), (44, -6, -2), (50, -24, 10)),
    ((38, 2, -12), (44, 10, 0), (50, 12, 16)),
    ((14, 1, -20), (4, 8, -18), (2, 26, -12), (1, 38, 4), (1, 34, 18), (1, 14, 32), (1, -20, 42)),
    ((2, -28, -44), (1, -24, -30), (1, -20, -18), (12, -20, -16), (20, -34, -10), (14, -60, 0), (10, -84, 6)),
    ((2, -30, 6), (1, -42, 4), (1, -52, 12), (1, -70, 12), (0, -96, -2)),
    ((4, 4, 14), (3, -14, 14), (2, -30, 6)),
)
"""Middle and anterior cerebral arteries, basilar and posterior cerebral, deep veins and straight sinus; mirrored."""


def vessel_map(generator: np.random.Generator, template: Template) -> Array:
    """Vessel fraction on the template's grid ``(i, j, k)``."""
    volume = np.zeros(template.grey.shape, np.float32)
    for course in _MAIN_COURSES:
        for side in (-1.0, 1.0):
            nodes = np.array(course) * (side, 1, 1) + generator.normal(0, 1.2, (len(course), 3))
            _trace(volume, template, _polyline(nodes), generator.uniform(0.4, 1.0))
    for nodes in _cortical_courses(generator, template, count=70):
        _trace(volume, template, nodes, generator.uniform(0.25, 0.8))
    tubes = scipy.ndimage.gaussian_filter(volume, 0.75 / template.step, truncate=3)
    return np.asarray(np.clip(1.1 * tubes, 0, 1) + _sinus(template) + _choroid(generator, template), np.float32)


def _polyline(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points 0.4 mm apart along ``nodes`` ``(n, 3)``, rounded by a moving average."""
    legs = [
        np.linspace(a, b, max(2, int(np.linalg.norm(b - a) / 0.4)), endpoint=False)
        for a, b in itertools.pairwise(nodes)
    ]
    return np.asarray(scipy.ndimage.uniform_filter1d(np.concatenate(legs), 9, axis=0, mode="nearest"))


def _trace(volume: Array, template: Template, line: NDArray[np.float64], calibre: float) -> None:
    """Mark a line; ``calibre`` is its cross-section in mm², spread over the voxels that it passes."""
    at = np.rint((line - template.origin) / template.step).astype(int)
    at = at[np.all((at >= 0) & (at < volume.shape), axis=1)]
    np.maximum.at(volume, tuple(at.T), np.float32(min(4.0, 4.5 * calibre / template.step**2)))


def _cortical_courses(generator: np.random.Generator, template: Template, count: int) -> list[NDArray[np.float64]]:
    """Short wandering lines that start in sulcal fluid and keep near the brain's hull."""
    start = np.flatnonzero((template.fluid > 0.35) & (template.outside < 0) & (template.outside > -9))
    picks = np.stack(np.unravel_index(generator.choice(start, count), template.grey.shape), 1)
    lines = []
    for pick in picks:
        place = pick * template.step + template.origin.astype(np.float64)
        heading = generator.normal(size=3)
        walk = [place]
        for _ in range(int(generator.integers(8, 26))):
            heading = 0.8 * heading / np.linalg.norm(heading) + 0.35 * generator.normal(size=3)
            walk.append(walk[-1] + 1.5 * heading / np.linalg.norm(heading))
        lines.append(_polyline(np.array(walk)))
    return lines


def _grids(template: Template) -> tuple[Array, Array, Array]:
    x, y, z = (
        (np.arange(n, dtype=np.float32) * template.step + template.origin[a]) for a, n in enumerate(template.grey.shape)
    )
    return x[:, None, None], y[None, :, None], z[None, None, :]


def _sinus(template: Template) -> Array:
    """Superior sagittal sinus: a band along the upper midline of the hull, wider towards the back."""
    x, y, z = _grids(template)
    calibre = np.clip((60 - y) / 120, 0.3, 1.0) * 3.2
    return step(calibre - np.hypot(x, template.outside - 1.0), 0.5) * (z > 0)


def _choroid(generator: np.random.Generator, template: Template) -> Array:
    """Choroid plexus in the atria of the lateral ventricles: lumpy, enhancing."""
    x, y, z = _grids(template)
    radius = np.sqrt(((np.abs(x) - 22) / 4) ** 2 + ((y + 40) / 9) ** 2 + ((z - 8) / 6) ** 2)
    i, j, k = template.grey.shape
    lumps = smooth_field(generator, (i, j, k), template.step, max(3.0, 1.5 * template.step))
    return 0.6 * step(1 - radius + 0.3 * lumps, 0.15) * template.fluid


@dataclass(frozen=True)
class Lesions:
    """Lesion fractions at brain points.

    Attributes:
        fractions: per lesion tissue ``(n,)``; what is left belongs to the anatomy.
        labels: ``(n,)`` uint8, see the module.
        facts: JSON-able description for ``truth.json``.
    """

    fractions: dict[str, Array]
    labels: NDArray[np.uint8]
    facts: dict[str, object]


def plaques(
    generator: np.random.Generator, template: Template, points: Array, anatomy: dict[str, Array], lumps: Array
) -> Lesions:
    """Multiple-sclerosis-like plaques: three in four near the ventricles, the others under the cortex.

    Args:
        generator: chance.
        template: maps from which places are drawn.
        points: template positions ``(3, n)``.
        anatomy: fractions at these points; plaques spare fluid and mostly spare grey matter.
        lumps: random field ``(n,)`` that makes them irregular.
    """
    count = int(np.clip(np.exp(generator.normal(np.log(20), 0.6)), 5, 60))
    names = ("plaque", "active", "black_hole")
    fractions = {name: np.zeros(points.shape[1], np.float32) for name in names}
    room = anatomy["white"] + 0.35 * anatomy["grey"]
    for centre in _plaque_places(generator, template, count):
        kind = names[int(generator.choice(3, p=(0.78, 0.12, 0.10)))]
        radii = np.exp(generator.normal(np.log(3.2), 0.45)) * generator.uniform(0.75, 1.5, 3)
        near, inside = _blob(points, centre, np.clip(radii, 1.6, 9.0), lumps, softness=0.16)
        fractions[kind][near] = np.maximum(fractions[kind][near], inside * room[near])
    _share(fractions)
    labels = np.zeros(points.shape[1], np.uint8)
    labels[sum(fractions.values()) > 0.4] = PLAQUE
    labels[fractions["active"] > 0.4] = ENHANCING
    return Lesions(fractions, labels, {"kind": "ms", "plaques": count, "labels": {"1": "plaque", "3": "enhancing"}})


def _plaque_places(generator: np.random.Generator, template: Template, count: int) -> list[Array]:
    white = template.white > 0.9
    inner = (template.fluid > 0.6) & (template.outside < -22)
    ventricle = scipy.ndimage.gaussian_filter(inner.astype(np.float32), 4.0 / template.step, truncate=2.5)
    periventricular = np.flatnonzero(white & (ventricle > 0.10))
    cortical = np.flatnonzero((template.white > 0.6) & (template.white < 0.9) & (template.outside < -4))
    places = []
    for index in range(count):
        pool = periventricular if index % 4 else cortical
        voxel = np.array(np.unravel_index(int(generator.choice(pool)), template.grey.shape))
        places.append((voxel * template.step + template.origin).astype(np.float32))
    return [place for place in places if place[2] > -25]


def _blob(
    points: Array, centre: Array, radii: NDArray[np.float64], lumps: Array, *, softness: float
) -> tuple[NDArray[np.intp], Array]:
    """Indices near ``centre`` and the lumpy ellipsoid's fraction there."""
    reach = 1.8 * float(radii.max())
    near = np.arange(points.shape[1])
    for axis in range(3):
        near = near[np.abs(points[axis, near] - centre[axis]) < reach]
    away = (points[:, near] - centre[:, None]) / radii.astype(np.float32)[:, None]
    return near, step(1 + 0.14 * lumps[near] - np.sqrt(np.sum(away**2, axis=0)), softness)


def _share(fractions: dict[str, Array]) -> None:
    """Where fractions add up to more than 1, scale them down, in place."""
    total = np.maximum(sum(fractions.values()), 1.0)
    for fraction in fractions.values():
        np.divide(fraction, total, out=fraction)


@dataclass(frozen=True)
class TumourPlan:
    """Where a tumour lies and how large it is, mm; ``push`` is its mass effect, 0 to 0.4."""

    centre: tuple[float, float, float]
    core_mm: float
    rim_mm: float
    oedema_mm: float
    push: float


def plan_tumour(generator: np.random.Generator, template: Template) -> TumourPlan:
    """A random place in cerebral white matter, away from the midline, and random sizes."""
    x, _, z = _grids(template)
    deep = (template.white > 0.85) & (template.outside < -10) & (np.abs(x) > 14) & (z > -15)
    voxel = np.array(np.unravel_index(int(generator.choice(np.flatnonzero(deep))), template.grey.shape))
    centre = voxel * template.step + template.origin
    return TumourPlan(
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        core_mm=float(generator.uniform(3, 13)),
        rim_mm=float(generator.uniform(1.5, 5)),
        oedema_mm=float(generator.uniform(6, 20)),
        push=float(generator.uniform(0.05, 0.38)),
    )


def push_aside(places: Array, plan: TumourPlan) -> Array:
    """Template positions ``(3, i, j, k)`` after the mass effect: the tumour's place grows, its surroundings yield."""
    reach = np.full(3, 1.6 * (plan.core_mm + plan.rim_mm) + 8, np.float32)
    return swell(places, np.array(plan.centre, np.float32), reach, plan.push)


def tumour(plan: TumourPlan, points: Array, anatomy: dict[str, Array], lumps: tuple[Array, Array]) -> Lesions:
    """Necrotic core, enhancing rim, and oedema that follows the white matter.

    Args:
        plan: place and sizes.
        points: template positions ``(3, n)``.
        anatomy: fractions at these points.
        lumps: a coarse and a fine random field ``(n,)``.
    """
    distance = np.sqrt(np.sum((points - np.array(plan.centre, np.float32)[:, None]) ** 2, axis=0))
    size = plan.core_mm + plan.rim_mm
    radius = distance * (1 - 0.11 * lumps[0]) - 0.055 * size * lumps[1]
    core = step(plan.core_mm - radius - 0.4 * lumps[1], 0.5)
    solid = step(size - radius, 0.5)
    wet = step(size + plan.oedema_mm - radius - 2.8 * lumps[0] - 0.8 * lumps[1], 1.2)
    tissue: Array = np.asarray(np.clip(anatomy["white"] + 0.9 * anatomy["grey"] + 0.15, 0, 1), np.float32)
    patchy: Array = np.asarray(np.clip(0.8 + 0.08 * lumps[1], 0.3, 1), np.float32)
    oedema = wet * (1 - solid) * (0.92 * anatomy["white"] + 0.15 * anatomy["grey"])
    fractions: dict[str, Array] = {
        "necrosis": core * tissue,
        "rim": solid * (1 - core) * tissue * patchy,
        "oedema": oedema,
    }
    labels = np.zeros(distance.size, np.uint8)
    labels[fractions["oedema"] > 0.4] = OEDEMA
    labels[(solid > 0.5) & (tissue > 0.5)] = ENHANCING
    labels[(core > 0.5) & (tissue > 0.5)] = NECROSIS
    names = {"1": "necrotic core", "2": "oedema", "3": "enhancing tumour"}
    return Lesions(fractions, labels, {"kind": "tumour", "plan": asdict(plan), "labels": names})
