"""Impute the missing contrasts of a brain-MRI study from whatever subset exists.

::

    from codebrain import Imputer

    imputer = Imputer.from_pretrained("starter")
    result = imputer({"T1": "t1.nii.gz", "FLAIR": "flair.nii.gz"}, want=["T2"])
    result["T2"].image
    result.save("out/")

Names are imported on first use, so ``import codebrain`` loads neither torch nor nibabel.
Research use only; not a medical device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codebrain.data.phantom import simulate_study
    from codebrain.errors import CodeBrainError, Notice
    from codebrain.imaging.study import Study, find_files
    from codebrain.imaging.volume import Volume, read_volume
    from codebrain.impute import Imputer
    from codebrain.metrics import mae, psnr, ssim
    from codebrain.models import load_model
    from codebrain.results import Imputation
    from codebrain.vocabulary import Modality, ModalitySet, Preparation

_HOMES = {
    "CodeBrainError": "codebrain.errors",
    "Imputation": "codebrain.results",
    "Imputer": "codebrain.impute",
    "Modality": "codebrain.vocabulary",
    "ModalitySet": "codebrain.vocabulary",
    "Notice": "codebrain.errors",
    "Preparation": "codebrain.vocabulary",
    "Study": "codebrain.imaging.study",
    "Volume": "codebrain.imaging.volume",
    "find_files": "codebrain.imaging.study",
    "load_model": "codebrain.models",
    "mae": "codebrain.metrics",
    "psnr": "codebrain.metrics",
    "read_volume": "codebrain.imaging.volume",
    "simulate_study": "codebrain.data.phantom",
    "ssim": "codebrain.metrics",
}

__all__ = [
    "CodeBrainError",
    "Imputation",
    "Imputer",
    "Modality",
    "ModalitySet",
    "Notice",
    "Preparation",
    "Study",
    "Volume",
    "__version__",
    "find_files",
    "load_model",
    "mae",
    "psnr",
    "read_volume",
    "simulate_study",
    "ssim",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("codebrain-mri")
        except PackageNotFoundError:
            return "0+unknown"
    if name not in _HOMES:
        raise AttributeError(f"module 'codebrain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
