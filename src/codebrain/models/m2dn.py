"""M2DN: one diffusion model that noises the missing contrasts only and predicts all of them, clean.

Source: Meng et al., "Multi-modal Modality-masked Diffusion Network for Brain MRI Synthesis with Random Modality
Missing", IEEE TMI 43(7), 2024: network (figure 3), masked noising and joint reconstruction (figure 2); Ho et al.,
"Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv 2006.11239, equations 4 and 7 (noise); Song et al.,
"Denoising Diffusion Implicit Models", ICLR 2021, arXiv 2010.02502, equations 12 and 16 (sampler); Hu et al.,
"Squeeze-and-Excitation Networks", CVPR 2018 (channel attention). No code was published. What we could read of the
paper leaves schedule, sampler, optimiser and some details of the layers open; what we chose is marked "a proposal"
here and in the recipes. Of the layers: one linear layer for the sinusoids of the noise level, a 1 x 1 convolution from
features and mask at the bottleneck, and which block of a stage changes the width are proposals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from codebrain.models._contract import ImputationModel, Loss, keep_present, withheld
from codebrain.nn.attention import ChannelAttention
from codebrain.nn.batch import Batch, counted_mean
from codebrain.nn.padding import cut_to, pad_to_multiple
from codebrain.vocabulary import ModalitySet

_HALVINGS = 4
_BACKGROUND = -1.0  # of the range [-1, 1] in which the network works


@dataclass(frozen=True)
class M2DNSettings:
    """Size, noise and sampler; only the width is published.

    Attributes:
        width: channels of each contrast's features and of the bottleneck.
        timesteps: noise levels T (a proposal; the paper's number is not known to us).
        betas: variance that the first and the last noise level add, linear between (a proposal, from Ho et al.);
            fewer timesteps need larger ones to end in pure noise.
        sampling_steps: network passes per imputation, evenly spaced from T (a proposal: the reported time per
            image suggests tens); 1 is the first prediction from pure noise, ``timesteps`` visits every level.
        eta: 0 samples deterministically after the first noise (DDIM, a proposal: chance costs PSNR); above 0
            every step adds noise, and 1 with all ``timesteps`` is the ancestral sampler of Ho et al.
        seed: of the noise, when no generator is given.
        validation_steps: network passes when a stage is judged (a proposal, to save time).
    """

    width: int = 128
    timesteps: int = 1000
    betas: tuple[float, float] = (1e-4, 0.02)
    sampling_steps: int = 50
    eta: float = 0.0
    seed: int = 0
    validation_steps: int = 10

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            raise ValueError("the width is an even number of channels")
        if not all(1 <= steps <= self.timesteps for steps in (self.sampling_steps, self.validation_steps)):
            raise ValueError(f"sampling and validation take 1 to {self.timesteps} (timesteps) steps")
        if not 0 < self.betas[0] <= self.betas[1] < 1:
            raise ValueError("betas are two numbers between 0 and 1, the smaller one first")
        if not 0 <= self.eta <= 1:
            raise ValueError("eta lies between 0 and 1")


class M2DN(ImputationModel):
    """Masked diffusion over the stack of contrasts.

    A call draws one noise field and shares it over the batch: a slice is completed alike alone and in a batch,
    and neighbouring slices of a volume get neighbouring answers.
    """

    Settings = M2DNSettings
    stages: ClassVar[tuple[str, ...]] = ("training",)
    settings: M2DNSettings
    signal: Tensor

    def __init__(self, modalities: ModalitySet, settings: M2DNSettings) -> None:
        super().__init__(modalities, settings)
        self.network = Denoiser(len(modalities), width=settings.width)
        self.signal_levels = _signal_levels(settings)
        self.register_buffer("signal", torch.tensor(self.signal_levels, dtype=torch.float32), persistent=False)

    # --- imputation ---

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """Sampled in ``sampling_steps``; no gradient passes through it."""
        return self.sample(images, present, steps=self.settings.sampling_steps, generator=generator)

    @torch.no_grad()
    def sample(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        *,
        steps: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """Complete the images in any number of steps.

        Args:
            images: contrasts in [0, 1].
            present: which of them are given; they enter every step clean, whatever the network made of them.
            steps: network passes, 1 to ``timesteps``.
            generator: source of chance; one seeded with ``settings.seed`` when absent.
        """
        generator = generator or torch.Generator().manual_seed(self.settings.seed)
        given = present[:, :, None, None]
        clean = _outward(withheld(images.float(), present))
        known = self.network.enter(clean, present.all(dim=0).tolist())
        noisy = torch.where(given, clean, _shared_noise(clean, generator))
        for level, following in self._levels(steps):
            moment = torch.full((len(images),), level, device=images.device)
            predicted = self.network(noisy, moment, ~present, known).float()
            noisy = torch.where(given, clean, self._less_noisy(noisy, predicted, level, following, generator))
        candidate = _inward(cut_to(noisy, images)).clamp(0, 1)
        return keep_present(candidate.to(images.dtype), images, present)

    def _levels(self, steps: int) -> Iterator[tuple[int, int]]:
        """Pairs of a noise level and the one that follows, from T down to 0 (clean)."""
        last = self.settings.timesteps
        return pairwise(round(last * left / steps) for left in range(steps, -1, -1))

    def _less_noisy(
        self,
        noisy: Float[Tensor, "b m h w"],
        predicted: Float[Tensor, "b m h w"],
        level: int,
        following: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "b m h w"]:
        """One step of the sampler; at level 0 it is the prediction itself (Song et al., equations 12 and 16)."""
        now, then = self.signal_levels[level], self.signal_levels[following]
        spread = self.settings.eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        noise = (noisy - math.sqrt(now) * predicted) / math.sqrt(1 - now)
        result = math.sqrt(then) * predicted + math.sqrt(max(1 - then - spread**2, 0.0)) * noise
        return result + spread * _shared_noise(noisy, generator) if spread else result

    # --- training ---

    def players(self, stage: str) -> dict[str, nn.Module]:
        return {"generator": self.network}

    def share(
        self, batch: Batch, *, stage: str, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Any:
        """The prediction of all contrasts, in [-1, 1], from one noise level per sample."""
        device = None if generator is None else generator.device
        size = (len(batch.images),)
        level = torch.randint(1, self.settings.timesteps + 1, size, generator=generator, device=device)
        level = level.to(batch.images.device)
        images = _outward(batch.images.float())
        noise = torch.randn(images.shape, generator=generator, device=device).to(images.device)
        predicted = self.network(self._masked_noisy(images, noise, level, batch), level, ~batch.present)
        return cut_to(predicted.float(), batch.images)

    def _masked_noisy(
        self, images: Float[Tensor, "b m h w"], noise: Float[Tensor, "b m h w"], level: Int[Tensor, "b"], batch: Batch
    ) -> Float[Tensor, "b m h w"]:
        """Given contrasts clean, withheld ones noisy, and noise alone where there is no truth to hide in it."""
        signal = self.signal[level][:, None, None, None]
        hidden = torch.where(batch.available[:, :, None, None], signal.sqrt() * images, 0.0)
        weight = torch.where(batch.available[:, :, None, None], (1 - signal).sqrt(), 1.0)
        return keep_present(hidden + weight * noise, images, batch.present)

    def loss(self, player: str, batch: Batch, shared: Any, *, stage: str, progress: float) -> Loss:
        """Mean squared error of given and withheld contrasts alike, in the range [-1, 1]."""
        error = (shared - _scaled(batch.images.float())).square().mean((2, 3))
        parts = {
            "mse_absent": counted_mean(error, batch.absent).detach(),
            "mse_present": counted_mean(error, batch.present).detach(),
        }
        return Loss(counted_mean(error, batch.available), parts)

    def validate(self, batch: Batch, *, stage: str) -> Float[Tensor, "b m h w"]:
        """As :meth:`forward`, in fewer steps."""
        return self.sample(batch.incomplete, batch.present, steps=self.settings.validation_steps)


class Denoiser(nn.Module):
    """Noisy stack, noise level and mask to the clean stack, everything in [-1, 1].

    Each contrast has an entry and an exit of its own; between them is a U without skips from encoder to decoder,
    as drawn. A side of the images is halved four times, so it must be a multiple of 16.

    Args:
        contrasts: m.
        width: channels per contrast after its entry, and of the bottleneck.
    """

    def __init__(self, contrasts: int, *, width: int) -> None:
        super().__init__()
        wide, middle = contrasts * width, contrasts * width // 2
        self.width, embedding = width, 4 * width
        self.time = nn.Linear(width, embedding)
        self.entries = nn.ModuleList(_entry(width) for _ in range(contrasts))
        self.encoder = nn.ModuleList([
            UStage((wide, wide, middle), embedding, scale=0.5),
            UStage((middle, middle, width), embedding, scale=0.5),
            UStage((width, width, width), embedding, scale=0.5, attention=True),
        ])  # fmt: skip
        self.told = nn.Conv2d(width + contrasts, width, 1)
        self.decoder = nn.ModuleList([
            UStage((width, width, width), embedding, scale=2.0, attention=True),
            UStage((width, middle, middle), embedding, scale=2.0),
            UStage((middle, wide, wide), embedding, scale=2.0),
        ])  # fmt: skip
        self.exits = nn.ModuleList(_exit(width) for _ in range(contrasts))

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        level: Int[Tensor, "b"],
        missing: Bool[Tensor, "b m"],
        known: Mapping[int, Tensor] | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """Predict all contrasts.

        Args:
            images: the missing contrasts noisy, the others clean.
            level: of the noise, 1 to T.
            missing: the mask v, true where a contrast is missing.
            known: features of contrasts that :meth:`enter` has computed already.
        """
        known = known or {}
        moment = self.time(_sinusoids(level, self.width))
        entered = [known[i] if i in known else entry(images[:, i : i + 1]) for i, entry in enumerate(self.entries)]
        features = torch.cat(entered, dim=1)
        for stage in self.encoder:
            features = stage(features, moment)
        mask = missing.to(features.dtype)[:, :, None, None].expand(-1, -1, *features.shape[2:])
        features = self.told(torch.cat([features, mask], dim=1))
        for stage in self.decoder:
            features = stage(features, moment)
        parts = features.split(self.width, dim=1)
        return torch.cat([leave(part) for leave, part in zip(self.exits, parts, strict=True)], dim=1)

    def enter(self, images: Float[Tensor, "b m h w"], wanted: list[bool]) -> dict[int, Tensor]:
        """Features of contrasts that stay the same in every step, so that they are computed once."""
        return {i: self.entries[i](images[:, i : i + 1]) for i, here in enumerate(wanted) if here}


class UStage(nn.Module):
    """Two residual blocks, then half or double the size, then channel attention where the paper has it.

    Args:
        widths: channels before, between and after the two blocks.
        embedding: channels of the time embedding.
        scale: 0.5 or 2, bilinear.
        attention: whether the channels are reweighted at the end.
    """

    def __init__(self, widths: tuple[int, int, int], embedding: int, *, scale: float, attention: bool = False) -> None:
        super().__init__()
        self.first = ResBlock(widths[0], widths[1], embedding=embedding)
        self.second = ResBlock(widths[1], widths[2], embedding=embedding)
        self.resize = _bilinear(scale)
        self.attention = ChannelAttention(widths[2]) if attention else nn.Identity()

    def forward(self, features: Float[Tensor, "b c h w"], moment: Float[Tensor, "b e"]) -> Float[Tensor, "b k hs ws"]:
        resized: Tensor = self.attention(self.resize(self.second(self.first(features, moment), moment)))
        return resized


class ResBlock(nn.Module):
    """Norm, ReLU, convolution, the noise level added, the same again, residual."""

    def __init__(self, inputs: int, outputs: int, *, embedding: int) -> None:
        super().__init__()
        self.before = _norm_relu_conv(inputs, outputs)
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))
        self.after = _norm_relu_conv(outputs, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, features: Float[Tensor, "b c h w"], moment: Float[Tensor, "b e"]) -> Float[Tensor, "b k h w"]:
        hidden = self.before(features) + self.time(moment)[:, :, None, None]
        result: Tensor = self.skip(features) + self.after(hidden)
        return result


def _entry(width: int) -> nn.Sequential:
    """One contrast to its features at half the size."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        _norm_relu_conv(width, width),
        _norm_relu_conv(width, width),
        _bilinear(0.5),
    )


