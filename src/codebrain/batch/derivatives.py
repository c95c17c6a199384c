"""A BIDS derivative data set of imputed contrasts.

::

    dataset_description.json  README.md  .bidsignore
    sub-01.html                                   the report, one file
    sub-01/anat/sub-01_desc-imputed_T2w.nii.gz    and .json: what it is and where it comes from
    sub-01/anat/sub-01_desc-uncertainty_T2w.nii.gz, .json
    sub-01/anat/sub-01_desc-uncertainty_metrics.tsv    doubt of each axial slice
    sub-01/anat/sub-01_ce-gadolinium_desc-imputed_T1w.nii.gz
    sub-01/figures/  logs/                        pictures; records of the runs, table of all studies

Source: Brain Imaging Data Structure 1.10, "BIDS Derivatives", checked with the BIDS validator.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float

import codebrain
from codebrain import marks, output
from codebrain.batch.layouts import BatchStudy
from codebrain.errors import refusal
from codebrain.imaging import safe_files
from codebrain.imaging.bids_dataset import DESCRIPTION, BidsDataset, BidsStudy, check_sidecars
from codebrain.imaging.domain import skull_stripped
from codebrain.report.page import render
from codebrain.results import Imputation, ImputedContrast, output_row
from codebrain.vocabulary import Modality

BIDS_VERSION = "1.10.0"
RAW = "raw"
"""What BIDS URIs call the data set that was read: ``bids:raw:sub-01/anat/sub-01_T1w.nii.gz``."""

IGNORED = ("*.html", "sub-*/figures", "sub-*/figures/**", "/logs", "/logs/**", "*_metrics.tsv")
_SUFFIX = {Modality.T1: "T1w", Modality.T2: "T2w", Modality.PD: "PDw", Modality.FLAIR: "FLAIR", Modality.T1GD: "T1w"}
_ORDER = ("sub", "ses", "acq", "ce", "rec", "run", "desc")  # of entities in a name

_README = f"""# Imputed contrasts

Every image here is SYNTHETIC: computed by codebrain from the scans of another data set; no scanner measured it.
{marks.RESEARCH_USE_ONLY}. The JSON file beside an image names the model, its SHA-256 and the scans that were used.

{marks.ENHANCEMENT_UNKNOWN}

