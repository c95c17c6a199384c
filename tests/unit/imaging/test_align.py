"""Contrasts onto one grid."""

from __future__ import annotations

import builtins
import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from codebrain.errors import CodeBrainError
from codebrain.imaging.align import align_study, choose_reference, normalised_mutual_information
from codebrain.imaging.intensity import foreground_mask
from codebrain.imaging.study import Study, find_files
from codebrain.imaging.volume import same_grid
from codebrain.vocabulary import Modality
from scans import affine_of

SHAPE, MM = (48, 56, 44), 4.0


def anatomy(points):
    """A head as a function of world millimetres: brain, ventricle, lopsided blobs; nothing a rotation hides."""
    x, y, z = points / 100
    brain = ((x / 0.65) ** 2 + (y / 0.85) ** 2 + (z / 0.7) ** 2 < 1).astype(float)
    tissue = 0.6 + 0.25 * np.sin(9 * x + 2 * y) * np.cos(8 * y - 3 * z) * np.cos(7 * z + x)
    ventricle = ((x - 0.1) / 0.15) ** 2 + (y / 0.35) ** 2 + ((z + 0.05) / 0.15) ** 2 < 1
    return brain, np.where(ventricle, 0.15, tissue)


def scan(contrast="T1", affine=None, shape=SHAPE, moved=None):
    """A contrast of the head on a grid; ``moved`` is where the head was, world to world."""
    affine = affine_of(MM, shape) if affine is None else affine
    voxels = np.indices(shape).reshape(3, -1)
    points = affine[:3, :3] @ voxels + affine[:3, 3:]
    if moved is not None:
        points = moved[:3, :3] @ points + moved[:3, 3:]
    brain, tissue = anatomy(points)
    value = {"T1": tissue, "T2": 1.1 - tissue, "FLAIR": np.abs(tissue - 0.4) + 0.3}[contrast]
    data = ndimage.gaussian_filter((brain * value * 700).reshape(shape), 0.4)
    data[data < 20] = 0
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.header.set_xyzt_units("mm")
    return image


def rigid(shift=(0, 0, 0), degrees=0.0):
    angle = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, 3] = shift
    return matrix


def study(**images):
    return Study.read(images)


def test_one_grid_passes_untouched():
    before = study(T1=scan("T1"), T2=scan("T2"))
    after, record = align_study(before)
    assert after is before
    assert record.as_dict() == {"reference": "T1", "moved": {}, "notices": []}
    assert align_study(before, mode="none")[0] is before


@pytest.mark.parametrize(
    ("shift", "degrees"), [((0, 0, 5), 0), ((6, -4, 3), 8), ((-16, 12, 10), -6)], ids=["z", "turned", "far"]
)
def test_a_moved_contrast_is_brought_back(shift, degrees):
    moved = rigid(shift, degrees)
    other = scan("T2", affine=affine_of((4, 4, 5), (48, 56, 36)), shape=(48, 56, 36), moved=moved)
    after, record = align_study(study(T1=scan("T1"), T2=other), reference=Modality.T1)
    movement = record.moved[Modality.T2]
    assert movement.registered and movement.similarity_after > movement.similarity_before
    # The transform leads from the reference to where the head lies in the other scan: the inverse of ``moved``.
    corners = np.array([[60, 0, 0], [0, 80, 0], [0, 0, 60], [-60, 0, 0]], float)
    found = np.array(movement.transform)
    there = corners @ found[:3, :3].T + found[:3, 3]
    back = there @ moved[:3, :3].T + moved[:3, 3]
    assert np.linalg.norm(back - corners, axis=1).max() < 1.5
    truth = foreground_mask(study(T2=scan("T2")).volumes[Modality.T2].data)
    result = foreground_mask(after.volumes[Modality.T2].data)
    assert 2 * (truth & result).sum() / (truth.sum() + result.sum()) > 0.96
    assert same_grid(after.volumes[Modality.T1], after.volumes[Modality.T2])
    assert record.notices == ()


def test_headers_that_agree_are_believed():
    oblique = rigid((3, 2, 1), 20) @ affine_of((4, 4, 6), (50, 58, 30))
    after, record = align_study(study(T1=scan("T1"), FLAIR=scan("FLAIR", oblique, (50, 58, 30))))
    movement = record.moved[Modality.FLAIR]
    assert movement.shift_mm < 1 and movement.rotation_deg < 1
    truth = np.asanyarray(scan("FLAIR").dataobj)
    inside = ndimage.binary_erosion(truth > 0, iterations=2)
    error = np.abs(after.volumes[Modality.FLAIR].data - truth)[inside].mean()
    assert error < 0.12 * truth[inside].mean()


