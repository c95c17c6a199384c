"""Which contrast a series is: timing, words, and what becomes of them together."""

from __future__ import annotations

import itertools

import pytest

import series
from codebrain.imaging.dicom.instance import Parameters
from codebrain.imaging.dicom.labels import label, label_parameters

MAGNITUDE = ("ORIGINAL", "PRIMARY", "M", "ND")


def told(sequence="", tr=None, te=None, ti=None, flip=None, words="", kind=MAGNITUDE, **rest):
    return Parameters(tr, te, ti, flip, frozenset(sequence.split()), frozenset(rest.pop("variant", "").split()),
                      kind, words=words, **rest)  # fmt: skip


@pytest.mark.parametrize(
    ("what", "parameters", "contrast"),
    [
        ("Siemens MPRAGE", told("GR IR", 2300, 2.98, 900, 9), "T1"),
        ("GE BRAVO", told("GR", 8.2, 3.2, 450, 12), "T1"),
        ("Philips TFE without TI", told("GR", 8.1, 3.7, 0, 8), "T1"),
        ("GE MPRAGE as research mode", told("RM", 2300, 2.9, 900, 8), "T1"),
        ("VIBE after contrast agent", told("GR", 5.2, 2.4, None, 12, agent=True), "T1Gd"),
        ("FLASH 2D", told("GR", 250, 2.5, None, 70), "T1"),
        ("spin echo T1", told("SE", 500, 10, None, 90), "T1"),
        ("spin echo T1 with agent", told("SE", 500, 10, None, 90, agent=True), "T1Gd"),
        ("T1 FLAIR of GE", told("SE IR", 2100, 24, 860, 111), "T1"),
        ("T1 FLAIR by name", told("SE IR", 2100, 24, 860, 111, words="Ax T1 FLAIR"), "T1"),
        ("turbo spin echo T2", told("SE", 4500, 95, None, 150), "T2"),
        ("SPACE T2", told("SE", 3200, 408, None, 120), "T2"),
        ("proton density", told("SE", 3000, 14, None, 150), "PD"),
        ("FLAIR 2D", told("SE IR", 9000, 90, 2500, 150), "FLAIR"),
        ("FLAIR of Philips", told("IR", 11000, 125, 2800, 90), "FLAIR"),
        ("SPACE FLAIR", told("SE IR", 5000, 388, 1800, 120), "FLAIR"),
        ("FLAIR with agent stays FLAIR", told("SE IR", 9000, 90, 2500, 150, agent=True), "FLAIR"),
        ("words alone", told(words="t2_tse_tra_512"), "T2"),
        ("words alone, T1", told(words="MPRAGE sag"), "T1"),
        ("words alone, T2 FLAIR", told(words="AX T2 FLAIR"), "FLAIR"),
        ("words alone, dark fluid", told(words="t2_space_dark-fluid_sag"), "FLAIR"),
        ("words alone, PD", told(words="pd_tse"), "PD"),
        ("words add the agent", told("GR IR", 2300, 2.98, 900, 9, words="T1 MPRAGE post Gd"), "T1Gd"),
        ("words add the agent, +C", told("SE", 500, 10, words="AX T1 +C"), "T1Gd"),
        ("words deny the agent", told("SE", 500, 10, words="AX T1 without contrast"), "T1"),
        ("words deny it, pre", told("SE", 500, 10, words="AX T1 pre"), "T1"),
        ("restore is no rest", told("SE", 4500, 95, words="t2_tse_tra_restore"), "T2"),
        ("prescan is not before contrast", told("GR IR", 2300, 3, 900, 9, words="T1 prescan-norm post Gd"), "T1Gd"),
        ("subject names are no subtraction", told("GR IR", 2300, 3, 900, 9, words="sub-01_T1w"), "T1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_contrasts(what, parameters, contrast):
    found = label_parameters(parameters)
    assert found.contrast == contrast, found.reason
    assert found.reason and not found.maybe


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (told("SE EP", 8000, 80, words="ep2d_diff_3scan_trace"), "diffusion"),
        (told("SE EP", 8000, 80, kind=("DERIVED", "PRIMARY", "DIFFUSION", "ADC")), "diffusion"),
        (told("SE", 8000, 80, diffusion=True), "diffusion"),
        (told("SE EP", 8000, 80), "echo-planar"),
        (told("GR", 28, 20, None, 15, words="SWI_Images"), "susceptibility"),
        (told("GR", 600, 20, None, 20, words="t2*_fl2d_tra"), "susceptibility"),
        (told("GR EP", 1500, 30, words="ep2d_perf"), "perfusion"),
        (told("GR EP", 2000, 30, words="BOLD_rest"), "functional MRI"),
        (told("GR", 22, 3.6, None, 18, words="TOF_3D_multi-slab"), "angiography"),
        (told("GR", 22, 3.6, None, 18, variant="SK TOF"), "angiography"),
        (told("GR IR", 5000, 2.9, 700, 4, words="mp2rage INV1"), "an inversion image of MP2RAGE"),
        (told(words="T1 map"), "a map, not a weighted image"),
        (told("SE IR", 4000, 40, 160, words="t2_stir_cor"), "fat-nulled (STIR)"),
        (told("GR", 500, 5, kind=("ORIGINAL", "PRIMARY", "P", "ND")), "a phase, real or imaginary image"),
        (told("GR", 500, 5, component="PHASE"), "a phase, real or imaginary image"),
        (told("GR IR", 2300, 3, 900, 9, kind=("DERIVED", "SECONDARY", "MPR")), "reformatted or projected"),
        (told("GR IR", 2300, 3, 900, 9, kind=("DERIVED", "SECONDARY", "OTHER")), "derived from other images"),
        (told("SE", 500, 10, words="T1 subtraction"), "a subtraction"),
        (told("GR", 8, 3, words="localizer"), "a localiser"),
        (told("GR", 8, 3, kind=("ORIGINAL", "PRIMARY", "LOCALIZER")), "a localiser"),
    ],
)
def test_what_is_passed_over(parameters, reason):
    found = label_parameters(parameters)
    assert (found.contrast, found.reason, found.maybe) == (None, reason, ())


@pytest.mark.parametrize(
    ("parameters", "says", "maybe"),
    [
        (told("SE", 500, 10, words="T2 TSE"), "parameters say T1 (spin echo, TR 500 ms, TE 10 ms), words say T2",
         ("T1", "T2")),
        (told("SE", 500, 10, agent=True, words="T1 pre contrast"), "a contrast agent is named, but words say before",
         ("T1", "T1Gd")),
        (told("SE", 2500, 50), "no contrast recognised (spin echo, TR 2500 ms, TE 50 ms)", ()),
        (told(), "no contrast recognised (no timing in the headers)", ()),
        (told(words="PD/T2 dual"), "no contrast recognised", ()),
    ],
)  # fmt: skip
def test_what_nobody_decides(parameters, says, maybe):
    found = label_parameters(parameters)
    assert (found.contrast, found.maybe) == (None, maybe)
    assert says in found.reason


def test_no_two_timing_rules_of_one_sequence_overlap():
    """On a grid of timings no two rules give different contrasts."""
    from codebrain.imaging.dicom.labels import _RULES, _Timing

    timings = itertools.product((5, 30, 100, 500, 1000, 1800, 2500, 3500, 4500, 9000), (2, 8, 12, 30, 40, 65, 100, 400),
                                (0, 300, 450, 900, 1300, 1500, 1800, 2500), (5, 9, 30, 60, 90, 150))  # fmt: skip
    for timing in itertools.starmap(_Timing, timings):
        for sequence in ("spin", "gradient"):
            found = {modality for modality, kind, fits in _RULES if kind == sequence and fits(timing)}
            assert len(found) <= 1, timing


@pytest.mark.parametrize("contrast", series.PARAMETERS)
def test_classic_and_enhanced_headers_say_the_same(contrast, tmp_path):
    from codebrain.imaging.dicom.find import only_series

    made = series.slices(contrast=contrast)
    classic = only_series(series.write(tmp_path / "classic", made))
    enhanced = only_series(series.write(tmp_path / "enhanced", series.enhanced(made)))
    for found in (label(classic), label(enhanced)):
        assert found.contrast == contrast, found.reason


def test_the_reason_is_a_sentence_about_physics(tmp_path):
    from codebrain.imaging.dicom.find import only_series

    made = series.slices(contrast="T1Gd", SeriesDescription="Doe^Jo T1")
    found = label(only_series(series.write(tmp_path, made)))
    assert found.reason == "ContrastBolusAgent present, spin echo, TR 500 ms, TE 10 ms"
