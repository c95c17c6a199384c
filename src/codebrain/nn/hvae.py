"""A ladder of Gaussian latents, each a product of the experts of the contrasts that are given.

Source: Dorent et al., "Unified Cross-Modal Image Synthesis with Hierarchical Mixture of Product-of-Experts",
TPAMI 2025, arXiv 2410.19378, and the sizes of its released code. Of the widths ``w_1 .. w_n`` from full
resolution down, level l halves the image l - 1 times; below the last stands one vector.

Departures: the vector's linear layers belong to one grid, so a map of another size is averaged to that grid
and interpolated back (ours); contrasts of which a sample has none are masked, so that the samples of a batch
may have different patterns (the released code encodes one pattern at a time, with the same result).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from codebrain.nn.attention import ChannelAttention

Maps = list[Tensor]
"""Feature maps of one contrast, from full resolution down; the last is the bottom."""


@dataclass(frozen=True)
class Gaussian:
    """Independent normal distributions, float32.

    Attributes:
        mean: of each.
        log_scale: natural logarithm of each standard deviation.
    """

    mean: Float[Tensor, "b *d"]
    log_scale: Float[Tensor, "b *d"]

    @classmethod
    def of(cls, features: Float[Tensor, "b c *d"]) -> Gaussian:
        """Means from the first half of the channels, log scales from the second, both squashed to (-10, 10)."""
        mean, log_scale = (10 * (features.float() / 10).tanh()).chunk(2, dim=1)
        return cls(mean, log_scale)


def product_of_experts(prior: Gaussian, experts: Mapping[int, Gaussian], present: Bool[Tensor, "b m"]) -> Gaussian:
    """The prior sharpened by the experts that a sample has; float32.

    As released: precision is one over the *standard deviation*, precisions add, and one over their sum is the
    standard deviation of the product. The textbook form has variances in these places.

    Args:
        prior: of the level.
        experts: one for each contrast, by its number.
        present: which contrasts are given; the experts of others weigh nothing.
    """
    precision = (-prior.log_scale).exp()
    weighted = precision * prior.mean
    for contrast, expert in experts.items():
        given = present[:, contrast].reshape(-1, *[1] * (weighted.ndim - 1))
        trust = torch.where(given, (-expert.log_scale).exp(), 0.0)
        precision, weighted = precision + trust, weighted + trust * expert.mean
    return Gaussian(weighted / precision, -precision.log())


def sample(
    prior: Gaussian, posterior: Gaussian, noise: Float[Tensor, "b *d"], temperature: float
) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b"]]:
    """A draw from the posterior, and what the prior is surprised by it.

    Returns:
        The draw, its standard deviation scaled by ``temperature``; and log q - log p of it in nats, summed over
        all but the first axis: the one-sample estimate of KL(q || p), which holds at temperature 1.
    """
    draw = posterior.mean + temperature * posterior.log_scale.exp() * noise
    distance = (draw - prior.mean) * (-prior.log_scale).exp()
    surprise = prior.log_scale - posterior.log_scale + (distance.square() - noise.square()) / 2
    return draw, surprise.flatten(1).sum(1)


class Conv2d(nn.Conv2d):
    """A convolution that computes channels last: three times faster on a CPU where channels are few."""

    def forward(self, input: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b _k _h _w"]:  # noqa: A002
        return super().forward(input.contiguous(memory_format=torch.channels_last))


class InstanceNorm2d(nn.InstanceNorm2d):
    """An instance norm that hands on channels last, so that no layer after it mixes two layouts."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:  # noqa: A002
        return super().forward(input).contiguous(memory_format=torch.channels_last)


def _pair(inputs: int, width: int) -> list[nn.Module]:
    # Norm, activation, convolution, twice; then channel attention.
    layers: list[nn.Module] = []
    for channels in (inputs, width):
        layers += [InstanceNorm2d(channels), nn.SiLU(), Conv2d(channels, width, 3, padding=1)]
    return [*layers, ChannelAttention(width, least=4)]


class EncoderBlock(nn.Module):
    """Two convolutions of kernel 3 and channel attention; residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_pair(width, width))

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        result: Tensor = features + self.layers(features)
        return result


class DecoderBlock(nn.Module):
    """Sixfold wider inside, with a depthwise convolution of kernel 5; residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 6 * width
        self.layers = nn.Sequential(
            InstanceNorm2d(width),
            Conv2d(width, wide, 3, padding=1),
            InstanceNorm2d(wide),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 5, padding=2, groups=wide),
            InstanceNorm2d(wide),
            nn.SiLU(),
            ChannelAttention(wide, least=4),
            Conv2d(wide, width, 1),
        )

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        result: Tensor = features + self.layers(features)
        return result