def _exit(width: int) -> nn.Sequential:
    """The features of one contrast to its image in [-1, 1], at double the size."""
    return nn.Sequential(_norm_relu_conv(width, width), _bilinear(2.0), _norm_relu_conv(width, 1), nn.Tanh())


def _bilinear(scale: float) -> nn.Module:
    # Halving with bilinear weights is the mean of two by two.
    return nn.AvgPool2d(2) if scale < 1 else nn.Upsample(scale_factor=scale, mode="bilinear")


def _norm_relu_conv(inputs: int, outputs: int) -> nn.Sequential:
    norm = nn.GroupNorm(_groups(inputs), inputs)
    return nn.Sequential(norm, nn.ReLU(), nn.Conv2d(inputs, outputs, 3, padding=1))


def _groups(channels: int) -> int:
    """The most groups, up to 32, that divide the channels and leave four or more to each.

    32 at the published widths. A group of a single channel would lose its mean, which is all there is of a
    channel at the bottom of a small image.
    """
    return max(n for n in range(1, min(32, max(channels // 4, 1)) + 1) if channels % n == 0)


def _sinusoids(level: Int[Tensor, "b"], channels: int) -> Float[Tensor, "b c"]:
    """Sines and cosines of the noise level (Vaswani et al., "Attention Is All You Need", section 3.5)."""
    half = channels // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, device=level.device) / half)
    angles = level.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _signal_levels(settings: M2DNSettings) -> list[float]:
    """Share of the signal's variance left at each noise level, 1 at level 0 (Ho et al., equation 4)."""
    first, last = settings.betas
    rise = (last - first) / max(settings.timesteps - 1, 1)
    kept = [1 - (first + rise * i) for i in range(settings.timesteps)]
    return list(accumulate(kept, lambda left, right: left * right, initial=1.0))


def _shared_noise(like: Float[Tensor, "b m h w"], generator: torch.Generator) -> Float[Tensor, "1 m h w"]:
    return torch.randn((1, *like.shape[1:]), generator=generator, device=generator.device).to(like.device)


def _outward(images: Float[Tensor, "b m h w"]) -> Float[Tensor, "b m hp wp"]:
    """[0, 1] to [-1, 1], padded with background to what the network can halve."""
    return pad_to_multiple(_scaled(images), 2**_HALVINGS, _BACKGROUND)


def _scaled(images: Float[Tensor, "b m h w"]) -> Float[Tensor, "b m h w"]:
    return 2 * images - 1


def _inward(images: Float[Tensor, "b m h w"]) -> Float[Tensor, "b m h w"]:
    return (images + 1) / 2