`desc-uncertainty` images: {marks.DOUBT_MEANING}
"""


def batch_studies(dataset: BidsDataset) -> list[BatchStudy]:
    """The studies of a data set as the batch engine takes them."""
    return [
        BatchStudy(study.name, study.files, {m: study.relative(m) for m in study.files}, study.refused,
                   (*dataset.notices, *study.notices), study)
        for study in dataset.studies
    ]  # fmt: skip


def derivative_name(study: BidsStudy, desc: str, suffix: str, *, enhanced: bool = False) -> str:
    """For example ``sub-01_ses-1_ce-gadolinium_desc-imputed_T1w``."""
    labels = {"sub": study.subject, **study.apart, "desc": desc}
    labels |= {} if study.session is None else {"ses": study.session}
    labels |= {"ce": "gadolinium"} if enhanced else {}
    return "_".join([*(f"{entity}-{labels[entity]}" for entity in _ORDER if entity in labels), suffix])


@dataclass(frozen=True)
class DerivativeLayout:
    """Names and sidecars of BIDS derivatives."""

    name: str = "bids"
    table: str | None = "logs/studies.tsv"

    def check(self, study: BatchStudy) -> None:
        """Read the sidecars of the scans."""
        check_sidecars(study.source)

    def write(self, study: BatchStudy, result: Imputation, stage: Path) -> str:
        source: BidsStudy = study.source
        begun, anat = time.perf_counter(), f"{source.folder}/anat"
        (stage / anat).mkdir(parents=True)
        about = {"SkullStripped": _stripped(result), "Warnings": list(result.record["warnings"])}
        written = [
            {**row, "file": f"{anat}/{row['file']}"}
            for contrast in result.contrasts.values()
            for row in _write_contrast(stage / anat, study, contrast, about)
        ]
        if result.doubt is not None:
            metrics = derivative_name(source, "uncertainty", "metrics.tsv")
            affine = next(iter(result.contrasts.values())).reference.affine
            safe_files.write_text(stage / anat / metrics, _doubt_table(result.doubt, affine))
        figures, pictures = _draw(stage, source, result)
        run = _relative_inputs(result.full_record(written, figures, begun=begun), study)
        (stage / "logs").mkdir()
        safe_files.write_json(stage / "logs" / f"{study.name}_run.json", run)
        safe_files.write_text(stage / f"{study.name}.html", render(run, pictures))
        return f"{study.name}.html"


def _stripped(result: Imputation) -> bool:
    """What BIDS wants to know about every derived image: imputed ones show what their reference shows.

    BIDS wants a yes or a no, so that "unclear" must become one of them. It is a no: true would claim that the tissue
    around the brain is gone, on which later programs skip their own skull stripping, and people share images; a bare
    brain that is stripped once more loses little.
    """
    return skull_stripped(next(iter(result.contrasts.values())).reference).verdict == "stripped"


def _write_contrast(
    folder: Path, study: BatchStudy, contrast: ImputedContrast, about: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Image, doubt and their sidecars; rows for the record."""
    enhanced, suffix = contrast.modality is Modality.T1GD, _SUFFIX[contrast.modality]
    image, doubt = (
        derivative_name(study.source, desc, suffix, enhanced=enhanced) for desc in ("imputed", "uncertainty")
    )
    # BIDS wants three axes; a fourth of length one, which codebrain otherwise keeps, fails its validator.
    flat = replace(contrast, reference=replace(contrast.reference, shape_on_disk=contrast.data.shape))
    rows = flat.write_images(folder, f"{image}.nii.gz", f"{doubt}.nii.gz")
    facts = {**_sidecar(study, contrast), **about}
    sidecars = {f"{image}.json": {"Description": _described(contrast), **facts}}
    if contrast.doubt is not None:
        shown = {"File": f"{doubt}.nii.gz", "Description": marks.DOUBT_MEANING, **facts.get("Uncertainty", {})}
        sidecars[f"{image}.json"]["Uncertainty"] = shown
        sidecars[f"{doubt}.json"] = {"Description": marks.DOUBT_MEANING, **{key: facts[key] for key in _COMMON}}
    for name, content in sidecars.items():
        safe_files.write_json(folder / name, content)
    return rows + [output_row(folder, name, str(contrast.modality), "sidecar") for name in sidecars]


_COMMON = ("SkullStripped", "SpatialReference", "Sources", "SourcesSHA256", "Synthetic", "SyntheticImage",
           "SyntheticMethod", "Notice", "Contrast", "ContrastsUsed", "Model", "GeneratedBy")  # fmt: skip


def _described(contrast: ImputedContrast) -> str:
    used = ", ".join(contrast.sidecar["ContrastsUsed"])
    mark = marks.synthetic_mark(low_confidence=contrast.low_confidence)
    return f"{mark}: {contrast.modality} imputed from {used}; no scanner measured it"


def _sidecar(study: BatchStudy, contrast: ImputedContrast) -> dict[str, Any]:
    """The facts of the plain sidecar in the words of BIDS."""
    facts = dict(contrast.sidecar)
    hashes = {source["Contrast"]: source["SHA256"] for source in facts["Sources"]}
    uris = {contrast: f"bids:{RAW}:{study.shown[Modality.parse(contrast)]}" for contrast in hashes}
    by_name = {Path(name).name: f"bids:{RAW}:{name}" for name in study.shown.values()}
    return facts | {
        "SpatialReference": by_name.get(contrast.reference.name, "orig"),
        "Sources": list(uris.values()),
        "SourcesSHA256": {uris[name]: digest for name, digest in hashes.items()},
    }


