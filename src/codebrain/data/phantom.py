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

import gzip
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from codebrain.data import phantom_anatomy as anatomy
from codebrain.data import phantom_head, phantom_lesions, phantom_physics
from codebrain.data.phantom_anatomy import Array, Shape
from codebrain.errors import refusal
from codebrain.imaging import safe_files
from codebrain.vocabulary import Modality

Lesion = Literal["none", "ms", "tumour"]
LesionChoice = Literal["none", "ms", "tumour", "mixed"]
Progress = Callable[[int, int, str], None]

MARK = "SYNTHETIC phantom"
TISSUE_LABELS = {1: "cerebrospinal fluid", 2: "grey matter", 3: "white matter", 4: "vessel", 5: "rest of the head"}
SPACING_LIMITS_MM = (0.5, 6.0)
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
class _Patient:
    """Fractions and local variation at the voxels of ``mask`` ``(i, j, k)``."""

    mask: NDArray[np.bool_]
    fractions: dict[str, Array]
    relax: dict[str, tuple[Array, Array, Array]]
    lesions: phantom_lesions.Lesions | None
    facts: dict[str, Any]


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
    streams = {name: np.random.default_rng([seed, number]) for number, name in enumerate(_STREAMS)}
    shape, affine, orientation = _grid(streams["grid"], head, spacing_mm)
    patient = _patient(streams, shape, lesion=lesion, head=head, spacing_mm=spacing_mm)
    tissues, sequences, truth = _physics(streams["physics"], lesion)
    images = {}
    for number, modality in enumerate(Modality):
        chance = np.random.default_rng([seed, 100 + number])
        scanner = phantom_physics.Scanner.draw(chance)
        if modality not in set(modalities):
            continue
        clean = phantom_physics.mixed_signal(sequences[modality], tissues, patient.fractions, patient.relax)
        reference = float(phantom_physics.signal(sequences[modality], tissues["white"])[0])
        data = phantom_physics.acquire(chance, scanner, clean, patient.mask, reference=reference, spacing_mm=spacing_mm)
        images[modality] = _image(data, affine, orientation, f"{modality} seed {seed}")
        truth["scanner"][str(modality)] = asdict(scanner)
    truth |= {"seed": seed, "lesion": lesion, "head": head, "spacing_mm": spacing_mm}
    truth |= {"orientation": orientation, **patient.facts}
    made = _labels(patient, affine, orientation, seed) if labels else (None, None)
    return PhantomStudy(images, *made, truth)


_STREAMS = ("grid", "physics", "warp", "texture", "vessels", "lesions", "head")


def _check(seed: int, lesion: str, spacing_mm: float) -> None:
    if seed < 0:
        raise refusal("CONFIG", "a seed is a whole number", field="seed", found=seed, expected="0 or more")
    if lesion not in ("none", "ms", "tumour"):
        raise refusal(
            "CONFIG", "this kind of lesion is not known", field="lesion", found=lesion, expected="none, ms or tumour"
        )
    low, high = SPACING_LIMITS_MM
    if not low <= spacing_mm <= high:
        raise refusal(
            "CONFIG",
            "the phantom cannot have this voxel size",
            field="spacing",
            found=f"{spacing_mm} mm",
            expected=f"{low} to {high} mm",
        )


def _grid(generator: np.random.Generator, head: bool, spacing_mm: float) -> tuple[Shape, NDArray[np.float64], str]:
    """Shape in RAS order, the stored affine, and the stored orientation."""
    i, j, k = (2 * round(mm / spacing_mm / 2) for mm in _EXTENT_MM[head])
    orientation = str(generator.choice(list(_FLIPS)))
    signs = np.array(_FLIPS[orientation], float)
    centre = np.round(generator.uniform(-12, 12, 3), 2)
    affine = np.diag([*(signs * spacing_mm), 1.0])
    affine[:3, 3] = centre - signs * spacing_mm * (np.array([i, j, k]) - 1) / 2
    return (i, j, k), affine.astype(np.float32).astype(np.float64), orientation


