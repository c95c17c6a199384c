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

    def __call__(self, images: Float[Tensor, "b m h w"], generator: torch.Generator) -> Float[Tensor, "b m h w"]:
        """Change a batch.

        Args:
            images: slices in [0, 1]; contrasts without ground truth are zero and stay zero.
            generator: source of chance, on the CPU; equal states give equal batches.

        Returns:
            A new batch in [0, 1], of the same shape.

        Raises:
            EnvironmentRefused: ``ENV_EXTRA`` when an elastic deformation is asked for without kornia.
            UsageError: ``CONFIG`` for quarter turns of slices that are not square.
        """
        if self.elastic:
            images = _elastic(images, self.elastic, generator)
        images = _flip(images, self.left_right, -1, generator)
        images = _flip(images, self.up_down, -2, generator)
        if self.quarter_turns:
            images = _quarter_turns(images, self.quarter_turns, generator)
        if self.affine:
            images = self._affine(images, generator)
        if self.gamma:
            images = self._gamma(images, generator)
        return images.clamp(0.0, 1.0)

    def _affine(self, images: Float[Tensor, "b m h w"], generator: torch.Generator) -> Float[Tensor, "b m h w"]:
        b, _, h, w = images.shape
        on = _chance(b, self.affine, generator)
        angle = _between(b, -self.degrees, self.degrees, generator) * math.pi / 180 * on
        down, right = (2 * _between(b, -self.translate, self.translate, generator) * on for _ in range(2))
        zoom = torch.where(on, _between(b, *self.scale, generator), 1.0)
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        # grid_sample looks up where each output pixel comes from, in units of half the edge: hence h / w.
        rows = [torch.stack([cos, -sin * (h / w), right], 1), torch.stack([sin * (w / h), cos, down], 1)]
        theta = torch.stack(rows, 1).to(images)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        moved = functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
        return torch.where(on.to(images.device)[:, None, None, None], moved, images)

    def _gamma(self, images: Float[Tensor, "b m h w"], generator: torch.Generator) -> Float[Tensor, "b m h w"]:
        b, m = images.shape[:2]
        low, high = (math.log(edge) for edge in self.gamma_range)
        power = _between(b * m, low, high, generator).exp()
        power = torch.where(_chance(b * m, self.gamma, generator), power, 1.0)
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


def _chance(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability


def _between(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _flip(images: Tensor, probability: float, axis: int, generator: torch.Generator) -> Tensor:
    if not probability:
        return images
    on = _chance(len(images), probability, generator).to(images.device)
    return torch.where(on[:, None, None, None], images.flip(axis), images)


def _quarter_turns(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    if images.shape[-1] != images.shape[-2]:
        raise refusal(
            "CONFIG", "quarter turns need square slices", found="x".join(map(str, images.shape[-2:])),
            hint="Set a crop, or another augmentation.",
        )  # fmt: skip
    turns = torch.randint(1, 4, (len(images),), generator=generator)
    turns = turns * _chance(len(images), probability, generator)
    return torch.stack([image.rot90(int(turn), (-2, -1)) for image, turn in zip(images, turns, strict=True)])


def _elastic(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Source: the released training code, which uses kornia's RandomElasticTransform with its defaults."""
    try:
        from kornia.augmentation import RandomElasticTransform
    except ImportError as error:
        raise missing_extra("kornia", "train", "elastic deformation") from error
    seed = int(torch.randint(2**62, (1,), generator=generator))
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices=devices):  # kornia draws from torch's global generator
        torch.manual_seed(seed)
        deformed: Tensor = RandomElasticTransform(p=probability, same_on_batch=False)(images)
    return deformed
