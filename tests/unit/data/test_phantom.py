"""The phantom: reproducible, right in physics, marked as synthetic, readable like a scan."""

import json
from itertools import combinations

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("nilearn", reason="the phantom needs the extra 'phantom'")

from codebrain.data import phantom_anatomy as anatomy
from codebrain.data import phantom_physics as physics
from codebrain.data.phantom import simulate_study, write_phantom
from codebrain.data.phantom_lesions import plan_tumour
from codebrain.errors import EnvironmentRefused, UsageError
from codebrain.imaging.safe_files import sha256_bytes
from codebrain.imaging.volume import read_volume
from codebrain.vocabulary import Modality

COARSE = 4.0


def voxels(image) -> np.ndarray:
    return np.asanyarray(image.dataobj)


def digest(study) -> list[str]:
    images = [*study.images.values(), study.tissues, study.lesion_labels]
    return [sha256_bytes(image.to_bytes()) for image in images if image is not None]


@pytest.fixture(scope="module")
def healthy():
    return simulate_study(3, spacing_mm=COARSE)


@pytest.fixture(scope="module")
def ms():
    return simulate_study(4, lesion="ms", spacing_mm=2.0)


@pytest.fixture(scope="module")
def tumour():
    return simulate_study(5, lesion="tumour", spacing_mm=2.0)


def means(study, modality) -> dict[str, float]:
    """Median of fluid, grey and white, away from their borders as far as the label map allows."""
    labels, data = voxels(study.tissues), voxels(study.images[modality])
    return {name: float(np.median(data[labels == at])) for name, at in (("csf", 1), ("gm", 2), ("wm", 3))}


def test_the_same_seed_gives_the_same_bytes(healthy):
    assert digest(simulate_study(3, spacing_mm=COARSE)) == digest(healthy)
    assert digest(simulate_study(6, spacing_mm=COARSE)) != digest(healthy)


@pytest.mark.parametrize("lesion", ["ms", "tumour"])
def test_lesions_and_heads_are_reproducible(lesion):
    first, second = (simulate_study(8, lesion=lesion, head=True, spacing_mm=5.0) for _ in range(2))
    assert digest(first) == digest(second)


def test_leaving_contrasts_out_does_not_change_the_others(healthy):
    one = simulate_study(3, spacing_mm=COARSE, modalities=[Modality.FLAIR], labels=False)
    assert list(one.images) == [Modality.FLAIR]
    assert one.tissues is None
    np.testing.assert_array_equal(voxels(one.images[Modality.FLAIR]), voxels(healthy.images[Modality.FLAIR]))


def test_pure_tissues_have_the_order_a_radiologist_expects():
    """Without noise and bias, for every field strength and timing that can be drawn."""
    flair = []
    for seed in range(300):
        chance = np.random.default_rng(seed)
        field_t = (1.5, 3.0)[seed % 2]
        tissues = physics.draw_tissues(chance, field_t)
        sequences = physics.draw_sequences(chance, field_t, tissues["fluid"].t1)
        level = {
            modality: [float(physics.signal(sequence, tissues[name])[0]) for name in ("fluid", "grey", "white")]
            for modality, sequence in sequences.items()
        }
        csf, gm, wm = level[Modality.T1]
        assert wm > gm > csf, seed
        csf, gm, wm = level[Modality.T2]
        assert csf > gm > wm, seed
        csf, gm, wm = level[Modality.PD]
        assert gm > wm and csf > 0.85 * wm, seed
        csf, gm, wm = level[Modality.FLAIR]
        assert csf < 0.5 * wm, seed
        flair.append(gm / wm)
    assert np.percentile(flair, 5) > 0.9 and np.percentile(flair, 95) < 1.45


