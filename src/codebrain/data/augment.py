"""Random changes to training slices: all contrasts of a sample move alike, values stay in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from codebrain.errors import missing_extra, refusal

AugmentationName = Literal["none", "flips", "light", "released"]


@dataclass(frozen=True)
class Augmentation:
    """What is changed, and how often (probabilities per sample).

    Attributes:
        elastic: chance of an elastic deformation (kornia's, with its defaults: kernel 63, sigma 32, alpha 1).
        left_right: chance of a flip along ``w``.
        up_down: chance of a flip along ``h``.
        quarter_turns: chance of a rotation by one, two or three quarters.
        affine: chance of a rotation, shift and scaling.
        degrees: largest rotation, either way.
        translate: largest shift, as a fraction of the edge, either way.
        scale: smallest and largest scaling.
        gamma: chance, per contrast, of raising the intensities to a power.
        gamma_range: smallest and largest power, drawn evenly on a logarithmic scale.
    """

    elastic: float = 0.0
    left_right: float = 0.0
    up_down: float = 0.0
    quarter_turns: float = 0.0
    affine: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    gamma: float = 0.0
    gamma_range: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def named(cls, name: str) -> Augmentation:
        """``none``, ``flips``, ``light`` (for small training sets) or ``released`` (as the released code).

        Raises:
            UsageError: ``CONFIG`` for another name.
        """
        if name not in _NAMED:
            raise refusal(
                "CONFIG",
                f"no augmentation is called {name!r}",
                expected=", ".join(get_args(AugmentationName)),
            )
        return _NAMED[name]

    def __call__(
        self, images: Float[Tensor, "b m h w"], generator: torch.Generator, *, first: int = 0, of: int | None = None
    ) -> Float[Tensor, "b m h w"]:
        """Change a batch.

        Args:
            images: slices in [0, 1]; contrasts without ground truth are zero and stay zero.
            generator: source of chance, on the CPU; equal states give equal batches.
            first, of: place of these samples in a batch of ``of``; they are changed as they would be in the whole.

        Returns:
            A new batch in [0, 1], of the same shape.

        Raises:
            EnvironmentRefused: ``ENV_EXTRA`` when an elastic deformation is asked for without kornia.
            UsageError: ``CONFIG`` for quarter turns of slices that are not square.
        """
        lots = _Lots(generator, first, len(images), len(images) if of is None else of)
        if self.elastic:
            images = _elastic(images, self.elastic, lots)
        images = _flip(images, self.left_right, -1, lots)
        images = _flip(images, self.up_down, -2, lots)
        if self.quarter_turns:
            images = _quarter_turns(images, self.quarter_turns, lots)
        if self.affine:
            images = self._affine(images, lots)
        if self.gamma:
            images = self._gamma(images, lots)
        return images.clamp(0.0, 1.0)

    def _affine(self, images: Float[Tensor, "b m h w"], lots: _Lots) -> Float[Tensor, "b m h w"]:
        h, w = images.shape[-2:]
        on = lots.chance(self.affine)
        angle = lots.between(-self.degrees, self.degrees) * math.pi / 180 * on
        down, right = (2 * lots.between(-self.translate, self.translate) * on for _ in range(2))
        zoom = torch.where(on, lots.between(*self.scale), 1.0)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        # grid_sample looks up where each output pixel comes from, in units of half the edge: hence h / w.
        rows = [torch.stack([cos, -sin * (h / w), right], 1), torch.stack([sin * (w / h), cos, down], 1)]
        theta = torch.stack(rows, 1).to(images)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        moved = functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        return torch.where(on.to(images.device)[:, None, None, None], moved, images)

    def _gamma(self, images: Float[Tensor, "b m h w"], lots: _Lots) -> Float[Tensor, "b m h w"]:
        b, m = images.shape[:2]
        low, high = (math.log(edge) for edge in self.gamma_range)
        power = lots.between(low, high, each=m).exp()
        power = torch.where(lots.chance(self.gamma, each=m), power, 1.0)
        return images.clamp(0.0, 1.0) ** power.to(images).reshape(b, m, 1, 1)


_NAMED: dict[str, Augmentation] = {
    "none": Augmentation(),
    "flips": Augmentation(left_right=0.5, up_down=0.5),
    "light": Augmentation(
        left_right=0.5, affine=0.5, degrees=10.0, translate=0.05, scale=(0.95, 1.05),
        gamma=0.5, gamma_range=(0.8, 1.25),
    ),
    "released": Augmentation(
        elastic=0.5, left_right=0.5, up_down=0.5, quarter_turns=0.5,
        affine=0.5, degrees=15.0, translate=0.1, scale=(0.9, 1.1),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Lots:
    """What chance gives to ``count`` samples from ``first`` on, drawn for a batch of ``of``."""

    generator: torch.Generator
    first: int
    count: int
    of: int

    def even(self, each: int = 1) -> Tensor:
        return self._own(torch.rand(self.of * each, generator=self.generator), each)

    def whole(self, low: int, high: int) -> Tensor:
        return self._own(torch.randint(low, high, (self.of,), generator=self.generator))

    def chance(self, probability: float, each: int = 1) -> Tensor:
        return self.even(each) < probability

    def between(self, low: float, high: float, each: int = 1) -> Tensor:
        return low + (high - low) * self.even(each)

    def _own(self, drawn: Tensor, each: int = 1) -> Tensor:
        return drawn[self.first * each : (self.first + self.count) * each]


def _flip(images: Tensor, probability: float, axis: int, lots: _Lots) -> Tensor:
    if not probability:
        return images
    on = lots.chance(probability).to(images.device)
    return torch.where(on[:, None, None, None], images.flip(axis), images)


def _quarter_turns(images: Tensor, probability: float, lots: _Lots) -> Tensor:
    if images.shape[-1] != images.shape[-2]:
        raise refusal(
            "CONFIG", "quarter turns need square slices", found="x".join(map(str, images.shape[-2:])),
            hint="Set a crop, or another augmentation.",
        )  # fmt: skip
    turns = lots.whole(1, 4)
    turns = turns * lots.chance(probability)
    return torch.stack([image.rot90(turn, (-2, -1)) for image, turn in zip(images, turns.tolist(), strict=True)])


def _elastic(images: Tensor, probability: float, lots: _Lots) -> Tensor:
    """Source: the released training code, which uses kornia's RandomElasticTransform with its defaults.

    The noise is drawn here, sample by sample: kornia's class draws from torch's global generator, which the models
    that train in another thread draw from too, and as much as the batch happens to need.
    """
    try:
        from kornia.geometry.transform import elastic_transform2d
    except ImportError as error:
        raise missing_extra("kornia", "train", "elastic deformation") from error
    seeds, on = lots.whole(0, 2**62).tolist(), lots.chance(probability)
    if not bool(on.any()):
        return images
    size, where = images.shape[-2:], on.nonzero()[:, 0]
    drawn = [torch.rand(2, *size, generator=torch.Generator().manual_seed(seeds[n])) for n in where.tolist()]
    where, noise = where.to(images.device), (2 * torch.stack(drawn) - 1).to(images)
    return images.index_copy(0, where, elastic_transform2d(images[where], noise))
