"""CodeBrain: any subset of contrasts to the full stack through a quantised code.

Source: Wu et al., "Virtual Full-stack Scanning of Brain MRI via Imputing Any Quantised Code", CVPR 2026,
arXiv 2501.18328. Stage I (``reconstruction``) learns a code of the complete set and a decoder; stage II
(``grading``) learns to predict that code from the incomplete set. Sizes, loss weights and the adversarial
schedule are those of the released code; where it and the paper differ, the recipes say which is which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from codebrain.models._contract import ImputationModel, Loss, keep_present
from codebrain.nn.batch import Batch
from codebrain.nn.fsq import FiniteScalarQuantiser
from codebrain.nn.naf import NafDecoder, NafEncoder
from codebrain.nn.ordinal import expected_level, ordinal_loss, split_channels, threshold_level
from codebrain.nn.patch_gan import PatchDiscriminator, least_squares
from codebrain.nn.psnr_loss import psnr_loss
from codebrain.vocabulary import ModalitySet


@dataclass(frozen=True)
class CodeBrainSettings:
    """Sizes and loss weights.

    Attributes:
        width: channels of the posterior encoder at full resolution; common encoder, prior encoder and
            decoder are three times as wide.
        depth: NAF blocks at the lowest resolution.
        levels: of each code channel.
        decoding: of the grades, ``threshold`` (the paper's) or ``expected`` level.
        absent_weight: of the PSNR loss on absent contrasts (paper, table 5).
        present_weight: of the PSNR loss on present contrasts.
        adversarial_weight: of the least-squares GAN.
        adversarial_start: fraction of stage I after which the generator feels the discriminator.
        critic_width: channels of the discriminator's first layer.
    """

    width: int = 32
    depth: int = 6
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    decoding: Literal["threshold", "expected"] = "threshold"
    absent_weight: float = 20.0
    present_weight: float = 5.0
    adversarial_weight: float = 0.1
    adversarial_start: float = 0.2
    critic_width: int = 64


class CodeBrain(ImputationModel):
    """The model of the paper, for any number of contrasts, width and depth."""

    Settings = CodeBrainSettings
    stages: ClassVar[tuple[str, ...]] = ("reconstruction", "grading")
    training_only: ClassVar[tuple[str, ...]] = ("critic",)
    settings: CodeBrainSettings

    def __init__(self, modalities: ModalitySet, settings: CodeBrainSettings) -> None:
        super().__init__(modalities, settings)
        contrasts, width, depth = len(modalities), settings.width, settings.depth
        channels, bits = len(settings.levels), sum(settings.levels) - len(settings.levels)
        self.posterior_encoder = NafEncoder(contrasts, width=width, depth=depth, outputs=channels)
        self.quantiser = FiniteScalarQuantiser(settings.levels)
        self.common_encoder = NafEncoder(contrasts, width=3 * width, depth=depth)
        self.decoder = NafDecoder(contrasts, code_channels=channels, width=3 * width, depth=depth)
        self.prior_encoder = NafEncoder(contrasts, width=3 * width, depth=depth, outputs=bits)
        self.critic = PatchDiscriminator(contrasts, width=settings.critic_width)

    # --- imputation ---

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """Predicted code and common features of the same incomplete set, decoded and clamped to [0, 1]."""
        return self.complete(images, present)[0]

    def complete(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m h w"], list[Float[Tensor, "b _ hc wc"]]]:
        """:meth:`forward` and the :meth:`grades` it was decoded from, which costs a quarter less than both."""
        incomplete = _withhold(images, present)
        bits = self._bit_probabilities(incomplete)
        candidate = self.decoder(self._predicted_code(bits), self.common_encoder(incomplete))
        completed = keep_present(candidate.to(images.dtype).clamp(0, 1), images, present)
        return completed, [rearrange(channel, "b h w n -> b n h w") for channel in bits]

    def grades(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b _ hc wc"]]:
        """Per code channel the probability that the level exceeds j, ``n = L - 1`` bits."""
        bits = self._bit_probabilities(_withhold(images, present))
        return [rearrange(channel, "b h w n -> b n h w") for channel in bits]

    def levels(self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]) -> Int[Tensor, "b c hc wc"]:
        """The levels that stage II predicts from the incomplete set, integers in [0, L)."""
        bits = self._bit_probabilities(_withhold(images, present))
        return torch.stack([threshold_level(channel) for channel in bits], dim=1)

    def reconstruct(self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b m h w"]:
        """Stage I: the code of the complete images, common features of the incomplete ones; not clamped."""
        code = self.quantiser(self.posterior_encoder(images))
        decoded: Tensor = self.decoder(code, self.common_encoder(_withhold(images, present)))
        return decoded.to(images.dtype)

    def code_levels(self, images: Float[Tensor, "b m h w"]) -> Int[Tensor, "b c hc wc"]:
        """The full-stack code of complete images, as levels: what stage II learns to predict."""
        level = self.quantiser.level(self.quantiser(self.posterior_encoder(images)))
        return rearrange(level, "b h w c -> b c h w")

    def code_indices(self, images: Float[Tensor, "b m h w"]) -> Int[Tensor, "b hc wc"]:
        """The full-stack code of complete images, one index per place."""
        return self.quantiser.index(rearrange(self.code_levels(images), "b c h w -> b h w c"))

    def _bit_probabilities(self, incomplete: Float[Tensor, "b m h w"]) -> list[Float[Tensor, "b hc wc _"]]:
        logits = self.prior_encoder(incomplete)
        return [channel.float().sigmoid() for channel in split_channels(logits, self.settings.levels)]

    def _predicted_code(self, bits: list[Float[Tensor, "b hc wc _"]]) -> Float[Tensor, "b hc wc c"]:
        decode = threshold_level if self.settings.decoding == "threshold" else expected_level
        return self.quantiser.code(torch.stack([decode(channel) for channel in bits], dim=-1))

    # --- training ---

    def players(self, stage: str) -> dict[str, nn.Module]:
        if stage == "grading":
            return {"grader": self.prior_encoder}
        generator = nn.ModuleList([self.posterior_encoder, self.common_encoder, self.decoder])
        return {"critic": self.critic, "generator": generator}

    def share(
        self, batch: Batch, *, stage: str, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Any:
        """Stage I: the candidate images, which both players judge."""
        return self.reconstruct(batch.images, batch.present) if stage == "reconstruction" else None

    def loss(self, player: str, batch: Batch, shared: Any, *, stage: str, progress: float) -> Loss:
        if player == "grader":
            return self._grader_loss(batch)
        if player == "critic":
            return self._critic_loss(batch, shared.detach())
        return self._generator_loss(batch, shared, adversarial=progress >= self.settings.adversarial_start)

    def validate(self, batch: Batch, *, stage: str) -> Float[Tensor, "b m h w"]:
        """Stage I is judged by its reconstruction; stage II by imputation."""
        if stage == "reconstruction":
            return keep_present(self.reconstruct(batch.images, batch.present), batch.images, batch.present)
        completed: Tensor = self(batch.images, batch.present)
        return completed

    def _critic_loss(self, batch: Batch, candidate: Tensor) -> Loss:
        real = least_squares(self.critic(batch.images, batch.images), 1.0, batch.available)
        scores = self.critic(_copy_known(candidate, batch), batch.images)
        fake = least_squares(scores, batch.present, batch.available)
        return Loss(0.5 * (real + fake), {"real": real.detach(), "fake": fake.detach()})

    def _generator_loss(self, batch: Batch, candidate: Tensor, *, adversarial: bool) -> Loss:
        absent = psnr_loss(candidate, batch.images, batch.absent)
        present = psnr_loss(candidate, batch.images, batch.present)
        total = self.settings.absent_weight * absent + self.settings.present_weight * present
        parts = {"psnr_absent": -absent.detach(), "psnr_present": -present.detach()}
        if adversarial and self.settings.adversarial_weight > 0:
            fooled = least_squares(self.critic(_copy_known(candidate, batch), batch.images), 1.0, batch.available)
            total = total + self.settings.adversarial_weight * fooled
            parts["adversarial"] = fooled.detach()
        return Loss(total, parts)

    def _grader_loss(self, batch: Batch) -> Loss:
        with torch.no_grad():
            level = rearrange(self.code_levels(batch.images), "b c h w -> b h w c")
        logits = self.prior_encoder(batch.incomplete)
        total = ordinal_loss(logits, level, self.settings.levels)
        predicted = [
            threshold_level(bits.sigmoid()) for bits in split_channels(logits.detach().float(), self.settings.levels)
        ]
        accuracy = (torch.stack(predicted, dim=-1) == level).float().mean()
        return Loss(total, {"accuracy": accuracy})


def _withhold(images: Tensor, present: Tensor) -> Tensor:
    # where(), not a product: what an absent channel holds, NaN included, must have no influence.
    return torch.where(present[:, :, None, None], images, torch.zeros((), dtype=images.dtype, device=images.device))


def _copy_known(candidate: Tensor, batch: Batch) -> Tensor:
    # Present contrasts as given; contrasts without truth as the zeros they are in the real set, so that
    # the discriminator cannot tell sets apart by them.
    return keep_present(candidate, batch.images, batch.present | ~batch.available)
