"""The page and the table by which registrations are judged."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codebrain.data.prepare import prepare_folder
from codebrain.errors import InputRefused
from codebrain.report.quality import write_quality_page
from codebrain.vocabulary import ModalitySet, Preparation
from fabricated import fabricate_study

PREPARATION = Preparation(ModalitySet.parse("T1,T2"), pixel_spacing_mm=None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients: one moved, one on one grid, one whose T2 is that of nobody."""
    pytest.importorskip("SimpleITK")
    root = tmp_path_factory.mktemp("studies")
    fabricate_study(root / "moved", ("T1", "T2"), seed=1, shift={"T2": 6.0})
    fabricate_study(root / "still", ("T1", "T2"), seed=2)
    fabricate_study(root / "far <b>", ("T1", "T2"), seed=3, shift={"T2": 70.0})
    target = tmp_path_factory.mktemp("out") / "store"
    prepare_folder(root, target, preparation=PREPARATION, val=[], test=["still"], jobs=0)
    return target


def rows(store: Path) -> dict[str, dict[str, str]]:
    lines = csv.DictReader((store / "quality.tsv").read_text().splitlines(), delimiter="\t")
    return {row["subject"]: row for row in lines}


def test_a_row_per_registration_with_its_verdict(store: Path) -> None:
    found = rows(store)
    assert set(found) == {"moved", "far <b>"}
    row = found["moved"]
    assert (row["contrast"], row["reference"], row["method"], row["split"]) == ("T2", "T1", "rigid", "train")
    assert 1 <= float(row["similarity_before"]) <= float(row["similarity_after"]) <= 2
    assert 0.5 < float(row["overlap_before"]) <= float(row["overlap_after"]) <= 1
    assert row["verdict"] == "pass" and row["reason"] == ""
    assert found["far <b>"]["verdict"] == "fail" and "look at the preview" in found["far <b>"]["reason"]


def test_the_pictures_show_before_and_after(store: Path) -> None:
    assert {path.name for path in (store / "qc").iterdir()} == {"moved.jpg", "far <b>.jpg"}
    picture = Image.open(io.BytesIO((store / "qc" / "moved.jpg").read_bytes()))
    assert picture.format == "JPEG" and picture.width == 632 and picture.height == 448
    red, blue = (np.asarray(picture, int)[..., band] for band in (0, 2))
    assert (red - blue > 80).sum() > 300  # orange edges on grey


def test_the_page_is_one_file_without_network_and_doubtful_subjects_come_first(store: Path) -> None:
    page = write_quality_page(store)
    assert page == store / "quality.html"
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|src=\"(?!data:)", text)
    assert text.count("data:image/jpeg;base64,") == 2
    assert text.index("far &lt;b&gt;") < text.index("<h2>moved") and "far <b>" not in text
    assert "FAILS THE RULE" in text and "mutual information after it is at least 1.05" in text
    assert str(store.parent) not in text


def test_a_picture_that_is_gone_is_said(store: Path, tmp_path: Path) -> None:
    content = (store / "qc" / "moved.jpg").read_bytes()
    (store / "qc" / "moved.jpg").unlink()
    try:
        page = write_quality_page(store)
        assert page is not None and "The picture is gone" in page.read_text()
    finally:
        (store / "qc" / "moved.jpg").write_bytes(content)


def test_a_store_without_registrations_has_no_page(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        fabricate_study(tmp_path / "studies" / name, ("T1", "T2"), seed=seed)
    prepare_folder(tmp_path / "studies", tmp_path / "store", preparation=PREPARATION, val=[], test=["b"], jobs=0)
    assert write_quality_page(tmp_path / "store") is None
    assert not (tmp_path / "store" / "quality.html").exists() and not (tmp_path / "store" / "qc").exists()


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="no finished slice store"):
        write_quality_page(tmp_path)


def test_the_command_rebuilds_the_page(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from codebrain.app.cli import main

    (store / "quality.html").unlink(missing_ok=True)
    assert main(["report", str(store)]) == 0
    assert capsys.readouterr().out.strip() == str(store / "quality.html")
    assert (store / "quality.html").is_file()
