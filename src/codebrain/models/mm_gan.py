"""MM-GAN: a U-Net and a patch critic with one score map per contrast.

Source: Sharma & Hamarneh, "Missing MRI Pulse Sequence Synthesis Using Multi-Modal Generative Adversarial
Network", IEEE TMI 39(4), 2020, arXiv 1904.12200; layer sizes, loss weights and the order of steps as in the
authors' released code. A contrast that is not given is zero, and nothing else tells the generator so; the
condition is implicit: given contrasts are copied into the candidate before the critic sees it, only missing
ones count in the pixel loss, and the critic's target for a candidate is 1 on the given contrasts.

Chosen here where the source is silent: outputs are clamped to 1 when imputing (intensities lie in [0, 1],
while the source divides by a volume's mean), and with a pattern per sample each contrast's pixel error is
pooled over the samples in which it is missing. With one pattern per batch that is the source's loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from codebrain.models._contract import ImputationModel, Loss, keep_present, withheld
from codebrain.nn.batch import Batch
from codebrain.nn.l1_loss import l1_loss
from codebrain.nn.padding import cut_to, pad_to_multiple
from codebrain.nn.patch_gan import PatchDiscriminator, least_squares
from codebrain.vocabulary import ModalitySet

_CRITIC_MULTIPLE = 32  # four halvings must leave more than one pixel, or there is nothing to normalise over


@dataclass(frozen=True)
class MmGanSettings:
    """Sizes and loss weights.

    Attributes:
        width: channels after the generator's first halving; doubled by each halving up to eight times that.
        depth: halvings, two or more; eight bring 256 pixels to one.
        dropout: of the generator's layers with the full eight times the width.
        critic_width: channels of the critic's first layer.
        pixel_weight: of the mean absolute error on missing contrasts.
        adversarial_weight: of the least-squares GAN.
    """

    width: int = 64
    depth: Annotated[int, Field(ge=2)] = 8
    dropout: float = 0.2
    critic_width: int = 64
    pixel_weight: float = 0.9
    adversarial_weight: float = 0.1


class UNet(nn.Module):
    """Halvings to a bottleneck and back with skips; m contrasts in, all m out, zero or more.

    Args:
        contrasts: m.
        width: channels after the first halving.
        depth: halvings; images are padded to a multiple of ``2 ** depth``.
        dropout: share of features dropped where layers are eight times ``width`` wide.
    """

    def __init__(self, contrasts: int, *, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.multiple = 2**depth
        widths = [width * min(2**level, 8) for level in range(depth)]
        rates = [dropout if level >= 3 else 0.0 for level in range(depth)]
        inputs = [contrasts, *widths]
        self.down = nn.ModuleList(
            # The first level sees intensities, the last is one pixel wide: neither is normalised.
            _halve(inputs[level], widths[level], norm=0 < level < depth - 1, dropout=rates[level])
            for level in range(depth)
        )
        self.up = nn.ModuleList(
            # Above the bottleneck the input is the layer below beside the skip of its level.
            _double(widths[level + 1] * (1 if level == depth - 2 else 2), widths[level], dropout=rates[level])
            for level in reversed(range(depth - 1))
        )
        self.head = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.ZeroPad2d((1, 0, 1, 0)),
            nn.Conv2d(2 * width, contrasts, 4, padding=1),
            nn.ReLU(),
        )

    def forward(self, images: Float[Tensor, "b m h w"]) -> Float[Tensor, "b m h w"]:
        features, skips = pad_to_multiple(images, self.multiple), []
        for halve in self.down:
            features = halve(features)
            skips.append(features)
        skips.pop()
        for double in self.up:
            features = torch.cat([double(features), skips.pop()], dim=1)
        return cut_to(self.head(features), images)


class MmGan(ImputationModel):
    """The model of the paper, for any number of contrasts."""

    Settings = MmGanSettings
    stages: ClassVar[tuple[str, ...]] = ("training",)
    training_only: ClassVar[tuple[str, ...]] = ("critic",)
    settings: MmGanSettings

    def __init__(self, modalities: ModalitySet, settings: MmGanSettings) -> None:
        super().__init__(modalities, settings)
        self.generator = UNet(len(modalities), width=settings.width, depth=settings.depth, dropout=settings.dropout)
        self.critic = PatchDiscriminator(len(modalities), width=settings.critic_width)
        self.apply(_start_small)

    # --- imputation ---

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """One pass of the generator, clamped to [0, 1]; draws nothing, so ``generator`` is not used."""
        return keep_present(self._candidate(images, present).clamp(0, 1), images, present)

    def _candidate(self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b m h w"]:
        candidate: Tensor = self.generator(withheld(images, present))
        return candidate.to(images.dtype)

    # --- training ---

    def players(self, stage: str) -> dict[str, nn.Module]:
        """The generator steps first, as in the source; the critic then judges what it makes after its step."""
        return {"generator": self.generator, "critic": self.critic}

    def loss(self, player: str, batch: Batch, shared: Any, *, stage: str, progress: float) -> Loss | None:
        if player == "generator":
            return self._generator_loss(batch)
        return self._critic_loss(batch) if self.settings.adversarial_weight > 0 else None

    def _generator_loss(self, batch: Batch) -> Loss:
        candidate = self._candidate(batch.images, batch.present)
        pixel = l1_loss(candidate, batch.images, batch.absent)
        fooled = least_squares(self._scores(candidate, batch), 1.0, batch.available)
        total = self.settings.pixel_weight * pixel + self.settings.adversarial_weight * fooled
        return Loss(total, {"pixel": pixel.detach(), "adversarial": fooled.detach()})

    def _critic_loss(self, batch: Batch) -> Loss:
        with torch.no_grad():
            candidate = self._candidate(batch.images, batch.present)
        real = least_squares(self._scores(batch.images, batch), 1.0, batch.available)
        fake = least_squares(self._scores(candidate, batch), batch.present, batch.available)
        return Loss(0.5 * (real + fake), {"real": real.detach(), "fake": fake.detach()})

    def _scores(self, candidate: Float[Tensor, "b m h w"], batch: Batch) -> Float[Tensor, "b m hp wp"]:
        """The critic's maps of a candidate beside the real set.

        Present contrasts are as given and contrasts without truth the zeros they are in the real set, so that
        sets cannot be told apart by them.
        """
        copied = keep_present(candidate, batch.images, batch.present | ~batch.available)
        scores: Tensor = self.critic(
            pad_to_multiple(copied, _CRITIC_MULTIPLE), pad_to_multiple(batch.images, _CRITIC_MULTIPLE)
        )
        return scores


def _halve(inputs: int, outputs: int, *, norm: bool, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)]
    layers += [nn.InstanceNorm2d(outputs)] if norm else []
    return nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Dropout(dropout))


def _double(inputs: int, outputs: int, *, dropout: float) -> nn.Sequential:
    convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.InstanceNorm2d(outputs), nn.ReLU(), nn.Dropout(dropout))


def _start_small(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