def _patient(
    streams: dict[str, np.random.Generator], shape: Shape, *, lesion: Lesion, head: bool, spacing_mm: float
) -> _Patient:
    template = anatomy.load_template(max(1, min(4, int(spacing_mm))))
    age = float(streams["warp"].uniform(0, 1))
    warp = anatomy.Warp.draw(streams["warp"], age)
    grid_points = anatomy.template_points(streams["warp"], warp, shape, spacing_mm)
    plan = phantom_lesions.plan_tumour(streams["lesions"], template) if lesion == "tumour" else None
    if plan is not None:
        reach = np.full(3, 1.6 * (plan.core_mm + plan.rim_mm) + 8, np.float32)
        grid_points = anatomy.swell(grid_points, np.array(plan.centre, np.float32), reach, plan.push)
    outside = template.sample(template.outside, grid_points.reshape(3, -1)).reshape(shape)
    texture = _Texture(streams["texture"], shape, spacing_mm)
    tightness = float(streams["warp"].uniform(-1.2, 0.4))
    brain = outside < tightness + 0.4 * texture.everywhere(15.0)
    points = grid_points[:, brain]
    sulci = float(np.clip(streams["warp"].normal(0.45 + 0.35 * age, 0.12), 0.15, 0.95))
    wander = tuple(texture.field(brain, mm) for mm in (9.0, 7.0, 7.0, 10.0))
    sharpness = float(streams["warp"].uniform(1.6, 2.6))
    fractions = anatomy.tissue_fractions(
        template, points, (wander[0], wander[1], wander[2], wander[3]), sulci=sulci, sharpness=sharpness
    )
    lesions = _lesions(streams["lesions"], template, points, fractions, plan, lesion, shape, spacing_mm, brain)
    vessels = template.sample(phantom_lesions.vessel_map(streams["vessels"], template), points).clip(0, 0.9)
    _make_room(fractions, lesions, vessels)
    relax = texture.relax(template.sample(template.detail, points), anatomy.iron(points), brain)
    facts = {"age": age, "sulci": sulci, "sharpness": sharpness, "warp": asdict(warp)}
    facts["lesions"] = None if lesions is None else lesions.facts
    patient = _Patient(brain, fractions, relax, lesions, facts)
    return _with_head(streams["head"], patient, grid_points, outside, spacing_mm) if head else patient


def _lesions(
    generator: np.random.Generator,
    template: anatomy.Template,
    points: Array,
    fractions: dict[str, Array],
    plan: phantom_lesions.TumourPlan | None,
    lesion: Lesion,
    shape: Shape,
    spacing_mm: float,
    brain: NDArray[np.bool_],
) -> phantom_lesions.Lesions | None:
    if lesion == "none":
        return None
    fine = anatomy.smooth_field(generator, shape, spacing_mm, 4.0 + spacing_mm)[brain]
    if plan is None:
        return phantom_lesions.plaques(generator, template, points, fractions, fine)
    coarse = anatomy.smooth_field(generator, shape, spacing_mm, 16.0)[brain]
    return phantom_lesions.tumour(plan, points, fractions, (coarse, fine))


def _make_room(fractions: dict[str, Array], lesions: phantom_lesions.Lesions | None, vessels: Array) -> None:
    """Vessels and lesions take the place of tissue; fractions keep adding up to 1, in place."""
    taken = np.zeros_like(vessels) if lesions is None else sum(lesions.fractions.values())
    for name in fractions:
        fractions[name] = fractions[name] * (1 - taken) * (1 - vessels)
    if lesions is not None:
        fractions.update({name: f * (1 - vessels) for name, f in lesions.fractions.items()})
    fractions["vessel"] = vessels


class _Texture:
    """Fine variation of tissue: no tissue is the same everywhere."""

    def __init__(self, generator: np.random.Generator, shape: Shape, spacing_mm: float) -> None:
        self._generator, self._shape, self._spacing = generator, shape, spacing_mm

    def everywhere(self, control_mm: float) -> Array:
        """Random field ``(i, j, k)``, standard deviation near 1."""
        control = max(control_mm, 1.5 * self._spacing)
        return anatomy.smooth_field(self._generator, self._shape, self._spacing, control)

    def field(self, mask: NDArray[np.bool_], control_mm: float) -> Array:
        """The same at the voxels of ``mask``, ``(n,)``."""
        return self.everywhere(control_mm)[mask]

    def relax(self, detail: Array, iron: Array, mask: NDArray[np.bool_]) -> dict[str, tuple[Array, Array, Array]]:
        """Local factors on T1, T2 and PD of white and grey matter.

        The template's detail is read as myelin: brighter on T1 means shorter T1 and T2, less water.
        """
        fine, middle, broad = (self.field(mask, mm) for mm in (2.5, 6.0, 30.0))
        other, wide = self.field(mask, 5.0), self.field(mask, 30.0)
        myelin = np.clip(detail, -0.2, 0.2)
        common = 0.022 * fine + 0.024 * middle + 0.025 * broad
        t1 = np.exp(-1.5 * myelin + common)
        t2 = np.exp(-0.6 * myelin - 0.32 * iron + 0.6 * common + 0.020 * other + 0.020 * wide)
        pd = np.exp(-0.25 * myelin + 0.3 * common + 0.006 * other)
        factors = (t1.astype(np.float32), t2.astype(np.float32), pd.astype(np.float32))
        return {"white": factors, "grey": factors}


