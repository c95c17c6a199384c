"""Anatomy of a simulated patient: the ICBM 152 template, deformed, as tissue fractions.

The template (grey- and white-matter probabilities and a T1 image, all carried by nilearn) is an average of 152
people, so its folds are blurred. Here each patient gets a smooth random deformation (two free-form levels), a
ventricle size, folds that are opened again (grey matter far from white matter becomes a sulcus), and sharper
tissue borders that wander. Simplified: folds are the template's, hemispheres are not independent, the head is a
stack of shells without a face, vessels are random thin tubes.

Units: millimetres in template space (MNI, RAS+) unless said otherwise. Points are arrays ``(3, n)``.

Source: Fonov et al., NeuroImage 2011, 54:313-327 (ICBM 152 nonlinear 2009). Rueckert et al., IEEE TMI 1999,
18:712-721 (B-spline free-form deformation). Choi and Lee, 2000: a free-form level is one-to-one while no control
displacement exceeds 0.48 of the control spacing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from codebrain.errors import missing_extra

Array = NDArray[np.float32]
Shape = tuple[int, int, int]

CORTEX_MM = 3.0
"""Mean thickness of the cortex (Fischl and Dale, PNAS 2000, 97:11050: 1 to 4.5 mm, mean 2.5 mm)."""
WHITE_BIAS, FLUID_BIAS = 0.9, -0.6
"""Log odds that undo the template's blur: in an average of many people thin white matter and gyri are worn down
and sulci widened. Set so that tissue volumes agree with four real studies."""
BRAIN_CENTRE = np.array([0.0, -19.0, 8.0], np.float32)
VENTRICLES = np.array([0.0, -14.0, 14.0], np.float32)


@dataclass(frozen=True)
class Template:
    """Maps of the template on one grid, each ``(i, j, k)`` float32.

    Attributes:
        grey: grey-matter probability.
        white: white-matter probability.
        fluid: probability of cerebrospinal fluid, from what is neither and from the dark voxels of the T1 image.
        detail: T1-image intensity beyond what the three tissues explain.
        from_white: distance to white matter, mm.
        outside: signed distance to the brain's hull, mm, negative inside.
        origin: world position of voxel 0, mm.
        step: voxel size, mm.
    """

    grey: Array
    white: Array
    fluid: Array
    detail: Array
    from_white: Array
    outside: Array
    origin: Array
    step: float

    def sample(self, volume: Array, points: Array, order: int = 1) -> Array:
        """Values of ``volume`` at world ``points`` ``(3, n)``, linear, edge value outside."""
        at = (points - self.origin[:, None]) / self.step
        return np.asarray(scipy.ndimage.map_coordinates(volume, at, order=order, mode="nearest"), np.float32)


@functools.lru_cache(maxsize=2)
def load_template(factor: int = 1) -> Template:
    """The template at ``factor`` mm, read once per process.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when nilearn is not installed.
    """
    try:
        from nilearn.datasets import (
            load_mni152_gm_template,
            load_mni152_template,
            load_mni152_wm_template,
        )
    except ImportError as error:
        raise missing_extra("nilearn", "phantom", "Simulating a study") from error
    images = (load_mni152_template(1), load_mni152_gm_template(1), load_mni152_wm_template(1))
    origin = np.asarray(images[0].affine[:3, 3], np.float32) + (factor - 1) / 2
    t1, grey, white = (_block_mean(np.asarray(image.dataobj, np.float32), factor) for image in images)
    return _maps(t1, grey, white, origin, float(factor))


def _maps(t1: Array, grey: Array, white: Array, origin: Array, step: float) -> Template:
    brain = t1 > 0.12
    dark = np.clip((0.56 - t1) / (0.56 - 0.28), 0, 1) * brain
    fluid = np.maximum(np.clip(1 - grey - white, 0, 1) * (grey + white < 0.98), dark).astype(np.float32)
    rest = np.maximum(grey + white, 1e-3)
    expected = fluid * 0.27 + (1 - fluid) * (grey * 0.65 + white * 0.88) / rest
    detail = np.where(brain, t1 - expected, 0).astype(np.float32)
    from_white = scipy.ndimage.distance_transform_edt(white < 0.5, sampling=step).astype(np.float32)
    return Template(grey, white, fluid, detail, from_white, _signed_distance(brain, step), origin, step)


def _block_mean(volume: Array, factor: int) -> Array:
    if factor == 1:
        return volume
    fits = tuple(slice(0, n - n % factor) for n in volume.shape)
    i, j, k = (n // factor for n in volume.shape)
    blocks = volume[fits].reshape(i, factor, j, factor, k, factor)
    return np.asarray(blocks.mean(axis=(1, 3, 5)), np.float32)


def _signed_distance(mask: NDArray[np.bool_], step: float) -> Array:
    """Distance to the border of ``mask`` with its inner holes filled, found on a 2 mm grid and interpolated."""
    coarse = max(1, round(2 / step))
    small = scipy.ndimage.binary_fill_holes(
        scipy.ndimage.binary_closing(mask[::coarse, ::coarse, ::coarse], iterations=2)
    )
    padded = np.pad(small, 1)
    signed = scipy.ndimage.distance_transform_edt(~padded) - scipy.ndimage.distance_transform_edt(padded)
    signed = scipy.ndimage.gaussian_filter(signed[1:-1, 1:-1, 1:-1].astype(np.float32), 0.6) * (step * coarse)
    return _stretch(signed, mask.shape, coarse)


def _stretch(small: Array, shape: tuple[int, ...], factor: int) -> Array:
    out = small
    for axis, n in enumerate(shape):
        at = np.minimum(np.arange(n) / factor, small.shape[axis] - 1)
        low = np.minimum(at.astype(int), small.shape[axis] - 2)
        weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        out = np.take(out, low, axis) * (1 - weight) + np.take(out, low + 1, axis) * weight
    return np.asarray(out, np.float32)


_UNIT = np.float32(3.0)
"""Brings a field of cubic B-splines with normal control values to standard deviation 1."""


def smooth_field(
    generator: np.random.Generator, shape: Shape, spacing_mm: float, control_mm: float, limit: float = 3.0
) -> Array:
    """Random cubic B-spline field ``(i, j, k)`` of standard deviation near 1.

    Control values are normal, clipped at ``limit``, ``control_mm`` apart; a B-spline never exceeds its control
    values. The three axes are separate matrix products, so a fine grid costs little.
    """
    bases = [_spline_basis(n, spacing_mm, control_mm) for n in shape]
    field: Array = generator.standard_normal([basis.shape[1] for basis in bases], dtype=np.float32)
    field = np.clip(field, -limit, limit) * _UNIT
    for basis in bases:
        field = np.moveaxis(np.tensordot(basis, field, axes=(1, 0)), 0, -1)
    return np.ascontiguousarray(field)


@functools.lru_cache(maxsize=64)
def _spline_basis(n: int, spacing_mm: float, control_mm: float) -> Array:
    """Cubic B-spline weights ``(n, controls)``."""
    at = np.arange(n) * spacing_mm / control_mm
    controls = int(np.floor(at[-1])) + 4
    u, first = at - np.floor(at), np.floor(at).astype(int)
    weights = np.stack([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], 1) / 6
    basis = np.zeros((n, controls), np.float32)
    for offset in range(4):
        basis[np.arange(n), first + offset] = weights[:, offset]
    return basis


@dataclass(frozen=True)
class Warp:
    """How a patient differs from the template.

    Attributes:
        size: patient size over template size, per axis.
        tilt_deg: rotations about the three axes.
        coarse_mm: standard deviation of the 40 mm free-form level.
        fine_mm: of the 14 mm level (kept under 0.4 of its spacing).
        ventricles: enlargement of the lateral ventricles, 0 is the template's.
        mirrored: left and right exchanged.
    """

    size: tuple[float, float, float]
    tilt_deg: tuple[float, float, float]
    coarse_mm: float
    fine_mm: float
    ventricles: float
    mirrored: bool

    @classmethod
    def draw(cls, generator: np.random.Generator, age: float) -> Warp:
        """A random warp; ``age`` in [0, 1] opens the ventricles."""
        size = generator.normal(1.0, 0.035, 3).clip(0.92, 1.08)
        tilt = generator.normal(0.0, 3.0, 3).clip(-8, 8)
        ventricles = float(np.clip(generator.normal(0.30 * age, 0.08), -0.08, 0.38))
        return cls(
            size=(float(size[0]), float(size[1]), float(size[2])),
            tilt_deg=(float(tilt[0]), float(tilt[1]), float(tilt[2])),
            coarse_mm=float(generator.uniform(1.2, 2.8)),
            fine_mm=float(generator.uniform(0.45, 0.95)),
            ventricles=ventricles,
            mirrored=bool(generator.random() < 0.5),
        )


def template_points(generator: np.random.Generator, warp: Warp, shape: Shape, spacing_mm: float) -> Array:
    """Where each voxel of the patient's grid lies in the template: ``(3, i, j, k)``, mm."""
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(spacing_mm) for n in shape]
    matrix = (_rotation(warp.tilt_deg) / np.array(warp.size)[:, None]).astype(np.float32)
    if warp.mirrored:
        matrix[0] *= -1
    points = np.empty((3, *shape), np.float32)
    grids = (axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :])
    for row in range(3):
        points[row] = BRAIN_CENTRE[row] + sum(matrix[row, a] * grids[a] for a in range(3))
        points[row] += warp.coarse_mm * smooth_field(generator, shape, spacing_mm, 40.0, 2.0)
        points[row] += warp.fine_mm * smooth_field(generator, shape, spacing_mm, 14.0, 2.0)
    return swell(points, VENTRICLES, np.array([30.0, 42.0, 26.0], np.float32), warp.ventricles)


