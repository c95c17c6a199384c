"""Which contrast an image looks like: the rule, and what it does not depend on."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

import brain
from codebrain.imaging.contrast import BORDERS, Relations, judge_relations, likely_contrast, measure_relations
from codebrain.imaging.domain import skull_stripped
from codebrain.imaging.intensity import foreground_mask
from codebrain.imaging.volume import read_volume
from scans import affine_of

ALL = ("T1", "T1Gd", "T2", "PD", "FLAIR")


def volume(contrast, change=lambda data: data, affine=None):
    affine = affine_of(brain.SPACING, brain.SHAPE) if affine is None else affine
    return read_volume(nib.Nifti1Image(change(brain.brain(contrast)), affine))


def looks(scan):
    return likely_contrast(scan, foreground_mask(scan.data), stripped=True)


@pytest.mark.parametrize("contrast", ALL)
def test_five_contrasts_of_one_brain(contrast):
    found = looks(volume(contrast))
    assert found.candidates == (contrast,), found
    assert found.confidence == "likely" and found.reason
    assert found.as_dict()["measured"]["stripped"] is True


@pytest.mark.parametrize("contrast", ALL)
def test_scale_and_order_of_the_axes_do_not_matter(contrast):
    head = foreground_mask(brain.brain(contrast))
    first = measure_relations(volume(contrast), head, stripped=True)
    # Axes (j, k, i), k backwards.
    to_old = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, brain.SHAPE[2] - 1], [0, 0, 0, 1]])
    turned = affine_of(brain.SPACING, brain.SHAPE) @ to_old
    for other, mask in (
        (volume(contrast, lambda d: 3e-3 * d), head),
        (volume(contrast, lambda d: 1.5 * d + 40), head),
        (volume(contrast, lambda d: d.transpose(1, 2, 0)[:, ::-1], turned), head.transpose(1, 2, 0)[:, ::-1]),
    ):
        again = measure_relations(other, mask, stripped=True)
        for name in ("fluid", "bright", "even", "beyond_white", "tail"):
            assert getattr(again, name) == pytest.approx(getattr(first, name), rel=0.06, abs=0.02), name


def test_without_a_zero_t2_and_pd_stay_open():
    def scored(data):
        inside = data[data > 0]
        return np.where(data > 0, (data - inside.mean()) / inside.std(), 0).astype(np.float32)

    for contrast in ("T2", "PD"):
        scan = volume(contrast, scored)
        found = likely_contrast(scan, scan.data != 0, stripped=True)
        assert found.candidates == ("T2", "PD") and str(found) == "unsure between T2 and PD"
    scan = volume("T1", scored)
    assert likely_contrast(scan, scan.data != 0, stripped=True).candidates == ("T1",)


def test_what_has_not_the_size_of_a_head_is_not_judged():
    scan = volume("T1")
    small = np.zeros(scan.data.shape, bool)
    small[20:30, 20:30, 20:30] = True
    found = likely_contrast(scan, small, stripped=True)
    assert found.candidates == () and found.confidence == "not judged" and "litres" in found.reason


SURE = Relations(fluid=0.3, bright=0.2, even=0.8, beyond_white=0.95, tail=1.5, magnitude=True, stripped=True)


@pytest.mark.parametrize(
    ("changes", "candidates"),
    [
        ({}, ("T1",)),
        ({"tail": 1.9}, ("T1", "T1Gd")),
        ({"tail": 3.0}, ("T1Gd",)),
        ({"tail": 3.0, "stripped": False}, ("T1", "T1Gd")),
        ({"even": 0.65}, ("T1", "FLAIR")),
        ({"even": 0.4}, ("T1", "FLAIR")),
        ({"even": 0.4, "beyond_white": 1.1}, ("FLAIR",)),
        ({"beyond_white": 1.1, "tail": 3.0}, ("T1", "T1Gd", "FLAIR")),
        ({"fluid": 0.9}, ("T1",)),
        ({"fluid": 0.9, "even": 0.3}, ("PD", "FLAIR")),
        ({"fluid": 2.0}, ("PD",)),
        ({"fluid": 2.0, "bright": 0.6}, ("T2", "PD")),
        ({"fluid": 2.0, "bright": 1.2}, ("T2",)),
        ({"fluid": 2.0, "bright": 1.2, "magnitude": False}, ("T2", "PD")),
    ],
)
def test_the_rule(changes, candidates):
    assert judge_relations(replace(SURE, **changes)).candidates == candidates


def test_borders_are_ordered():
    assert all(low <= high for low, high in vars(BORDERS).values())


@pytest.mark.data
def test_real_scans(real_data):
    """Of 41 scans of eleven people none is called another contrast, and at most five stay open."""
    files = [*real_data.glob("studies/*/*.nii.gz"), *real_data.glob("raw/*/*.nii.gz")]
    files = sorted(path for path in files if path.name.split(".")[0] in ALL)
    assert len(files) > 30
    unsure = 0
    for path in files:
        scan = read_volume(path)
        stripped = skull_stripped(scan).verdict == "stripped"
        found = likely_contrast(scan, foreground_mask(scan.data), stripped=stripped)
        assert path.name.split(".")[0] in found.candidates, (path, found)
        unsure += len(found.candidates) > 1
    assert unsure <= 5
