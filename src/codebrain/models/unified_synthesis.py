"""Unified synthesis, a reconstruction (Zhang-style; only partly public): encoders of what contrasts share and of
what sets them apart, and a fusion of however many there are.

Source: Zhang et al., "Unified Multi-Modal Image Synthesis for Missing Modality Imputation", IEEE TMI 44(1), 2025,
arXiv 2304.05340. Of the paper only the abstract and summaries could be read, and no code is public. From them: one
adversarially trained generator for all patterns, a commonality- and discrepancy-sensitive encoder, a dynamic
feature unification module that integrates hard and soft, one patch critic per contrast, a curriculum from easy to
hard patterns; from CodeBrain (arXiv 2501.18328): given and missing contrasts weigh differently in the
reconstruction loss, and intensities lie in [0, 1]. Everything else is a proposal: widths, depths, what hard
(maximum) and soft (softmax-weighted mean) are, the two feature losses, all weights and the optimiser. A score of
this model is not a score of Zhang et al.'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from codebrain.models._contract import ImputationModel, Loss, keep_present
from codebrain.nn.batch import Batch, counted_mean
from codebrain.nn.l1_loss import absolute_error
from codebrain.nn.padding import pad_to_multiple
from codebrain.nn.patch_gan import PatchCritic, least_squares
from codebrain.vocabulary import ModalitySet

_SCALES = 4
_CRITIC_MULTIPLE = 32  # three halvings must leave more than one pixel, or there is nothing to normalise over


@dataclass(frozen=True)
class UnifiedSynthesisSettings:
    """Sizes and loss weights, all of them proposals (Zhang-style; only partly public).

    Attributes:
        width: channels at full resolution; doubled at each of three halvings.
        critic_width: channels of each critic's first layer.
        absent_weight: of the mean absolute error on absent contrasts.
        present_weight: of the mean absolute error on present contrasts.
        adversarial_weight: of the least-squares GAN on absent contrasts.
        commonality_weight: of the distance between the contrasts' common features.
        discrepancy_weight: of telling a contrast by its specific features.
    """

    width: int = 32
    critic_width: int = 64
    absent_weight: float = 20.0
    present_weight: float = 5.0
    adversarial_weight: float = 0.1
    commonality_weight: float = 1.0
    discrepancy_weight: float = 0.1


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside the identity.

    Instance norms here and everywhere have no affine part: common features cannot come closer by shrinking.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.leaky_relu(features + self.layers(features), 0.2)


class Encoder(nn.Module):
    """One contrast to features at four scales, finest first; half the size and twice the channels each."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        inputs = [1, *widths[:-1]]
        self.levels = nn.ModuleList(
            nn.Sequential(*_convolution(before, width, stride=2 if number else 1), ResidualBlock(width))
            for number, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )

    def forward(self, images: Float[Tensor, "n 1 h w"]) -> list[Float[Tensor, "n _c _h _w"]]:
        features, scales = images, []
        for level in self.levels:
            features = level(features)
            scales.append(features)
        return scales


