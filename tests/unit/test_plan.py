"""What is imputed from what."""

from __future__ import annotations

import pytest

from codebrain.errors import CodeBrainError
from codebrain.plan import plan_study
from codebrain.vocabulary import Modality, ModalitySet

KNOWN = ModalitySet.parse("T1,T2,FLAIR")
T1, T2, PD, FLAIR = Modality.T1, Modality.T2, Modality.PD, Modality.FLAIR


def test_by_default_everything_missing_is_imputed():
    plan = plan_study([FLAIR], KNOWN)
    assert (plan.given, plan.targets, plan.withheld) == ((FLAIR,), (T1, T2), ())


def test_targets_come_in_the_order_of_the_model():
    assert plan_study([T1], KNOWN, ["flair", "t2w"]).targets == (T2, FLAIR)


def test_a_contrast_the_model_does_not_know_is_left_out_and_said():
    plan = plan_study([T1, PD], KNOWN)
    assert plan.given == (T1,)
    assert [notice.code for notice in plan.notices] == ["MOD_UNUSED"]


def test_nothing_is_missing():
    assert plan_study([T1, T2, FLAIR], KNOWN).targets == ()


def test_evaluation_withholds_what_is_wanted():
    plan = plan_study([T1, T2, FLAIR], KNOWN, ["T2"], evaluate=True)
    assert (plan.given, plan.targets, plan.withheld) == ((T1, FLAIR), (T2,), (T2,))


@pytest.mark.parametrize(
    ("have", "want", "evaluate", "code", "status"),
    [
        ([T1], ["PD"], False, "MOD_TARGET_UNKNOWN", 3),
        ([T1, T2], ["T2"], False, "MOD_TARGET_GIVEN", 3),
        ([PD], None, False, "MOD_NONE", 2),
        ([T1], ["T1"], True, "MOD_NONE", 2),
        ([T1], ["T3"], False, "MOD_UNKNOWN", 2),
        ([T1], ["T2", "t2w"], False, "MOD_DUPLICATE", 2),
        ([T1], [], False, "MOD_NONE", 2),
    ],
)
def test_refusals(have, want, evaluate, code, status):
    with pytest.raises(CodeBrainError) as caught:
        plan_study(have, KNOWN, want, evaluate=evaluate)
    assert (caught.value.code, caught.value.exit_code) == (code, status)