def _with_head(
    generator: np.random.Generator, patient: _Patient, grid_points: Array, outside: Array, spacing_mm: float
) -> _Patient:
    """The same patient with every voxel of the grid filled: shells, neck, air."""
    shape: Shape = (outside.shape[0], outside.shape[1], outside.shape[2])
    controls = (35.0, max(9.0, 2 * spacing_mm), 16.0)
    rest = ~patient.mask
    wander = tuple(anatomy.smooth_field(generator, shape, spacing_mm, mm)[rest] for mm in controls)
    around = phantom_head.head_fractions(outside[rest], grid_points[:, rest], (wander[0], wander[1], wander[2]))
    everywhere = np.ones(shape, bool)
    fractions = {
        name: _merge(patient.mask, patient.fractions.get(name), around.get(name), 0.0)
        for name in dict.fromkeys([*patient.fractions, *around])
    }
    relax = {
        name: (
            _merge(patient.mask, f1, None, 1.0),
            _merge(patient.mask, f2, None, 1.0),
            _merge(patient.mask, fp, None, 1.0),
        )
        for name, (f1, f2, fp) in patient.relax.items()
    }
    lesions = patient.lesions
    if lesions is not None:
        labels = np.zeros(shape, np.uint8)
        labels[patient.mask] = lesions.labels
        lesions = phantom_lesions.Lesions(lesions.fractions, labels.ravel(), lesions.facts)
    return _Patient(everywhere, fractions, relax, lesions, patient.facts)


def _merge(mask: NDArray[np.bool_], inside: Array | None, around: Array | None, default: float) -> Array:
    volume = np.full(mask.shape, default, np.float32)
    if inside is not None:
        volume[mask] = inside
    if around is not None:
        volume[~mask] = around
    return volume.ravel()


def _physics(
    generator: np.random.Generator, lesion: Lesion
) -> tuple[dict[str, phantom_physics.Tissue], dict[Modality, phantom_physics.Sequence], dict[str, Any]]:
    field_t = 1.5 if generator.random() < 0.5 else 3.0
    tissues = phantom_physics.draw_tissues(generator, field_t)
    sequences = phantom_physics.draw_sequences(generator, field_t, tissues["fluid"].t1)
    if lesion != "none":
        tissues |= phantom_physics.draw_lesion_tissues(generator, tissues["white"])
    truth: dict[str, Any] = {
        "synthetic": True,
        "note": f"{MARK}: simulated from MR physics; no scan of a person. Research use only.",
        "field_tesla": field_t,
        "tissues": {name: asdict(tissue) for name, tissue in tissues.items()},
        "sequences": {str(modality): sequence.as_dict() for modality, sequence in sequences.items()},
        "scanner": {},
    }
    return tissues, sequences, truth


def _labels(
    patient: _Patient, affine: NDArray[np.float64], orientation: str, seed: int
) -> tuple[nib.Nifti1Image, nib.Nifti1Image | None]:
    groups = (("fluid",), ("grey",), ("white",), ("vessel",))
    known = [sum(patient.fractions[name] for name in group) for group in groups]
    rest = 1 - sum(known)
    if patient.lesions is not None:
        inside = patient.fractions["grey"] + patient.fractions["white"] + patient.fractions["vessel"]
        lesion_names = patient.lesions.fractions
        taken = sum(patient.fractions[name] for name in lesion_names)
        known[2] = known[2] + taken
        rest = rest - taken + 0 * inside
    tissue = np.zeros(patient.mask.shape, np.uint8)
    values = np.argmax(np.stack([*known, rest]), axis=0).astype(np.uint8) + 1
    if "air" in patient.fractions:
        values[patient.fractions["air"] > 0.5] = 0
    tissue[patient.mask] = values
    tissues = _image(tissue, affine, orientation, f"tissues seed {seed}")
    if patient.lesions is None:
        return tissues, None
    lesion = np.zeros(patient.mask.shape, np.uint8)
    lesion[patient.mask] = patient.lesions.labels
    return tissues, _image(lesion, affine, orientation, f"lesion seed {seed}")


