"""Slice stores and studies made of numbers, in milliseconds and without scans."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from codebrain.data.manifest import Manifest, SubjectRecord, SubjectRow, scale_of
from codebrain.data.slices import SliceStore
from codebrain.data.splits import split_patients
from codebrain.imaging.safe_files import sha256_bytes
from codebrain.vocabulary import ModalitySet, Preparation


def fabricate_store(
    root: Path,
    subjects: Mapping[str, Sequence[bool]] | int = 4,
    *,
    modalities: str = "T1,T2,FLAIR",
    shape: tuple[int, int, int] = (5, 24, 16),
    seed: int = 0,
    val: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
) -> SliceStore:
    """Write and open a store.

    Args:
        root: where; made if needed.
        subjects: availability by subject name (every subject is a patient), or the number of complete ones.
        modalities: channels.
        shape: slices, height, width; the foreground is a box that fills about half, empty in slice 0.
        seed: of the intensities (T2 and FLAIR depend on T1, so there is something to learn).
        val, test: as :func:`codebrain.data.splits.split_patients`.
    """
    preparation = Preparation(ModalitySet.parse(modalities))
    m = len(preparation.modalities)
    if isinstance(subjects, int):
        subjects = {f"s{i:02d}": (True,) * m for i in range(subjects)}
    (root / "slices").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    records = [_write(root, name, here, shape, preparation, rng) for name, here in sorted(subjects.items())]
    splits = split_patients({name: name for name in subjects}, seed=seed, val=val, test=test)
    manifest = Manifest(
        preparation=Preparation(
            preparation.modalities, intensity_scale=scale_of(records, preparation.modalities.members)
        ),
        splits=splits.as_dict(),
        rows=tuple(SubjectRow(r.subject, r.patient, "prepared", split=splits.of_subject[r.subject]) for r in records),
        records=tuple(records),
        created_by="tests",
    )
    (root / "manifest.json").write_text(json.dumps(manifest.as_dict()))
    return SliceStore.open(root)


def _write(root, name, here, shape, preparation, rng):  # type: ignore[no-untyped-def]
    n, h, w = shape
    mask = np.zeros(shape, bool)
    mask[1:, h // 8 : -(h // 8), w // 8 : -(w // 8)] = True
    base = rng.uniform(0.1, 0.9, shape)
    planes = [base, 1 - base, base**2, 0.5 + base / 2, base / 2][: len(here)]
    slices = np.stack([plane * mask * on for plane, on in zip(planes, here, strict=True)], axis=1)
    stored, bits = _bytes(np.rint(slices * 65535).astype(np.uint16)), _bytes(np.packbits(mask, axis=-1))
    (root / "slices" / f"{name}.npy").write_bytes(stored)
    (root / "slices" / f"{name}-brain.npy").write_bytes(bits)
    given = [str(m) for m, on in zip(preparation.modalities, here, strict=True) if on]
    record = SubjectRecord(
        subject=name, patient=name, available=tuple(here), shape=(n, len(here), h, w),
        foreground_pixels=tuple(int(c) for c in mask.sum(axis=(1, 2))), frame={}, full_slice=(h + 4, w + 4),
        offset=(2, 2), normalisations={}, intensity_range=dict.fromkeys(given, 100.0), alignment={},
        reference=given[0], inputs={m: {"file": f"{name}/{m}.nii.gz", "sha256": f"{name}{m}"} for m in given},
        task="", slices_sha256=sha256_bytes(stored), slices_bytes=len(stored),
        brain_sha256=sha256_bytes(bits), brain_bytes=len(bits),
    )  # fmt: skip
    (root / "slices" / f"{name}.json").write_text(json.dumps(record.as_dict()))
    return record


def _bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def fabricate_study(
    folder: Path,
    contrasts: Sequence[str] = ("T1", "T2", "FLAIR"),
    *,
    seed: int = 0,
    shape: tuple[int, int, int] = (24, 28, 20),
    spacing: float = 6.0,
    shift: Mapping[str, float] | None = None,
) -> Path:
    """Write a tiny skull-stripped study: an ellipsoid with a bright ball at its front, right and top (RAS).

    Args:
        folder: made; files are ``<contrast>.nii.gz``.
        contrasts: file names.
        seed: of the texture.
        shape, spacing: of the grid, voxels and mm.
        shift: mm by which a contrast's grid lies further up.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    ball = sum((axis - 0.45) ** 2 for axis in axes) < 0.04
    base = 0.5 + 0.2 * np.sin(3 * axes[0] + seed) * np.cos(4 * axes[1]) + rng.normal(0, 0.02, shape)
    for number, name in enumerate(contrasts):
        data = ((base if number % 2 == 0 else 1.1 - base) + 0.4 * ball) * inside * (100 + 50 * number)
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
        affine[2, 3] += (shift or {}).get(name, 0.0)
        image = nib.Nifti1Image(data.astype(np.float32), affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        nib.save(image, folder / f"{name}.nii.gz")
    return folder
