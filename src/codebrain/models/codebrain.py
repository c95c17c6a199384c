"""CodeBrain: any subset of contrasts to the full stack through a quantised code.

Source: Wu et al., "Virtual Full-stack Scanning of Brain MRI via Imputing Any Quantised Code", CVPR 2026,
arXiv 2501.18328. Stage I (``reconstruction``) learns a code of the complete set and a decoder; stage II
(``grading``) learns to predict that code from the incomplete set. Sizes, loss weights and the adversarial
schedule are those of the released code; where it and the paper differ, the recipes say which is which.

The paper's ablations are settings of the same model: ``common_features`` and ``grading`` (table 3),
``distance`` (PSNR or L1 loss), ``absent_weight`` and ``present_weight`` (table 5), ``condition`` (figure 6).
How the authors built the variants was not published; ours are our reading: cross-entropy per code channel for
the classification, a bounded latent regressed by mean squared error for the continuous condition, a map that is
the same everywhere for the binary one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from codebrain.errors import refusal
from codebrain.models._contract import ImputationModel, Loss, keep_present, withheld
from codebrain.nn.batch import Batch
from codebrain.nn.fsq import FiniteScalarQuantiser
from codebrain.nn.l1_loss import l1_loss
from codebrain.nn.naf import NafDecoder, NafEncoder
from codebrain.nn.ordinal import (
    classification_loss,
    exceedances,
    expected_level,
    grade_outputs,
    likeliest_level,
    ordinal_loss,
    threshold_level,
)
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
        decoding: of the grades, ``threshold`` (the paper's; the likeliest level under classification) or
            ``expected`` level.
        condition: what the decoder reads beside the common features. ``code``: the quantised code;
            ``continuous``: the same channels bounded to [-1, 1] but not rounded, which stage II regresses;
            ``binary``: which contrasts are present, the same everywhere, so that there is no stage II.
        common_features: whether the decoder sees features of the given contrasts beside the code.
        grading: how stage II predicts the code, as ``ordinal`` bits (the paper's) or by ``classification``.
        distance: of candidate and truth in stage I, ``psnr`` (the paper's) or ``l1``.
        absent_weight: of the distance on absent contrasts (paper, table 5).
        present_weight: of the distance on present contrasts.
        adversarial_weight: of the least-squares GAN.
        adversarial_start: fraction of stage I after which the generator feels the discriminator.
        critic_width: channels of the discriminator's first layer.
    """

    width: int = 32
    depth: int = 6
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    decoding: Literal["threshold", "expected"] = "threshold"
    condition: Literal["code", "continuous", "binary"] = "code"
    common_features: bool = True
    grading: Literal["ordinal", "classification"] = "ordinal"
    distance: Literal["psnr", "l1"] = "psnr"
    absent_weight: float = 20.0
    present_weight: float = 5.0
    adversarial_weight: float = 0.1
    adversarial_start: float = 0.2
    critic_width: int = 64

    def __post_init__(self) -> None:
        if self.condition == "binary" and not self.common_features:
            raise ValueError("with a binary condition and no common features the decoder would see no image")


