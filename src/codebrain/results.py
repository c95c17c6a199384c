"""What an imputation gives back: images in memory, and the files and records that are made of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np
from jaxtyping import Float

import codebrain
from codebrain import marks, output
from codebrain.errors import Notice
from codebrain.imaging import safe_files
from codebrain.imaging.volume import Volume, volume_image, write_volume
from codebrain.machine import peak_memory
from codebrain.threads import in_threads
from codebrain.vocabulary import Modality

if TYPE_CHECKING:
    from codebrain.imaging.dicom.series import Series

Image = Float[np.ndarray, "i j k"]


@dataclass(frozen=True)
class IntensityScale:
    """How the network's [0, 1] became the numbers in the file: ``value = unit value x value_at_one``.

    Attributes:
        unit: ``scanner`` (arbitrary scanner units) or ``unit`` ([0, 1]).
        value_at_one: what 1 stands for.
        source: where ``value_at_one`` comes from; an absent contrast has no range of its own.
    """

    unit: Literal["scanner", "unit"]
    value_at_one: float
    source: str


@dataclass(frozen=True)
class ImputedContrast:
    """One imputed contrast on the reference grid, or in the space of another given contrast.

    Attributes:
        modality: which contrast.
        data: the image ``(i, j, k)``, float32, in the units that the sidecar names.
        doubt: 0 .. 1 on the same grid (see :mod:`codebrain.uncertainty`), or None for models without grades.
        reference: the input whose grid it is on.
        sidecar: the facts that are written beside the file.
        sources: the contrasts that it was imputed from, with their DICOM series where they have one.
        space: the contrast in whose native space it is; ``None`` on the reference grid.
    """

    modality: Modality
    data: Image
    doubt: Image | None
    reference: Volume
    sidecar: Mapping[str, Any]
    sources: Mapping[Modality, Series | None] = field(default_factory=dict, repr=False)
    space: Modality | None = None

    @property
    def image(self) -> nib.Nifti1Image:
        """The imputed image, marked SYNTHETIC in its header."""
        return volume_image(self.data, like=self.reference, **self._marks(str(self.modality)))

    @property
    def uncertainty(self) -> nib.Nifti1Image | None:
        """The doubt map, marked SYNTHETIC in its header."""
        if self.doubt is None:
            return None
        return volume_image(self.doubt, like=self.reference, **self._marks("doubt"))

    def write(self, folder: Path, stem: str) -> list[dict[str, str]]:
        """Write image, doubt and sidecar into ``folder``; returns a row for the record of each."""
        image = output.image_name(stem, self.modality, self.space)
        doubt = output.uncertainty_name(stem, self.modality, self.space)
        rows = self.write_images(folder, image, doubt)
        sidecar = output.sidecar_name(stem, self.modality, self.space)
        safe_files.write_json(folder / sidecar, self._full_sidecar(image, doubt))
        return [*rows, self._row(folder, sidecar, "sidecar")]

    def write_images(self, folder: Path, image: str, doubt: str) -> list[dict[str, str]]:
        """Write the image and, where there is one, the doubt, under these names; returns a row for each."""
        self.write_image(folder / image)
        rows = [self._row(folder, image, "imputed image (SYNTHETIC)")]
        if self.doubt is not None:
            write_volume(folder / doubt, self.doubt, like=self.reference, **self._marks("doubt"))
            rows.append(self._row(folder, doubt, "doubt of the predicted code"))
        return rows

    def write_image(self, target: Path) -> None:
        """Write the image alone, marked SYNTHETIC in its header."""
        write_volume(target, self.data, like=self.reference, **self._marks(str(self.modality)))

    def _row(self, folder: Path, file: str, kind: str) -> dict[str, str]:
        where = "" if self.space is None else f", on the grid of {self.space}"
        return {**output_row(folder, file, str(self.modality), kind + where), "space": str(self.sidecar["Space"])}

    def write_dicom(self, folder: Path, stem: str, *, keep_patient: bool = False) -> dict[str, Any]:
        """Write the image as a DICOM series into a folder of its own in ``folder``; returns its row for the record.

        Raises:
            InputRefused: ``DCM_SOURCE`` when the reference was not read from DICOM.
        """
        from codebrain.imaging.dicom.derived import Provenance, write_derived

        target, model = folder / output.dicom_name(stem, self.modality, self.space), self.sidecar["Model"]
        target.mkdir()
        provenance = Provenance(model["Name"], model["SHA256"], self.sources, self.low_confidence)
        paths = write_derived(
            target, self.data, self.modality, like=self.reference, provenance=provenance, space=self.space,
            keep_patient=keep_patient,
        )  # fmt: skip
        where = "" if self.space is None else f", on the grid of {self.space}"
        digests = {path.name: safe_files.sha256_file(path) for path in paths}
        return {
            "contrast": str(self.modality),
            "file": target.name,
            "kind": f"DICOM series of {len(paths)} images (SYNTHETIC){where}",
            "sha256": safe_files.sha256_bytes("".join(digests.values()).encode()),
            "files": digests,
        }

    def _full_sidecar(self, image: str, doubt: str) -> dict[str, Any]:
        if self.doubt is None:
            shown: dict[str, Any] = {"File": None, "Reason": "The model does not grade its code."}
        else:
            shown = {"File": doubt, "Description": marks.DOUBT_MEANING, **self.sidecar.get("Uncertainty", {})}
        return {"File": image, **self.sidecar, "Uncertainty": shown}

    @property
    def low_confidence(self) -> bool:
        """Whether the doubt of the study is over the limit that the model declares."""
        return bool(self.sidecar.get("Uncertainty", {}).get("LowConfidence"))

    def _marks(self, what: str) -> dict[str, str]:
        text = f"{marks.synthetic_mark(low_confidence=self.low_confidence)} {self.modality}"
        text += " doubt" if what == "doubt" else ""
        text += f", codebrain {codebrain.__version__}, model {self.sidecar['Model']['Name']}; research use only"
        plain = text.encode("ascii", "replace").decode()
        return {
            "description": plain[:79],
            "intent_name": f"{marks.SYNTHETIC} {what}"[:15],
            "comment": json.dumps(self._comment(what)),
        }

    def _comment(self, what: str) -> dict[str, Any]:
        """For the header extension: what stays with the voxels when the sidecar is lost; no names of files."""
        return {
            marks.SYNTHETIC: True,
            **({marks.LOW_CONFIDENCE: True} if self.low_confidence else {}),
            "Image": what,
            "Contrast": str(self.modality),
            "ContrastsUsed": self.sidecar["ContrastsUsed"],
            "GeneratedBy": f"codebrain {codebrain.__version__}",
            "Model": dict(self.sidecar["Model"]),
            "Notice": marks.RESEARCH_USE_ONLY,
        }


@dataclass(frozen=True)
class Imputation:
    """A completed study.

    Attributes:
        name: the study's name; files are named after it.
        contrasts: what was imputed; empty when nothing was missing.
        given: the contrasts that the model saw, in [0, 1] on the reference grid, for the pictures.
        unit: the imputed contrasts, likewise.
        truth: withheld contrasts, likewise, when the imputation was evaluated.
        record: the run: versions, device, inputs, model, seconds, warnings, scores.
        notices: what was accepted with a warning.
        files: what was read; results never go into their folders.
        native: by given contrast whose space was asked for, what was imputed, on its grid.
        focus: voxel through which the pictures are cut; by default the middle of the head.
    """

    name: str
    contrasts: Mapping[Modality, ImputedContrast]
    given: Mapping[Modality, Image]
    unit: Mapping[Modality, Image]
    truth: Mapping[Modality, Image]
    record: Mapping[str, Any]
    notices: tuple[Notice, ...] = ()
    files: tuple[Path, ...] = ()
    focus: tuple[int, int, int] | None = field(default=None, repr=False)
    native: Mapping[Modality, Mapping[Modality, ImputedContrast]] = field(default_factory=dict)

    @property
    def doubt(self) -> Image | None:
        """The doubt of the predicted code, one map for all contrasts."""
        return next((c.doubt for c in self.contrasts.values()), None)

    @property
    def low_confidence(self) -> bool:
        """Whether the doubt of the study is over the limit that the model declares."""
        return any(contrast.low_confidence for contrast in self.contrasts.values())

    def __getitem__(self, contrast: str | Modality) -> ImputedContrast:
        return self.contrasts[Modality.parse(contrast)]

    def __iter__(self) -> Iterator[Modality]:
        return iter(self.contrasts)

    def in_space(self, contrast: str | Modality) -> Mapping[Modality, ImputedContrast]:
        """What was imputed, on the grid of a given contrast whose space was asked for."""
        return self.native[Modality.parse(contrast)]

    def __len__(self) -> int:
        return len(self.contrasts)

    def save(
        self, out: Path | str, *, overwrite: bool = False, command: Sequence[str] | None = None,
        dicom: bool = False, keep_patient: bool = False,
    ) -> list[Path]:  # fmt: skip
        """Write images, doubt maps, sidecars, pictures, report and, last, ``run.json``; all or nothing.

        Args:
            out: the folder; made when it does not exist.
            overwrite: replace the results of an earlier run.
            command: the command line, for the record; folders are cut from its paths.
            dicom: also write each contrast as a DICOM series, on every grid that was read from DICOM.
            keep_patient: copy into it whose examination it is; else nothing about the patient is written.

        Returns:
            The files written; none when nothing was imputed.

        Raises:
            EnvironmentRefused: ``OUT_EXISTS``, ``OUT_CLOBBER``, ``OUT_PERMISSION``, ``OUT_SPACE``,
                ``LOCKED``.
            InputRefused: ``DCM_SOURCE``.
        """
        if not self.contrasts:
            return []
        with output.RunFolder(out, overwrite=overwrite, inputs=self.files) as folder:
            return self.write(folder, command=command, dicom=dicom, keep_patient=keep_patient)

    def write(
        self, folder: output.RunFolder, *, command: Sequence[str] | None = None, dicom: bool = False,
        keep_patient: bool = False,
    ) -> list[Path]:  # fmt: skip
        """As :meth:`save`, into a folder that was opened before the work."""
        output.check_stem(self.name)
        with folder.staged() as stage:
            self.fill(stage, command=command, dicom=dicom, keep_patient=keep_patient)
            names = sorted(path.relative_to(stage) for path in stage.rglob("*") if path.is_file())
        return [folder.path / name for name in names]

    def fill(
        self, stage: Path, *, command: Sequence[str] | None = None, dicom: bool = False, keep_patient: bool = False
    ) -> dict[str, Any]:
        """Write images, doubt maps, sidecars, pictures, record and report into an empty folder; returns the record."""
        from codebrain.report.page import write_report  # not before there is something to report: a tenth of a second

        stem, begun = output.check_stem(self.name), time.perf_counter()
        images = [self.contrasts, *self.native.values()]
        files = [c for space in images for c in space.values()]
        work: list[Callable[[], Any]] = [self.pictures, *(partial(c.write, stage, stem) for c in files)]
        pictures, *rows_of_files = in_threads(lambda step: step(), work)
        written: list[dict[str, Any]] = [row for rows in rows_of_files for row in rows]
        if dicom:
            written += self._write_dicom(stage, stem, images, keep_patient=keep_patient)
        (stage / output.FIGURES).mkdir()
        for name, content in pictures.figures.items():
            safe_files.write_bytes(stage / output.FIGURES / name, content)
        safe_files.write_bytes(stage / output.PREVIEW_FILE, pictures.preview)
        rows = [{**row, "file": f"{output.FIGURES}/{row['file']}"} for row in pictures.rows]
        run = self.full_record(written, rows, begun=begun, command=command)
        safe_files.write_json(stage / output.RUN_FILE, run)
        write_report(stage)
        return run

    def _write_dicom(
        self, stage: Path, stem: str, images: Sequence[Mapping[Modality, ImputedContrast]], *, keep_patient: bool
    ) -> list[dict[str, Any]]:
        """A DICOM series of every image that lies on the grid of one; at least the reference's or a native one's."""
        on_series = [c for space in images for c in space.values() if c.reference.series is not None]
        return [c.write_dicom(stage, stem, keep_patient=keep_patient) for c in on_series or self.contrasts.values()]

    def full_record(
        self,
        written: Sequence[Mapping[str, Any]],
        figures: Sequence[Mapping[str, str]],
        *,
        begun: float,
        command: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """The run's record with what is only known when the files are written.

        Args:
            written: rows of the files.
            figures: rows of the pictures.
            begun: when the writing began, on the clock of ``time.perf_counter``.
            command: the command line.
        """
        seconds = {**self.record["seconds"], "write": round(time.perf_counter() - begun, 2)}
        return {**self.record, "seconds": seconds, "peak_memory_bytes": peak_memory(), "outputs": list(written),
                "figures": list(figures), "command": shown_command(command)}  # fmt: skip

    def pictures(self) -> Pictures:
        """Every picture of the study, drawn."""
        from codebrain.report.preview import draw_panels, draw_preview, panel_titles, png, study_panels

        unsure = self.low_confidence
        panels = study_panels(self.given, self.unit, truth=self.truth, doubt=self.doubt, low_confidence=unsure)
        affine = next(iter(self.contrasts.values())).reference.affine
        drawn, titles = draw_panels(panels, affine, focus=self.focus), panel_titles(panels)
        rows = tuple(
            {"file": p.file, "contrast": str(p.contrast), "role": p.role, "title": titles[p.file]} for p in panels
        )
        figures = {name: png(picture) for name, picture in drawn.items()}
        return Pictures(figures, rows, png(draw_preview(panels, drawn)))


@dataclass(frozen=True)
class Pictures:
    """What people look at, as PNG files.

    Attributes:
        figures: by file name.
        rows: for the record: file, contrast, role and title of each.
        preview: all of them on one sheet.
    """

    figures: Mapping[str, bytes]
    rows: tuple[Mapping[str, str], ...]
    preview: bytes


def output_row(folder: Path, name: str, contrast: str, kind: str) -> dict[str, str]:
    """A file that was written, as records list it."""
    return {"contrast": contrast, "file": name, "kind": kind, "sha256": safe_files.sha256_file(folder / name)}


def shown_command(command: Sequence[str] | None) -> list[str]:
    """A command line for records: folders are cut from paths, because folder names may name a patient."""
    return ["=".join(part.rstrip("/").rsplit("/", 1)[-1] for part in word.split("=")) for word in command or ()]
