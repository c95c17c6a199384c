"""Channels weighted by what their means over the image say.

Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, arXiv 1709.01507.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """Squeeze and excitation with a sixteenth of the channels between.

    Args:
        channels: of the features.
        least: channels between, where a sixteenth would be fewer.
    """

    def __init__(self, channels: int, *, least: int = 1) -> None:
        super().__init__()
        between = max(channels // 16, least)
        self.weigh = nn.Sequential(nn.Linear(channels, between), nn.ReLU(), nn.Linear(between, channels), nn.Sigmoid())

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        weighed: Tensor = features * self.weigh(features.mean((2, 3)))[:, :, None, None]
        return weighed