class CodeBrain(ImputationModel):
    """The model of the paper, for any number of contrasts, width and depth."""

    Settings = CodeBrainSettings
    stages: ClassVar[tuple[str, ...]] = ("reconstruction", "grading")
    training_only: ClassVar[tuple[str, ...]] = ("critic",)
    settings: CodeBrainSettings

    def __init__(self, modalities: ModalitySet, settings: CodeBrainSettings) -> None:
        super().__init__(modalities, settings)
        contrasts, width, depth = len(modalities), settings.width, settings.depth
        binary, quantised = settings.condition == "binary", settings.condition == "code"
        channels = contrasts if binary else len(settings.levels)
        outputs = sum(grade_outputs(settings.levels, settings.grading)) if quantised else channels
        if not binary:
            self.posterior_encoder = NafEncoder(contrasts, width=width, depth=depth, outputs=channels)
        if quantised:
            self.quantiser = FiniteScalarQuantiser(settings.levels)
        if settings.common_features:
            self.common_encoder = NafEncoder(contrasts, width=3 * width, depth=depth)
        self.decoder = NafDecoder(contrasts, code_channels=channels, width=3 * width, depth=depth)
        if not settings.common_features:
            self.decoder.fuse = nn.Linear(channels, self.decoder.fuse.out_features)
        if not binary:
            self.prior_encoder = NafEncoder(contrasts, width=3 * width, depth=depth, outputs=outputs)
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
        """:meth:`forward` and the :meth:`grades` it was decoded from, which costs a quarter less than both.

        No grades when the condition is not a code.
        """
        incomplete = withheld(images, present)
        condition, bits = self._predicted(incomplete, present)
        candidate = self._decoded(condition, incomplete)
        completed = keep_present(candidate.to(images.dtype).clamp(0, 1), images, present)
        return completed, [rearrange(channel, "b h w n -> b n h w") for channel in bits]

    def grades(
        self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> list[Float[Tensor, "b _ hc wc"]]:
        """Per code channel the probability that the level exceeds j, ``n = L - 1`` bits; none without a code."""
        _, bits = self._predicted(withheld(images, present), present)
        return [rearrange(channel, "b h w n -> b n h w") for channel in bits]

    def levels(self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]) -> Int[Tensor, "b c hc wc"]:
        """The levels that stage II predicts from the incomplete set, integers in [0, L).

        Raises:
            UsageError: ``CONFIG`` when the condition is not a code.
        """
        self._refuse_without_code()
        _, bits = self._predicted(withheld(images, present), present)
        return torch.stack([self._decided(channel) for channel in bits], dim=1)

    def reconstruct(self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b m h w"]:
        """Stage I: the code of the complete images, common features of the incomplete ones; not clamped.

        With a binary condition the complete images have no part in it.
        """
        incomplete = withheld(images, present)
        return self._decoded(self._posterior(images, present), incomplete).to(images.dtype)

    def code_levels(self, images: Float[Tensor, "b m h w"]) -> Int[Tensor, "b c hc wc"]:
        """The full-stack code of complete images, as levels: what stage II learns to predict.

        Raises:
            UsageError: ``CONFIG`` when the condition is not a code.
        """
        self._refuse_without_code()
        level = self.quantiser.level(self.quantiser(self.posterior_encoder(images)))
        return rearrange(level, "b h w c -> b c h w")

    def code_indices(self, images: Float[Tensor, "b m h w"]) -> Int[Tensor, "b hc wc"]:
        """The full-stack code of complete images, one index per place."""
        return self.quantiser.index(rearrange(self.code_levels(images), "b c h w -> b h w c"))

    def _posterior(self, images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b hc wc c"]:
        """The condition of complete images."""
        if self.settings.condition == "binary":
            return _spread(images, present)
        features = self.posterior_encoder(images)
        code: Tensor = features.float().tanh() if self.settings.condition == "continuous" else self.quantiser(features)
        return code

    def _predicted(
        self, incomplete: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b hc wc c"], list[Float[Tensor, "b hc wc _"]]]:
        """The condition that stage II predicts, and the grades that it was decoded from, if it is a code."""
        if self.settings.condition == "binary":
            return _spread(incomplete, present), []
        predicted = self.prior_encoder(incomplete)
        if self.settings.condition == "continuous":
            return predicted.float().tanh(), []
        bits = exceedances(predicted, self.settings.levels, self.settings.grading)
        decode = expected_level if self.settings.decoding == "expected" else self._decided
        return self.quantiser.code(torch.stack([decode(channel) for channel in bits], dim=-1)), bits

    def _decoded(
        self, condition: Float[Tensor, "b hc wc c"], incomplete: Float[Tensor, "b m h w"]
    ) -> Float[Tensor, "b m h w"]:
        common = self.common_encoder(incomplete) if self.settings.common_features else condition[..., :0]
        decoded: Tensor = self.decoder(condition, common)
        return decoded

    def _decided(self, bits: Float[Tensor, "*b n"]) -> Int[Tensor, "*b"]:
        return threshold_level(bits) if self.settings.grading == "ordinal" else likeliest_level(bits)

    def _refuse_without_code(self) -> None:
        if self.settings.condition != "code":
            raise refusal(
                "CONFIG", "this model has no code and no levels", field="condition",
                found=self.settings.condition, expected="code",
            )  # fmt: skip

    # --- training ---

    def players(self, stage: str) -> dict[str, nn.Module]:
        if stage == "grading":
            return {} if self.settings.condition == "binary" else {"grader": self.prior_encoder}
        parts = ("posterior_encoder", "common_encoder", "decoder")
        generator = nn.ModuleList([module for name, module in self.named_children() if name in parts])
        return {"critic": self.critic, "generator": generator}

    def fit(self, batches: Iterable[Batch]) -> None:
        """Nothing: stage II has no players only when a binary condition leaves it nothing to predict."""

    def share(
        self, batch: Batch, *, stage: str, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Any:
        """Stage I: the candidate images, which both players judge."""
        return self.reconstruct(batch.images, batch.present) if stage == "reconstruction" else None

    def loss(self, player: str, batch: Batch, shared: Any, *, stage: str, progress: float) -> Loss | None:
        if player == "grader":
            return self._grader_loss(batch)
        if player == "critic":
            return self._critic_loss(batch, shared.detach()) if self.settings.adversarial_weight > 0 else None
        return self._generator_loss(batch, shared, adversarial=progress >= self.settings.adversarial_start)

    def validate(self, batch: Batch, *, stage: str) -> Float[Tensor, "b m h w"]:
        """Stage I is judged by its reconstruction; stage II by imputation."""
        if stage == "reconstruction":
            return keep_present(self.reconstruct(batch.images, batch.present), batch.images, batch.present)
        completed: Tensor = self(batch.images, batch.present)
        return completed

    def _critic_loss(self, batch: Batch, candidate: Tensor) -> Loss:
        # One pass for both: no layer looks at other samples.
        both = torch.cat([batch.images, _copy_known(candidate, batch)])
        first, second = self.critic(both, batch.images.repeat(2, 1, 1, 1)).chunk(2)
        real = least_squares(first, 1.0, batch.available)
        fake = least_squares(second, batch.present, batch.available)
        return Loss(0.5 * (real + fake), {"real": real.detach(), "fake": fake.detach()})

    def _generator_loss(self, batch: Batch, candidate: Tensor, *, adversarial: bool) -> Loss:
        distance = psnr_loss if self.settings.distance == "psnr" else l1_loss
        absent = distance(candidate, batch.images, batch.absent)
        present = distance(candidate, batch.images, batch.present)
        total = self.settings.absent_weight * absent + self.settings.present_weight * present
        sign = -1 if self.settings.distance == "psnr" else 1  # the PSNR loss is the negative of what is logged
        name = self.settings.distance
        parts = {f"{name}_absent": sign * absent.detach(), f"{name}_present": sign * present.detach()}
        if adversarial and self.settings.adversarial_weight > 0:
            fooled = least_squares(self.critic(_copy_known(candidate, batch), batch.images), 1.0, batch.available)
            total = total + self.settings.adversarial_weight * fooled
            parts["adversarial"] = fooled.detach()
        return Loss(total, parts)

    def _grader_loss(self, batch: Batch) -> Loss:
        predicted = self.prior_encoder(batch.incomplete)
        if self.settings.condition == "continuous":
            with torch.no_grad():
                wanted = self._posterior(batch.images, batch.present)
            return Loss(mse_loss(predicted.float().tanh(), wanted))
        with torch.no_grad():
            level = rearrange(self.code_levels(batch.images), "b c h w -> b h w c")
        loss = ordinal_loss if self.settings.grading == "ordinal" else classification_loss
        total = loss(predicted, level, self.settings.levels)
        bits = exceedances(predicted.detach(), self.settings.levels, self.settings.grading)
        decided = torch.stack([self._decided(channel) for channel in bits], dim=-1)
        return Loss(total, {"accuracy": (decided == level).float().mean()})


def _spread(images: Float[Tensor, "b m h w"], present: Bool[Tensor, "b m"]) -> Float[Tensor, "b hc wc m"]:
    # The binary condition: 1 for a present contrast, the same at every place of the code's grid.
    return repeat(present.float(), "b m -> b h w m", h=images.shape[-2] // 8, w=images.shape[-1] // 8)


def _copy_known(candidate: Tensor, batch: Batch) -> Tensor:
    # Present contrasts as given; contrasts without truth as the zeros they are in the real set, so that
    # the discriminator cannot tell sets apart by them.
    return keep_present(candidate, batch.images, batch.present | ~batch.available)
