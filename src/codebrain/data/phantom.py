"""Multi-contrast studies simulated from MR physics, with the truth beside them.

A patient is the ICBM 152 template deformed at random (:mod:`codebrain.data.phantom_anatomy`), with random vessels
and, if asked for, lesions (:mod:`codebrain.data.phantom_lesions`) and a head (:mod:`codebrain.data.phantom_head`).
Random published relaxation times and random timings go through the signal equations, then come bias field,
Rician noise and an arbitrary scale (:mod:`codebrain.data.phantom_physics`).

What is simplified, and so must not be concluded from a phantom: all folds are those of one template; tissue texture
is smooth noise plus the template's own detail; lesions are lumpy balls; the head has no face; there is no motion,
ghosting, distortion, or registration error between contrasts. A model that is good on phantoms is not shown to be
good on scans.

The same seed and settings give the same bytes on one machine; another processor may round a voxel differently.
Nothing is cached on disk.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from codebrain.data.phantom_anatomy import Array, Shape
from codebrain.data.phantom_patient import Lesion, Patient, build_patient
from codebrain.data.phantom_physics import (
    Scanner,
    Sequence,
    Tissue,
    acquire,
    draw_lesion_tissues,
    draw_sequences,
    draw_tissues,
    mixed_signal,
    signal,
)
from codebrain.errors import refusal
from codebrain.imaging import safe_files
from codebrain.marks import PHANTOM, RESEARCH_USE_ONLY, SYNTHETIC
from codebrain.vocabulary import Modality

LesionChoice = Literal["none", "ms", "tumour", "mixed"]
Progress = Callable[[int, int, str], None]

MARK = PHANTOM
TISSUE_LABELS = {1: "cerebrospinal fluid", 2: "grey matter", 3: "white matter", 4: "vessel", 5: "rest of the head"}
"""Values of the tissue image; 0 is air or background, lesions count as white matter."""
SPACING_LIMITS_MM = (0.5, 6.0)
_LABEL = {"fluid": 1, "grey": 2, "white": 3, "vessel": 4, "air": 0}
_LABEL |= dict.fromkeys(("dura", "bone", "marrow", "fat", "muscle", "skin"), 5)
_EXTENT_MM = {False: (168.0, 208.0, 176.0), True: (200.0, 240.0, 216.0)}
_FLIPS = {"RAS": (1, 1, 1), "LAS": (-1, 1, 1), "LPS": (-1, -1, 1)}


@dataclass(frozen=True)
class PhantomStudy:
    """A simulated study.

    Attributes:
        images: int16 images on one grid, one per contrast.
        tissues: uint8 label image, see :data:`TISSUE_LABELS`; None when labels were not asked for.
        lesion_labels: uint8 label image; None without lesions or when labels were not asked for.
        truth: everything that was drawn: seed, tissues, timings, scanner, deformation, lesions.
    """

    images: dict[Modality, nib.Nifti1Image]
    tissues: nib.Nifti1Image | None
    lesion_labels: nib.Nifti1Image | None
    truth: dict[str, Any]


@dataclass(frozen=True)
class _Grid:
    """Voxel grid: ``shape`` in RAS order, ``affine`` as stored in ``orientation``."""

    shape: Shape
    affine: NDArray[np.float64]
    orientation: str
    spacing_mm: float


def simulate_study(
    seed: int,
    *,
    lesion: Lesion = "none",
    head: bool = False,
    spacing_mm: float = 1.0,
    modalities: Iterable[Modality] = tuple(Modality),
    labels: bool = True,
) -> PhantomStudy:
    """Simulate one patient.

    Args:
        seed: the patient; 0 or more.
        lesion: ``none``, ``ms`` (plaques) or ``tumour``.
        head: skull, scalp and neck too; without it the background is exactly 0.
        spacing_mm: voxel edge, 0.5 to 6 mm.
        modalities: contrasts to make; which are made does not change the others.
        labels: make the label images too.

    Raises:
        UsageError: ``CONFIG`` for a value outside these ranges.
        EnvironmentRefused: ``ENV_EXTRA`` when nilearn is not installed.
    """
    _check(seed, lesion, spacing_mm)
    grid = _draw_grid(np.random.default_rng([seed, 0]), head, spacing_mm)
    patient = build_patient(seed, grid.shape, lesion=lesion, head=head, spacing_mm=spacing_mm)
    tissues, sequences, field_t = _draw_physics(np.random.default_rng([seed, 1]), lesion)
    wanted = [modality for modality in Modality if modality in set(modalities)]
    scanners, images = {}, {}
    for modality in wanted:
        chance = np.random.default_rng([seed, 100 + list(Modality).index(modality)])
        scanners[modality] = Scanner.draw(chance)
        data = _scan(chance, scanners[modality], sequences[modality], tissues, patient, spacing_mm)
        images[modality] = _image(data, grid, f"{modality} seed {seed}")
    truth = {
        "synthetic": True,
        "note": f"{MARK}: simulated from MR physics, no scan of a person. {RESEARCH_USE_ONLY}.",
        "seed": seed, "lesion": lesion, "head": head, "spacing_mm": spacing_mm, "field_tesla": field_t,
        "tissues": {name: asdict(tissue) for name, tissue in tissues.items()},
        "sequences": {str(modality): asdict(sequences[modality]) for modality in wanted},
        "scanner": {str(modality): asdict(scanner) for modality, scanner in scanners.items()},
        "orientation": grid.orientation, "tissue_labels": TISSUE_LABELS, "patient": patient.facts,
    }  # fmt: skip
    tissue_image = _image(_tissue_labels(patient), grid, f"tissues seed {seed}") if labels else None
    return PhantomStudy(images, tissue_image, _lesion_image(patient, grid, seed) if labels else None, truth)


def _check(seed: int, lesion: str, spacing_mm: float) -> None:
    low, high = SPACING_LIMITS_MM
    if seed < 0:
        raise refusal("CONFIG", "this is no seed", field="seed", found=seed, expected="0 or more")
    if lesion not in ("none", "ms", "tumour"):
        raise refusal(
            "CONFIG", "this kind of lesion is not known", field="lesion", found=lesion,
            expected="none, ms, tumour, or mixed where several studies are made",
        )  # fmt: skip
    if not low <= spacing_mm <= high:
        raise refusal(
            "CONFIG", "the phantom cannot have this voxel size", field="spacing",
            found=f"{spacing_mm} mm", expected=f"{low} to {high} mm",
        )  # fmt: skip


def _draw_grid(generator: np.random.Generator, head: bool, spacing_mm: float) -> _Grid:
    i, j, k = (2 * round(mm / spacing_mm / 2) for mm in _EXTENT_MM[head])
    orientation = str(generator.choice(list(_FLIPS)))
    steps = np.array(_FLIPS[orientation]) * spacing_mm
    centre = np.round(generator.uniform(-12, 12, 3), 2)
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = centre - steps * (np.array([i, j, k]) - 1) / 2
    return _Grid((i, j, k), affine.astype(np.float32).astype(np.float64), orientation, spacing_mm)


def _draw_physics(
    generator: np.random.Generator, lesion: Lesion
) -> tuple[dict[str, Tissue], dict[Modality, Sequence], float]:
    field_t = 1.5 if generator.random() < 0.5 else 3.0
    tissues = draw_tissues(generator, field_t)
    sequences = draw_sequences(generator, field_t, tissues["fluid"].t1)
    if lesion != "none":
        tissues |= draw_lesion_tissues(generator, tissues["white"])
    return tissues, sequences, field_t


def _scan(
    chance: np.random.Generator,
    scanner: Scanner,
    sequence: Sequence,
    tissues: dict[str, Tissue],
    patient: Patient,
    spacing_mm: float,
) -> NDArray[np.int16]:
    """One contrast ``(i, j, k)`` in RAS order."""
    clean = mixed_signal(sequence, tissues, patient.fractions, patient.relax)
    mask = patient.mask
    if patient.around is not None:
        clean = _filled(mask, clean, mixed_signal(sequence, tissues, patient.around, {})).ravel()
        mask = np.ones_like(mask)
    reference = float(signal(sequence, tissues["white"])[0])
    return acquire(chance, scanner, clean, mask, reference=reference, spacing_mm=spacing_mm)


def _filled(mask: NDArray[np.bool_], inside: NDArray[Any], around: NDArray[Any] | int) -> NDArray[Any]:
    """Volume ``(i, j, k)`` with ``inside`` at the voxels of ``mask`` and ``around`` at the others."""
    volume = np.empty(mask.shape, inside.dtype)
    volume[mask] = inside
    volume[~mask] = around
    return volume


def _tissue_labels(patient: Patient) -> NDArray[np.uint8]:
    """The tissue with the largest fraction, ``(i, j, k)``."""
    around = 0 if patient.around is None else _largest(patient.around)
    return _filled(patient.mask, _largest(patient.fractions), around)


def _largest(fractions: dict[str, Array]) -> NDArray[np.uint8]:
    """Label of the group with the largest sum ``(n,)``; a tissue in no group is a lesion in white matter."""
    groups: dict[int, Array] = {}
    for name, fraction in fractions.items():
        label = _LABEL.get(name, 3)
        groups[label] = groups[label] + fraction if label in groups else fraction
    labels = np.array(list(groups), np.uint8)
    return np.asarray(labels[np.argmax(np.stack(list(groups.values())), axis=0)], np.uint8)


def _lesion_image(patient: Patient, grid: _Grid, seed: int) -> nib.Nifti1Image | None:
    if patient.lesion_labels is None:
        return None
    return _image(_filled(patient.mask, patient.lesion_labels, 0), grid, f"lesion seed {seed}")


def _image(data: NDArray[Any], grid: _Grid, what: str) -> nib.Nifti1Image:
    """Stored as a scanner would, and marked as simulated in the header."""
    flips = tuple(slice(None, None, sign) for sign in _FLIPS[grid.orientation])
    image = nib.Nifti1Image(np.ascontiguousarray(data[flips]), grid.affine, dtype=data.dtype)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    image.header["descrip"] = f"{MARK} {what}; research use only".encode()
    image.header["intent_name"] = SYNTHETIC.encode()
    return image


def write_phantom(
    out: Path | str,
    *,
    subjects: int = 1,
    seed: int = 0,
    lesion: LesionChoice = "none",
    head_fraction: float = 0.0,
    spacing_mm: float = 1.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write ``subjects`` studies into ``out/phantom-0001`` and so on; study k is patient ``seed + k - 1``.

    A study folder appears whole, when all of its files are there, so a run that was stopped leaves whole studies.

    Args:
        out: folder, made if needed (its parent must exist).
        subjects: how many.
        seed: of the first; ranges of seeds that overlap hold the same patients.
        lesion: as :func:`simulate_study`; ``mixed`` draws one of the three for each patient.
        head_fraction: probability that a patient has a head.
        spacing_mm: voxel edge.
        overwrite: replace phantoms that are there already.
        progress: called with (done, total, note).

    Returns:
        The study folders.

    Raises:
        UsageError: ``CONFIG``.
        EnvironmentRefused: ``OUT_EXISTS``, ``OUT_PERMISSION``, ``OUT_SPACE``, ``LOCKED``, ``ENV_EXTRA``.
    """
    _check(seed, "none" if lesion == "mixed" else lesion, spacing_mm)
    if subjects < 1 or not 0 <= head_fraction <= 1:
        raise refusal(
            "CONFIG", "this set of phantoms cannot be made", found=f"{subjects} subjects, {head_fraction} with heads",
            expected="at least one subject, a fraction from 0 to 1",
        )  # fmt: skip
    out = Path(out)
    folders = [out / f"phantom-{number:04d}" for number in range(1, subjects + 1)]
    _make_out(out, folders, overwrite)
    with safe_files.FolderLock(out):
        safe_files.sweep_temporaries(out)
        safe_files.write_text(out / "README.md", _README)
        for done, folder in enumerate(folders):
            _advance(progress, done, subjects, folder.name)
            kind, head = _draw_kind(seed + done, lesion, head_fraction)
            study = simulate_study(seed + done, lesion=kind, head=head, spacing_mm=spacing_mm)
            _write_study(folder, study)
    _advance(progress, subjects, subjects, "")
    return folders


