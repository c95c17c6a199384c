"""MMT: any set of contrasts through a multi-scale Swin transformer, and one query per wanted contrast.

Source: Liu et al., "One Model to Synthesize Them All: Multi-contrast Multi-scale Transformer for Missing Data
Imputation", IEEE TMI 42(9), 2023, arXiv 2204.13738. Sizes, loss weights and the critics are those of the
authors' own experiments. An absent contrast is absent: no zero image stands for it. The samples of a batch are
taken together by pattern, each pattern through an encoder of just its contrasts, and only what is wanted is
decoded.

Ours: grids that are no multiple of the window are padded inside the attention, and a window shrinks to a
smaller grid and takes the middle of its bias table, so that images need to be multiples of 32 only; ``dim``
need not be a multiple of 16 (see :class:`MmtSettings`); the critics step before the generator. Images are
normalised, and the best weights chosen, as for all models here; the source divides a volume by its mean and chooses
by absolute error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops.layers.torch import Rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from codebrain.models._contract import ImputationModel, Loss, keep_present
from codebrain.nn.batch import Batch, counted_mean
from codebrain.nn.l1_loss import absolute_error
from codebrain.nn.padding import cut_to, pad_to_multiple
from codebrain.nn.patterns import by_pattern
from codebrain.nn.swin import JointBlock, PatchExpanding, PatchMerging, QueryBlock, start_linear
from codebrain.vocabulary import ModalitySet

_PATCH = 4
"""Edge in pixels of what becomes one token."""


@dataclass(frozen=True)
class MmtSettings:
    """Sizes and loss weights.

    Attributes:
        dim: channels of a token at the finest grid; doubled at each coarser one. The heads' convolutions have
            ``dim / 16`` channels; where that is no whole number it is rounded up, and a linear layer that the
            published network has no need of brings the folded pixels to ``dim`` and back.
        window: edge of the attention windows in tokens.
        heads: of attention at each grid, finest first.
        depths: blocks at each grid, on the encoder's way down and again on its way up.
        decoder_depth: blocks at each grid of the decoder.
        critic_width: channels of a critic's first layer.
        absent_weight: of the L1 loss on absent contrasts.
        present_weight: of the L1 loss on present contrasts.
        adversarial_weight: of the least-squares GAN on absent contrasts, for both players.
        smoothing: largest distance of the critics' targets from 0 and 1.
    """

    dim: int = 96
    window: int = 8
    heads: tuple[int, ...] = (3, 6, 12, 24)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    decoder_depth: int = 2
    critic_width: int = 64
    absent_weight: float = 20.0
    present_weight: float = 5.0
    adversarial_weight: float = 0.1
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if len(self.heads) != len(self.depths):
            raise ValueError("heads and depths name the same grids, so they are equally many")
        if any(width % heads for width, heads in zip(self.widths, self.heads, strict=True)):
            raise ValueError("the channels at each grid are a multiple of its heads")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each grid, finest first."""
        return tuple(self.dim * 2**level for level in range(len(self.depths)))

    @property
    def multiple(self) -> int:
        """What the edges of an image are padded to a multiple of: 32 pixels for four grids."""
        return int(_PATCH * 2 ** (len(self.depths) - 1))


@dataclass(frozen=True)
class _Shared:
    # Candidate images, and the random distances of the critics' targets from fake 0 and real 1, per contrast
    # and scale.
    candidate: Tensor
    smoothing: Tensor


