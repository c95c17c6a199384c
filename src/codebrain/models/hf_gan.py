"""HF-GAN: features of every contrast and of their mixture, fused, turned towards one target, decoded.

Source: Cho, Woo & Park, "Principled Feature Disentanglement for High-Fidelity Unified Brain MRI Synthesis",
arXiv 2406.14954 (v2). The overview (two kinds of encoders, channel attention, infuser, losses and their
weights, optimiser) comes from a summary of the paper and its code. Read in the authors' public code
(github SSTDV-Project/HF-GAN, commit e4a9f53, no licence: facts only, written anew) are the order within a
block, where and with what padding the network halves and doubles, the two fused variants, that the decoder
has no skip at full resolution and no last activation, the three linear layers of the target embedding, the
critic's layers, and how the cycle's inputs are chosen. What is marked [proposal] is neither's.

The published method turns every batch through all contrasts as targets, one optimiser step each (three steps
for IXI, four for BraTS). Here a step draws one target per sample among its absent contrasts, evenly. The
published order is generator, then critic; here the critic steps first, on the same candidates. [proposal]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from codebrain.models._contract import ImputationModel, Loss, keep_present, withheld
from codebrain.nn.batch import Batch, counted_mean
from codebrain.nn.l1_loss import absolute_error
from codebrain.nn.padding import cut_to, pad_to_multiple
from codebrain.vocabulary import ModalitySet

_GROUPS = 8
_MISSING = -1.0  # what the network sees of a contrast that is not given, in its range [-1, 1]


@dataclass(frozen=True)
class HfGanSettings:
    """Sizes and loss weights.

    Attributes:
        width: channels at full resolution, a multiple of 8.
        multipliers: of the width, per level; each level but the last is followed by a halving.
        layers: of the infuser.
        heads: of its attention; they divide the lowest level's channels.
        dropout: in the infuser.
        grid: edge of the learned positions in tokens. [proposal] Positions are learned and start at zero, as
            published for one image size (15 x 15 for 240 pixels, 16 x 16 for 256); here they are interpolated
            to the image at hand.
        pixel_weight: of the L1 distance to the target, in the range [-1, 1].
        adversarial_weight: of the binary cross-entropy of patches, for both players.
        modality_weight: of the classification of the contrast, for both players.
        consistency_weight: of the cosine distance between the fused features of inputs and of cycle inputs.
        cycle_weight: of the L1 distance to an input, imputed back from the candidate.
        critic_width: channels of the critic's first layer.
        critic_halvings: of the critic. Images smaller than 24 pixels need fewer.
    """

    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 8, 10)
    layers: int = 4
    heads: int = 16
    dropout: float = 0.1
    grid: int = 16
    pixel_weight: float = 10.0
    adversarial_weight: float = 0.25
    modality_weight: float = 0.25
    consistency_weight: float = 1.0
    cycle_weight: float = 1.0
    critic_width: int = 64
    critic_halvings: int = 3


@dataclass(frozen=True)
class _Shared:
    """One step: the candidates, and one input of each sample imputed back from them.

    Attributes:
        target: the absent contrast that is imputed.
        source: the present contrast that is imputed back.
        counted: samples that have an absent contrast.
        candidate: images of the target, in the network's range.
        cycled: images of the source.
        similarity: cosine between the fused features of both passes.
    """

    target: Int[Tensor, "b"]
    source: Int[Tensor, "b"]
    counted: Bool[Tensor, "b"]
    candidate: Float[Tensor, "b 1 h w"]
    cycled: Float[Tensor, "b 1 h w"]
    similarity: Float[Tensor, "b"]


class HfGan(ImputationModel):
    """The model of the paper, for any number of contrasts and any image size."""

    Settings = HfGanSettings
    stages: ClassVar[tuple[str, ...]] = ("training",)
    training_only: ClassVar[tuple[str, ...]] = ("critic",)
    settings: HfGanSettings

    def __init__(self, modalities: ModalitySet, settings: HfGanSettings) -> None:
        super().__init__(modalities, settings)
        contrasts, widths = len(modalities), [settings.width * factor for factor in settings.multipliers]
        self.encoder = HybridEncoder(contrasts, widths)
        self.infuser = ModalityInfuser(contrasts, widths[-1], settings)
        self.decoder = Decoder(widths)
        self.critic = ModalityCritic(contrasts, width=settings.critic_width, halvings=settings.critic_halvings)

    # --- imputation ---

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """Encoded once, decoded once per contrast that some sample lacks, clamped to [0, 1]."""
        fused, skips = self._encode(2 * images - 1, present)
        channels = []
        for number in range(len(self.modalities)):
            rows = _rows(~present[:, number])
            channel = images[:, number : number + 1]
            if len(rows):
                target = torch.full_like(rows, number)
                decoded = self._decode(fused[rows], [skip[rows] for skip in skips], target, channel[rows])
                channel = channel.index_copy(0, rows, ((decoded + 1) / 2).clamp(0, 1).to(images.dtype))
            channels.append(channel)
        return keep_present(torch.cat(channels, dim=1), images, present)

    def _encode(
        self, scaled: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b c hc wc"], list[Tensor]]:
        given = withheld(scaled, present, _MISSING)
        multiple = 2 ** (len(self.settings.multipliers) - 1)
        fused: tuple[Tensor, list[Tensor]] = self.encoder(pad_to_multiple(given, multiple, _MISSING), present)
        return fused

    def _decode(
        self, fused: Tensor, skips: Sequence[Tensor], target: Int[Tensor, "b"], like: Float[Tensor, "b 1 h w"]
    ) -> Float[Tensor, "b 1 h w"]:
        decoded: Tensor = self.decoder(self.infuser(fused, target), skips)
        return cut_to(decoded, like).float()

    # --- training ---

    def players(self, stage: str) -> dict[str, nn.Module]:
        generator = nn.ModuleList([self.encoder, self.infuser, self.decoder])
        return {"critic": self.critic, "generator": generator}

    def share(
        self, batch: Batch, *, stage: str, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> _Shared:
        """The candidates for one target per sample, and the way back to one of its inputs.

        Without a generator the draws are the same every time.
        """
        generator = generator or torch.Generator()
        target, source = _draw(batch.absent, generator), _draw(batch.present, generator)
        scaled = 2 * batch.images - 1
        fused, skips = self._encode(scaled, batch.present)
        candidate = self._decode(fused, skips, target, scaled[:, :1])

        imputed = _one_hot(target, batch.present)
        substituted = torch.where(imputed[:, :, None, None], candidate.to(scaled.dtype), scaled)
        fused_again, skips_again = self._encode(substituted, _cycle_inputs(batch, imputed, source))
        return _Shared(
            target,
            source,
            batch.absent.any(dim=1),
            candidate,
            cycled=self._decode(fused_again, skips_again, source, candidate),
            similarity=F.cosine_similarity(fused.float().flatten(1), fused_again.float().flatten(1)),
        )

    def loss(self, player: str, batch: Batch, shared: _Shared, *, stage: str, progress: float) -> Loss:
        return self._critic_loss(batch, shared) if player == "critic" else self._generator_loss(batch, shared)

    def _critic_loss(self, batch: Batch, shared: _Shared) -> Loss:
        """Candidates against inputs of the same samples, whose contrasts differ from the candidates'."""
        real = self._judge(_pick(2 * batch.images - 1, shared.source), 1.0, shared.source, shared.counted)
        fake = self._judge(shared.candidate.detach(), 0.0, shared.target, shared.counted)
        adversarial, modality = real[0] + fake[0], real[1] + fake[1]
        total = self.settings.adversarial_weight * adversarial + self.settings.modality_weight * modality
        names = ("real", "real_modality", "fake", "fake_modality")
        return Loss(total, {name: part.detach() for name, part in zip(names, (*real, *fake), strict=True)})

    def _generator_loss(self, batch: Batch, shared: _Shared) -> Loss:
        scaled, settings = 2 * batch.images - 1, self.settings
        adversarial, modality = self._judge(shared.candidate, 1.0, shared.target, shared.counted)
        parts = {
            "pixel": counted_mean(_distance(shared.candidate, _pick(scaled, shared.target)), shared.counted),
            "adversarial": adversarial,
            "modality": modality,
            "consistency": counted_mean(1 - shared.similarity, shared.counted),
            "cycle": counted_mean(_distance(shared.cycled, _pick(scaled, shared.source)), shared.counted),
        }
        total = torch.stack([getattr(settings, f"{name}_weight") * part for name, part in parts.items()]).sum()
        return Loss(total, {name: part.detach() for name, part in parts.items()})

    def _judge(
        self, images: Float[Tensor, "b 1 h w"], goal: float, contrast: Int[Tensor, "b"], counted: Bool[Tensor, "b"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """How far the critic's verdict is from ``goal``, and its guess from the contrast."""
        scores, classes = self.critic(images)
        wrong = F.binary_cross_entropy_with_logits(
            scores.float(), torch.full_like(scores.float(), goal), reduction="none"
        )
        confused = F.cross_entropy(classes.float(), contrast, reduction="none")
        return counted_mean(wrong.mean((1, 2, 3)), counted), counted_mean(confused, counted)


# --- the network ---


class ResidualBlock(nn.Module):
    """GroupNorm of 8 groups, SiLU, convolution of kernel 3; a 1 x 1 convolution beside it where widths differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.GroupNorm(_GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        result: Tensor = self.body(features) + self.shortcut(features)
        return result


class Encoder(nn.Module):
    """Images to the features of every level, the finest first; one residual block per level.

    Args:
        contrasts: channels of the images.
        widths: channels per level.
    """

    def __init__(self, contrasts: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(contrasts, widths[0], 3, padding=1)
        pairs = pairwise([widths[0], *widths])
        self.blocks = nn.ModuleList(ResidualBlock(inputs, outputs) for inputs, outputs in pairs)
        self.halvings = nn.ModuleList(_halving(width) for width in widths[:-1])

    def forward(self, images: Float[Tensor, "b m h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        features = self.first(images)
        levels = [self.blocks[0](features)]
        for halve, block in zip(self.halvings, self.blocks[1:], strict=True):
            levels.append(block(halve(levels[-1])))
        return levels


class HybridEncoder(nn.Module):
    """One encoder of all contrasts together (early fusion) and one of each alone, fused at the lowest level.

    A sample with a single contrast is encoded by that contrast's encoder alone.

    Args:
        contrasts: m.
        widths: channels per level.
    """

    def __init__(self, contrasts: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.early = Encoder(contrasts, widths)
        self.single = nn.ModuleList(Encoder(1, widths) for _ in range(contrasts))
        self.early_gate = _gate(widths[-1])
        self.single_gates = nn.ModuleList(_gate(widths[-1]) for _ in range(contrasts))
        self.fuse = nn.Conv2d(2 * widths[-1], widths[-1], 1)

    def forward(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b c hc wc"], list[Float[Tensor, "b _ _ _"]]]:
        """Fused features, and the skips of all levels but the finest, which the decoder does not use."""
        early = _encode_some(self.early, images, present.sum(dim=1) > 1)
        single = [
            _encode_some(encoder, images[:, number : number + 1], present[:, number])
            for number, encoder in enumerate(self.single)
        ]
        count = present.sum(dim=1)[:, None, None, None]
        skips = [together + sum(alone) / count for together, *alone in zip(early, *single, strict=True)]
        return self._fuse(early[-1], torch.stack([levels[-1] for levels in single], dim=1), present), skips

    def _fuse(
        self, early: Float[Tensor, "b c h w"], single: Float[Tensor, "b m c h w"], present: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b c h w"]:
        """Two variants side by side: all gated; the single ones weighed against each other, early as it is."""
        gates = torch.stack([gate(single[:, number]) for number, gate in enumerate(self.single_gates)], dim=1)
        gated = (gates * single).sum(dim=1) + self.early_gate(early) * early
        here = present[:, :, None, None, None]
        weights = gates.float().masked_fill(~here, -torch.inf).softmax(dim=1).to(single.dtype)
        fused: Tensor = self.fuse(torch.cat([gated, (weights * single).sum(dim=1) + early], dim=1))
        return fused


class ModalityInfuser(nn.Module):
    """A transformer over the lowest level's places, told which contrast to aim at.

    Args:
        contrasts: m.
        width: channels of a token.
        settings: layers, heads, dropout and grid.
    """

    def __init__(self, contrasts: int, width: int, settings: HfGanSettings) -> None:
        super().__init__()
        self.embed = nn.Conv2d(width, width, 1)
        self.positions = nn.Parameter(torch.zeros(1, width, settings.grid, settings.grid))
        self.dropout = nn.Dropout(settings.dropout)
        self.target = nn.Sequential(
            nn.Linear(contrasts, width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        layers = (
            TransformerLayer(width, heads=settings.heads, dropout=settings.dropout) for _ in range(settings.layers)
        )
        self.layers = nn.Sequential(*layers, nn.LayerNorm(width, eps=1e-6))
        self.contrasts = contrasts

    def forward(self, features: Float[Tensor, "b c h w"], target: Int[Tensor, "b"]) -> Float[Tensor, "b c h w"]:
        height, width = features.shape[-2:]
        positions = F.interpolate(self.positions, size=(height, width), mode="bilinear", align_corners=False)
        tokens = rearrange(self.dropout(self.embed(features) + positions), "b c h w -> b (h w) c")
        aim = self.target(F.one_hot(target, self.contrasts).to(tokens.dtype))
        infused: Tensor = self.layers(tokens + aim[:, None])
        return rearrange(infused, "b (h w) c -> b c h w", h=height, w=width)


class TransformerLayer(nn.Module):
    """Attention and a SiLU network four times as wide, each normalised before and added to its input.

    Args:
        width: channels of a token.
        heads: of the attention.
        dropout: of attention weights, hidden units and what is added.
    """

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.project_in, self.project_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for linear in (self.widen, self.narrow):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        tokens = tokens + self.dropout(self._attend(self.norm1(tokens)))
        hidden = self.dropout(F.silu(self.widen(self.norm2(tokens))))
        result: Tensor = tokens + self.dropout(self.narrow(hidden))
        return result

    def _attend(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        query, key, value = rearrange(self.project_in(tokens), "b n (t k d) -> t b k n d", t=3, k=self.heads)
        chance = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=chance)
        result: Tensor = self.project_out(rearrange(attended, "b k n d -> b n (k d)"))
        return result


class Decoder(nn.Module):
    """Infused features and skips to one image; nothing bounds its values.

    Args:
        widths: channels per level, the finest first.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = list(pairwise(reversed(widths)))
        self.blocks = nn.ModuleList(ResidualBlock(2 * inputs, outputs) for inputs, outputs in pairs)
        self.doublings = nn.ModuleList(_doubling(outputs) for _, outputs in pairs)
        finest = widths[0]
        self.last = nn.Sequential(
            ResidualBlock(finest, finest), nn.GroupNorm(_GROUPS, finest), nn.SiLU(), nn.Conv2d(finest, 1, 1)
        )

    def forward(
        self, infused: Float[Tensor, "b c hc wc"], skips: Sequence[Float[Tensor, "b _ _ _"]]
    ) -> Float[Tensor, "b 1 h w"]:
        features = infused
        for block, double, skip in zip(self.blocks, self.doublings, reversed(skips), strict=True):
            features = double(block(torch.cat([features, skip.to(features.dtype)], dim=1)))
        image: Tensor = self.last(features)
        return image


class ModalityCritic(nn.Module):
    """A PatchGAN with GroupNorm that also tells which contrast it sees.

    The published classifier is one convolution as large as the feature map (29 x 29 or 31 x 31), which ties
    it to one image size. [proposal] Here it has the kernel of the scores and its answers are averaged.

    Args:
        contrasts: classes.
        width: channels of the first layer; doubled by every halving and once more at the end, at most 8 times.
        halvings: convolutions of stride 2.
    """

    def __init__(self, contrasts: int, *, width: int, halvings: int) -> None:
        super().__init__()
        widths = [width * min(2**number, 8) for number in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stride = 2 if number < halvings else 1
            layers.append(nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=False))
            layers += [nn.GroupNorm(_GROUPS, outputs), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.scores = nn.Conv2d(widths[-1], 1, 4, padding=1, bias=False)
        self.classes = nn.Conv2d(widths[-1], contrasts, 4, padding=1, bias=False)

    def forward(self, image: Float[Tensor, "b 1 h w"]) -> tuple[Float[Tensor, "b 1 hp wp"], Float[Tensor, "b m"]]:
        """Scores of patches, and scores of the contrasts."""
        features = self.layers(image)
        return self.scores(features), self.classes(features).mean((2, 3))


def _halving(width: int) -> nn.Module:
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, 3, stride=2))


def _doubling(width: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(width, width, 3, padding=1))


def _gate(width: int) -> nn.Module:
    """Channel attention: how much of each channel passes, from its mean over the image."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.SiLU(), nn.Conv2d(width, width, 1), nn.Sigmoid()
    )


def _encode_some(encoder: nn.Module, images: Float[Tensor, "b k h w"], wanted: Bool[Tensor, "b"]) -> list[Tensor]:
    """Levels but the finest, of the wanted samples; zeros for the others, which cost nothing.

    No sample at all is encoded too, so that every encoder has a gradient, be it zero, on every process.
    """
    rows = _rows(wanted)
    levels: list[Tensor] = encoder(images[rows])
    return [level.new_zeros(len(images), *level.shape[1:]).index_copy(0, rows, level) for level in levels[1:]]


# --- chance and sums ---


def _rows(wanted: Bool[Tensor, "b"]) -> Int[Tensor, "_k"]:
    return wanted.nonzero()[:, 0]


def _draw(among: Bool[Tensor, "b m"], generator: torch.Generator) -> Int[Tensor, "b"]:
    """One contrast per sample, evenly among those marked; the first where none is."""
    lots = torch.rand(among.shape, generator=generator).to(among.device)
    return lots.masked_fill(~among, -1).argmax(dim=1)


def _one_hot(contrast: Int[Tensor, "b"], like: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
    return F.one_hot(contrast, like.shape[1]).bool()


def _cycle_inputs(batch: Batch, imputed: Bool[Tensor, "b m"], source: Int[Tensor, "b"]) -> Bool[Tensor, "b m"]:
    """From several inputs: every contrast but the source; from one: the candidate alone, as published."""
    several = batch.present.sum(dim=1, keepdim=True) > 1
    return torch.where(several, batch.available & ~_one_hot(source, batch.present), imputed)


def _pick(images: Float[Tensor, "b m h w"], contrast: Int[Tensor, "b"]) -> Float[Tensor, "b 1 h w"]:
    return images[torch.arange(len(images), device=images.device), contrast][:, None]


def _distance(candidate: Float[Tensor, "b 1 h w"], truth: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b"]:
    return absolute_error(candidate, truth)[:, 0]
