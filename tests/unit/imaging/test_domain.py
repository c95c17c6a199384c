"""Skull, face or bare brain."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

import scans
from codebrain.imaging.domain import defaced, head_kind, skull_stripped
from codebrain.imaging.frame import ras_view
from codebrain.imaging.volume import read_volume
from codebrain.vocabulary import Modality

CONTRASTS = (Modality.T1, Modality.FLAIR)


@pytest.fixture(scope="module")
def simulated():
    """A simulated patient with and without a head."""
    pytest.importorskip("nilearn", reason="the phantom needs the extra 'phantom'")
    from codebrain.data.phantom import simulate_study

    return {
        kind: {
            contrast: read_volume(image)
            for contrast, image in simulate_study(
                7, head=kind == "whole", spacing_mm=2.5, modalities=CONTRASTS, labels=False
            ).images.items()
        }
        for kind in ("whole", "stripped")
    }


def without_face(volume, fill):
    """Everything before the eyes and below the forehead cut away, as defacing programs do."""
    data = volume.data.copy()
    view, (_, back_to_front, upwards) = ras_view(data, volume.affine)
    head, _ = ras_view(volume.data > 0.2 * np.percentile(volume.data, 99), volume.affine)
    y, z = (np.flatnonzero(head.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    length = y[-1] - y[0]
    view[:, int(y[0] + 0.65 * length) :, : int(z[-1] - 0.5 * length * back_to_front / upwards)] = fill
    return replace(volume, data=data)


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("kind", ["whole", "stripped"])
def test_simulated_heads(simulated, kind, contrast):
    volume = simulated[kind][contrast]
    assert head_kind(volume) == skull_stripped(volume).verdict == kind


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_face_cut_away(simulated, contrast):
    whole = simulated["whole"][contrast]
    assert defaced(whole).verdict == "face"
    cut = without_face(whole, fill=0)
    assert defaced(cut).verdict == "defaced" and head_kind(cut) == "defaced"
    assert skull_stripped(cut).verdict == "whole"


@pytest.mark.parametrize("kind", ["whole", "stripped"])
def test_neither_scale_nor_axes_decide(simulated, kind):
    volume = simulated[kind][Modality.T1]
    turned = nib.Nifti1Image(3 * volume.data - 500, volume.affine).as_reoriented([[2, -1], [0, 1], [1, -1]])
    turned.header.set_xyzt_units("mm")
    there, here = (skull_stripped(v) for v in (read_volume(turned), volume))
    assert there.verdict == here.verdict == kind
    assert there.score == pytest.approx(here.score, abs=0.02)


def test_a_bare_brain_in_noise_is_not_called_stripped(simulated):
    """In noise a dark scalp may be lost, so a missing one proves nothing."""
    volume = simulated["stripped"][Modality.T1]
    noise = np.random.default_rng(0).normal(0, 0.03 * volume.data.max(), volume.data.shape).astype(np.float32)
    assert skull_stripped(replace(volume, data=np.abs(volume.data + noise))).verdict == "unclear"


def test_a_scan_that_ends_above_the_face(simulated):
    volume = simulated["whole"][Modality.T1]
    upper = nib.Nifti1Image(volume.data[:, :, 44:], volume.affine)
    upper.header.set_xyzt_units("mm")
    answer = defaced(read_volume(upper))
    assert (answer.verdict, answer.score) == ("unclear", None)
    assert head_kind(read_volume(upper)) == "whole"


def test_the_answers_are_json():
    volume = read_volume(nib.Nifti1Image.from_bytes(scans.nifti(scans.head())))
    answers = json.loads(json.dumps([skull_stripped(volume).as_dict(), defaced(volume).as_dict()]))
    assert answers[0]["verdict"] == "stripped" and set(answers[1]) == {"verdict", "score"}


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "kind"),
    [("raw/ixi-002", "whole"), ("raw/mslong-03-2", "defaced"), ("raw/mslong-20-2", "defaced"),
     ("raw/glioma-fg6692-native", "stripped"), ("studies/ms-19", "stripped"), ("studies/sri24", "stripped")],
)  # fmt: skip
def test_real_scans(folder, kind, real_data):
    for file in sorted((real_data / folder).glob("[TPF]*.nii.gz")):
        assert head_kind(read_volume(file)) == kind, file.name


@pytest.mark.data
@pytest.mark.parametrize("contrast", ["T1", "T2", "PD"])
def test_a_real_face_cut_away(contrast, real_data):
    whole = read_volume(real_data / "raw" / "ixi-002" / f"{contrast}.nii.gz")
    assert head_kind(without_face(whole, fill=0)) == "defaced"
