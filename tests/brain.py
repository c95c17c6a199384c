"""A brain of three tissues on 3 mm voxels, for rules that need white and grey matter and fluid in their places."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

import scans

SHAPE, SPACING = (60, 72, 60), 3.0
FLUID, GREY, WHITE = range(3)

# Fluid, grey matter, white matter; ratios as in the medians of real scans.
CONTRASTS = {
    "T1": (180, 560, 760),
    "T1Gd": (180, 600, 780),
    "T2": (1500, 560, 430),
    "PD": (820, 720, 610),
    "FLAIR": (60, 420, 350),
}


def tissues():
    """Fractions ``(3, i, j, k)`` of fluid, grey and white matter, and the brain's mask."""
    x, y, z = np.meshgrid(*(SPACING * (np.arange(n) - (n - 1) / 2) for n in SHAPE), indexing="ij")
    radius = np.sqrt((x / 68) ** 2 + (y / 85) ** 2 + (z / 66) ** 2)
    brain = radius < 1
    depth = (1 - radius) * 72
    folds = 14 * np.sin(x / 5) * np.sin(y / 6 + 1) + 10 * np.sin(z / 5 + x / 9)
    ventricles = ((np.abs(x) - 11) / 8) ** 2 + (y / 32) ** 2 + ((z - 4) / 11) ** 2 < 1
    nuclei = (((np.abs(x) - 24) / 9) ** 2 + (y / 22) ** 2 + ((z + 4) / 12) ** 2 < 1) & ~ventricles
    fluid = brain & (ventricles | (depth + folds < 2))
    grey = brain & ~fluid & (nuclei | (depth + folds < 22))
    parts = np.stack([fluid, grey, brain & ~fluid & ~grey]).astype(np.float32)
    return np.stack([ndimage.uniform_filter(part, 2) for part in parts]), brain


def brain(contrast, *, seed=0):
    """A stripped scan ``(i, j, k)``; T1Gd with bright vessels."""
    parts, mask = tissues()
    chance = np.random.default_rng(seed)
    data = np.tensordot(np.array(CONTRASTS[contrast], float), parts, 1) + chance.normal(0, 8, SHAPE)
    if contrast == "T1Gd":
        data[30:32, :, 50:53] = 2600  # the sagittal sinus
        data[28:33, 34:38, 30:33] = 2000
    return (np.maximum(data, 1) * mask).astype(np.float32)


def write_brain(path, contrast, **kwargs):
    return scans.write_scan(path, brain(contrast), scans.affine_of(SPACING, SHAPE), **kwargs)
