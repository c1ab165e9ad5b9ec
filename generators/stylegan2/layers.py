"""What StyleGAN2's generator and discriminator are made of: resampling through the FIR filter, activations, equalised layers."""

from math import sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LEAKY_GAIN = sqrt(2)  # keeps the variance of a leaky-ReLU layer at one


def fir() -> Float[Tensor, "4 4"]:
    """The [1, 3, 3, 1] low-pass filter as a 2-D kernel that sums to one."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    return kernel / kernel.sum()


def depthwise(kernel: Float[Tensor, "h w"], x: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "c 1 h w"]:
    return kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)


def upsample(x: Float[Tensor, "b c h w"], fir: Float[Tensor, "4 4"]) -> Float[Tensor, "b c h2 w2"]:
    """Twice the resolution, low-pass filtered: zeros between pixels, then the filter.

    Equal to a strided depthwise transposed convolution, whose backward pass is several times slower on CPUs.
    """
    b, c, h, w = x.shape
    spread = x.new_zeros(b, c, h, 2, w, 2)
    spread[:, :, :, 0, :, 0] = x
    spread = F.pad(spread.view(b, c, 2 * h, 2 * w), (2, 1, 2, 1))
    return F.conv2d(spread, depthwise(fir * 4, x), groups=c)


def downsample(x: Float[Tensor, "b c h w"], fir: Float[Tensor, "4 4"]) -> Float[Tensor, "b c h2 w2"]:
    """Half the resolution, low-pass filtered.

    Filters at full resolution and drops every other pixel: a strided depthwise convolution has a 15 times slower backward
    pass on CPUs (oneDNN has no kernel for it).
    """
    return F.conv2d(x, depthwise(fir, x), padding=1, groups=x.shape[1])[:, :, ::2, ::2]


def activate(
    x: Float[Tensor, "b ..."],
    bias: Float[Tensor, " c"],
    leaky: bool,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Float[Tensor, "b ..."]:
    """Bias, leaky ReLU (slope 0.2, gain sqrt 2) or identity, `gain`, then clamp to +- `clamp * gain`."""
    x = x + bias.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
    if leaky:
        x = F.leaky_relu(x, 0.2) * (LEAKY_GAIN * gain)
    elif gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def normalize_second_moment(x: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class FullyConnected(nn.Module):
    """Linear layer with equalised learning rate (the gain is applied at run time, weights are stored at unit scale)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        leaky: bool = False,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], bias_init))
        self.leaky, self.lr_multiplier = leaky, lr_multiplier
        self.weight_gain = lr_multiplier / sqrt(in_features)

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        return activate(
            F.linear(x, self.weight * self.weight_gain), self.bias * self.lr_multiplier, self.leaky
        )


class LabelAndLatentMLP(nn.Module):
    """The mapping network: normalised z and embedded label through an MLP.

    Args:
        layer_widths: output width of every layer.
    """

    def __init__(
        self, z_dim: int, c_dim: int, embed_features: int, layer_widths: list[int], lr_multiplier: float
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.num_layers = z_dim, c_dim, len(layer_widths)
        if c_dim:
            self.embed = FullyConnected(c_dim, embed_features)
        width = z_dim + (embed_features if c_dim else 0)
        for i, out in enumerate(layer_widths):
            setattr(self, f"fc{i}", FullyConnected(width, out, leaky=True, lr_multiplier=lr_multiplier))
            width = out

    def forward(self, z: Float[Tensor, "b z"] | None, c: Float[Tensor, "b k"] | None) -> Float[Tensor, "b w"]:
        parts = []
        if self.z_dim:
            assert z is not None
            parts.append(normalize_second_moment(z.float()))
        if self.c_dim:
            assert c is not None
            parts.append(normalize_second_moment(self.embed(c.float())))
        x = torch.cat(parts, dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        return x


class Conv(nn.Module):
    """Plain convolution with equalised learning rate, optionally halving or doubling the resolution through the FIR filter."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        leaky: bool = True,
        bias: bool = True,
        resample: int = 1,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.leaky, self.resample, self.clamp = leaky, resample, clamp
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / sqrt(in_channels * kernel_size**2)
        self.register_buffer("resample_filter", fir())

    def forward(self, x: Float[Tensor, "b i h w"], gain: float = 1.0) -> Float[Tensor, "b o h2 w2"]:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        size = weight.shape[-1]
        if self.resample == 2:  # 1x1 up: convolve first, it is cheaper on the small map
            assert size == 1
            x = upsample(F.conv2d(x, weight), self.resample_filter)
        elif self.resample == -2 and size == 1:
            x = F.conv2d(downsample(x, self.resample_filter), weight)
        elif self.resample == -2:
            x = F.conv2d(x, depthwise(self.resample_filter, x), padding=(size + 1) // 2, groups=x.shape[1])
            x = F.conv2d(x, weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=size // 2)
        if self.bias is not None:
            return activate(x, self.bias, self.leaky, gain, self.clamp)
        return x * gain if gain != 1 else x
