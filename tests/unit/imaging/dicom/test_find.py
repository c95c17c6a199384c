"""Which series of an examination is which contrast, and what to type where it is not clear."""

from __future__ import annotations

import pytest

import series
from codebrain.errors import CodeBrainError
from codebrain.imaging.dicom.find import find_examination
from codebrain.vocabulary import Modality

T1, T2, PD, FLAIR = Modality.T1, Modality.T2, Modality.PD, Modality.FLAIR


def examination(folder, *made):
    for number, one in enumerate(made):
        series.write(folder / str(number), one)
    return folder


def refused(folder, wishes=None):
    with pytest.raises(CodeBrainError) as caught:
        find_examination(folder, wishes)
    return caught.value


@pytest.fixture
def two_t1(tmp_path):
    return examination(tmp_path, series.slices(number=3), series.slices(number=7, SeriesDescription="Doe T1"),
                       series.slices(contrast="FLAIR", number=5))  # fmt: skip


def test_everything_is_listed_with_its_reason(tmp_path):
    folder = examination(
        tmp_path, series.slices(contrast="T2", number=5), series.slices(number=2),
        series.slices()[:3], series.slices(contrast="FLAIR", number=6, SeriesDescription="ep2d_diff Doe^Jo"),
        series.slices(number=9, Modality="CT", study="1.5"),
    )  # fmt: skip
    found = find_examination(folder)
    assert list(found.chosen) == [T1, T2]
    assert found.lines() == [
        "series 1: not used: a localiser or a fragment, 3 slices",
        "series 2: T1: gradient echo, TR 2300 ms, TE 2.98 ms, TI 900 ms, flip 9°",
        "series 5: T2: spin echo, TR 4500 ms, TE 95 ms",
        "series 6: not used: diffusion",
        "series 9: not used: not MR (CT)",
    ]
    assert found.lines(describe=True)[3] == "series 6: not used: diffusion [ep2d_diff Doe^Jo]"


def test_two_series_of_one_contrast(two_t1):
    error = refused(two_t1)
    assert error.code == "DCM_AMBIGUOUS" and error.exit_code == 3
    assert "series 3: 30 slices" in str(error) and "series 7: 30 slices" in str(error)
    assert "--series T1=3" in str(error) and "Doe" not in str(error)


def test_a_choice(two_t1):
    found = find_examination(two_t1, {T1: "7"})
    assert {m: s.handle for m, s in found.chosen.items()} == {T1: "7", FLAIR: "5"}
    assert "series 3: not used: T1, gradient echo" in "\n".join(found.lines())


def test_a_contrast_left_out(two_t1):
    assert list(find_examination(two_t1, {T1: "none"}).chosen) == [FLAIR]


def test_a_choice_against_the_label_is_the_user_s(two_t1):
    found = find_examination(two_t1, {T1: "3", T2: "7"})
    assert found.chosen[T2].handle == "7"
    assert any(line.startswith("series 7: T2: as asked for (gradient echo") for line in found.lines())


def test_witnesses_that_contradict_each_other_are_the_user_s_to_judge(tmp_path):
    """Imputing a contrast that was acquired would be worse than asking."""
    doubtful = series.slices(contrast="T2", number=4, ProtocolName="t1_se")
    folder = examination(tmp_path, series.slices(contrast="FLAIR", number=2), doubtful)
    error = refused(folder)
    assert error.code == "DCM_AMBIGUOUS" and "parameters say T2" in str(error) and "words say T1" in str(error)
    assert list(find_examination(folder, {T2: "4"}).chosen) == [T2, FLAIR]
    assert list(find_examination(folder, {T1: "none", T2: "none"}).chosen) == [FLAIR]


def test_a_choice_that_is_not_there(two_t1):
    error = refused(two_t1, {T1: "12"})
    assert (error.code, error.exit_code) == ("CONFIG", 2) and "3, 5, 7" in str(error)


@pytest.mark.row("G2")
def test_g2_a_contrast_within_a_mixed_series(tmp_path):
    folder = examination(tmp_path, series.two_echoes(), series.slices(number=1))
    error = refused(folder)
    assert error.code == "DCM_MIXED" and "series 4.2: 30 slices" in str(error)
    chosen = find_examination(folder, {T2: "4.2", PD: "4.1"}).chosen
    assert {m: s.handle for m, s in chosen.items()} == {T1: "1", T2: "4.2", PD: "4.1"}
    assert chosen[T2].parameters.echo == 95 and chosen[PD].parameters.echo == 14


def test_series_of_two_patients(tmp_path):
    folder = examination(tmp_path, series.slices(), series.slices(contrast="FLAIR", number=2, PatientName="Roe^Al"))
    error = refused(folder)
    assert error.code == "DCM_MIXED" and "Roe" not in str(error)


@pytest.mark.row("G12")
def test_g12_nothing_is_mr(tmp_path):
    folder = examination(tmp_path, series.slices(Modality="CT"), series.slices(number=2, Modality="PT", study="1.5"))
    error = refused(folder)
    assert error.code == "DCM_MODALITY" and "CT" in str(error) and "PT" in str(error)


@pytest.mark.row("G14")
def test_g14_nothing_is_measured(tmp_path):
    assert refused(examination(tmp_path, series.slices(SyntheticData="YES"))).code == "IN_SYNTHETIC"


def test_nothing_is_recognised(tmp_path):
    made = series.slices(RepetitionTime=None, EchoTime=None, SeriesDescription="Doe")
    error = refused(examination(tmp_path, made))
    assert error.code == "DCM_UNKNOWN" and "--series T1=1" in str(error) and "Doe" not in str(error)


def test_a_folder_without_dicom(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert find_examination(tmp_path) is None
    assert find_examination(tmp_path / "absent") is None
