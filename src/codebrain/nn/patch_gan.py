"""PatchGAN discriminators, among them one that sees a candidate set beside the real one; least-squares losses.

Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017 (the
layers); Sharma & Hamarneh, MM-GAN, IEEE TMI 2020 (one map per contrast, present contrasts copied into the
candidate, target 1 on them); Mao et al., "Least Squares GAN", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor, cat, nn

from codebrain.nn.batch import counted_mean


class PatchCritic(nn.Module):
    """Convolutions of kernel 4, instance norms (none on the first) and leaky ReLUs to maps of patch scores.

    Args:
        inputs: channels of what is judged.
        outputs: score maps.
        widths: channels after each layer.
        strides: of each of these layers; 2 everywhere when absent.
        bias: whether the last convolution has one.
        same: pad the last layer on the upper and left side, so that the maps keep their size (pix2pix in
            PyTorch-GAN); otherwise evenly by 1, which loses one row and column.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        widths: Sequence[int],
        strides: Sequence[int] | None = None,
        bias: bool = True,
        same: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (width, stride) in enumerate(zip(widths, strides or [2] * len(widths), strict=True)):
            layers.append(nn.Conv2d(inputs if number == 0 else widths[number - 1], width, 4, stride=stride, padding=1))
            layers += [nn.InstanceNorm2d(width)] if number else []
            layers.append(nn.LeakyReLU(0.2))
        layers += [nn.ZeroPad2d((1, 0, 1, 0))] if same else []
        layers.append(nn.Conv2d(widths[-1], outputs, 4, padding=1, bias=bias))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n hp wp"]:
        scores: Tensor = self.layers(images)
        return scores


class PatchDiscriminator(PatchCritic):
    """Two stacks of m contrasts to m maps of patch scores, one sixteenth of the image each way.

    Args:
        contrasts: m.
        width: channels after the first layer; doubled at each of three more halvings.
    """

    def __init__(self, contrasts: int, *, width: int = 64) -> None:
        widths = [width * 2**i for i in range(4)]
        super().__init__(2 * contrasts, contrasts, widths=widths, bias=False, same=True)

    def forward(  # type: ignore[override]
        self, candidate: Float[Tensor, "b m h w"], real: Float[Tensor, "b m h w"]
    ) -> Float[Tensor, "b m hp wp"]:
        return super().forward(cat([candidate, real], dim=1))


def least_squares(
    scores: Float[Tensor, "b m hp wp"], target: Bool[Tensor, "b m"] | float, counted: Bool[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """Mean squared distance of the score maps to their target, over the contrasts that count; 0 when none does.

    Args:
        scores: the discriminator's maps.
        target: 1 or 0 per sample and contrast, or one number for all.
        counted: contrasts with ground truth; the others have no map to judge.
    """
    goal = target.to(scores.dtype)[:, :, None, None] if isinstance(target, Tensor) else target
    error = (scores.float() - goal).square().mean((2, 3))
    return counted_mean(error, counted)