@pytest.mark.parametrize("seed", [20, 21])
def test_tissues_of_whole_studies_have_that_order_too(seed):
    study = simulate_study(seed, spacing_mm=COARSE)
    t1, t2, pd, flair = (means(study, Modality(name)) for name in ("T1", "T2", "PD", "FLAIR"))
    assert t1["wm"] > t1["gm"] > t1["csf"]
    assert t2["csf"] > t2["gm"] > t2["wm"]
    assert pd["gm"] > 0.95 * pd["wm"] and pd["csf"] > 0.85 * pd["wm"]
    assert flair["csf"] < 0.75 * flair["wm"]
    assert 0.85 < flair["gm"] / flair["wm"] < 1.5


def test_gadolinium_brightens_vessels(ms):
    labels = voxels(ms.tissues)
    gain = voxels(ms.images[Modality.T1GD]) / np.maximum(voxels(ms.images[Modality.T1]), 1)
    assert np.median(gain[labels == 4]) > 1.5 * np.median(gain[labels == 3])


def test_plaques_are_bright_on_t2_flair_pd_and_dark_on_t1(ms):
    lesion, white = voxels(ms.lesion_labels) > 0, (voxels(ms.tissues) == 3) & (voxels(ms.lesion_labels) == 0)
    assert 50 < lesion.sum() < 0.1 * white.sum()
    for name, brighter in (("T2", True), ("FLAIR", True), ("PD", True), ("T1", False)):
        data = voxels(ms.images[Modality(name)])
        assert (np.median(data[lesion]) > np.median(data[white])) == brighter, name


def test_a_tumour_enhances_at_its_rim_inside_oedema(tumour):
    labels = voxels(tumour.lesion_labels)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    after = voxels(tumour.images[Modality.T1GD])
    assert np.median(after[labels == 3]) > 1.15 * np.median(after[labels == 1])
    assert np.median(after[labels == 3]) > 1.15 * np.median(after[labels == 2])
    flair, white = voxels(tumour.images[Modality.FLAIR]), voxels(tumour.tissues) == 3
    assert np.median(flair[labels == 2]) > 1.1 * np.median(flair[white & (labels == 0)])


def test_without_a_head_the_background_is_exactly_zero_and_shared(healthy):
    outside = [voxels(image) == 0 for image in healthy.images.values()]
    for mask in outside[1:]:
        np.testing.assert_array_equal(mask, outside[0])
    brain_litres = (~outside[0]).sum() * COARSE**3 / 1e6
    assert 1.1 < brain_litres < 2.4


def test_a_head_surrounds_the_same_brain():
    bare, whole = (simulate_study(3, head=head, spacing_mm=5.0) for head in (False, True))
    assert bare.truth["patient"]["warp"] == whole.truth["patient"]["warp"]
    labels = voxels(whole.tissues)
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4, 5}
    t1 = voxels(whole.images[Modality.T1])
    assert np.percentile(t1[labels == 5], 99) > np.median(t1[labels == 3])
    assert np.median(t1[labels == 0]) < 0.2 * np.median(t1[labels == 3])


def test_headers_are_a_scanners_and_say_synthetic(healthy):
    image = healthy.images[Modality.T2]
    header = image.header
    assert bytes(header["descrip"]).startswith(b"SYNTHETIC phantom")
    assert bytes(header["intent_name"]).startswith(b"SYNTHETIC")
    assert image.get_data_dtype() == np.int16
    assert header.get_xyzt_units() == ("mm", "sec")
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)
    assert "".join(nib.aff2axcodes(image.affine)) == healthy.truth["orientation"]
    assert healthy.truth["synthetic"] is True


def test_a_phantom_is_accepted_as_an_input(healthy):
    volume = read_volume(healthy.images[Modality.T1])
    np.testing.assert_array_equal(volume.data, voxels(healthy.images[Modality.T1]))


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"seed": -1}, "seed"), ({"lesion": "stroke"}, "lesion"), ({"spacing_mm": 0.2}, "spacing"),
     ({"spacing_mm": float("nan")}, "spacing")],
)  # fmt: skip
def test_settings_outside_their_range(settings, field):
    with pytest.raises(UsageError) as caught:
        simulate_study(**{"seed": 0, **settings})
    assert (caught.value.code, caught.value.field) == ("CONFIG", field)