class FeatureUnification(nn.Module):
    """Dynamic feature unification: features of any number of contrasts to those of one map.

    Hard integration is the maximum over the present contrasts, soft integration their mean with weights from a
    softmax over the present ones. A weight's score is a 1 x 1 convolution of the features at the place, their
    mean over the image and the contrast's number one-hot, written as the sum of its parts.
    """

    def __init__(self, contrasts: int, channels: int) -> None:
        super().__init__()
        self.place = nn.Conv2d(channels, 1, 1, bias=False)
        self.whole = nn.Linear(channels + contrasts, 1)
        self.merge = nn.Sequential(*_convolution(2 * channels, channels, kernel=1))

    def forward(self, features: Float[Tensor, "b m c h w"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b c h w"]:
        away = ~present[:, :, None, None, None]
        hard = features.masked_fill(away, -torch.inf).amax(1)
        weights = self._scores(features).masked_fill(away, -torch.inf).softmax(1)
        soft = (weights.to(features.dtype) * features).sum(1)
        merged: Tensor = self.merge(torch.cat([hard, soft], dim=1))
        return merged

    def _scores(self, features: Float[Tensor, "b m c h w"]) -> Float[Tensor, "b m 1 h w"]:
        count, contrasts = features.shape[:2]
        place = self.place(rearrange(features, "b m c h w -> (b m) c h w"))
        names = torch.eye(contrasts, dtype=features.dtype, device=features.device).expand(count, -1, -1)
        whole = self.whole(torch.cat([features.mean((3, 4)), names], dim=-1))
        scores: Tensor = rearrange(place, "(b m) c h w -> b m c h w", m=contrasts) + whole[..., None, None]
        return scores.float()


class Decoder(nn.Module):
    """Fused features at four scales to features at full resolution, coarsest first, the finer ones as skips."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        # The fused skip, and the upsampled features of the next coarser scale, of which the coarsest has none.
        inputs = [2 * width + coarser for width, coarser in zip(widths, [*widths[1:], 0], strict=True)]
        self.levels = nn.ModuleList(
            nn.Sequential(*_convolution(before, width), ResidualBlock(width))
            for before, width in zip(inputs[::-1], widths[::-1], strict=True)
        )

    def forward(self, fused: Sequence[Float[Tensor, "b _c _h _w"]]) -> Float[Tensor, "b c h w"]:
        features: Tensor = self.levels[0](fused[-1])
        for level, skip in zip(self.levels[1:], fused[-2::-1], strict=True):
            larger = F.interpolate(features, scale_factor=2.0, mode="nearest")
            features = level(torch.cat([larger, skip], dim=1))
        return features


@dataclass(frozen=True)
class Pass:
    """What the players of a step share; features of the coarsest scale, zero where they were not computed."""

    candidate: Float[Tensor, "b m h w"]
    common: Float[Tensor, "b m c hc wc"]
    specific: Float[Tensor, "b m c hc wc"]


class UnifiedSynthesis(ImputationModel):
    """Reconstruction of Zhang et al.'s unified synthesis (Zhang-style; only partly public)."""

    label: ClassVar[str] = "unified_synthesis (Zhang-style reconstruction)"
    Settings = UnifiedSynthesisSettings
    stages: ClassVar[tuple[str, ...]] = ("training",)
    training_only: ClassVar[tuple[str, ...]] = ("critic", "classifier")
    settings: UnifiedSynthesisSettings

    def __init__(self, modalities: ModalitySet, settings: UnifiedSynthesisSettings) -> None:
        super().__init__(modalities, settings)
        contrasts, widths = len(modalities), [settings.width * 2**scale for scale in range(_SCALES)]
        self.common_encoder = Encoder(widths)
        self.specific_encoders = nn.ModuleList(Encoder(widths) for _ in modalities)
        self.common_fusion = nn.ModuleList(FeatureUnification(contrasts, width) for width in widths)
        self.specific_fusion = nn.ModuleList(FeatureUnification(contrasts, width) for width in widths)
        self.decoder = Decoder(widths)
        self.heads = nn.ModuleList(_head(settings.width) for _ in modalities)
        self.classifier = nn.Linear(widths[-1], contrasts)
        self.critic = nn.ModuleList(_critic(settings.critic_width) for _ in modalities)

    # --- imputation ---

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """One pass, by which only absent contrasts are drawn; ``generator`` is not used."""
        common, specific = self._common(images, present), self._specific(images, present)
        trunk = self._trunk(common, specific, present)
        wanted = (~present).any(0).tolist()
        columns = [_draw(head, trunk) if wanted[m] else images[:, m, None].float() for m, head in enumerate(self.heads)]
        return keep_present(torch.cat(columns, dim=1).to(images.dtype), images, present)

    def _common(
        self, images: Float[Tensor, "b m h w"], where: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b m _c _h _w"]]:
        """Features from the encoder that all contrasts share; of unmarked contrasts not computed but zero."""
        return [_spread(scale, where) for scale in self.common_encoder(images[where][:, None])]

    def _specific(
        self, images: Float[Tensor, "b m h w"], where: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b m _c _h _w"]]:
        """Features from each contrast's own encoder; of unmarked contrasts not computed but zero."""
        features = [encoder(_marked(images, where, m)) for m, encoder in enumerate(self.specific_encoders)]
        return [_spread_columns(scale, where) for scale in zip(*features, strict=True)]

    def _trunk(
        self,
        common: Sequence[Float[Tensor, "b m _c _h _w"]],
        specific: Sequence[Float[Tensor, "b m _c _h _w"]],
        present: Bool[Tensor, "b m"],
    ) -> Float[Tensor, "b c h w"]:
        shared = [fuse(scale, present) for fuse, scale in zip(self.common_fusion, common, strict=True)]
        own = [fuse(scale, present) for fuse, scale in zip(self.specific_fusion, specific, strict=True)]
        trunk: Tensor = self.decoder([torch.cat(pair, dim=1) for pair in zip(shared, own, strict=True)])
        return trunk

    # --- training ---

    def players(self, stage: str) -> dict[str, nn.Module]:
        encoders = [self.common_encoder, self.specific_encoders, self.common_fusion, self.specific_fusion]
        generator = nn.ModuleList([*encoders, self.decoder, self.heads, self.classifier])
        return {"critic": self.critic, "generator": generator}

    def share(
        self, batch: Batch, *, stage: str, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Pass:
        """The candidate images and the features that the feature losses judge.

        Common features are those of all real contrasts, the withheld ones too; fusion sees only the present.
        """
        common, specific = self._common(batch.images, batch.available), self._specific(batch.images, batch.present)
        trunk = self._trunk(common, specific, batch.present)
        candidate = torch.cat([_draw(head, trunk) for head in self.heads], dim=1)
        return Pass(candidate, common[-1], specific[-1])

    def loss(self, player: str, batch: Batch, shared: Any, *, stage: str, progress: float) -> Loss | None:
        if player == "critic":
            judged = self.settings.adversarial_weight > 0
            return self._critic_loss(batch, shared.candidate.detach()) if judged else None
        return self._generator_loss(batch, shared)

    def _critic_loss(self, batch: Batch, candidate: Float[Tensor, "b m h w"]) -> Loss:
        real = self._judged(batch.images, 1.0, batch.absent)
        fake = self._judged(candidate, 0.0, batch.absent)
        return Loss(0.5 * (real + fake), {"real": real.detach(), "fake": fake.detach()})

    def _generator_loss(self, batch: Batch, shared: Pass) -> Loss:
        error = absolute_error(shared.candidate, batch.images)
        weighted = {
            "l1_absent": (self.settings.absent_weight, counted_mean(error, batch.absent)),
            "l1_present": (self.settings.present_weight, counted_mean(error, batch.present)),
            "adversarial": (self.settings.adversarial_weight, self._judged(shared.candidate, 1.0, batch.absent)),
            "commonality": (self.settings.commonality_weight, _commonality(shared.common, batch.available)),
            "discrepancy": (self.settings.discrepancy_weight, self._discrepancy(shared.specific, batch.present)),
        }
        total = torch.stack([weight * value for weight, value in weighted.values()]).sum()
        return Loss(total, {name: value.detach() for name, (_, value) in weighted.items()})

    def _judged(
        self, images: Float[Tensor, "b m h w"], target: float, absent: Bool[Tensor, "b m"]
    ) -> Float[Tensor, ""]:
        """Squared distance of the critics' scores on absent contrasts to their target."""
        padded = pad_to_multiple(images, _CRITIC_MULTIPLE)
        scores = [critic(_marked(padded, absent, m)) for m, critic in enumerate(self.critic)]
        return least_squares(_spread_columns(scores, absent)[:, :, 0], target, absent)

    def _discrepancy(self, specific: Float[Tensor, "b m c hc wc"], present: Bool[Tensor, "b m"]) -> Float[Tensor, ""]:
        """Cross-entropy of a linear classifier that names the contrast from the mean specific features."""
        logits = self.classifier(specific.mean((3, 4))).float()
        names = torch.arange(len(self.modalities), device=logits.device).expand(len(logits), -1)
        return counted_mean(F.cross_entropy(logits.transpose(1, 2), names, reduction="none"), present)


def _convolution(inputs: int, channels: int, *, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    # No bias: the norm would take it away again.
    convolution = nn.Conv2d(inputs, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.InstanceNorm2d(channels), nn.LeakyReLU(0.2)]


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(channels), ResidualBlock(channels), nn.Conv2d(channels, 1, 7, padding=3))


def _critic(width: int) -> PatchCritic:
    # The patches of pix2pix: 70 x 70 pixels.
    return PatchCritic(1, 1, widths=[width, 2 * width, 4 * width, 8 * width], strides=[2, 2, 2, 1])


def _draw(head: nn.Module, trunk: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    logits: Tensor = head(trunk)
    return logits.float().sigmoid()


def _marked(images: Float[Tensor, "b m h w"], where: Bool[Tensor, "b m"], contrast: int) -> Float[Tensor, "n 1 h w"]:
    """One contrast of the samples in which it is marked, perhaps of none: empty batches pass through all layers."""
    return images[:, contrast][where[:, contrast]][:, None]


def _spread(features: Float[Tensor, "n *rest"], where: Bool[Tensor, "b m"]) -> Float[Tensor, "b m *rest"]:
    """Features of the marked places, in their order, put there; zeros elsewhere."""
    places = features.new_zeros(*where.shape, *features.shape[1:])
    return places.index_put(where.nonzero(as_tuple=True), features)


def _spread_columns(
    columns: Iterable[Float[Tensor, "_n *rest"]], where: Bool[Tensor, "b m"]
) -> Float[Tensor, "b m *rest"]:
    """:func:`_spread` of features that come contrast by contrast."""
    return _spread(torch.cat(list(columns)), where.T).transpose(0, 1)


def _commonality(common: Float[Tensor, "b m c hc wc"], available: Bool[Tensor, "b m"]) -> Float[Tensor, ""]:
    """Mean absolute difference of two real contrasts' common features, over all pairs."""
    first, second = zip(*combinations(range(common.shape[1]), 2), strict=True)
    distance = (common[:, first].float() - common[:, second].float()).abs().mean((2, 3, 4))
    return counted_mean(distance, available[:, first] & available[:, second])
