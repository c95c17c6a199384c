"""MMHVAE: a hierarchical variational autoencoder whose latents are products of the given contrasts' experts.

Source: Dorent et al., TPAMI 2025, arXiv 2410.19378, with the sizes, weights and schedule of its released code;
the blocks are in :mod:`codebrain.nn.hvae`.

Adapted to complete MR stacks, which is ours: the released code trains on ultrasound with one to three MR
contrasts in three passes (all, ultrasound alone, every MR subset in turn). Here a step has two, the full set
and the strict subset that the batch says is present. Adversarial terms act on the subset's pass only, and the
critics' fakes are its contrasts that were not given. The ultrasound pass and the pool of real images for
missing contrasts, which the released loss never reads, are left out. Iterations stand for epochs: the shares
of training at which weights change are the published ones. Slices are drawn from all patients and normalised as
everywhere here, while the released code takes consecutive slices of one volume, whose background is exactly -1; the
critics step before the generator, there after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from codebrain.errors import refusal
from codebrain.models._contract import ImputationModel, Loss, keep_present, withheld
from codebrain.nn.batch import Batch, counted_mean
from codebrain.nn.hvae import ContrastEncoder, ImageHead, LatentLadder, Maps
from codebrain.nn.l1_loss import absolute_error
from codebrain.nn.padding import cut_to, pad_to_multiple
from codebrain.nn.patch_gan import PatchCritic, least_squares
from codebrain.vocabulary import ModalitySet


@dataclass(frozen=True)
class MMHVAESettings:
    """Sizes, loss weights and how to sample.

    Attributes:
        size: edge of the training crops; the lowest latent's linear layers are made for it. Images of other
            sizes are accepted, their bottom map is resized.
        levels: channels of each level from full resolution down; each is followed by a halving.
        head_width: channels of the image heads, one per contrast.
        head_blocks: residual blocks in each.
        critic_width: channels of the critics' first layer.
        critic_layers: halvings of the critics, one per contrast; at most log2(size / 3).
        image_weight: of the mean absolute error on [-1, 1].
        divergence_weight: of the Kullback-Leibler divergence per pixel and contrast.
        divergence_ramp: share of training over which that weight rises from zero.
        adversarial_weight: of the least-squares GAN (0.025 in the authors' command, 0.05 by default there).
        adversarial_start: share of training after which the generator feels the critics.
        critic_start: share of training after which the critics train.
        temperature: factor on the standard deviations when imputing; training uses 1.
        samples: how many completions are averaged. One is published; the mean of several has better PSNR.
        seed: of the noise where no generator is given.
        mask_background: set what is background in every given contrast to zero in the results, and in training
            too, as published. Of no effect where air is never exactly at the level of ``background``.
        background: intensity in [0, 1] above which a pixel of a given contrast is foreground. The published
            rule asks one contrast; asking all that are given cuts no tissue that another shows.
    """

    size: int = 256
    levels: tuple[int, ...] = (16, 32, 64, 128, 128, 128)
    head_width: int = 8
    head_blocks: int = 6
    critic_width: int = 64
    critic_layers: int = 6
    image_weight: float = 0.5
    divergence_weight: float = 1e-3
    divergence_ramp: float = 0.05
    adversarial_weight: float = 0.025
    adversarial_start: float = 0.8
    critic_start: float = 0.79
    temperature: float = 0.7
    samples: int = 1
    seed: int = 3
    mask_background: bool = True
    background: float = 0.0


@dataclass(frozen=True)
class Passes:
    """What a training step decodes.

    Attributes:
        full: all contrasts from all there are, in [-1, 1].
        subset: all contrasts from the present ones.
        divergence: of both passes, per pixel and contrast, in nats.
    """

    full: Float[Tensor, "b m h w"]
    subset: Float[Tensor, "b m h w"]
    divergence: Float[Tensor, ""]


class MMHVAE(ImputationModel):
    """One encoder and one image head per contrast; the ladder of latents between them is shared.

    Raises:
        UsageError: ``CONFIG`` for a size that the levels cannot halve or the critics cannot judge.
    """

    Settings = MMHVAESettings
    stages: ClassVar[tuple[str, ...]] = ("training",)
    training_only: ClassVar[tuple[str, ...]] = ("critic",)
    settings: MMHVAESettings

    def __init__(self, modalities: ModalitySet, settings: MMHVAESettings) -> None:
        super().__init__(modalities, settings)
        _refuse_bad_sizes(settings)
        levels = settings.levels
        self.halvings = len(levels)
        self.encoders = nn.ModuleList(ContrastEncoder(levels) for _ in modalities)
        self.ladder = LatentLadder(levels, settings.size >> self.halvings)
        self.heads = nn.ModuleList(
            ImageHead(levels[0] // 2, width=settings.head_width, blocks=settings.head_blocks) for _ in modalities
        )
        self.critic = nn.ModuleList(_critic(settings) for _ in modalities)

    # --- imputation ---

    def forward(
        self,
        images: Float[Tensor, "b m h w"],
        present: Bool[Tensor, "b m"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """The mean of ``samples`` completions at ``temperature``.

        Each completion uses one noise field for the whole batch: a slice is then completed alike alone and
        among others, and neighbouring slices of a volume do not flicker.
        """
        generator = generator or torch.Generator().manual_seed(self.settings.seed)
        frame = self._frame(images, present)
        encoded = self._encode(frame, present)
        total = torch.zeros_like(frame)
        for _ in range(self.settings.samples):
            noise = self.ladder.noise(1, _size(frame), generator, frame.device)
            total = total + self._decode(encoded, frame, present, noise, self.settings.temperature)[0]
        completed = (total / self.settings.samples + 1) / 2
        return keep_present(cut_to(completed, images).to(images.dtype).clamp(0, 1), images, present)

    def _frame(self, images: Tensor, present: Tensor) -> Float[Tensor, "b m hp wp"]:
        """Given contrasts in [0, 1], zeros for the others, padded with background to what can be halved."""
        given = withheld(images, present)
        multiple = 1 << self.halvings
        # One pixel at the bottom has no instance norm; two have.
        return pad_to_multiple(given, multiple if max(_size(images)) > multiple else 2 * multiple)

    def _encode(self, frame: Tensor, present: Tensor) -> dict[int, Maps]:
        """Maps of the contrasts that any sample has."""
        anywhere = present.any(dim=0).tolist()
        return {m: self.encoders[m](2 * frame[:, m : m + 1] - 1) for m, here in enumerate(anywhere) if here}

    def _decode(
        self, encoded: dict[int, Maps], frame: Tensor, present: Tensor, noise: list[Tensor], temperature: float
    ) -> tuple[Float[Tensor, "b m hp wp"], Float[Tensor, "b"]]:
        """All contrasts in [-1, 1], float32, from those that are present; and the divergence of each sample."""
        latent, divergence = self.ladder(encoded, present, noise, temperature)
        decoded = torch.cat([head(latent) for head in self.heads], dim=1).float()
        if self.settings.mask_background:
            shown = (frame > self.settings.background) & present[:, :, None, None]
            decoded = torch.where(shown.any(dim=1, keepdim=True), decoded, -1.0)
        return decoded, divergence

    # --- training ---

    def players(self, stage: str) -> dict[str, nn.Module]:
        generator = nn.ModuleList([self.encoders, self.ladder, self.heads])
        return {"critic": self.critic, "generator": generator}

    def share(
        self, batch: Batch, *, stage: str, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Passes:
        """Both passes, at temperature 1 and with noise for every sample; a contrast is encoded once for both."""
        generator = generator or torch.Generator().manual_seed(self.settings.seed)
        frame = self._frame(batch.images, batch.available)
        encoded = self._encode(frame, batch.available)
        passes = []
        for present in (batch.available, batch.present):
            noise = self.ladder.noise(len(frame), _size(frame), generator, frame.device)
            passes.append(self._decode(encoded, frame, present, noise, temperature=1.0))
        full, subset = (cut_to(decoded, batch.images) for decoded, _ in passes)
        divergence = torch.stack([surprise.mean() for _, surprise in passes]).sum()
        return Passes(full, subset, divergence / frame[0].numel())

    def loss(self, player: str, batch: Batch, shared: Passes, *, stage: str, progress: float) -> Loss | None:
        if player == "critic":
            sits_out = progress < self.settings.critic_start or not bool(batch.absent.any())
            sits_out |= self.settings.adversarial_weight == 0
            return None if sits_out else self._critic_loss(batch, shared.subset.detach())
        return self._generator_loss(batch, shared, progress)

    def _generator_loss(self, batch: Batch, passes: Passes, progress: float) -> Loss:
        settings, target = self.settings, 2 * batch.images - 1
        errors = (absolute_error(decoded, target) for decoded in (passes.full, passes.subset))
        full, subset = (counted_mean(error, batch.available) for error in errors)
        ramp = min(progress / settings.divergence_ramp, 1.0) if settings.divergence_ramp > 0 else 1.0
        total = settings.image_weight * (full + subset) + ramp * settings.divergence_weight * passes.divergence
        parts = {"error_full": full, "error_subset": subset, "divergence": passes.divergence}
        if progress >= settings.adversarial_start and settings.adversarial_weight > 0:
            fooled = least_squares(self._judge(passes.subset), 1.0, batch.available)
            total = total + settings.adversarial_weight * fooled
            parts["adversarial"] = fooled
        return Loss(total, {name: part.detach() for name, part in parts.items()})

    def _critic_loss(self, batch: Batch, candidate: Tensor) -> Loss:
        real = least_squares(self._judge(2 * batch.images - 1), 1.0, batch.available)
        fake = least_squares(self._judge(candidate), 0.0, batch.absent)
        return Loss(real + fake, {"real": real.detach(), "fake": fake.detach()})

    def _judge(self, images: Float[Tensor, "b m h w"]) -> Float[Tensor, "b m hs ws"]:
        """Each contrast by its own critic; small images are padded to what it can judge."""
        least = 3 << self.settings.critic_layers
        if min(_size(images)) < least:
            images = pad_to_multiple(images, least, -1.0)
        return torch.cat([critic(images[:, m : m + 1]) for m, critic in enumerate(self.critic)], dim=1)


def _critic(settings: MMHVAESettings) -> PatchCritic:
    widths = [settings.critic_width * min(2**layer, 4) for layer in range(settings.critic_layers + 1)]
    return PatchCritic(1, 1, widths=widths, strides=[2] * settings.critic_layers + [1])


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _refuse_bad_sizes(settings: MMHVAESettings) -> None:
    multiple, least = 1 << len(settings.levels), 3 << settings.critic_layers
    if not settings.levels or min(settings.levels) < 2:
        raise refusal("CONFIG", "every level needs two channels or more", field="levels", found=settings.levels)
    if settings.size < multiple or settings.size % multiple:
        raise refusal(
            "CONFIG", f"{len(settings.levels)} levels halve images to nothing whole", field="size",
            found=settings.size, expected=f"a multiple of {multiple}",
        )  # fmt: skip
    if settings.size < least:
        raise refusal(
            "CONFIG", f"critics of {settings.critic_layers} halvings have nothing left to judge", field="critic_layers",
            found=f"images of {settings.size}", expected=f"{least} or more",
        )  # fmt: skip
    if settings.samples < 1:
        raise refusal(
            "CONFIG", "a completion is the mean of one sample or more", field="samples", found=settings.samples
        )
