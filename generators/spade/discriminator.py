"""The adversary that SPADE is trained against: PatchGAN discriminators at several scales.

Ours, after Wang et al. 2018 ("High-Resolution Image Synthesis ... with Conditional GANs", pix2pixHD, Sec. 3.2) with the spectral
norm of Park et al. 2019 ("Semantic Image Synthesis with Spatially-Adaptive Normalization", Appendix A). Not needed to render.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

Maps = Float[Tensor, "b _ _ _"]

KERNEL_PX = 4
MAX_WIDENING = 8  # channels stop doubling at this multiple of the first layer's


class PatchDiscriminator(nn.Module):
    """Layout and image to a map of logits, one per overlapping patch.

    The first convolution and then `n_layers - 1` more, each with spectral norm and instance norm; all but the last one halve the
    size. A last convolution gives the logits.

    Args:
        in_channels: of the semantic input and the image together.
        n_layers: convolutions before the last.
        ndf: channels of the first layer; they double up to eight times as many.
    """

    def __init__(self, in_channels: int, n_layers: int, ndf: int) -> None:
        super().__init__()
        pad = KERNEL_PX // 2
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(in_channels, ndf, KERNEL_PX, 2, pad), nn.LeakyReLU(0.2))
        ]
        width = ndf
        for index in range(1, n_layers):
            before, width = width, min(2 * width, MAX_WIDENING * ndf)
            stride = 1 if index == n_layers - 1 else 2
            # Instance norm takes a bias away again.
            convolution = nn.Conv2d(before, width, KERNEL_PX, stride, pad, bias=False)
            layers.append(
                nn.Sequential(spectral_norm(convolution), nn.InstanceNorm2d(width), nn.LeakyReLU(0.2))
            )
        layers.append(nn.Conv2d(width, 1, KERNEL_PX, 1, pad))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Maps) -> list[Maps]:
        """The output of every layer in order; the last one holds the logits."""
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs


class MultiscaleDiscriminator(nn.Module):
    """`num_D` patch discriminators, each seeing the image at half the size of the one before.

    Args:
        semantic_nc: channels of the semantic input.
        image_nc: channels of the image.
        num_D, n_layers, ndf: scales, and see `PatchDiscriminator`.

    Raises:
        ValueError: for fewer than one scale or layer.
    """

    def __init__(
        self, semantic_nc: int, image_nc: int = 3, num_D: int = 2, n_layers: int = 3, ndf: int = 64
    ) -> None:
        super().__init__()
        if num_D < 1 or n_layers < 1:
            raise ValueError(
                f"wanted one scale and one layer at least, got num_D={num_D}, n_layers={n_layers}"
            )
        self.scales = nn.ModuleList(
            PatchDiscriminator(semantic_nc + image_nc, n_layers, ndf) for _ in range(num_D)
        )

    def forward(
        self, semantics: Float[Tensor, "b s h w"], images: Float[Tensor, "b c h w"]
    ) -> list[list[Maps]]:
        """Args:
            semantics: what `encode_layouts` gives.
            images: in [-1, 1].

        Returns:
            By scale, finest first: the outputs of all layers, the last of which are the logits.
        """
        x = torch.cat([semantics, images], dim=1)
        outputs = []
        for index, scale in enumerate(self.scales):
            if index:
                x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
            outputs.append(scale(x))
        return outputs


def hinge_loss_D(fake: Sequence[Sequence[Maps]], real: Sequence[Sequence[Maps]]) -> Float[Tensor, ""]:
    """max(0, 1 + D(fake)) + max(0, 1 - D(real)), mean over patches and scales (Lim and Ye 2017)."""
    losses = [F.relu(1 + f[-1]).mean() + F.relu(1 - r[-1]).mean() for f, r in zip(fake, real, strict=True)]
    return torch.stack(losses).mean()


def hinge_loss_G(fake: Sequence[Sequence[Maps]]) -> Float[Tensor, ""]:
    """-D(fake), mean over patches and scales."""
    return -torch.stack([scale[-1].mean() for scale in fake]).mean()


def feature_matching_loss(
    fake: Sequence[Sequence[Maps]], real: Sequence[Sequence[Maps]]
) -> Float[Tensor, ""]:
    """L1 between the features of a rendering and of the real image it should be, logits left out (pix2pixHD, eq. 4).

    Sum over layers, mean over scales. No gradient reaches the real side.
    """
    losses = [
        F.l1_loss(f, r.detach())
        for fakes, reals in zip(fake, real, strict=True)
        for f, r in zip(fakes[:-1], reals[:-1], strict=True)
    ]
    return torch.stack(losses).sum() / len(fake)