def _image(data: NDArray[Any], affine: NDArray[np.float64], orientation: str, what: str) -> nib.Nifti1Image:
    """Stored as a scanner would, and marked as simulated in the header."""
    flips = tuple(slice(None, None, sign) for sign in _FLIPS[orientation])
    image = nib.Nifti1Image(np.ascontiguousarray(data[flips]), affine, dtype=data.dtype)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header["descrip"] = f"{MARK} {what}; research use only".encode()
    image.header["intent_name"] = b"SYNTHETIC"
    return image


def write_phantom(
    out: Path,
    *,
    subjects: int = 1,
    seed: int = 0,
    lesion: LesionChoice = "none",
    head_fraction: float = 0.0,
    spacing_mm: float = 1.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write ``subjects`` studies into ``out/phantom-0001`` and so on; subject k is patient ``seed + k - 1``.

    Args:
        out: folder, made if needed.
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
        EnvironmentRefused: ``OUT_EXISTS``, ``OUT_PERMISSION``, ``OUT_SPACE``, ``ENV_EXTRA``.
    """
    _check(seed, "none" if lesion == "mixed" else lesion, spacing_mm)
    if subjects < 1 or not 0 <= head_fraction <= 1:
        raise refusal("CONFIG", "at least one subject and a head fraction from 0 to 1 are needed")
    folders = [out / f"phantom-{number:04d}" for number in range(1, subjects + 1)]
    _clear(folders, overwrite)
    for done, folder in enumerate(folders):
        if progress is not None:
            progress(done, subjects, folder.name)
        kind, head = _draw_kind(seed + done, lesion, head_fraction)
        _write_study(folder, simulate_study(seed + done, lesion=kind, head=head, spacing_mm=spacing_mm))
    safe_files.write_text(out / "README.md", _README)
    if progress is not None:
        progress(subjects, subjects, "")
    return folders


def _draw_kind(seed: int, lesion: LesionChoice, head_fraction: float) -> tuple[Lesion, bool]:
    generator = np.random.default_rng([seed, 99])
    head = bool(generator.random() < head_fraction)
    if lesion != "mixed":
        return lesion, head
    kinds: tuple[Lesion, ...] = ("none", "ms", "tumour")
    return kinds[int(generator.integers(3))], head


def _clear(folders: list[Path], overwrite: bool) -> None:
    for folder in folders:
        if not folder.exists():
            continue
        if not overwrite:
            raise refusal(
                "OUT_EXISTS", "a phantom is there already", file=folder, hint="Use --overwrite to replace it."
            )
        if not folder.is_symlink() and (folder / "truth.json").exists():
            shutil.rmtree(folder)


def _write_study(folder: Path, study: PhantomStudy) -> None:
    """Images first, ``truth.json`` last: a folder with it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{modality}": image for modality, image in study.images.items()}
    files |= {"tissues": study.tissues, "lesion": study.lesion_labels}
    for name, image in files.items():
        if image is not None:
            content = gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
            safe_files.write_bytes(folder / f"{name}.nii.gz", content)
    safe_files.write_json(folder / "truth.json", study.truth)


_README = f"""# {MARK} studies

These images are SIMULATED by codebrain from MR physics. They are no scans of people. Research use only; not a
medical device.

- `T1 T2 PD FLAIR T1Gd .nii.gz`: the contrasts, on one grid. `descrip` in every header starts with "{MARK}".
- `tissues.nii.gz`: {", ".join(f"{value} {name}" for value, name in TISSUE_LABELS.items())}.
- `lesion.nii.gz` (only with lesions): 1 necrotic core, 2 oedema, 3 enhancing tumour; in studies with plaques
  1 plaque, 3 enhancing plaque.
- `truth.json`: everything that was drawn, with the seed that makes the same study again.
"""