def _advance(progress: Progress | None, done: int, total: int, note: str) -> None:
    if progress is not None:
        progress(done, total, note)


def _draw_kind(seed: int, lesion: LesionChoice, head_fraction: float) -> tuple[Lesion, bool]:
    generator = np.random.default_rng([seed, 2])
    head = bool(generator.random() < head_fraction)
    if lesion != "mixed":
        return lesion, head
    kinds: tuple[Lesion, ...] = ("none", "ms", "tumour")
    return kinds[int(generator.integers(3))], head


def _make_out(out: Path, folders: list[Path], overwrite: bool) -> None:
    """Make the folder; refuse to touch what is there and is not ours to replace."""
    if out.exists() and not out.is_dir():
        raise refusal("OUT_PERMISSION", "the output is a file", file=out, expected="a folder")
    for folder in (folder for folder in folders if folder.exists() or folder.is_symlink()):
        ours = folder.is_dir() and not folder.is_symlink() and (folder / "truth.json").is_file()
        if not (overwrite and ours):
            hint = "Use --overwrite to replace it." if ours else "It was not made by this command; move it away."
            raise refusal("OUT_EXISTS", "a study is there already", file=folder, hint=hint)
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise safe_files.output_refusal(error, out) from error


def _write_study(folder: Path, study: PhantomStudy) -> None:
    """Fill a hidden folder, then give it its name."""
    files = {str(modality): image for modality, image in study.images.items()}
    files |= {"tissues": study.tissues, "lesion": study.lesion_labels}
    stage = folder.parent / safe_files.temporary_name(folder.name)
    try:
        stage.mkdir()
        for name, image in files.items():
            if image is not None:
                content = gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
                safe_files.write_bytes(stage / f"{name}.nii.gz", content)
        safe_files.write_json(stage / "truth.json", study.truth)
        _publish(stage, folder)
    except OSError as error:
        raise safe_files.output_refusal(error, folder) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _publish(stage: Path, folder: Path) -> None:
    """An older study steps aside for the instant of the renaming, and comes back where that fails."""
    aside = folder.parent / safe_files.temporary_name(folder.name)
    with contextlib.ExitStack() as undo:
        if folder.exists():
            folder.rename(aside)
            undo.callback(aside.rename, folder)
        stage.rename(folder)
        undo.callback(folder.rename, stage)
        safe_files.fsync_path(folder.parent)
        undo.pop_all()
    shutil.rmtree(aside, ignore_errors=True)


_README = f"""# {MARK} studies

These images are SIMULATED by codebrain from MR physics. They are no scans of people. {RESEARCH_USE_ONLY}.

- `T1 T2 PD FLAIR T1Gd .nii.gz`: the contrasts, on one grid. `descrip` in every header starts with "{MARK}".
- `tissues.nii.gz`: {", ".join(f"{value} {name}" for value, name in TISSUE_LABELS.items())}.
- `lesion.nii.gz` (only with lesions): 1 necrotic core, 2 oedema, 3 enhancing tumour; in studies with plaques
  1 plaque, 3 enhancing plaque.
- `truth.json`: everything that was drawn, with the seed that makes the same study again.
"""
