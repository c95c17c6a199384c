"""Onto the grid of another given scan: one interpolation, the right places, the right header."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from codebrain.errors import CodeBrainError
from codebrain.imaging.align import Movement
from codebrain.imaging.prepared import prepare_study
from codebrain.imaging.space import NativeSpace, native_contrasts
from codebrain.imaging.study import Study
from codebrain.imaging.volume import read_volume
from codebrain.vocabulary import Modality, ModalitySet, Preparation

EXTENT = np.array([132.0, 160.0, 128.0])


def anatomy(points):
    """Intensity of a head at world millimetres ``(3, n)``: nothing in it is symmetric."""
    x, y, z = points / 50
    inside = (x / 1.1) ** 2 + (y / 1.4) ** 2 + (z / 1.05) ** 2 < 1
    texture = 1 + 0.3 * np.sin(4 * x + y) * np.cos(3.5 * y - 2 * z) + 0.2 * np.cos(5 * z + 2 * x)
    return inside * (300 * texture + 60 * x)


def turn(x, y, z):
    """Rotation by degrees about the three axes."""
    matrix = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        angle, (a, b) = np.deg2rad(degrees), [i for i in range(3) if i != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ step
    return matrix


def rigid(degrees, shift):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn(*degrees), shift
    return matrix


def grid(spacing, degrees=(0, 0, 0), signs=(1, 1, 1)):
    """Affine and shape of a grid around the head; ``signs`` reflect its axes."""
    spacing = np.array(spacing, float)
    shape = tuple(int(size) for size in EXTENT / spacing)
    affine = np.eye(4)
    affine[:3, :3] = turn(*degrees) * spacing * signs
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine, shape


def places(affine, shape):
    return affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]


def scan(affine, shape, moved=None):
    """The head on a grid; ``moved`` leads from that scan's world to the head's."""
    points = places(affine, shape)
    if moved is not None:
        points = moved[:3, :3] @ points + moved[:3, 3:]
    image = nib.Nifti1Image(anatomy(points).reshape(shape).astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    return read_volume(image)


def movement(transform):
    return Movement(tuple(map(tuple, transform.tolist())), 1.1, 1.2, 5.0, 5.0, True, "header", 1.0)


def prepared(reference, pixel_mm):
    study = Study("mine", {Modality.T1: reference})
    return prepare_study(study, Preparation(ModalitySet.parse("T1,FLAIR"), pixel_spacing_mm=pixel_mm))


def perfect_stack(work):
    """What the head shows at every pixel of the network's slices: no interpolation in it."""
    to_voxel = np.linalg.inv(work.frame.pixel_matrix())
    world = work.reference.affine @ to_voxel
    return anatomy(places(world, work.frame.slice_shape)).reshape(work.frame.slice_shape).astype(np.float32)


def space(native, work, transform):
    return NativeSpace.of(Modality.FLAIR, native, work, {Modality.FLAIR: movement(transform)})


def decibels(image, truth, mask):
    return 10 * np.log10(truth.max() ** 2 / np.mean((image - truth)[mask] ** 2))


MOVED = rigid((4, -3, 6), (3, -4, 5))

