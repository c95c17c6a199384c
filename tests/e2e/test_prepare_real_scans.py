"""The published IXI flow with real registration, on the one real IXI subject and on a phantom that was moved."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from archives import add_to_ixi, rigid
from codebrain.data.phantom import simulate_study
from codebrain.data.slices import SliceStore
from codebrain.vocabulary import Modality

CONTRASTS = (Modality.T1, Modality.T2, Modality.PD)
T1, T2 = ((80, 80, 60), (3.0, 3.0, 3.0), "PSR"), ((64, 80, 130), (3.0, 3.0, 1.25), "LAS")
"""Coarser in plane than IXI's grids, so that a registration takes half a minute and not five."""


@pytest.mark.slow
@pytest.mark.data
def test_the_published_ixi_flow(typed, real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("ants")
    real = {m: nib.load(real_data / "raw" / "ixi-002" / f"{m}.nii.gz") for m in CONTRASTS}
    add_to_ixi(tmp_path / "IXI", "IXI002-Guys-0828", real, t1=T1, t2=T2)
    moved = rigid((5, -3, 4), 6)
    phantom = simulate_study(3, head=True, spacing_mm=2.5, modalities=CONTRASTS, labels=False)
    add_to_ixi(tmp_path / "IXI", "IXI012-HH-1211", phantom.images, t1=T1, t2=T2, moved=moved)
    words = ("--jobs", 1, "--reproducible")
    assert typed("prepare", "ixi", tmp_path / "IXI", "-o", tmp_path / "store", *words).status == 0

    store = SliceStore.open(tmp_path / "store")
    store.verify()
    assert store.names == ("IXI002-Guys-0828", "IXI012-HH-1211")
    assert {store.record(name).shape for name in store.names} == {(90, 3, 256, 256)}
    lines = csv.DictReader((tmp_path / "store" / "quality.tsv").read_text().splitlines(), delimiter="\t")
    rows = {row["subject"]: row for row in lines}
    for row in rows.values():
        assert (row["contrast"], row["reference"], row["method"]) == ("T1", "T2", "SyNRA")
        assert float(row["similarity_after"]) > float(row["similarity_before"])
        assert float(row["overlap_after"]) > float(row["overlap_before"]) - 0.01
        assert row["verdict"] == "pass", row
    assert float(rows["IXI002-Guys-0828"]["overlap_after"]) > 0.95
    found = np.array(store.record("IXI012-HH-1211").alignment["moved"]["T1"]["transform"])
    points = 50 * np.concatenate([np.eye(3), -np.eye(3)])
    there, true = (points @ m[:3, :3].T + m[:3, 3] for m in (found, np.linalg.inv(moved)))
    assert np.linalg.norm(there - true, axis=1).max() < 1.0  # a third of a voxel; 0.2 measured, up to 12 before
    assert (tmp_path / "store" / "quality.html").stat().st_size < 400_000
