"""Names, orders, patterns, and the preparation that travels as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from codebrain.errors import CodeBrainError
from codebrain.vocabulary import Modality, ModalitySet, Preparation, TrainingDomain, pattern_name, strict_subsets


@pytest.mark.parametrize(
    ("text", "modality"),
    [
        ("T1", Modality.T1), ("t1w", Modality.T1), ("T1N", Modality.T1),
        ("t2", Modality.T2), ("T2w", Modality.T2),
        ("pd", Modality.PD), ("PDw", Modality.PD),
        ("flair", Modality.FLAIR), ("t2f", Modality.FLAIR),
        ("T1ce", Modality.T1GD), ("t1c", Modality.T1GD), ("T1Gd", Modality.T1GD), ("t1post", Modality.T1GD),
        ("T1WKS", Modality.T1GD), (" T1 ", Modality.T1),
    ],
)  # fmt: skip
def test_aliases(text, modality):
    assert Modality.parse(text) is modality


@pytest.mark.parametrize(("text", "guess"), [("FLAIRR", "FLAIR"), ("T1wx", "T1"), ("bold", None)])
def test_an_unknown_name_gets_a_guess(text, guess):
    with pytest.raises(CodeBrainError) as caught:
        Modality.parse(text)
    assert caught.value.code == "MOD_UNKNOWN"
    assert (f"Did you mean {guess}?" in str(caught.value)) == (guess is not None)


def test_a_set_keeps_its_order_and_refuses_doubles():
    modalities = ModalitySet.parse("T2, t1, flair")
    assert str(modalities) == "T2,T1,FLAIR" and len(modalities) == 3
    assert modalities.index(Modality.FLAIR) == 2 and Modality.PD not in modalities
    for names, code in (("T1,t1w", "MOD_DUPLICATE"), ("", "MOD_NONE"), ("T1,T9", "MOD_UNKNOWN")):
        with pytest.raises(CodeBrainError) as caught:
            ModalitySet.parse(names)
        assert caught.value.code == code


def test_patterns_name_what_is_present():
    modalities = ModalitySet.parse("T1,T2,FLAIR")
    pattern = modalities.pattern({Modality.FLAIR, Modality.T1, Modality.PD})
    assert pattern == (True, False, True)
    assert modalities.present(pattern) == (Modality.T1, Modality.FLAIR)
    assert modalities.absent(pattern) == (Modality.T2,)
    assert pattern_name(modalities, pattern) == "T1+FLAIR"
    assert pattern_name(modalities, (False,) * 3) == "none"


@pytest.mark.parametrize(("count", "patterns"), [(1, 0), (2, 2), (3, 6), (4, 14), (5, 30)])
def test_the_number_of_strict_subsets(count, patterns):
    available = (True,) * count + (False,)
    found = strict_subsets(available)
    assert len(found) == len(set(found)) == patterns
    assert all(0 < sum(p) < count and not p[-1] for p in found)


def test_a_preparation_comes_back_from_json():
    preparation = Preparation(
        ModalitySet.parse("T1,PD"), "min_max", (1.0, 99.0), None, 16, intensity_scale={"T1": 812.5}
    )
    assert Preparation.from_json(preparation.to_json()) == preparation
    assert "domain" not in preparation.to_json()  # equal bytes, and fingerprints, to before there was one
    declared = replace(preparation, domain=TrainingDomain(("stripped",), (0.9, 5.5), 6.1))
    assert Preparation.from_json(declared.to_json()) == declared
    for text in (
        "",
        "{}",
        "[]",
        '{"modalities": "T1", "percentiles": [1, 99], "domain": {"heads": []}}',
        '{"modalities": "T1", "what": 1}',
    ):
        with pytest.raises(CodeBrainError) as caught:
            Preparation.from_json(text)
        assert caught.value.code == "CKPT_CORRUPT"


def test_younger_fields_are_written_only_where_they_say_something():
    plain = Preparation(ModalitySet.parse("T1,T2"))
    assert not {"frame", "background"} & set(json.loads(plain.to_json()))
    published = replace(plain, frame=(256, 240), background="kept")
    assert Preparation.from_json(published.to_json()) == published
    assert Preparation.from_json(plain.to_json()) == plain


def test_domains_of_two_trainings_together():
    one, other = TrainingDomain(("stripped",), (1.0, 1.0), 1.0), TrainingDomain(("whole",), (0.7, 4.0), 5.7)
    assert one | other == other | one == TrainingDomain(("stripped", "whole"), (0.7, 4.0), 5.7)