class Mmt(ImputationModel):
    """The random-pattern model of the paper, for any number of contrasts."""

    Settings = MmtSettings
    stages: ClassVar[tuple[str, ...]] = ("training",)
    training_only: ClassVar[tuple[str, ...]] = ("critics",)
    settings: MmtSettings

    def __init__(self, modalities: ModalitySet, settings: MmtSettings) -> None:
        super().__init__(modalities, settings)
        count = len(modalities)
        self.heads = nn.ModuleList(_head(settings.dim) for _ in range(count))
        self.encoder = Encoder(count, settings)
        self.decoder = Decoder(count, settings)
        self.tails = nn.ModuleList(_tail(settings.dim) for _ in range(count))
        self.critics = nn.ModuleList(MultiScaleCritic(settings.critic_width) for _ in range(count))
        for part in (self.heads, self.encoder, self.decoder, self.tails):
            part.apply(start_linear)

    # --- imputation ---

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """The absent contrasts decoded, each from all present ones, and clamped to [0, 1]."""
        return keep_present(self._candidate(images, present, ~present).clamp(0, 1), images, present)

    def _candidate(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"], wanted: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b m h w"]:
        # Zero where nothing is wanted. The cost is linear in what is.
        padded = pad_to_multiple(images, self.settings.multiple)
        candidate = torch.zeros_like(padded)
        for pattern, samples in by_pattern(present):
            given = [number for number, here in enumerate(pattern) if here]
            targets = [number for number, here in enumerate(wanted[samples].any(0).tolist()) if here]
            if targets:
                places = samples[:, None], torch.tensor(targets, device=images.device)
                candidate[places] = self._decode(padded[samples], given, targets).to(candidate.dtype)
        return cut_to(candidate, images)

    def _decode(
        self, images: Float[Tensor, "b m h w"], given: Sequence[int], wanted: Sequence[int]
    ) -> Float[Tensor, "b t h w"]:
        tokens = torch.stack([self.heads[number](images[:, number : number + 1]) for number in given], dim=1)
        decoded = self.decoder(self.encoder(tokens, given), given, wanted)
        return torch.cat([self.tails[number](decoded[:, place]) for place, number in enumerate(wanted)], dim=1)

    # --- training ---

    def players(self, stage: str) -> dict[str, nn.Module]:
        generator = nn.ModuleList([self.heads, self.encoder, self.decoder, self.tails])
        return {"critic": self.critics, "generator": generator}

    def share(
        self, batch: Batch, *, stage: str, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Any:
        """Candidates of everything that has truth, and the critics' smoothed targets."""
        drawn = torch.rand(2, len(self.modalities), MultiScaleCritic.SCALES, generator=generator)
        candidate = self._candidate(batch.images, batch.present, batch.available)
        return _Shared(candidate, self.settings.smoothing * drawn)

    def loss(self, player: str, batch: Batch, shared: Any, *, stage: str, progress: float) -> Loss | None:
        if player == "critic":
            return self._critic_loss(batch, shared)
        return self._generator_loss(batch, shared.candidate)

    def _critic_loss(self, batch: Batch, shared: _Shared) -> Loss | None:
        judged = []
        for number, samples in _absent_samples(batch):
            critic, (low, high) = self.critics[number], shared.smoothing[:, number]
            fake = _distance(critic(_one(shared.candidate.detach(), number, samples)), low.tolist())
            real = _distance(critic(_one(batch.images, number, samples)), (1 - high).tolist())
            judged += [torch.stack([fake, real])] if fake is not None and real is not None else []
        if not judged or not self.settings.adversarial_weight:
            return None
        fake, real = torch.stack(judged).mean(0)
        return Loss(self.settings.adversarial_weight * (fake + real), {"fake": fake.detach(), "real": real.detach()})

    def _generator_loss(self, batch: Batch, candidate: Float[Tensor, "b m h w"]) -> Loss:
        error = absolute_error(candidate, batch.images)
        absent, present = counted_mean(error, batch.absent), counted_mean(error, batch.present)
        total = self.settings.absent_weight * absent + self.settings.present_weight * present
        parts = {"l1_absent": absent.detach(), "l1_present": present.detach()}
        if self.settings.adversarial_weight:
            adversarial = self._adversarial(batch, candidate)
            total = total + self.settings.adversarial_weight * adversarial
            parts["adversarial"] = adversarial.detach()
        return Loss(total, parts)

    def _adversarial(self, batch: Batch, candidate: Float[Tensor, "b m h w"]) -> Float[Tensor, ""]:
        ones = [1.0] * MultiScaleCritic.SCALES
        judged = [
            _distance(self.critics[number](_one(candidate, number, samples)), ones)
            for number, samples in _absent_samples(batch)
        ]
        known = [distance for distance in judged if distance is not None]
        return torch.stack(known).mean() if known else candidate.new_zeros(())


class JointStage(nn.Module):
    """Blocks at one grid of the encoder, and what marks each contrast there."""

    def __init__(self, contrasts: int, width: int, heads: int, *, depth: int, window: int) -> None:
        super().__init__()
        self.marks = _marks(contrasts, width)
        self.blocks = nn.ModuleList(
            JointBlock(width, heads, window=window, shifted=number % 2 == 1) for number in range(depth)
        )

    def forward(self, tokens: Float[Tensor, "b n h w d"], contrasts: Sequence[int]) -> Float[Tensor, "b n h w d"]:
        for block in self.blocks:
            tokens = block(tokens, self.marks[list(contrasts)])
        return tokens


class Encoder(nn.Module):
    """A set of contrasts to features at four grids: a U of Swin stages, in which the contrasts attend jointly.

    Args:
        contrasts: how many there are; any non-empty subset may be given, in any order.
        settings: sizes.
    """

    def __init__(self, contrasts: int, settings: MmtSettings) -> None:
        super().__init__()
        widths, finest = settings.widths, settings.widths[:-1]

        def stages() -> list[JointStage]:
            sizes = zip(widths, settings.heads, settings.depths, strict=True)
            return [JointStage(contrasts, d, k, depth=depth, window=settings.window) for d, k, depth in sizes]

        self.down = nn.ModuleList(stages())
        self.merge = nn.ModuleList(PatchMerging(width) for width in finest)
        self.up = nn.ModuleList(reversed(stages()))
        self.expand = nn.ModuleList(PatchExpanding(2 * width) for width in reversed(finest))
        self.join = nn.ModuleList(nn.Linear(2 * width, width) for width in reversed(finest))

    def forward(
        self, tokens: Float[Tensor, "b n h w d"], contrasts: Sequence[int]
    ) -> list[Float[Tensor, "b n _h _w _d"]]:
        """Features at each grid, coarsest first; ``contrasts`` says which ones the tokens are, in their order."""
        skips = [self.down[0](tokens, contrasts)]
        for merge, stage in zip(self.merge, self.down[1:], strict=True):
            skips.append(stage(merge(skips[-1]), contrasts))
        scales = [self.up[0](skips.pop(), contrasts)]
        for expand, join, stage in zip(self.expand, self.join, self.up[1:], strict=True):
            scales.append(stage(join(torch.cat([expand(scales[-1]), skips.pop()], dim=-1)), contrasts))
        return scales


class QueryStage(nn.Module):
    """Blocks at one grid of the decoder, and what marks the wanted and the given contrasts there."""

    def __init__(self, contrasts: int, width: int, heads: int, *, depth: int, window: int) -> None:
        super().__init__()
        self.wanted_marks = _marks(contrasts, width)
        self.given_marks = _marks(contrasts, width)
        self.blocks = nn.ModuleList(
            QueryBlock(width, heads, window=window, shifted=number % 2 == 1) for number in range(depth)
        )

    def forward(
        self,
        tokens: Float[Tensor, "b t h w d"],
        features: Float[Tensor, "b n h w d"],
        given: Sequence[int],
        wanted: Sequence[int],
    ) -> Float[Tensor, "b t h w d"]:
        for block in self.blocks:
            tokens = block(tokens, self.wanted_marks[list(wanted)], features, self.given_marks[list(given)])
        return tokens


class Decoder(nn.Module):
    """From nothing but the name of a contrast to its features, coarse to fine, asking the encoder at each grid.

    Args:
        contrasts: how many there are; each wanted one is decoded as if it were alone.
        settings: sizes.
    """

    def __init__(self, contrasts: int, settings: MmtSettings) -> None:
        super().__init__()
        depth, window = settings.decoder_depth, settings.window
        sizes = list(zip(settings.widths, settings.heads, strict=True))[::-1]
        self.stages = nn.ModuleList(QueryStage(contrasts, d, k, depth=depth, window=window) for d, k in sizes)
        self.expand = nn.ModuleList(PatchExpanding(width) for width, _ in sizes[:-1])

    def forward(
        self, scales: Sequence[Float[Tensor, "b n _h _w _d"]], given: Sequence[int], wanted: Sequence[int]
    ) -> Float[Tensor, "b t h w d"]:
        """``scales`` come from the :class:`Encoder`; tokens of the wanted contrasts at the finest grid."""
        samples, _, *grid = scales[0].shape
        tokens = scales[0].new_zeros(samples, len(wanted), *grid)
        for level, (stage, features) in enumerate(zip(self.stages, scales, strict=True)):
            tokens = self.expand[level - 1](tokens) if level else tokens
            tokens = stage(tokens, features, given, wanted)
        return tokens


class MultiScaleCritic(nn.Module):
    """Patch scores of one contrast at three scales, each with convolutions of its own.

    Batch norms use the batch's statistics only, so that the critic holds no state besides its weights. They
    need two values: a scale at which the batch leaves but one score, or none, is not judged.

    Args:
        width: channels after the first layer; doubled at each of three more halvings.
    """

    SCALES: ClassVar[int] = 3

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_patch_scores(width) for _ in range(self.SCALES))
        self.halve = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)

    def forward(self, images: Float[Tensor, "b 1 h w"]) -> list[Float[Tensor, "b 1 _h _w"]]:
        """Scores at the scales that can be judged, finest first."""
        scores = []
        for scale in self.scales:
            if len(images) * (images.shape[2] // 16) * (images.shape[3] // 16) > 1:
                scores.append(scale(images))
            images = self.halve(images)
        return scores


def _marks(contrasts: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(contrasts, width), std=0.02))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(width, width, 5, padding=2) for _ in range(2))
        self.layers = nn.Sequential(first, nn.ReLU(), second)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        result: Tensor = features + self.layers(features)
        return result


