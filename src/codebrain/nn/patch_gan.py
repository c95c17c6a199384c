"""PatchGAN discriminator that sees a candidate set beside the real one, and its least-squares losses.

Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017 (the
layers); Sharma & Hamarneh, MM-GAN, IEEE TMI 2020 (one map per contrast, present contrasts copied into the
candidate, target 1 on them); Mao et al., "Least Squares GAN", ICCV 2017.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, cat, nn


class PatchDiscriminator(nn.Module):
    """Two stacks of m contrasts to m maps of patch scores, one sixteenth of the image each way.

    Args:
        contrasts: m.
        width: channels after the first layer; doubled at each of three more halvings.
    """

    def __init__(self, contrasts: int, *, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(2 * contrasts, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for channels in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), nn.InstanceNorm2d(2 * channels)]
            layers.append(nn.LeakyReLU(0.2))
        layers += [nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(8 * width, contrasts, 4, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(
        self, candidate: Float[Tensor, "b m h w"], real: Float[Tensor, "b m h w"]
    ) -> Float[Tensor, "b m hp wp"]:
        scores: Tensor = self.layers(cat([candidate, real], dim=1))
        return scores


def least_squares(
    scores: Float[Tensor, "b m hp wp"], target: Bool[Tensor, "b m"] | float, counted: Bool[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """Mean squared distance of the score maps to their target, over the contrasts that count.

    Args:
        scores: the discriminator's maps.
        target: 1 or 0 per sample and contrast, or one number for all.
        counted: contrasts with ground truth; the others have no map to judge.
    """
    goal = target.to(scores.dtype)[:, :, None, None] if isinstance(target, Tensor) else target
    error = (scores.float() - goal).square().mean((2, 3))
    return (error * counted).sum() / counted.sum()