def swell(points: Array, centre: Array, radii: Array, amount: float) -> Array:
    """Draw sampling points towards ``centre`` so that what lies there grows; one-to-one for amounts under 0.45."""
    shape = (3,) + (1,) * (points.ndim - 1)
    away = points - centre.reshape(shape)
    pull = amount * np.exp(-np.sum((away / radii.reshape(shape)) ** 2, axis=0))
    return np.asarray(points - pull * away, np.float32)


def _rotation(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    rotation = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        rotation = turn @ rotation
    return rotation


def ball(points: Array, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    """Soft ellipsoid at ``points`` ``(3, n)``: 1 inside, 0 outside, half at the surface."""
    away = (points - np.array(centre, np.float32)[:, None]) / np.array(radii, np.float32)[:, None]
    radius = np.sqrt(np.sum(away**2, axis=0))
    return step(1 - radius, 0.12)


def step(x: Array, width: float) -> Array:
    """Smooth step from 0 to 1 around 0."""
    return np.asarray(1 / (1 + np.exp(np.clip(-x / width, -30, 30))), np.float32)


def deep_grey(points: Array) -> Array:
    """Where grey matter is a nucleus and not cortex (basal ganglia, thalamus, hippocampus, cerebellum)."""
    folded = np.abs(points[0])[None]
    mirrored = np.concatenate([folded, points[1:]])
    parts = (
        ball(mirrored, (13.0, -3.0, 5.0), (25.0, 33.0, 21.0)),
        ball(mirrored, (26.0, -18.0, -18.0), (11.0, 24.0, 11.0)),
        ball(mirrored, (18.0, -62.0, -38.0), (46.0, 38.0, 22.0)),
        ball(mirrored, (0.0, -28.0, -35.0), (14.0, 18.0, 34.0)),
    )
    return np.asarray(np.maximum.reduce(parts), np.float32)


def iron(points: Array) -> Array:
    """Where iron shortens T2: pallidum, substantia nigra, red nucleus, dentate (Drayer et al., AJNR 1986, 7:373)."""
    mirrored = np.concatenate([np.abs(points[0])[None], points[1:]])
    parts = (
        ball(mirrored, (19.0, -4.0, -1.0), (5.0, 9.0, 5.5)),
        ball(mirrored, (9.0, -17.0, -12.0), (4.5, 5.0, 3.0)),
        ball(mirrored, (5.0, -21.0, -8.0), (3.2, 3.2, 3.2)),
        ball(mirrored, (15.0, -56.0, -34.0), (6.0, 4.5, 4.5)),
        0.45 * ball(mirrored, (26.0, 2.0, 0.0), (5.5, 14.0, 9.0)),
    )
    return np.asarray(np.maximum.reduce(parts), np.float32)


def tissue_fractions(
    template: Template, points: Array, wander: list[Array], *, sulci: float, sharpness: float
) -> dict[str, Array]:
    """Fractions of white, grey and fluid at brain ``points`` ``(3, n)``; they add up to 1.

    Args:
        template: the maps.
        points: template positions.
        wander: random fields ``(n,)``: cortex thickness, grey against white, fluid against tissue, and one whose
            zeros are the sheets where cortex folds further than the template's.
        sulci: how far the folds are open, 0 to 1.
        sharpness: exponent of the probabilities; 1 keeps the template's blur.
    """
    grey, white, fluid = (
        template.sample(m, points).clip(0, 1) for m in (template.grey, template.white, template.fluid)
    )
    thickness = CORTEX_MM + 0.25 * wander[0]
    gap = step(template.sample(template.from_white, points) - thickness, 0.4)
    sheet = 0.8 * np.exp(-((wander[3] / 0.30) ** 2)) * step(template.sample(template.from_white, points) - 1.6, 0.3)
    opened = sulci * np.maximum(gap, sheet) * (1 - deep_grey(points))
    fluid = 1 - (1 - fluid) * (1 - opened)
    grey, white = grey * (1 - opened), white * (1 - opened)
    bias = (WHITE_BIAS - 0.2 * wander[1], FLUID_BIAS + 0.22 * wander[2])
    parts = np.stack([white * np.exp(bias[0]), grey, fluid * np.exp(bias[1])]) + 1e-4
    parts **= sharpness
    parts /= parts.sum(axis=0)
    return dict(zip(("white", "grey", "fluid"), parts, strict=True))
