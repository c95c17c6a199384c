"""Pictures: the right way round, the same cuts for all, and SYNTHETIC on every cut of a synthetic image."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageChops

from codebrain.report import preview
from codebrain.report.preview import Cuts, Panel, draw_panels, draw_preview, panel_titles, png, study_panels
from codebrain.vocabulary import Modality

T1, T2 = Modality.T1, Modality.T2


def head(shape=(40, 48, 36)):
    """An ellipsoid in RAS with a bright ball at the right, front and top."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    data = 0.4 * (sum(axis**2 for axis in axes) < 0.9)
    data = data + 0.6 * (sum((axis - 0.4) ** 2 for axis in axes) < 0.05)
    return data.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0])


def brightest(picture):
    values = np.asarray(picture.convert("L")).astype(float)
    rows, columns = np.nonzero(values > 0.9 * values.max())
    return rows.mean() / picture.height, columns.mean() / picture.width


def cut_pictures(data, affine, focus=None):
    cuts = Cuts.through(data > 0, affine, focus)
    return [Image.fromarray((np.clip(cut, 0, 1) * 255).astype(np.uint8)) for cut in cuts(data)]


def test_patients_right_is_on_the_left_and_front_and_top_are_up():
    data, affine = head()
    axial, coronal, sagittal = cut_pictures(data, affine, focus=(27, 33, 24))
    for picture in (axial, coronal, sagittal):
        row, column = brightest(picture)
        assert row < 0.45, "front or top is up"
        assert column < 0.45, "the patient's right, or the front, is on the left"


def test_all_48_orientations_give_the_same_pictures():
    data, affine = head()
    image = nib.Nifti1Image(data, affine)
    expected = [np.asarray(p) for p in cut_pictures(data, affine)]
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turned = image.as_reoriented(np.column_stack([axes, flips]))
            pictures = cut_pictures(turned.get_fdata().astype(np.float32), turned.affine)
            for picture, want in zip(pictures, expected, strict=True):
                # The middle of an even number of voxels may fall to either side after a flip.
                assert np.abs(np.asarray(picture).astype(int) - want).mean() < 6


def test_thick_slices_are_drawn_at_true_proportions():
    data = np.ones((40, 40, 10), np.float32)
    cuts = Cuts.through(data > 0, np.diag([4.0, 4.0, 16.0, 1.0]), None)
    assert all(abs(width - height) <= 1 for width, height in cuts.sizes)


@pytest.mark.row("J4")
@pytest.mark.parametrize("role", ["imputed", "doubt", "error", "given", "truth"])
def test_the_word_is_burned_into_every_cut_of_synthetic_pictures_only(role, monkeypatch):
    data, affine = head()
    panels = [Panel(T1, "given", data), Panel(T2, "imputed", data), Panel(T2, role, data)]
    drawn = draw_panels(panels, affine)[f"T2_{role}.png"]
    monkeypatch.setattr(preview, "synthetic_mark", lambda **_: "")
    bare = draw_panels(panels, affine)[f"T2_{role}.png"]
    marked = ImageChops.difference(drawn, bare).convert("L").point(lambda v: 255 * (v > 0))
    widths = [size[0] for size in Cuts.through(data > 0, affine, None).sizes]
    left = 0
    for width in widths:
        assert (marked.crop((left, 0, left + width, drawn.height)).getbbox() is not None) == (
            role in ("imputed", "doubt", "error")
        )
        left += width + 6


def test_panels_read_given_first_then_each_imputed_contrast_with_its_maps():
    data, _ = head()
    panels = study_panels({T1: data}, {T2: data, Modality.PD: data}, truth={T2: data}, doubt=data)
    assert [p.file for p in panels] == [
        "T1_given.png", "T2_imputed.png", "T2_truth.png", "T2_error.png", "T2_doubt.png",
        "PD_imputed.png", "PD_doubt.png",
    ]  # fmt: skip
    titles = panel_titles(panels)
    assert all("SYNTHETIC" in titles[p.file] for p in panels if p.synthetic)


def test_the_preview_holds_every_panel():
    data, affine = head()
    panels = study_panels({T1: data}, {T2: data}, truth={}, doubt=None)
    pictures = draw_panels(panels, affine)
    sheet = draw_preview(panels, pictures)
    assert sheet.width > 2 * preview.PANEL_WIDTH
    assert sheet.height > 2 * next(iter(pictures.values())).height


def test_pictures_are_the_same_bytes_every_time_and_carry_no_metadata():
    data, affine = head()
    first, second = (png(draw_panels([Panel(T1, "given", data)], affine)["T1_given.png"]) for _ in range(2))
    assert first == second
    assert b"tEXt" not in first and b"tIME" not in first


def test_low_confidence_is_burned_into_every_picture_of_an_imputed_contrast():
    data, affine = head()
    sure, unsure = (
        study_panels({T1: data}, {T2: data}, truth={T2: data}, doubt=data, low_confidence=low) for low in (False, True)
    )
    changed = {
        panel.role: before.tobytes() != after.tobytes()
        for panel, before, after in zip(
            unsure, draw_panels(sure, affine).values(), draw_panels(unsure, affine).values(), strict=True
        )
    }
    assert changed == {"given": False, "imputed": True, "truth": False, "error": True, "doubt": True}
    titles = panel_titles(unsure)
    assert [file for file, title in titles.items() if "LOW CONFIDENCE" in title] == [
        "T2_imputed.png", "T2_error.png", "T2_doubt.png"
    ]  # fmt: skip
