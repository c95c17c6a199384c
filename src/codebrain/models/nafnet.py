"""NAFNet: masked regression at CodeBrain's width; no codes, no critic, one stage.

Source: Chen et al., "Simple Baselines for Image Restoration", ECCV 2022, arXiv 2204.04676 (the blocks);
Wu et al., CodeBrain, CVPR 2026, arXiv 2501.18328 (the layout of common encoder and decoder, the loss and its
weights). No paper proposes this network for imputation: it is the check of how far plain regression gets
with the same blocks and the same loss. The images enter with one mask channel per contrast, 1 where the
contrast is given, because zeros alone do not tell a missing contrast from background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from codebrain.models._contract import ImputationModel, Loss, keep_present, withheld
from codebrain.nn.batch import Batch
from codebrain.nn.naf import NafDecoder, NafEncoder
from codebrain.nn.psnr_loss import psnr_loss
from codebrain.vocabulary import ModalitySet


@dataclass(frozen=True)
class NafNetSettings:
    """Sizes and loss weights, CodeBrain's.

    Attributes:
        width: as CodeBrain's setting: encoder and decoder have three times as many channels at full resolution.
        depth: NAF blocks at the lowest resolution, in the encoder and again in the decoder.
        absent_weight: of the PSNR loss on absent contrasts.
        present_weight: of the PSNR loss on present contrasts.
    """

    width: int = 32
    depth: int = 6
    absent_weight: float = 20.0
    present_weight: float = 5.0


class NafNet(ImputationModel):
    """CodeBrain's common encoder, which also sees the mask, and its decoder, which gets no code."""

    Settings = NafNetSettings
    stages: ClassVar[tuple[str, ...]] = ("training",)
    settings: NafNetSettings

    def __init__(self, modalities: ModalitySet, settings: NafNetSettings) -> None:
        super().__init__(modalities, settings)
        contrasts, width, depth = len(modalities), 3 * settings.width, settings.depth
        self.encoder = NafEncoder(2 * contrasts, width=width, depth=depth)
        self.decoder = NafDecoder(contrasts, code_channels=0, width=width, depth=depth)

    # --- imputation ---

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """One pass, clamped to [0, 1]; draws nothing, so ``generator`` is not used."""
        return keep_present(self._candidate(images, present).clamp(0, 1), images, present)

    def _candidate(self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b m h w"]:
        incomplete = withheld(images, present)
        mask = present.to(images.dtype)[:, :, None, None].expand_as(images)
        candidate: Tensor = self.decoder(None, self.encoder(torch.cat([incomplete, mask], dim=1)))
        return candidate.to(images.dtype)

    # --- training ---

    def players(self, stage: str) -> dict[str, nn.Module]:
        return {"generator": nn.ModuleList([self.encoder, self.decoder])}

    def loss(self, player: str, batch: Batch, shared: Any, *, stage: str, progress: float) -> Loss:
        candidate = self._candidate(batch.images, batch.present)
        absent = psnr_loss(candidate, batch.images, batch.absent)
        present = psnr_loss(candidate, batch.images, batch.present)
        total = self.settings.absent_weight * absent + self.settings.present_weight * present
        return Loss(total, {"psnr_absent": -absent.detach(), "psnr_present": -present.detach()})
