"""Registration with a deformation, by ANTs, on a coarse head; and the rule that judges it."""

from __future__ import annotations

import builtins
from dataclasses import replace

import numpy as np
import pytest
from test_align import scan

from archives import rigid
from codebrain.data.isolated import limited_threads
from codebrain.errors import CodeBrainError
from codebrain.imaging.align import Movement, _doubts, align_study, by_header, quality_rule
from codebrain.imaging.study import Study
from codebrain.imaging.volume import same_grid
from codebrain.vocabulary import Modality
from scans import affine_of

GOOD = Movement(
    np.eye(4).tolist(), 1.05, 1.09, 3.0, 2.0, True, "centre of mass", 1.0,
    overlap_before=0.95, overlap_after=0.97, method="SyNRA", deformation_max_mm=6.0,
)  # fmt: skip
"""What IXI002 gives, about."""


def test_a_known_movement_is_recovered_and_two_runs_give_equal_bytes():
    pytest.importorskip("ants")
    moved = rigid((6, -4, 3), 8)
    other = scan("T1", affine=affine_of((4, 4, 5), (48, 56, 36)), shape=(48, 56, 36), moved=moved)
    study = Study.read({"T1": other, "T2": scan("T2")})
    with limited_threads(1):
        (after, record), (again, _) = (align_study(study, mode="synra", reference=Modality.T2) for _ in range(2))
    movement = record.moved[Modality.T1]
    assert movement.method == "SyNRA" and list(record.moved) == [Modality.T1]
    assert movement.rotation_deg == pytest.approx(8, abs=1)
    corners = np.array([[40, 0, 0], [0, 50, 0], [0, 0, 40], [-40, 0, 0]], float)
    found, true = (m[:3, :3] @ corners.T + m[:3, 3:] for m in (np.array(movement.transform), np.linalg.inv(moved)))
    assert np.linalg.norm(found - true, axis=0).max() < 2.0  # half a voxel; the deformation does the rest
    assert movement.similarity_after > movement.similarity_before + 0.2
    assert movement.overlap_after > 0.96 > movement.overlap_before
    assert 0 < movement.deformation_mean_mm < movement.deformation_max_mm < 8
    warped, home = after.volumes[Modality.T1], after.volumes[Modality.T2]
    assert same_grid(warped, home) and warped.data.dtype == np.float32
    np.testing.assert_array_equal(warped.data, again.volumes[Modality.T1].data)
    truth = Study.read({"T1": scan("T1")}).volumes[Modality.T1].data
    before = by_header(home, study.volumes[Modality.T1]).data
    inside = truth > 0
    assert np.abs(warped.data - truth)[inside].mean() < 0.4 * np.abs(before - truth)[inside].mean()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"similarity_after": 1.03, "similarity_before": 1.02}, "their similarity is 1.030"),
        ({"similarity_before": 1.10}, "it was 1.100 before"),
        ({"overlap_after": 0.67, "overlap_before": 0.66}, None),
        ({"overlap_after": 0.85}, "the heads overlap by 0.85"),
        ({"scale": 1.15}, "a factor of 1.15"),
        ({"deformation_max_mm": 25.0}, "deformed by up to 25 mm"),
        ({"shift_mm": 40.0}, "moving it by 40 mm"),
        ({"rotation_deg": 30.0}, "30 degrees"),
    ],
)
def test_the_rule(change, said):
    notices = list(_doubts(Modality.T1, replace(GOOD, **change), "T1.nii.gz"))
    assert [notice.code for notice in notices] == ([] if said is None else ["GEO_ALIGN_POOR"])
    assert said is None or said in notices[0].message


def test_the_rule_is_said_with_its_numbers():
    assert "1.05" in quality_rule("auto") and "Dice" not in quality_rule("auto")
    assert all(
        words in quality_rule("synra") for words in ("1.05", "25 mm", "20 degrees", "0.9 (Dice)", "10%", "20 mm")
    )


def test_without_ants_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "ants":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    study = Study.read(
        {"T1": scan("T1"), "T2": scan("T2", affine=affine_of((4, 4, 5), (48, 56, 36)), shape=(48, 56, 36))}
    )
    with pytest.raises(CodeBrainError, match=r"codebrain-mri\[ixi\]") as caught:
        align_study(study, mode="synra", reference=Modality.T2)
    assert caught.value.code == "ENV_EXTRA"


def test_a_scan_that_ants_gives_up_on_is_refused(monkeypatch):
    ants = pytest.importorskip("ants")

    def fail(*args, **kwargs):
        raise RuntimeError("Registration failed with error code 1")

    monkeypatch.setattr(ants, "registration", fail)
    study = Study.read(
        {"T1": scan("T1"), "T2": scan("T2", affine=affine_of((4, 4, 5), (48, 56, 36)), shape=(48, 56, 36))}
    )
    with pytest.raises(CodeBrainError, match="ANTs found no transform") as caught:
        align_study(study, mode="synra", reference=Modality.T2)
    assert caught.value.code == "GEO_ALIGN_FAILED" and caught.value.exit_code == 3
