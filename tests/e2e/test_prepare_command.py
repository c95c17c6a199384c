from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from codebrain.app.cli import main
from codebrain.data.slices import SliceStore
from fabricated import fabricate_study


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    root = tmp_path / "studies"
    for number in range(3):
        fabricate_study(root / f"ms-{number:02d}", ("T1", "T2", "FLAIR")[: 2 + number % 2], seed=number)
    return root


def _run(*words: object) -> int:
    return main(["prepare", *map(str, words), "--spacing", "none"])


def test_prepare_and_read_back(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    assert _run("folder", studies, "-o", out, "--test", "ms-01", "--val", "none", "--jobs", 2) == 0
    text = capsys.readouterr().out
    assert "ms-01  prepared  test" in text
    assert "3 prepared, 0 skipped, 0 refused" in text
    store = SliceStore.open(out)
    assert store.counts() == {"train": 2, "val": 0, "test": 1}
    assert [str(m) for m in store.preparation.modalities] == ["T1", "T2", "FLAIR"]
    images, available, ids = store.batch(store.index("train")[:4], crop=16, generator=np.random.default_rng(0))
    assert images.shape == (4, 3, 16, 16)
    assert available.tolist() == [[True, True, False]] * 4
    assert ids[0].startswith("ms-00/")


def test_json_and_options(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    words = ("--contrasts", "T2w,t1", "--normalisation", "min_max", "--seed", 5, "--jobs", 2, "--json")
    assert _run("folder", studies, "-o", out, *words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["contrasts"] == ["T2", "T1"]
    assert {split: len(ids) for split, ids in facts["patients"].items()} == {"train": 1, "val": 1, "test": 1}
    assert facts["fingerprint"] == SliceStore.open(out).fingerprint
    assert SliceStore.open(out).preparation.normalisation == "min_max"
    assert facts["bytes"] == sum(p.stat().st_size for p in (out / "slices").glob("*.npy"))

    assert _run("folder", studies, "-o", out, *words) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "OUT_EXISTS"


def test_some_refused_is_six_all_refused_is_three(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (studies / "ms-02" / "T1.nii.gz").write_bytes(b"")
    assert _run("folder", studies, "-o", tmp_path / "some", "--val", "none", "--jobs", 1) == 6
    captured = capsys.readouterr()
    assert "ms-02  refused  IN_EMPTY" in captured.out
    assert "codebrain: BATCH: 1 of 3 studies were refused" in captured.err
    assert SliceStore.open(tmp_path / "some").counts() == {"train": 1, "val": 0, "test": 1}

    for file in studies.rglob("*.nii.gz"):
        file.write_bytes(b"")
    assert _run("folder", studies, "-o", tmp_path / "all", "--jobs", 1) == 3
    assert "codebrain: DATA_EMPTY" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("mri", "SRC"), 2, "this version has no source 'mri'"),
        (("folder", "SRC", "--contrasts", "T1,T9"), 2, "MOD_UNKNOWN"),
        (("folder", "SRC", "--contrasts", "T1"), 2, "at least two contrasts"),
        (("folder", "SRC", "--contrasts", "T1,t1w"), 2, "MOD_DUPLICATE"),
        (("folder", "SRC", "--normalisation", "z"), 2, "percentile or min_max"),
        (("folder", "SRC", "--align", "rigid"), 2, "auto or synra or none"),
        (("folder", "SRC", "--jobs", "0"), 2, "jobs"),
        (("folder", "SRC", "--test", "nobody"), 3, "nobody"),
        (("folder", "SRC/ms-00"), 3, "Give the folder above it"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words, status: int, said: str
) -> None:
    words = [str(word).replace("SRC", str(studies)) for word in words]
    assert main(["prepare", *words, "-o", str(tmp_path / "store")]) == status
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("spacing", ["abc", "0", "-1", "nan"])
def test_spacing(studies: Path, tmp_path: Path, spacing: str) -> None:
    assert main(["prepare", "folder", str(studies), "-o", str(tmp_path / "s"), f"--spacing={spacing}"]) == 2