def _draw(stage: Path, source: BidsStudy, result: Imputation) -> tuple[list[dict[str, str]], dict[str, bytes]]:
    """Pictures into the subject's folder; rows for the record, and the pictures by the names in it."""
    folder = f"sub-{source.subject}/figures"
    (stage / folder).mkdir(parents=True, exist_ok=True)
    drawn = result.pictures()
    named = {name: f"{folder}/{source.name}_{name}" for name in drawn.figures}
    for name, content in drawn.figures.items():
        safe_files.write_bytes(stage / named[name], content)
    safe_files.write_bytes(stage / folder / f"{source.name}_{output.PREVIEW_FILE}", drawn.preview)
    rows = [{**row, "file": named[row["file"]]} for row in drawn.rows]
    return rows, {named[name]: content for name, content in drawn.figures.items()}


def _relative_inputs(run: Mapping[str, Any], study: BatchStudy) -> dict[str, Any]:
    """The record with the inputs named relative to the data set."""
    inputs = [{**row, "file": study.shown[Modality.parse(row["contrast"])]} for row in run["inputs"]]
    return {**run, "inputs": inputs}


def _doubt_table(doubt: Float[np.ndarray, "i j k"], affine: Float[np.ndarray, "4 4"]) -> str:
    """Mean doubt of each axial slice of the head, from the feet up."""
    codes = nib.aff2axcodes(affine)
    axis = next(i for i, code in enumerate(codes) if code in "SI")
    stack = np.moveaxis(doubt, axis, 0)
    lines = ["slice\tvoxels\tdoubt"]
    for index in range(len(stack)) if codes[axis] == "S" else reversed(range(len(stack))):
        inside = stack[index][stack[index] > 0]
        lines.append(f"{index}\t{inside.size}\t" + (f"{inside.mean():.4f}" if inside.size else "n/a"))
    return "\n".join(lines) + "\n"


def begin_dataset(folder: Path, dataset: BidsDataset) -> None:
    """Write what makes ``folder`` a derivative data set; a foreign one is refused.

    Raises:
        EnvironmentRefused: ``OUT_CLOBBER`` when the folder is another data set.
    """
    path = folder / DESCRIPTION
    makers = output.read_json(path).get("GeneratedBy") or [{}]
    if path.exists() and not any(isinstance(m, dict) and m.get("Name") == "codebrain" for m in makers):
        raise refusal("OUT_CLOBBER", "the output folder is another data set", file=folder,
                      hint="Choose a folder of its own for the imputed contrasts.")  # fmt: skip
    safe_files.write_json(path, description(folder, dataset))
    safe_files.write_text(folder / ".bidsignore", "\n".join(IGNORED) + "\n")
    safe_files.write_text(folder / "README.md", _README)


def description(folder: Path, dataset: BidsDataset) -> dict[str, Any]:
    """``dataset_description.json`` of the derivatives of ``dataset`` in ``folder``."""
    raw = dataset.description
    doi = str(raw.get("DatasetDOI", "")).strip()
    where = f"doi:{doi.removeprefix('doi:')}" if doi else Path(os.path.relpath(dataset.root, folder)).as_posix()
    facts: dict[str, Any] = {
        "Name": f"Imputed contrasts (SYNTHETIC) of: {raw.get('Name') or 'an unnamed data set'}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {"Name": "codebrain", "Version": codebrain.__version__,
             "Description": f"Imputes missing contrasts of brain MRI. {marks.RESEARCH_USE_ONLY}."}
        ],
        "DatasetLinks": {RAW: where},
        "SourceDatasets": [{"URL": where, **({"DOI": doi} if doi else {})}],
    }  # fmt: skip
    kinds = {"License": str, "Authors": list}
    return facts | {key: raw[key] for key, kind in kinds.items() if isinstance(raw.get(key), kind) and raw[key]}