def test_written_studies_are_whole_and_repeatable(tmp_path):
    made = [write_phantom(tmp_path / run, subjects=2, seed=30, lesion="ms", spacing_mm=6.0) for run in "ab"]
    assert [folder.name for folder in made[0]] == ["phantom-0001", "phantom-0002"]
    for one, other in zip(*made, strict=True):
        names = sorted(file.name for file in one.iterdir())
        assert names == sorted(
            ["T1.nii.gz", "T2.nii.gz", "PD.nii.gz", "FLAIR.nii.gz", "T1Gd.nii.gz",
             "tissues.nii.gz", "lesion.nii.gz", "truth.json"]
        )  # fmt: skip
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
    assert json.loads((made[0][1] / "truth.json").read_text())["seed"] == 31
    assert "SIMULATED" in (tmp_path / "a" / "README.md").read_text()
    assert not list(tmp_path.rglob(".*"))


def test_what_is_there_is_not_touched_unasked(tmp_path):
    write_phantom(tmp_path, seed=1, spacing_mm=6.0)
    before = (tmp_path / "phantom-0001" / "T1.nii.gz").read_bytes()
    with pytest.raises(EnvironmentRefused) as caught:
        write_phantom(tmp_path, seed=2, spacing_mm=6.0)
    assert caught.value.code == "OUT_EXISTS"
    assert (tmp_path / "phantom-0001" / "T1.nii.gz").read_bytes() == before
    write_phantom(tmp_path, seed=2, spacing_mm=6.0, overwrite=True)
    assert (tmp_path / "phantom-0001" / "T1.nii.gz").read_bytes() != before


def test_another_persons_folder_is_never_replaced(tmp_path):
    scan = tmp_path / "phantom-0001" / "T1.nii.gz"
    scan.parent.mkdir()
    scan.write_bytes(b"a real scan")
    with pytest.raises(EnvironmentRefused):
        write_phantom(tmp_path, spacing_mm=6.0, overwrite=True)
    assert scan.read_bytes() == b"a real scan"


def test_mixed_lesions_are_mixed_and_do_not_depend_on_the_number(tmp_path):
    few = write_phantom(tmp_path / "few", subjects=2, seed=40, lesion="mixed", spacing_mm=6.0)
    many = write_phantom(tmp_path / "many", subjects=6, seed=40, lesion="mixed", spacing_mm=6.0)
    kinds = [json.loads((folder / "truth.json").read_text())["lesion"] for folder in many]
    assert len(set(kinds)) >= 2
    assert [json.loads((folder / "truth.json").read_text())["lesion"] for folder in few] == kinds[:2]
    with_labels = [(folder / "lesion.nii.gz").exists() for folder in many]
    assert with_labels == [kind != "none" for kind in kinds]


def test_the_deformation_folds_nowhere():
    """Every patient's map has a positive Jacobian, tumours included."""
    for seed in (0, 1, 2):
        chance = np.random.default_rng(seed)
        warp = anatomy.Warp.draw(chance, age=1.0)
        places = anatomy.template_points(chance, warp, (42, 52, 44), 4.0)
        plan = plan_tumour(chance, anatomy.load_template(4))
        reach = np.full(3, 1.6 * (plan.core_mm + plan.rim_mm) + 8, np.float32)
        places = anatomy.swell(places, np.array(plan.centre, np.float32), reach, plan.push)
        slopes = np.stack([np.stack(np.gradient(row, 4.0)) for row in places])
        jacobian = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1))) * (-1 if warp.mirrored else 1)
        assert jacobian.min() > 0.05, seed