def test_the_same_in_any_order_of_the_axes():
    """Mirrored and permuted grids say where they lie; nothing is registered away."""
    image = scan("T2")
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    after, record = align_study(study(T1=scan("T1"), T2=turned), reference=Modality.T1)
    assert record.moved[Modality.T2].shift_mm < 0.5
    inside = ndimage.binary_erosion(np.asanyarray(image.dataobj) > 0, iterations=2)
    np.testing.assert_allclose(after.volumes[Modality.T2].data[inside], image.get_fdata()[inside], rtol=0.1, atol=15)


def test_it_is_reproducible():
    images = {"T1": scan("T1"), "T2": scan("T2", moved=rigid((4, 3, 2), 5), affine=affine_of((4, 4, 5), SHAPE))}
    first, one = align_study(study(**images))
    second, two = align_study(study(**images))
    assert one.moved[Modality.T2].transform == two.moved[Modality.T2].transform
    np.testing.assert_array_equal(first.volumes[Modality.T2].data, second.volumes[Modality.T2].data)


def test_what_surrounds_a_scan_becomes_its_own_background():
    z_scored = scan("T2", affine_of((4, 4, 5), (48, 56, 20)), (48, 56, 20))
    data = np.asanyarray(z_scored.dataobj) - 300
    after, _ = align_study(study(T1=scan("T1"), T2=nib.Nifti1Image(data.astype(np.float32), z_scored.affine)))
    assert after.volumes[Modality.T2].data[0, 0, 0] == -300


def test_the_reference_has_the_finest_coarsest_edge():
    thick = scan("T1", affine_of((2, 2, 6), (96, 112, 30)), (96, 112, 30))
    assert choose_reference(study(T1=thick, FLAIR=scan("FLAIR")), None) is Modality.FLAIR
    nearly = study(FLAIR=scan("FLAIR", affine_of(MM - 0.002, SHAPE)), T1=scan("T1"))
    assert choose_reference(nearly, None) is Modality.T1
    assert choose_reference(nearly, Modality.FLAIR) is Modality.FLAIR
    with pytest.raises(CodeBrainError) as caught:
        align_study(study(T1=thick), reference=Modality.PD)
    assert caught.value.code == "CONFIG"


def test_without_alignment_other_grids_are_refused_with_both_shapes():
    with pytest.raises(CodeBrainError) as caught:
        align_study(study(T1=scan("T1"), T2=scan("T2", affine_of(4, (50, 56, 44)), (50, 56, 44))), mode="none")
    assert (caught.value.code, caught.value.exit_code) == ("GEO_MISMATCH", 3)
    assert "48 x 56 x 44" in str(caught.value) and "50 x 56 x 44" in str(caught.value)


def test_two_different_heads_are_doubted():
    noise = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    blob = ndimage.gaussian_filter(noise, 2)
    other = np.where(ndimage.gaussian_filter(noise, 6) > 0.5, blob * 900, 0).astype(np.float32)
    affine = affine_of(MM, SHAPE)
    affine[:3, 3] += 1
    _, record = align_study(study(T1=scan("T1"), T2=nib.Nifti1Image(other, affine)))
    assert [notice.code for notice in record.notices] == ["GEO_ALIGN_POOR"]
    assert json.loads(json.dumps(record.as_dict()))["notices"][0]["code"] == "GEO_ALIGN_POOR"


def test_simple_itk_is_asked_for_once_by_name(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "SimpleITK":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(CodeBrainError) as caught:
        align_study(study(T1=scan("T1"), T2=scan("T2", affine_of(4, (50, 56, 44)), (50, 56, 44))))
    assert caught.value.code == "ENV_EXTRA" and "codebrain-mri[align]" in str(caught.value)
    assert align_study(study(T1=scan("T1"), T2=scan("T2")))[1].moved == {}


def test_mutual_information():
    chance = np.random.default_rng(0)
    a, b = chance.random(50_000), chance.random(50_000)
    assert normalised_mutual_information(a, a) == pytest.approx(2)
    assert normalised_mutual_information(a, -3 * a + 1) == pytest.approx(2, abs=1e-6)
    assert normalised_mutual_information(a, b) == pytest.approx(1, abs=0.01)
    assert normalised_mutual_information(np.ones(9), np.ones(9)) == 1


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "contrasts", "low", "high"),
    [
        ("glioma-fg6692-native", ("T1", "FLAIR"), 14, 20),
        ("mslong-03-2", ("T1", "FLAIR"), 4, 8),
        ("mslong-01-1", ("T1", "FLAIR"), 0, 1.5),
        ("ixi-002", ("T1", "PD"), 0, 1.5),
    ],
)
def test_real_studies(folder, contrasts, low, high, real_data):
    files = find_files(real_data / "raw" / folder)
    after, record = align_study(Study.read({m: files[m] for m in map(Modality, contrasts)}))
    (movement,) = record.moved.values()
    assert low <= movement.shift_mm <= high
    assert movement.similarity_after >= max(1.05, movement.similarity_before)
    assert record.notices == ()
    assert same_grid(*after.volumes.values())
