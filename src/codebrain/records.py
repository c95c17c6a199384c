"""The facts about a run, as ``run.json`` and the sidecars state them."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

import codebrain
from codebrain import marks, output
from codebrain.engines.check import PrecisionCheck
from codebrain.errors import Notice
from codebrain.imaging.align import AlignmentRecord
from codebrain.imaging.prepared import PreparedStudy
from codebrain.imaging.space import REFERENCE, NativeSpace
from codebrain.imaging.study import Study
from codebrain.imaging.volume import Volume
from codebrain.models._contract import ImputationModel
from codebrain.plan import Plan
from codebrain.results import IntensityScale
from codebrain.uncertainty import StudyDoubt
from codebrain.vocabulary import Modality

_PACKAGES = ("torch", "numpy", "scipy", "nibabel")
_DICOM_PACKAGES = ("pydicom", "dcm2niix")
_ENGINE_PACKAGES = {"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino", "onnxscript")}


@dataclass(frozen=True)
class RunFacts:
    """Everything a record can say, before the files are written.

    Attributes:
        study: as read.
        plan: what was imputed from what.
        prepared: the given contrasts as the model saw them.
        model: which model.
        device: where it computed.
        precision: in which precision, and why.
        truth_alignment: how withheld contrasts came onto the grid.
        spaces: native spaces in which the results are given as well.
        doubt: how sure the model was; None for a model that does not grade its code.
        steps: what happened while the model computed.
        engine: what computed it; see :mod:`codebrain.engines`.
    """

    study: Study
    plan: Plan
    prepared: PreparedStudy
    model: ImputationModel
    device: str
    precision: PrecisionCheck
    truth_alignment: AlignmentRecord | None = None
    spaces: tuple[NativeSpace, ...] = ()
    doubt: StudyDoubt | None = None
    steps: tuple[Notice, ...] = ()
    engine: str = "torch"

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Everything that was accepted with a warning, once each, in order."""
        own = [notice for volume in self.study.volumes.values() for notice in volume.notices]
        late = self.truth_alignment.notices if self.truth_alignment else ()
        same = [notice for space in self.spaces for notice in space.notices]
        unsure = self.doubt.notices if self.doubt is not None else ()
        return tuple(
            dict.fromkeys((*own, *self.prepared.notices, *self.plan.notices, *late, *same, *self.steps, *unsure))
        )

    def run_record(self, seconds: Mapping[str, float], scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """``run.json`` except for what is only known when the files are written."""
        return {
            "schema": output.RUN_SCHEMA_NAME,
            "schema_version": output.RUN_SCHEMA,
            "notice": marks.RESEARCH_USE_ONLY,
            "synthetic": True,
            "study": self.study.name,
            "codebrain": codebrain.__version__,
            "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in self._packages()}},
            "platform": platform.platform(),
            "device": self.device,
            "threads": torch.get_num_threads(),
            "precision": self.precision.used,
            "precision_check": self.precision.as_dict(),
            "engine": self.engine,
            "model": self._model(),
            "reference": str(self.prepared.reference_modality),
            "spaces": [REFERENCE, *(space.as_dict()["Space"] for space in self.spaces)],
            "inputs": [self._input(m, volume) for m, volume in self.study.volumes.items()],
            "imputed": [str(m) for m in self.plan.targets],
            "enhancement": marks.ENHANCEMENT_UNKNOWN if Modality.T1GD in self.plan.targets else None,
            "uncertainty": None if self.doubt is None else self.doubt.as_dict(),
            "scores": list(scores),
            "scored": SCORED if scores else None,
            "seconds": dict(seconds),
            "warnings": [notice.as_dict() for notice in self.notices],
        }

    def sidecar(self, modality: Modality, scale: IntensityScale, space: NativeSpace | None = None) -> dict[str, Any]:
        """The JSON beside an imputed contrast, on the reference grid or in a native space."""
        grid = self.prepared.reference if space is None else space.grid
        given = {m: self.study.volumes[m] for m in self.plan.given}
        facts: dict[str, Any] = {
            "Synthetic": True,
            "SyntheticImage": True,
            "SyntheticMethod": f"codebrain {codebrain.__version__}, model {self.model.name}",
            "Notice": marks.RESEARCH_USE_ONLY,
            "Contrast": str(modality),
            "ContrastsUsed": [str(m) for m in given],
            "Sources": [{"Contrast": str(m), "File": v.name, "SHA256": v.sha256} for m, v in given.items()],
            "Model": {
                "Name": self.model.name,
                "Architecture": self.model.architecture,
                "SHA256": self.model.sha256,
            },
            "SpatialReference": grid.name,
            "Spacing": [round(float(mm), 4) for mm in grid.spacing],
            **({"Space": REFERENCE} if space is None else space.as_dict()),
            "IntensityScale": {"Unit": scale.unit, "ValueAtOne": scale.value_at_one, "Source": scale.source},
            "GeneratedBy": [{"Name": "codebrain", "Version": codebrain.__version__}],
            **({} if self.doubt is None else {"Uncertainty": self.doubt.sidecar()}),
            "Warnings": [notice.as_dict() for notice in self.notices],
        }
        if modality is Modality.T1GD:
            facts["EnhancementNotice"] = marks.ENHANCEMENT_UNKNOWN
        return facts

    def _packages(self) -> tuple[str, ...]:
        """The packages that had a part in the result."""
        from_dicom = any(volume.series is not None for volume in self.study.volumes.values())
        return (*_PACKAGES, *(_DICOM_PACKAGES if from_dicom else ()), *_ENGINE_PACKAGES.get(self.engine, ()))

    def _model(self) -> dict[str, Any]:
        return {
            "name": self.model.name,
            "architecture": self.model.architecture,
            "sha256": self.model.sha256,
            "contrasts": [str(m) for m in self.model.modalities],
        }

    def _input(self, modality: Modality, volume: Volume) -> dict[str, Any]:
        roles = {**dict.fromkeys(self.plan.given, "given"), **dict.fromkeys(self.plan.withheld, "withheld")}
        return {
            "contrast": str(modality),
            "file": volume.name,
            "sha256": volume.sha256,
            "role": roles.get(modality, "not used"),
            "shape": list(volume.data.shape),
            "spacing_mm": [round(float(mm), 3) for mm in volume.spacing],
            "orientation": volume.orientation,
            "alignment": self._movement(modality),
        }

    def _movement(self, modality: Modality) -> dict[str, Any] | None:
        """How a contrast came onto the reference grid; None when it was on it."""
        moved = dict(self.prepared.alignment.moved)
        if self.truth_alignment is not None:
            moved |= self.truth_alignment.moved
        return moved[modality].as_dict() if modality in moved else None


SCORED = (
    "Mean over the axial slices that show the head, in [0, 1] with data range 1, background included. "
    "SSIM: Gaussian window 11 x 11, sigma 1.5. The withheld scans had no part in the imputation."
)