def test_patients_differ_by_several_millimetres():
    places = []
    for seed in (0, 1, 2):
        chance = np.random.default_rng(seed)
        warp = anatomy.Warp.draw(chance, age=0.5)
        flip = np.array([-1 if warp.mirrored else 1, 1, 1]).reshape(3, 1, 1, 1)
        places.append(anatomy.template_points(chance, warp, (42, 52, 44), 4.0) * flip)
    for a, b in combinations(places, 2):
        assert 2 < np.median(np.linalg.norm(a - b, axis=0)) < 25


def test_fractions_add_up_to_one():
    template = anatomy.load_template(4)
    brain = np.argwhere(template.outside < 0).T.astype(np.float32) * template.step + template.origin[:, None]
    wander = list(np.random.default_rng(0).standard_normal((4, brain.shape[1]), dtype=np.float32))
    parts = anatomy.tissue_fractions(template, brain, wander, sulci=0.6, sharpness=2.0)
    total = sum(parts.values())
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert all(part.min() >= 0 for part in parts.values())


def test_signal_equations():
    """Against values worked out by hand."""
    water = physics.Tissue(t1=1000.0, t2=100.0, pd=0.8)
    one = lambda sequence: float(physics.signal(sequence, water)[0])  # noqa: E731
    assert one(physics.Sequence("spin_echo", tr=500, te=10)) == pytest.approx(0.8 * 0.393469 * 0.904837, rel=1e-5)
    inversion = physics.Sequence("inversion", tr=9000, te=100, ti=2000)
    assert one(inversion) == pytest.approx(0.8 * (1 - 2 * 0.135335 + 0.000123) * 0.367879, rel=1e-4)
    ernst = np.degrees(np.arccos(np.exp(-0.02)))
    angles = [one(physics.Sequence("gradient_echo", tr=20, te=3, flip_deg=ernst + d)) for d in (-3, 0, 3)]
    assert max(angles) == angles[1]


def test_the_null_time_nulls():
    sequence = physics.Sequence("inversion", tr=9000, te=100, ti=physics.null_ti(9000, 4300))
    assert float(physics.signal(sequence, physics.Tissue(4300, 1000, 1.0))[0]) < 1e-4


def test_gadolinium_shortens_t1():
    plain = physics.Sequence("spin_echo", tr=500, te=10)
    agent = physics.Sequence("spin_echo", tr=500, te=10, relaxivity=0.0045)
    tissue = physics.Tissue(1200, 100, 0.8, gadolinium=0.5)
    expected = 0.8 * (1 - np.exp(-500 * (1 / 1200 + 0.00225))) * np.exp(-10 * (0.01 + 1.25 * 0.00225))
    assert float(physics.signal(agent, tissue)[0]) == pytest.approx(expected, rel=1e-5)
    assert float(physics.signal(plain, tissue)[0]) < expected


def test_noise_is_rician_and_as_strong_as_said():
    mask = np.ones((24, 24, 24), bool)
    scanner = physics.Scanner(bias=0.0, snr=25.0, blur_mm=0.0, blur_axis=0, top=1000)
    flat = physics.acquire(
        np.random.default_rng(0), scanner, np.full(mask.sum(), 0.5, np.float32), mask, reference=0.5, spacing_mm=1.0
    )
    assert flat.mean() / flat.std() == pytest.approx(25, rel=0.05)
    void = np.where(np.arange(mask.sum()) < 9000, 0, 0.5).astype(np.float32)
    air = physics.acquire(np.random.default_rng(0), scanner, void, mask, reference=0.5, spacing_mm=1.0).ravel()[:9000]
    assert air.mean() / air.std() == pytest.approx(1.913, rel=0.05)  # Rayleigh: sqrt(pi / (4 - pi))


def test_a_random_field_is_smooth_and_scaled():
    field = anatomy.smooth_field(np.random.default_rng(0), (60, 60, 60), 2.0, 10.0)
    assert 0.8 < field.std() < 1.2
    assert np.abs(np.diff(field, axis=0)).std() < 0.5 * field.std()
