"""What every imputation model promises; loop, devices, checkpoints and logs know models only through this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from codebrain.nn.batch import Batch
from codebrain.vocabulary import ModalitySet, Preparation


@dataclass(frozen=True)
class Loss:
    """A scalar to descend and its parts, for the log (detached scalars)."""

    total: Float[Tensor, ""]
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class ImputationModel(nn.Module, ABC):
    """Base of all models. One file in ``codebrain/models`` holds one subclass; the file's name is its name.

    A subclass sets ``Settings`` (a frozen dataclass with a default for every field), ``stages`` and the
    three abstract methods. Images are float in [0, 1], ``(b, m, h, w)``, ``h`` and ``w`` multiples of 8.

    Attributes:
        training_only: names of sub-modules that a model folder leaves out (critics).
        label: what must stand beside the name wherever results are shown (a reconstruction from an abstract).
        preparation: how images must be prepared for it; set when loaded from a folder.
        doubt_limits: by number of given contrasts, the doubt of a study above which its results are called LOW
            CONFIDENCE; empty where the folder declares none.
        sha256: of the weights file; set when loaded from a folder.
        name: the folder's name, or the architecture's before there is one.
    """

    Settings: ClassVar[type[Any]]
    stages: ClassVar[tuple[str, ...]]
    training_only: ClassVar[tuple[str, ...]] = ()
    label: ClassVar[str] = ""

    def __init__(self, modalities: ModalitySet, settings: Any) -> None:
        super().__init__()
        self.modalities = modalities
        self.settings = settings
        self.preparation = Preparation(modalities)
        self.doubt_limits: Mapping[int, float] = {}
        self.sha256 = ""
        self.name = self.architecture

    @property
    def architecture(self) -> str:
        """The model's name: that of the file that defines it."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """Complete the images.

        Args:
            images: contrasts in [0, 1]; what absent channels hold has no influence.
            present: which contrasts are given; at least one per sample.
            generator: source of chance for models that sample; without one they sample the same every time.

        Returns:
            All contrasts in [0, 1]; present ones are the input, untouched.
        """

    @abstractmethod
    def players(self, stage: str) -> dict[str, nn.Module]:
        """The modules trained in a stage by name, in the order of their steps (critic before generator).

        Empty for a stage that is fitted in closed form by :meth:`fit`.
        """

    @abstractmethod
    def loss(self, player: str, batch: Batch, shared: Any, *, stage: str, progress: float) -> Loss | None:
        """What ``player`` loses on a batch; None when it sits this step out (a critic that starts later).

        Args:
            player: a key of :meth:`players`.
            batch: the training step's data.
            shared: what :meth:`share` returned for this step.
            stage: one of ``stages``.
            progress: fraction of the stage that is done, in [0, 1).
        """

    def share(
        self, batch: Batch, *, stage: str, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Any:
        """What is computed once per step and used by every player (for example the candidate images)."""
        return None

    def fit(self, batches: Iterable[Batch]) -> None:
        """Fit a stage without players in one pass over the training slices."""
        raise NotImplementedError(f"{type(self).__name__} declares a stage without players but no fit()")

    def validate(self, batch: Batch, *, stage: str) -> Float[Tensor, "b m h w"]:
        """The completed images by which a stage is judged; :meth:`forward` unless a stage ends earlier."""
        completed: Tensor = self(batch.incomplete, batch.present)
        return completed


@runtime_checkable
class Reconstructs(Protocol):
    """A model that can also rebuild a complete set from its own code of it (the paper's Stage I)."""

    def reconstruct(self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b m h w"]:
        """Posterior code of the complete images, common features of the given ones, decoded."""
        ...


@runtime_checkable
class Graded(Protocol):
    """A model that predicts its code as ordered bits and can hand them out with the images."""

    def complete(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m h w"], list[Float[Tensor, "b _ hc wc"]]]:
        """The completed images, and per code channel the probability that the level exceeds j, ``n = L - 1``.

        An empty list from a model that its settings leave without a code.
        """
        ...


def withheld(
    images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"], value: float = 0.0
) -> Float[Tensor, "b m h w"]:
    """The images with ``value`` for every contrast that is not present, whatever it held, NaN included."""
    # where(), not a product, which would let NaN through.
    return torch.where(present[:, :, None, None], images, value)  # a tensor of the value would be waited for on a GPU


def keep_present(
    candidate: Float[Tensor, "b m h w"], images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
) -> Float[Tensor, "b m h w"]:
    """The candidate with the present contrasts copied in, bit for bit."""
    return torch.where(present[:, :, None, None], images, candidate)
