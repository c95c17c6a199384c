"""The shared road of imputation and training."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from codebrain.errors import CodeBrainError
from codebrain.imaging.frame import Frame
from codebrain.imaging.prepared import prepare_study
from codebrain.imaging.study import Study
from codebrain.vocabulary import Modality, ModalitySet, Preparation
from scans import SHAPE, affine_of, head

PREPARATION = Preparation(ModalitySet.parse("T1,T2,PD,FLAIR,T1Gd"), pixel_spacing_mm=None)


def image(contrast="T1", change=None, affine=None):
    data = head(contrast)
    data = data if change is None else change(data)
    picture = nib.Nifti1Image(data.astype(np.float32), affine_of() if affine is None else affine)
    picture.header.set_xyzt_units("mm")
    return picture


def study(**changes):
    return Study.read({contrast: image(contrast, change) for contrast, change in changes.items()}, name="mine")


def test_channels_lie_in_the_order_of_the_preparation():
    prepared = prepare_study(study(FLAIR=None, T1=None), PREPARATION)
    n, m, h, w = prepared.slices.shape
    assert (m, h % 8, w % 8) == (5, 0, 0) and (n, h, w) == prepared.frame.slice_shape
    assert prepared.available == (True, False, False, True, False)
    assert prepared.slices.dtype == np.float32
    assert not prepared.slices[:, [1, 2, 4]].any()
    for channel in (0, 3):
        assert prepared.slices[:, channel].min() == 0 and prepared.slices[:, channel].max() == 1
    assert prepared.name == "mine" and prepared.preparation is PREPARATION
    assert prepared.reference_modality is Modality.T1
    assert prepared.reference.data.shape == prepared.foreground.shape == SHAPE
    assert set(prepared.normalisations) == {Modality.T1, Modality.FLAIR}


def test_the_records_lead_back_to_scanner_units():
    prepared = prepare_study(study(T1=None, T2=None), PREPARATION)
    for channel, modality in ((0, Modality.T1), (1, Modality.T2)):
        unit = prepared.frame.undo(prepared.slices[:, channel])
        back = prepared.normalisations[modality].undo(unit)
        inside = prepared.foreground
        record = prepared.normalisations[modality]
        clipped = head(modality).clip(record.low, record.high)
        np.testing.assert_allclose(back[inside], clipped[inside], atol=0.01)


def test_background_is_zero_whatever_it_was():
    plain = prepare_study(study(T1=None), PREPARATION)
    for change in (lambda d: d - 300, lambda d: d * 3 + 1000, lambda d: (d - d.mean()) / d.std()):
        other = prepare_study(study(T1=change), PREPARATION)
        np.testing.assert_allclose(other.slices, plain.slices, atol=1e-3)
        np.testing.assert_array_equal(other.foreground, plain.foreground)


def test_the_foreground_is_the_union():
    def left(data):
        return np.where(np.arange(SHAPE[0])[:, None, None] < 20, data, 0)

    prepared = prepare_study(study(T1=left, T2=None), PREPARATION)
    np.testing.assert_array_equal(prepared.foreground, head("T2") > 0)


def test_a_reference_of_ones_choice():
    prepared = prepare_study(study(T1=None, FLAIR=None), PREPARATION, reference=Modality.FLAIR)
    assert prepared.reference_modality is Modality.FLAIR


def test_contrasts_that_the_model_does_not_know_are_left_out():
    only = Preparation(ModalitySet.parse("T2,T1"), pixel_spacing_mm=None)
    prepared = prepare_study(study(T1=None, FLAIR=None), only)
    assert prepared.available == (False, True) and set(prepared.normalisations) == {Modality.T1}
    with pytest.raises(CodeBrainError) as caught:
        prepare_study(study(FLAIR=None), only)
    assert caught.value.code == "MOD_NONE"


def test_other_grids_are_aligned_or_refused():
    moved = affine_of()
    moved[0, 3] += 2.5
    together = Study.read({"T1": image(), "T2": image("T2", affine=moved)})
    prepared = prepare_study(together, PREPARATION)
    assert set(prepared.alignment.moved) == {Modality.T2}
    assert prepared.slices[:, 1].max() == 1
    with pytest.raises(CodeBrainError) as caught:
        prepare_study(together, PREPARATION, align="none")
    assert caught.value.code == "GEO_MISMATCH"


def test_notices_of_scans_travel_on():
    prepared = prepare_study(study(T1=lambda d: d - 5), PREPARATION)
    assert [(notice.code, notice.file) for notice in prepared.notices] == [("IN_NEGATIVE", "T1")]


def test_min_max_is_the_papers():
    record = Preparation(ModalitySet.parse("T1"), "min_max", pixel_spacing_mm=None)
    prepared = prepare_study(study(T1=None), record)
    inside = head()[head() > 0]
    (normalisation,) = prepared.normalisations.values()
    assert (normalisation.low, normalisation.high) == (inside.min(), inside.max())


def test_inputs_are_not_changed():
    before = study(T1=None)
    data = before.volumes[Modality.T1].data.copy()
    prepare_study(before, PREPARATION)
    np.testing.assert_array_equal(before.volumes[Modality.T1].data, data)


@pytest.mark.data
def test_a_real_study_in_a_four_dimensional_file(real_data):
    files = {m: real_data / "studies" / "sri24" / f"{m}.nii.gz" for m in ("T2",)}
    prepared = prepare_study(Study.read(files), Preparation(ModalitySet.parse("T1,T2,PD")))
    assert prepared.available == (False, True, False)
    assert prepared.alignment.moved == {}
    assert prepared.frame.full_slice == (240, 240)
    assert isinstance(prepared.frame, Frame) and 0.2 < prepared.slices[:, 1][prepared.slices[:, 1] > 0].mean() < 0.6


KEPT = Preparation(ModalitySet.parse("T1,T2"), "min_max", pixel_spacing_mm=None, frame=(48, 40), background="kept")


def test_a_kept_background_is_scaled_with_the_whole_volume():
    def whole_head(data):
        """Air that is not quite dark, with a speck that is darker than anything in the head."""
        data = data + 20
        data[0, 0, 0] = 0
        return data

    prepared = prepare_study(study(T1=whole_head, T2=None), KEPT, slices=(3, 20))
    data = whole_head(head("T1"))
    assert prepared.slices.shape == (17, 2, 48, 40)
    assert (prepared.normalisations[Modality.T1].low, prepared.normalisations[Modality.T1].high) == (0, data.max())
    rows, columns = slice(6, 42), slice(4, 36)  # 36 x 32 voxels in the middle of 48 x 40
    wanted = (data / data.max())[:, ::-1, 3:20].transpose(2, 1, 0)
    np.testing.assert_allclose(prepared.slices[:, 0, rows, columns], wanted, atol=1e-6)
    assert not prepared.slices[:, 0, :6].any()
    zeroed = prepare_study(study(T1=whole_head, T2=None), replace(KEPT, background="zero"))
    assert not zeroed.slices[:, 0, 6, 4].any()