class ContrastEncoder(nn.Module):
    """One contrast to the maps of all levels and the bottom.

    Args:
        widths: channels of each level, from full resolution down; the bottom has as many as the last.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        steps = (*widths, widths[-1])
        self.first = Conv2d(1, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(EncoderBlock(width) for width in steps)
        self.halvings = nn.ModuleList(Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(steps))

    def forward(self, image: Float[Tensor, "b 1 h w"]) -> Maps:
        maps = [self.blocks[0](self.first(image))]
        for halve, block in zip(self.halvings, self.blocks[1:], strict=True):
            maps.append(block(halve(maps[-1])))
        return maps


class BottomVector(nn.Module):
    """The lowest latent, a vector of twice the bottom's channels, with a standard normal prior.

    Args:
        width: channels of the bottom.
        grid: its edge at the size of image that the model is made for.
    """

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.shape = (width, grid, grid)
        self.read = weight_norm(nn.Linear(width * grid**2, 4 * width))
        self.write = weight_norm(nn.Linear(2 * width, width * grid**2))

    def expert(self, bottom: Float[Tensor, "b c h w"]) -> Gaussian:
        """What one contrast's bottom says of the vector."""
        grid = self.shape[1:]
        fitting = bottom if bottom.shape[2:] == grid else F.adaptive_avg_pool2d(bottom, grid)
        return Gaussian.of(self.read(fitting.flatten(1)))

    def decode(self, vector: Float[Tensor, "b d"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """The vector as a map of ``size``."""
        bottom: Tensor = self.write(vector).unflatten(1, self.shape)
        return bottom if bottom.shape[2:] == size else F.interpolate(bottom, size, mode="bilinear")


class LatentLevel(nn.Module):
    """Prior and experts of one map of latents, which has half of the level's channels.

    Args:
        above: channels of the latent one level further down.
        width: channels of the level.
    """

    def __init__(self, above: int, width: int) -> None:
        super().__init__()
        self.widen = Conv2d(above, width, 3, padding=1, bias=False)
        self.block = DecoderBlock(width)
        self.prior = weight_norm(Conv2d(width, width, 1, bias=False))
        self.posterior = nn.Sequential(*_pair(2 * width, width), weight_norm(Conv2d(width, width, 1, bias=False)))

    def forward(
        self, latent: Float[Tensor, "b c h w"], skips: Mapping[int, Tensor]
    ) -> tuple[Gaussian, dict[int, Gaussian]]:
        """The latent one level further down, and the encoders' maps, to the prior and the experts."""
        features = self.block(self.widen(F.interpolate(latent, scale_factor=2, mode="bilinear")))
        experts = {
            contrast: Gaussian.of(self.posterior(torch.cat([features, skip.to(features.dtype)], dim=1)))
            for contrast, skip in skips.items()
        }
        return Gaussian.of(self.prior(features)), experts


class LatentLadder(nn.Module):
    """All latents from the vector to full resolution; its networks are shared by all contrasts.

    Args:
        widths: channels of each level, from full resolution down.
        grid: edge of the bottom map at the size of image that the model is made for.
    """

    def __init__(self, widths: Sequence[int], grid: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.bottom = BottomVector(widths[-1], grid)
        downwards = widths[::-1]
        above = (downwards[0], *[width // 2 for width in downwards[:-1]])
        self.levels = nn.ModuleList(LatentLevel(*pair) for pair in zip(above, downwards, strict=True))

    def noise(
        self, samples: int, size: tuple[int, int], generator: torch.Generator, device: torch.device
    ) -> list[Tensor]:
        """Standard normal numbers for every latent, the vector's first, for images of ``size``."""
        shapes: list[tuple[int, ...]] = [(samples, 2 * self.widths[-1])]
        for level in reversed(range(len(self.widths))):
            shapes.append((samples, self.widths[level] // 2, size[0] >> level, size[1] >> level))
        source = generator.device
        return [torch.randn(shape, generator=generator, device=source).to(device) for shape in shapes]

    def forward(
        self,
        encoded: Mapping[int, Maps],
        present: Bool[Tensor, "b m"],
        noise: Sequence[Tensor],
        temperature: float = 1.0,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b"]]:
        """Sample the latents from the bottom up.

        Args:
            encoded: the encoders' maps by number of contrast; all that any sample has must be there.
            present: which contrasts are given.
            noise: from :meth:`noise`, for as many samples or for one.
            temperature: factor on all standard deviations of the draws.

        Returns:
            The latent at full resolution; and the divergence of :func:`sample`, summed over the levels.
        """
        experts = {contrast: self.bottom.expert(maps[-1]) for contrast, maps in encoded.items()}
        blank = torch.zeros_like(next(iter(experts.values())).mean)
        prior = Gaussian(blank, blank)
        vector, divergence = self._draw(prior, experts, present, noise[0], temperature)
        h, w = next(iter(encoded.values()))[-1].shape[2:]
        latent = self.bottom.decode(vector, (h, w))
        for number, (level, drawn) in enumerate(zip(self.levels, noise[1:], strict=True), start=2):
            prior, experts = level(latent, {contrast: maps[-number] for contrast, maps in encoded.items()})
            latent, surprise = self._draw(prior, experts, present, drawn, temperature)
            divergence = divergence + surprise
        return latent, divergence

    @staticmethod
    def _draw(
        prior: Gaussian, experts: Mapping[int, Gaussian], present: Tensor, noise: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        posterior = product_of_experts(prior, experts, present)
        return sample(prior, posterior, noise.expand_as(posterior.mean), temperature)


class _ReflectBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [Conv2d(width, width, 3, padding=1, padding_mode="reflect"), InstanceNorm2d(width)]
            layers += [nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        result: Tensor = features + self.layers(features)
        return result


class ImageHead(nn.Module):
    """The latent at full resolution to one contrast in (-1, 1).

    Args:
        inputs: the latent's channels.
        width: of the residual blocks; a convolution of kernel 1 leads there where it differs.
        blocks: how many.
    """

    def __init__(self, inputs: int, *, width: int, blocks: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [] if inputs == width else [Conv2d(inputs, width, 1)]
        layers += [_ReflectBlock(width) for _ in range(blocks)]
        layers += [Conv2d(width, width, 7, padding=3, padding_mode="reflect"), InstanceNorm2d(width)]
        layers += [nn.LeakyReLU(0.2), Conv2d(width, 1, 7, padding=3, padding_mode="reflect"), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        image: Tensor = self.layers(latent)
        return image
