"""What a BIDS file name says."""

from __future__ import annotations

import pytest

from codebrain.imaging.bids import contrast_of, looks_enhanced, parse_name
from codebrain.imaging.study import modality_of


@pytest.mark.row("H5")
@pytest.mark.parametrize(
    ("middle", "contrast"),
    [
        ("T1w", "T1"), ("T2w", "T2"), ("PDw", "PD"), ("FLAIR", "FLAIR"),
        # T1Gd only by ce-, and ce- means T1Gd only with gadolinium and T1w.
        ("ce-gadolinium_T1w", "T1Gd"), ("ce-Gd_T1w", "T1Gd"), ("ce-gadobutrol_T1w", "T1Gd"), ("ce-GAD_T1w", "T1Gd"),
        ("ce-gadolinium_run-2_T1w", "T1Gd"), ("acq-post_T1w", "T1"), ("rec-gad_T1w", "T1"),
        ("ce-ferumoxytol_T1w", None), ("ce-none_T1w", None), ("ce-gadolinium_T2w", None), ("ce-gadolinium_FLAIR", None),
        # The magnitude is the scan; phase, real and imaginary parts never are.
        ("part-mag_T2w", "T2"), ("part-phase_T2w", None), ("part-real_T1w", None), ("part-imag_T1w", None),
        # Labels that say which of several scans a file is do not change its contrast.
        ("rec-norm_T1w", "T1"), ("acq-FLAIR_T2w", "T2"), ("run-3_PDw", "PD"), ("echo-1_T2w", "T2"),
        ("rec-imputed_T2w", None), ("desc-imputed_T2w", None), ("desc-uncertainty_T2w", None), ("rec-synth_T1w", None),
        ("mt-on_T1w", None), ("mt-off_T1w", "T1"), ("inv-1_T1w", None), ("inv-2_T1w", None),
        ("UNIT1", None), ("T2starw", None), ("PDT2", None), ("T1map", None), ("MP2RAGE", None), ("angio", None),
        ("mod-T1w_defacemask", None), ("bold", None), ("T1", None),
    ],
)  # fmt: skip
def test_the_table_of_contrasts(middle, contrast):
    name = parse_name(f"sub-01_{middle}.nii.gz")
    assert name is not None
    found, reason = contrast_of(name)
    assert found == contrast
    assert bool(reason) == (contrast is None and middle not in ("T1map", "MP2RAGE", "angio", "mod-T1w_defacemask",
                                                                "bold", "T1"))  # fmt: skip
    if middle != "T1":  # outside BIDS data sets a bare T1 is a name too
        assert modality_of(f"sub-01_{middle}.nii.gz") == contrast


@pytest.mark.row("H5")
@pytest.mark.parametrize(
    "name",
    ["T1w.nii.gz", "01_T1w.nii.gz", "sub-_T1w.nii.gz", "sub-0 1_T1w.nii.gz", "sub-01_sub-02_T1w.nii.gz",
     "ses-1_sub-01_T1w.nii.gz", "sub-01_mine_T1w.nii.gz", "sub-é_T1w.nii.gz", "sub-01_run-1_.nii.gz", "", "sub-01"],
)  # fmt: skip
def test_other_names(name):
    assert parse_name(name) is None


def test_the_parts_of_a_name():
    name = parse_name("sub-A+1_ses-pre_acq-mprage_run-02_T1w.nii.gz")
    assert name is not None and name.is_scan
    assert dict(name.entities) == {"sub": "A+1", "ses": "pre", "acq": "mprage", "run": "02"}
    assert (name.suffix, name.extension) == ("T1w", ".nii.gz")
    assert not parse_name("sub-01_T1w.json").is_scan


@pytest.mark.row("H5")
@pytest.mark.parametrize(
    ("name", "said"),
    [("acq-postGd_T1w", "acq-postGd"), ("rec-contrast_T1w", "rec-contrast"), ("acq-mprage_T1w", ""),
     ("acq-space_T1w", ""), ("acq-posterior_T1w", ""), ("acq-post_T2w", ""), ("acq-post_ce-gd_T1w", "")],
)  # fmt: skip
def test_labels_that_sound_like_an_agent(name, said):
    assert looks_enhanced(parse_name(f"sub-01_{name}.nii.gz")) == said


@pytest.mark.row("H5")
@pytest.mark.parametrize(
    ("name", "contrast"),
    [("mine_ce-gd_T1w.nii.gz", "T1Gd"), ("mine_ce-iron_t1.nii.gz", None), ("mine_part-phase_T2.nii.gz", None),
     ("scan_part-2_T2.nii.gz", "T2"), ("mine_desc-imputed_T2.nii.gz", None)],
)  # fmt: skip
def test_entities_count_in_other_names_too(name, contrast):
    assert modality_of(name) == contrast