GRIDS = {
    "axial": ((2.5, 2.5, 4), (0, 0, 0), (1, 1, 1)),
    "oblique": ((2.2, 2.2, 3), (20, -12, 30), (1, 1, 1)),
    "reflected": ((2.5, 2.5, 3), (8, 0, -5), (-1, 1, 1)),
    "sagittal, thick": ((6, 2.5, 2.5), (0, 5, 0), (-1, -1, 1)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_one_interpolation_is_nearer_to_the_truth_than_two(name):
    """A reference of 3 mm, a network of 2 mm: the result on the reference grid has lost what the slices hold."""
    work = prepared(scan(*grid((3, 3, 3), (5, -8, 3), (-1, 1, 1))), pixel_mm=2.0)
    native = scan(*grid(*GRIDS[name]), moved=np.linalg.inv(MOVED))
    stack = perfect_stack(work)
    here = space(native, work, MOVED)
    on_reference = np.where(work.foreground, work.frame.undo(stack), np.float32(0))
    once = here.sample(stack, on_reference)
    chain = np.linalg.inv(work.reference.affine) @ np.linalg.inv(MOVED) @ native.affine
    twice = ndimage.affine_transform(on_reference, chain[:3, :3], chain[:3, 3], native.data.shape, order=3)
    inside = ndimage.binary_erosion(here.head & (native.data > 0), iterations=2)
    assert inside.sum() > 5000
    if max(here.points) == 1:  # a thick voxel is a mean over its thickness, which the truth here is not
        assert decibels(once, native.data, inside) > 40
        assert decibels(once, native.data, inside) > decibels(twice, native.data, inside) + 4
    common = (here.head & (native.data > 0)).sum()
    assert 2 * common / (here.head.sum() + (native.data > 0).sum()) > 0.95
    assert not once[~here.head].any()


def test_a_thick_voxel_is_the_mean_over_its_thickness():
    work = prepared(scan(*grid((2, 2, 2))), pixel_mm=2.0)
    affine, shape = grid((2, 2, 8), (0, 10, 0))
    native = scan(affine, shape, moved=np.linalg.inv(MOVED))
    here = space(native, work, MOVED)
    assert here.points == (1, 1, 4)
    truth = 0.0
    for offset in np.linspace(-3.5, 3.5, 8) / 8:
        thin = affine.copy()
        thin[:3, 3] += offset * affine[:3, 2]
        truth = truth + scan(thin, shape, moved=np.linalg.inv(MOVED)).data / 8
    once = here.sample(perfect_stack(work), work.reference.data)
    inside = ndimage.binary_erosion(here.head & (native.data > 0), iterations=2)
    assert decibels(once, truth, inside) > 40
    assert decibels(once, truth, inside) > decibels(native.data, truth, inside) + 10


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_pixels_and_voxels_are_one_map(signs):
    """Whatever the axes: a voxel of the grid lies in the slices where the frame puts it."""
    reference = scan(*grid((2.5, 2, 3), (3, 4, 5), signs))
    turned = nib.Nifti1Image(reference.data, reference.affine).as_reoriented([[1, 1], [2, -1], [0, 1]])
    turned.header.set_xyzt_units("mm")
    for volume in (reference, read_volume(turned)):
        work = prepared(volume, pixel_mm=None)
        stack = work.frame.apply(volume.data)
        voxels = np.argwhere(volume.data > 300)[::97]
        matrix = work.frame.pixel_matrix()
        pixels = voxels @ matrix[:3, :3].T + matrix[:3, 3]
        np.testing.assert_allclose(pixels, pixels.round(), atol=1e-9)
        there = stack[tuple(pixels.round().astype(int).T)]
        np.testing.assert_array_equal(there, volume.data[tuple(voxels.T)])


def test_a_grid_moved_by_whole_voxels_has_the_same_values():
    reference = scan(*grid((2, 2, 4)))
    work = prepared(reference, pixel_mm=2.0)
    affine = reference.affine.copy()
    affine[:3, 3] += reference.affine[:3, :3] @ (3, -2, 1)
    shifted = replace(reference, affine=affine, data=np.roll(reference.data, (-3, 2, -1), (0, 1, 2)))
    stack = perfect_stack(work)
    on_reference = np.where(work.foreground, work.frame.undo(stack), np.float32(0))
    moved = space(shifted, work, np.eye(4)).sample(stack, on_reference)
    np.testing.assert_allclose(moved, np.roll(on_reference, (-3, 2, -1), (0, 1, 2)), atol=0.02)


def test_the_reference_grid_is_not_interpolated_at_all():
    reference = scan(*grid((3, 3, 3)))
    work = prepared(reference, pixel_mm=2.0)
    here = NativeSpace.of(Modality.FLAIR, reference, work, {})
    on_reference = np.random.default_rng(0).random(reference.data.shape).astype(np.float32)
    assert here.sample(perfect_stack(work), on_reference) is on_reference
    assert [notice.code for notice in here.notices] == ["GEO_SAME_GRID"]
    assert here.as_dict()["Interpolation"]["Method"].startswith("none")


def test_scans_that_show_no_common_part_give_an_empty_image():
    work = prepared(scan(*grid((3, 3, 3))), pixel_mm=3.0)
    far = scan(*grid((3, 3, 4)))
    here = space(far, work, rigid((0, 0, 0), (500, 0, 0)))
    assert not here.sample(perfect_stack(work), far.data).any()


def test_the_facts_are_json():
    work = prepared(scan(*grid((3, 3, 3))), pixel_mm=2.0)
    facts = space(scan(*grid((2, 2, 4))), work, MOVED).as_dict()
    assert json.loads(json.dumps(facts)) == facts
    np.testing.assert_allclose(facts["Transform"]["Matrix"], MOVED)


def test_words_for_spaces():
    assert native_contrasts("reference") == ()
    assert native_contrasts("native:flair") == (Modality.FLAIR,)
    assert native_contrasts("reference,native:T2, native:FLAIR,native:T2") == (Modality.T2, Modality.FLAIR)
    assert native_contrasts(["reference", "native:T1"]) == (Modality.T1,)
    for words, code in (("native", "CONFIG"), ("native:", "MOD_UNKNOWN"), ("FLAIR", "CONFIG"), ("", "CONFIG"),
                        ("native:T9", "MOD_UNKNOWN"), ("mni", "CONFIG")):  # fmt: skip
        with pytest.raises(CodeBrainError) as caught:
            native_contrasts(words)
        assert (caught.value.code, caught.value.exit_code) == (code, 2)
