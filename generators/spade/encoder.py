"""The style encoder of SPADE's VAE branch: from an image to a distribution of the z that would give it. Trains with the generator."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from generators.spade.config import SPADEConfig

SMALLEST_PX = 4
MAX_WIDENING = 8
START_LOGVAR = -4.0


class Posterior(NamedTuple):
    """A normal distribution of z per example."""

    mean: Float[Tensor, "b z"]
    logvar: Float[Tensor, "b z"]

    def sample(self, noise: Float[Tensor, "b z"]) -> Float[Tensor, "b z"]:
        """`noise` is standard normal (Kingma and Welling 2014, Sec. 2.4)."""
        return self.mean + noise * (0.5 * self.logvar).exp()

    def divergence(self) -> Float[Tensor, " b"]:
        """Kullback-Leibler, from the standard normal, in nats."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).sum(1)


class StyleEncoder(nn.Module):
    """Convolutions of stride 2 down to 4 px, the mean colour of every class, one linear layer (after Park et al. 2019, Appendix A).

    Ours differs in that it sees the layout, because a style is mostly which class has which colour, and those colours are handed on
    as they are. Its norm is over all channels at once: instance norm, as published, takes out the mean of every channel, which is
    what colours are. And posteriors start out narrow, so that there is something to be heard before there is a reason to listen.

    Args:
        config: of the generator it works for.
        nef: channels of the first layer; they double up to eight times as many.
    """

    def __init__(self, config: SPADEConfig, nef: int = 16) -> None:
        super().__init__()
        height, width = config.image_size
        layers: list[nn.Module] = []
        before, channels = config.semantic_nc + 3, nef
        while min(height, width) > SMALLEST_PX:
            layers += [
                nn.Conv2d(before, channels, 3, 2, 1),
                nn.GroupNorm(1, channels),
                nn.LeakyReLU(0.2),
            ]
            before, channels = channels, min(2 * channels, MAX_WIDENING * nef)
            height, width = (height + 1) // 2, (width + 1) // 2
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before * height * width + 3 * config.semantic_nc, 2 * config.z_dim)
        with torch.no_grad():
            self.head.bias[config.z_dim :] = START_LOGVAR

    def forward(self, semantics: Float[Tensor, "b s h w"], images: Float[Tensor, "b 3 h w"]) -> Posterior:
        """`images` are in [-1, 1]."""
        maps = self.body(torch.cat([semantics, images], dim=1))
        areas = semantics.sum((2, 3)).clamp(min=1)
        colors = torch.einsum("bshw,bchw->bsc", semantics, images) / areas[:, :, None]
        mean, logvar = self.head(torch.cat([maps.flatten(1), colors.flatten(1)], dim=1)).chunk(2, dim=1)
        return Posterior(mean, logvar)