def _head(dim: int) -> nn.Sequential:
    # An image (b, 1, h, w) to tokens (b, h/4, w/4, dim).
    width = -(-dim // _PATCH**2)
    layers: list[nn.Module] = [nn.Conv2d(1, width, 7, padding=3), _Residual(width), _Residual(width)]
    layers.append(Rearrange("b c (h p) (w q) -> b h w (p q c)", p=_PATCH, q=_PATCH))
    layers += [nn.Linear(width * _PATCH**2, dim)] if dim % _PATCH**2 else []
    return nn.Sequential(*layers)


def _tail(dim: int) -> nn.Sequential:
    # Tokens back to an image that is nowhere negative.
    width = -(-dim // _PATCH**2)
    layers: list[nn.Module] = [nn.Linear(dim, width * _PATCH**2)] if dim % _PATCH**2 else []
    layers += [Rearrange("b h w (p q c) -> b (h p) (w q) c", p=_PATCH, q=_PATCH), nn.LayerNorm(width)]
    layers += [Rearrange("b h w c -> b c h w"), _Residual(width), _Residual(width)]
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 7, padding=3), nn.ReLU())


def _patch_scores(width: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for inputs in (width, 2 * width, 4 * width):
        layers.append(nn.Conv2d(inputs, 2 * inputs, 4, stride=2, padding=1))
        layers += [nn.BatchNorm2d(2 * inputs, track_running_stats=False), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 1))


def _absent_samples(batch: Batch) -> list[tuple[int, Tensor]]:
    # Each contrast that is absent somewhere, and the samples in which it is.
    columns = enumerate(batch.absent.unbind(1))
    return [(number, column.nonzero()[:, 0]) for number, column in columns if bool(column.any())]


def _one(images: Tensor, number: int, samples: Tensor) -> Float[Tensor, "k 1 h w"]:
    return images[samples, number : number + 1]


def _distance(scores: Sequence[Tensor], targets: Sequence[float]) -> Float[Tensor, ""] | None:
    # Mean squared distance to the target of each scale, summed over the scales as the authors do; None for none.
    squares = [(score.float() - target).square().mean() for score, target in zip(scores, targets, strict=False)]
    return torch.stack(squares).sum() if squares else None
