"""One simulated patient: which tissue fills each voxel, and how its relaxation varies there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codebrain.data import phantom_anatomy as anatomy
from codebrain.data import phantom_lesions as lesions
from codebrain.data.phantom_anatomy import Array, Shape, Template
from codebrain.data.phantom_head import head_fractions

Lesion = Literal["none", "ms", "tumour"]
Relax = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Patient:
    """Tissue at the voxels of the grid; ``n`` counts the voxels of ``mask``.

    Attributes:
        mask: ``(i, j, k)``, the brain.
        fractions: per tissue ``(n,)``; they add up to 1.
        around: per tissue, the same for the voxels outside ``mask``; None without a head.
        relax: per tissue, local factors on T1, T2 and PD, each ``(n,)``.
        lesion_labels: ``(n,)`` uint8; None without lesions.
        facts: JSON-able description.
    """

    mask: NDArray[np.bool_]
    fractions: dict[str, Array]
    around: dict[str, Array] | None
    relax: dict[str, Relax]
    lesion_labels: NDArray[np.uint8] | None
    facts: dict[str, Any]


class Texture:
    """Random smooth fields on the patient's grid: no tissue is the same everywhere.

    Args:
        generator: chance.
        shape: the grid.
        spacing_mm: its voxel edge; no field is finer than the grid can show.
    """

    def __init__(self, generator: np.random.Generator, shape: Shape, spacing_mm: float) -> None:
        self._generator, self._shape, self._spacing = generator, shape, spacing_mm

    def everywhere(self, control_mm: float) -> Array:
        """Random field ``(i, j, k)``, standard deviation near 1."""
        control = max(control_mm, 1.5 * self._spacing)
        return anatomy.smooth_field(self._generator, self._shape, self._spacing, control)

    def at(self, mask: NDArray[np.bool_], *controls_mm: float) -> list[Array]:
        """One field for each control spacing, at the voxels of ``mask``, ``(n,)``."""
        return [self.everywhere(control)[mask] for control in controls_mm]


def build_patient(seed: int, shape: Shape, *, lesion: Lesion, head: bool, spacing_mm: float) -> Patient:
    """Draw a patient on a grid in RAS order.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when nilearn is not installed.
    """
    chance = _streams(seed)
    template = anatomy.load_template(max(1, min(4, int(spacing_mm))))
    person = _draw_person(chance["person"])
    places = anatomy.template_points(chance["warp"], person.warp, shape, spacing_mm)
    plan = lesions.plan_tumour(chance["lesions"], template) if lesion == "tumour" else None
    if plan is not None:
        places = lesions.push_aside(places, plan)
    outside = template.sample(template.outside, places.reshape(3, -1)).reshape(shape)
    texture = Texture(chance["texture"], shape, spacing_mm)
    brain = outside < person.strip_mm + 0.2 * texture.everywhere(15.0)
    patient = _brain(chance, template, places[:, brain], brain, person, texture, lesion, plan)
    if not head:
        return patient
    wander = Texture(chance["head"], shape, spacing_mm).at(~brain, 35.0, 9.0, 16.0)
    return replace(patient, around=head_fractions(outside[~brain], places[:, ~brain], wander))


@dataclass(frozen=True)
class _Person:
    """What sets one patient apart, before any lesion; ``age`` in [0, 1] opens folds and ventricles."""

    age: float
    warp: anatomy.Warp
    sulci: float
    sharpness: float
    strip_mm: float


def _draw_person(generator: np.random.Generator) -> _Person:
    age = float(generator.uniform(0, 1))
    return _Person(
        age=age,
        warp=anatomy.Warp.draw(generator, age),
        sulci=float(np.clip(generator.normal(0.45 + 0.35 * age, 0.12), 0.15, 0.95)),
        sharpness=float(generator.uniform(1.6, 2.6)),
        strip_mm=float(generator.uniform(-1.2, 0.4)),
    )


def _streams(seed: int) -> dict[str, np.random.Generator]:
    """One stream of chance for each step, so that a lesion or a head leaves the rest of a patient as it is."""
    names = ("person", "warp", "texture", "vessels", "lesions", "head")
    return {name: np.random.default_rng([seed, number]) for number, name in enumerate(names, start=10)}


def _brain(
    chance: dict[str, np.random.Generator],
    template: Template,
    points: Array,
    brain: NDArray[np.bool_],
    person: _Person,
    texture: Texture,
    lesion: Lesion,
    plan: lesions.TumourPlan | None,
) -> Patient:
    wander = texture.at(brain, 9.0, 7.0, 7.0, 10.0)
    fractions = anatomy.tissue_fractions(template, points, wander, sulci=person.sulci, sharpness=person.sharpness)
    relax = _relax(texture, brain, template.sample(template.detail, points), anatomy.iron(points))
    lumps = texture.at(brain, 5.0, 16.0)
    found: lesions.Lesions | None = None
    if plan is not None:
        found = lesions.tumour(plan, points, fractions, (lumps[1], lumps[0]))
    elif lesion == "ms":
        found = lesions.plaques(chance["lesions"], template, points, fractions, lumps[0])
    vessels = template.sample(lesions.vessel_map(chance["vessels"], template), points).clip(0, 0.9)
    return Patient(
        mask=brain,
        fractions=_make_room(fractions, found, vessels),
        around=None,
        relax=relax,
        lesion_labels=None if found is None else found.labels,
        facts={**asdict(person), "lesions": None if found is None else found.facts},
    )


def _make_room(fractions: dict[str, Array], found: lesions.Lesions | None, vessels: Array) -> dict[str, Array]:
    """Lesions take the place of tissue, vessels that of both; the fractions still add up to 1."""
    put_in = {} if found is None else found.fractions
    left = 1 - sum(put_in.values(), start=np.zeros_like(vessels))
    parts = {name: fraction * left for name, fraction in fractions.items()} | put_in
    return {name: part * (1 - vessels) for name, part in parts.items()} | {"vessel": vessels}


def _relax(texture: Texture, brain: NDArray[np.bool_], detail: Array, iron: Array) -> dict[str, Relax]:
    """Local factors on T1, T2 and PD of white and grey matter.

    The template's detail is read as myelin: brighter on T1 means shorter T1 and T2 and less water.
    """
    fine, middle, broad, other, wide = texture.at(brain, 2.5, 6.0, 30.0, 5.0, 30.0)
    myelin = np.clip(detail, -0.2, 0.2)
    common = 0.018 * fine + 0.018 * middle + 0.018 * broad
    t1 = np.exp(-1.5 * myelin + common)
    t2 = np.exp(-0.6 * myelin - 0.32 * iron + 0.6 * common + 0.014 * other + 0.014 * wide)
    pd = np.exp(-0.25 * myelin + 0.3 * common + 0.004 * other)
    factors = (t1.astype(np.float32), t2.astype(np.float32), pd.astype(np.float32))
    return {"white": factors, "grey": factors}
