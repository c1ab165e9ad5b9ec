"""StyleGAN2's discriminator, by the facts and names that `generator.py` names."""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from generators.stylegan2.config import StyleGAN2Config
from generators.stylegan2.layers import Conv, FullyConnected, LabelAndLatentMLP, downsample, fir


class DiscriminatorBlock(nn.Module):
    """One resolution of the discriminator, halving it."""

    resample_filter: Tensor

    def __init__(self, resolution: int, is_first: bool, config: StyleGAN2Config) -> None:
        super().__init__()
        self.architecture = config.discriminator_architecture
        channels, out_channels = config.channels(resolution), config.channels(resolution // 2)
        clamp = config.conv_clamp
        self.register_buffer("resample_filter", fir())
        if is_first or self.architecture == "skip":
            self.fromrgb = Conv(config.img_channels, channels, 1, clamp=clamp)
        self.conv0 = Conv(channels, channels, 3, clamp=clamp)
        self.conv1 = Conv(channels, out_channels, 3, resample=-2, clamp=clamp)
        if self.architecture == "resnet":
            self.skip = Conv(channels, out_channels, 1, leaky=False, bias=False, resample=-2)

    def forward(
        self, x: Float[Tensor, "b i h w"] | None, images: Float[Tensor, "b c h w"] | None
    ) -> tuple[Float[Tensor, "b o h2 w2"], Float[Tensor, "b c h2 w2"] | None]:
        if images is not None:
            features = self.fromrgb(images)
            x = features if x is None else x + features
            images = downsample(images, self.resample_filter) if self.architecture == "skip" else None
        assert x is not None
        if self.architecture == "resnet":
            shortcut = self.skip(x, gain=sqrt(0.5))
            return shortcut + self.conv1(self.conv0(x), gain=sqrt(0.5)), images
        return self.conv1(self.conv0(x)), images


def minibatch_std(
    x: Float[Tensor, "b c h w"], group_size: int | None, num_channels: int
) -> Float[Tensor, "b c2 h w"]:
    """Appends the standard deviation over groups of examples as extra channels (Karras et al. 2017, section 3)."""
    b, c, h, w = x.shape
    size = min(group_size, b) if group_size is not None else b
    if b % size:
        raise ValueError(f"a batch of {b} does not split into minibatch-std groups of {size}")
    y = x.reshape(size, -1, num_channels, c // num_channels, h, w).float()
    std = (y - y.mean(dim=0)).square().mean(dim=0).add(1e-8).sqrt().mean(dim=(2, 3, 4))
    return torch.cat([x, std.to(x.dtype)[:, :, None, None].repeat(size, 1, h, w)], dim=1)


class DiscriminatorEpilogue(nn.Module):
    """4x4 to one logit per example, or to a vector to be compared with the label's embedding."""

    def __init__(self, config: StyleGAN2Config, cmap_dim: int) -> None:
        super().__init__()
        self.config = config
        channels = config.channels(4)
        if config.discriminator_architecture == "skip":
            self.fromrgb = Conv(config.img_channels, channels, 1)
        self.conv = Conv(channels + config.mbstd_channels, channels, 3, clamp=config.conv_clamp)
        self.fc = FullyConnected(channels * 16, channels, leaky=True)
        self.out = FullyConnected(channels, cmap_dim or 1)

    def forward(
        self,
        x: Float[Tensor, "b c 4 4"],
        images: Float[Tensor, "b i 4 4"] | None,
        cmap: Float[Tensor, "b m"] | None,
    ) -> Float[Tensor, "b 1"]:
        if self.config.discriminator_architecture == "skip":
            x = x + self.fromrgb(images)
        if self.config.mbstd_channels:
            x = minibatch_std(x, self.config.mbstd_group_size, self.config.mbstd_channels)
        x = self.out(self.fc(self.conv(x).flatten(1).float()))
        return x if cmap is None else (x * cmap).sum(dim=1, keepdim=True) / sqrt(cmap.shape[1])


class DiscriminatorMapping(LabelAndLatentMLP):
    """One-hot label to the vector the last features are compared with."""

    def __init__(self, config: StyleGAN2Config) -> None:
        dim = config.channels(4)
        super().__init__(
            0, config.c_dim, dim, [dim] * config.discriminator_mapping_layers, lr_multiplier=0.01
        )


class Discriminator(nn.Module):
    """Image (and label) to a realness logit."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.resolutions = config.block_resolutions[:0:-1]
        for resolution in self.resolutions:
            setattr(
                self,
                f"b{resolution}",
                DiscriminatorBlock(resolution, resolution == config.img_resolution, config),
            )
        cmap_dim = config.channels(4) if config.c_dim else 0
        self.b4 = DiscriminatorEpilogue(config, cmap_dim)
        if config.c_dim:
            self.mapping = DiscriminatorMapping(config)

    def forward(
        self,
        images: Float[Tensor, "b i r r"],
        c: Float[Tensor, "b k"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "b 1"]:
        """Args:
        images: nominally in [-1, 1].
        dtype: of the convolutions (None: the images').
        """
        rgb: Tensor | None = images if dtype is None else images.to(dtype)
        x = None
        for resolution in self.resolutions:
            x, rgb = getattr(self, f"b{resolution}")(x, rgb)
        cmap = self.mapping(None, c) if self.config.c_dim else None
        return self.b4(x, rgb, cmap)
