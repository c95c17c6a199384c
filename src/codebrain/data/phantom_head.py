"""A simple head around the simulated brain: shells of fluid, dura, bone with marrow, fat and skin, a neck, eyes.

Everything is a function of the signed distance to the brain's hull and of the position, both in template space.
Simplified: no face, no teeth, no nose cavities beyond a few air cells; thicknesses vary smoothly.
"""

from __future__ import annotations

import numpy as np

from codebrain.data.phantom_anatomy import Array, ball, step

_SHELLS: tuple[tuple[str, float], ...] = (
    ("fluid", 2.2),
    ("dura", 1.0),
    ("bone", 1.8),
    ("marrow", 2.6),
    ("bone", 1.8),
    ("muscle", 1.0),
    ("fat", 3.6),
    ("skin", 1.8),
)
"""From inside to outside, mean thickness in mm."""
THICKNESS_MM = sum(mm for _, mm in _SHELLS)


def head_fractions(outside: Array, points: Array, wander: list[Array]) -> dict[str, Array]:
    """Fractions at points outside the brain; they add up to 1, air included.

    Args:
        outside: distance to the brain's hull, mm, ``(n,)``.
        points: template positions ``(3, n)``.
        wander: random fields ``(n,)``: thickness of the shells, marrow, soft tissue of the neck.
    """
    stretch: Array = np.asarray(np.clip(1 + 0.12 * wander[0], 0.5, 1.6), np.float32)
    depth = outside / stretch
    below = step(-48 - points[2] + 0.25 * points[1] + wander[0], 3.0) * step(outside - 3.5, 0.8)
    parts = _shells(depth, wander[1])
    for name in parts:
        parts[name] = parts[name] * (1 - below)
    for name, fraction in _neck(points, wander).items():
        parts[name] = parts.get(name, 0) + below * fraction
    eyes = _eyes(points)
    for name in parts:
        parts[name] = parts[name] * (1 - eyes["orbit"])
    parts["fluid"] = parts["fluid"] + eyes["globe"]
    parts["fat"] = parts["fat"] + eyes["orbit"] - eyes["globe"]
    return parts


def _shells(depth: Array, marrow: Array) -> dict[str, Array]:
    parts: dict[str, Array] = {}
    edge, inner = 0.0, np.ones_like(depth)
    for name, thickness in _SHELLS:
        edge += thickness
        outer = step(depth - edge, 0.28)
        share = np.clip(inner - outer, 0, 1)
        if name == "marrow":
            spongy = np.clip(0.65 + 0.16 * marrow, 0, 1)
            parts["bone"] = parts.get("bone", 0) + share * (1 - spongy)
            share = share * spongy
        parts[name] = parts.get(name, 0) + share
        inner = outer
    parts["air"] = inner
    return parts


def _neck(points: Array, wander: list[Array]) -> dict[str, Array]:
    """Soft tissue under the skull: muscle with fat between, bone and air cells, skin around an oval."""
    radius = np.hypot(points[0] / 66, (points[1] + 18) / 84) + 0.015 * wander[0]
    within = step(1 - radius, 0.012)
    fat_rim = step(radius - 0.93, 0.012)
    fat = np.clip(fat_rim + step(wander[2] - 1.3, 0.45), 0, 1)
    air = step(wander[1] - 2.2, 0.3) * step(points[1] - 8, 4.0) * (1 - fat_rim)
    bone = step(-wander[1] - 1.9, 0.4) * (1 - fat_rim)
    solid = within * (1 - air)
    return {
        "fat": solid * fat * (1 - bone),
        "muscle": solid * (1 - fat) * (1 - bone),
        "bone": solid * bone,
        "air": 1 - solid,
    }


def _eyes(points: Array) -> dict[str, Array]:
    mirrored = np.concatenate([np.abs(points[0])[None], points[1:]])
    globe = ball(mirrored, (32.0, 62.0, -36.0), (12.0, 12.0, 12.0))
    orbit = np.maximum(globe, ball(mirrored, (30.0, 52.0, -36.0), (15.0, 22.0, 14.0)))
    return {"globe": globe * orbit, "orbit": orbit}
