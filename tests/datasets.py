"""Tiny BIDS data sets: real scans of 32 x 36 x 30 voxels, or names only."""

from __future__ import annotations

import json
from pathlib import Path

import scans
from codebrain.imaging.bids import contrast_of, parse_name

DESCRIPTION = {"Name": "A tiny data set", "BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"}


def begin(root: Path, description=DESCRIPTION) -> Path:
    """A data set without subjects."""
    root.mkdir(parents=True, exist_ok=True)
    if description is not None:
        (root / "dataset_description.json").write_text(json.dumps(description))
    return root


def add(root: Path, *names: str, whole: bool = False, sidecar: object = None) -> list[Path]:
    """Add files by their BIDS names, in the folders where they belong; empty ones unless ``whole``."""
    paths = []
    for file_name in names:
        name = parse_name(file_name)
        assert name is not None, file_name
        parts = [f"{key}-{name.entities[key]}" for key in ("sub", "ses") if key in name.entities]
        path = root.joinpath(*parts, "anat", file_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if whole:
            modality, _ = contrast_of(name)
            scans.write_scan(path, scans.head(str(modality or "T1")))
        else:
            path.touch()
        if sidecar is not None:
            path.with_name(file_name.partition(".")[0] + ".json").write_text(json.dumps(sidecar))
        paths.append(path)
    return paths


def dataset(root: Path, subjects=("01", "02"), sessions=(None,), contrasts=("T1w", "FLAIR")) -> Path:
    """Whole scans of several subjects, with participants.tsv and README."""
    begin(root)
    (root / "README").write_text("Made for tests.\n")
    (root / "participants.tsv").write_text("participant_id\n" + "".join(f"sub-{s}\n" for s in subjects))
    for subject in subjects:
        for session in sessions:
            stem = f"sub-{subject}" + ("" if session is None else f"_ses-{session}")
            add(root, *(f"{stem}_{c}.nii.gz" for c in contrasts), whole=True)
    return root
