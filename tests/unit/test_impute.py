"""The imputer as a library: the same model, images in, images out."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

import scans
from codebrain.errors import CodeBrainError
from codebrain.imaging.frame import Frame
from codebrain.impute import Imputer, intensity_scale, score_rows
from codebrain.models import build_model
from codebrain.results import shown_command
from codebrain.vocabulary import Modality, ModalitySet, Preparation

MODALITIES = ModalitySet.parse("T1,T2,PD,FLAIR,T1Gd")


@pytest.fixture(scope="module")
def imputer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("codebrain", MODALITIES, {"width": 2, "depth": 1})
    model.preparation = Preparation(MODALITIES, pixel_spacing_mm=None, intensity_scale={"T2": 200.0})
    return Imputer(model.eval())


def scan(contrast="T1"):
    return nib.Nifti1Image.from_bytes(scans.nifti(scans.head(contrast)))


def test_images_in_images_out(imputer):
    image = scan()
    result = imputer({"t1w": image}, want=["T2", "T1Gd"])
    assert list(result) == [Modality.T2, Modality.T1GD]
    imputed, doubt = result["t2"].image, result["T2"].uncertainty
    assert imputed.shape == doubt.shape == image.shape
    np.testing.assert_array_equal(imputed.affine, image.affine)
    assert imputed.header["intent_name"].item() == b"SYNTHETIC T2"
    data = imputed.get_fdata()
    assert data.min() >= 0 and 1 < data.max() <= 200
    assert 0 < doubt.get_fdata().max() <= 1


def test_batches_have_no_influence(imputer, monkeypatch):
    one = imputer({"T1": scan()}, want=["T2"])["T2"].data
    monkeypatch.setattr(imputer, "at_once", 4)
    np.testing.assert_allclose(imputer({"T1": scan()}, want=["T2"])["T2"].data, one, atol=1e-3)


def test_what_is_withheld_has_no_influence(imputer):
    alone = imputer({"T1": scan()}, want=["T2"])
    scored = imputer({"T1": scan(), "T2": scan("T2")}, want=["T2"], evaluate=True)
    np.testing.assert_array_equal(alone["T2"].data, scored["T2"].data)
    assert {row["metric"] for row in scored.record["scores"]} == {"PSNR", "SSIM", "MAE"}
    assert set(scored.truth) == {Modality.T2}


def test_a_complete_study_needs_nothing(imputer, tmp_path):
    result = imputer({str(m): scan(str(m)) for m in MODALITIES})
    assert len(result) == 0
    assert result.save(tmp_path / "out") == [] and not (tmp_path / "out").exists()


def test_progress_is_told(imputer):
    told = []
    imputer({"T1": scan()}, want=["T2"], advance=lambda done, total, note: told.append((done, total)))
    assert told[-1][0] == told[-1][1] and len(told) > 3


def test_saving_writes_what_was_computed(imputer, tmp_path):
    result = imputer({"T1": scan()}, want=["T2"], name="mine")
    written = result.save(tmp_path / "out")
    assert tmp_path / "out" / "run.json" in written and all(path.is_file() for path in written)
    saved = nib.load(tmp_path / "out" / "mine_T2_imputed.nii.gz")
    np.testing.assert_array_equal(saved.get_fdata(dtype=np.float32), result["T2"].data)
    with pytest.raises(CodeBrainError) as caught:
        result.save(tmp_path / "out")
    assert caught.value.code == "OUT_EXISTS"
    result.save(tmp_path / "out", overwrite=True)


def test_results_are_not_saved_among_the_scans(imputer, tmp_path):
    files = scans.write_study(tmp_path, ("T1", "FLAIR"))
    with pytest.raises(CodeBrainError) as caught:
        imputer(files, want=["T2"]).save(tmp_path)
    assert caught.value.code == "OUT_CLOBBER"


@pytest.mark.parametrize(
    ("name", "settings"), [("mean", {}), ("codebrain", {"width": 2, "depth": 1, "condition": "binary"})]
)
def test_a_model_without_grades_gives_no_doubt(name, settings, tmp_path):
    model = build_model(name, MODALITIES, settings)
    result = Imputer(model.eval())({"T1": scan(), "FLAIR": scan("FLAIR")}, want=["T2"])
    assert result["T2"].uncertainty is None
    result.save(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*uncertainty*"))
    assert '"Reason": "The model does not grade its code."' in (tmp_path / "out/study_T2_imputed.json").read_text()


@pytest.mark.parametrize(
    ("inputs", "options", "code"),
    [
        ({"T1": "x", "t1w": "y"}, {}, "MOD_DUPLICATE"),
        ({"T9": "x"}, {}, "MOD_UNKNOWN"),
        ({}, {}, "MOD_NONE"),
        ({"T1": None}, {"reference": "T2"}, "CONFIG"),
    ],
)
def test_refusals(imputer, inputs, options, code):
    inputs = {key: value or scan() for key, value in inputs.items()}
    with pytest.raises(CodeBrainError) as caught:
        imputer(inputs, **options)
    assert caught.value.code == code


@pytest.mark.parametrize("options", [{"precision": "fp8"}, {"device": "tpu"}, {"device": "cpu:1"}, {"threads": 0}])
def test_settings_that_do_not_exist(options):
    with pytest.raises(CodeBrainError) as caught:
        Imputer.from_pretrained("starter", **options)
    assert caught.value.code == "CONFIG"


def test_bfloat16_stays_near(imputer):
    rough = Imputer(imputer.model, precision="bf16")({"T1": scan()}, want=["T2"])["T2"].data
    fine = imputer({"T1": scan()}, want=["T2"])["T2"].data
    assert rough.dtype == np.float32
    assert np.corrcoef(rough.ravel(), fine.ravel())[0, 1] > 0.95


def test_scales_of_absent_contrasts():
    assert intensity_scale(Modality.T2, {"T2": 321.0}, "scanner").value_at_one == 321.0
    assert intensity_scale(Modality.T2, {"T2": 321.0}, "unit").value_at_one == 1.0
    unknown = intensity_scale(Modality.T2, {}, "scanner")
    assert (unknown.unit, unknown.value_at_one) == ("unit", 1.0)


def test_scores_of_a_perfect_imputation():
    image = scans.head()
    frame = Frame.fit(image > 0, scans.affine_of(), Preparation(MODALITIES, pixel_spacing_mm=None))
    rows = score_rows(Modality.T2, frame.apply(image / 800), image / 800, frame, head=image > 0)
    scores = {row["metric"]: row["value"] for row in rows}
    assert scores["MAE"] == 0 and scores["SSIM"] == pytest.approx(1) and scores["PSNR"] >= 100


def test_slices_without_a_head_do_not_count():
    image = np.pad(scans.head(), 8)
    top = np.flatnonzero(image.any(axis=(0, 1))).max()
    image[image.shape[0] // 2, image.shape[1] // 2, top + 1 : top + 3] = 400  # a tip of one voxel
    frame = Frame.fit(image > 0, scans.affine_of(), Preparation(MODALITIES, pixel_spacing_mm=None))
    imputed = frame.apply(image / 800)
    rows = score_rows(Modality.T2, imputed, image / 800, frame, head=image > 0)
    assert {row["slices"] for row in rows} == {len(imputed) - 2}


def test_background_around_the_head_counts_in_scores():
    image = np.pad(scans.head(), 8)
    frame = Frame.fit(image > 0, scans.affine_of(), Preparation(MODALITIES, pixel_spacing_mm=None))
    rows = score_rows(Modality.T2, frame.apply(image / 800) + np.float32(0.1), image / 800, frame, head=image > 0)
    share = np.prod(frame.slice_shape[1:]) / np.prod(frame.full_slice)
    assert share < 1
    assert next(row["value"] for row in rows if row["metric"] == "MAE") == pytest.approx(0.1 * share, rel=1e-4)


def test_folders_are_cut_from_recorded_commands():
    command = [
        "codebrain",
        "impute",
        "--t1",
        "/data/John Doe/t1.nii.gz",
        "--input",
        "T2=../Doe/t2.nii.gz",
        "--out=a/b",
    ]
    assert shown_command(command) == [
        "codebrain",
        "impute",
        "--t1",
        "t1.nii.gz",
        "--input",
        "T2=t2.nii.gz",
        "--out=b",
    ]
