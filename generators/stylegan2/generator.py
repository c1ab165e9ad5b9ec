"""StyleGAN2's generator, mapping and synthesis, in plain torch operations.

Written from the papers (Karras et al. 2019, "Analyzing and Improving the Image Quality of StyleGAN"; Karras et al. 2020,
StyleGAN2-ADA) and from the published layout of checkpoints. State-dict names and numerics are those of
stylegan2-ada-pytorch, so its weights load with `strict=True`; `tests/golden/stylegan2` holds the agreement.

The synthesis network is three pure functions instead of one forward pass, because the attack moves what lies between them:

    ws = generator.mapping(z, c)            # [n, num_ws, w_dim]
    styles = synthesis.styles(ws)           # {"style/16/conv0": [n, in_channels], ...}
    images = synthesis.render(styles, noise)  # [n, channels, r, r], nominally in [-1, 1], unclamped

`render` walks a flat list of `Layer`s and can start at any of them from the saved `Activations`, which is how an attack that
moves only fine layers pays for the coarse ones once.
"""

from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from generators.stylegan2.config import StyleGAN2Config
from generators.stylegan2.layers import (
    LEAKY_GAIN,
    Conv,
    FullyConnected,
    LabelAndLatentMLP,
    depthwise,
    fir,
    upsample,
)


class Mapping(LabelAndLatentMLP):
    """z and a one-hot label to w, with the running mean of w that truncation pulls towards."""

    w_avg: Tensor

    def __init__(self, config: StyleGAN2Config) -> None:
        hidden = config.mapping_features or config.w_dim
        widths = [hidden] * (config.mapping_layers - 1) + [config.w_dim]
        embed = config.embed_features or config.w_dim
        super().__init__(config.z_dim, config.c_dim, embed, widths, config.mapping_lr_multiplier)
        self.num_ws, self.w_avg_beta = config.num_ws, config.w_avg_beta
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(
        self,
        z: Float[Tensor, "b z"] | None,
        c: Float[Tensor, "b k"] | None = None,
        psi: float = 1.0,
        cutoff: int | None = None,
    ) -> Float[Tensor, "b num_ws w"]:
        """Args:
        psi: truncation, 1 is none and 0 is the mean image.
        cutoff: only the first `cutoff` ws are truncated; None is all of them.
        """
        if self.c_dim and c is None:
            raise ValueError(f"this generator is conditional: give one-hot labels of length {self.c_dim}")
        w = super().forward(z, c)
        if self.training:
            with torch.no_grad():
                self.w_avg.copy_(w.detach().float().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        ws = w.unsqueeze(1).repeat(1, self.num_ws, 1)
        if psi != 1:
            ws[:, :cutoff] = self.w_avg.lerp(ws[:, :cutoff], psi)
        return ws


class Kernel(NamedTuple):
    """What a modulated convolution needs of its weights; constant while the generator is frozen."""

    weight: Float[Tensor, "a b k k"]
    energy: Float[Tensor, "o i"] | None  # sum of squared taps, for demodulation; None where there is none


class StyledConv(nn.Module):
    """3x3 convolution whose input channels are scaled by a style and whose output is demodulated, noised, activated."""

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, resolution: int, up: bool, config: StyleGAN2Config
    ) -> None:
        super().__init__()
        self.up, self.use_noise, self.clamp = up, config.use_noise, config.conv_clamp
        self.affine = FullyConnected(config.w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("resample_filter", fir())
        if config.use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))

    def kernel(self) -> Kernel:
        weight = self.weight.transpose(0, 1) if self.up else self.weight
        return Kernel(weight, self.weight.float().square().sum(dim=(2, 3)))

    def forward(
        self,
        x: Float[Tensor, "b i h w"],
        style: Float[Tensor, "b i"],
        noise: Float[Tensor, "#b 1 r r"] | None,
        kernel: Kernel | None = None,
        gain: float = 1.0,
    ) -> Float[Tensor, "b o r r"]:
        """Modulate, convolve, demodulate, add noise, activate (StyleGAN2 paper, Eqs. 1 and 3, in the order that shares weights
        over the batch: scaling inputs and outputs instead of building one kernel per example)."""
        weight, energy = kernel or self.kernel()
        assert energy is not None
        style = style.float()
        demodulation = (F.linear(style.square(), energy) + 1e-8).rsqrt()
        # The product is rounded, not the style: bfloat16 would swallow an attack's small steps.
        x = (x * style[:, :, None, None]).to(x.dtype)
        if self.up:
            x = F.conv_transpose2d(x, weight.to(x.dtype), stride=2)
            x = F.conv2d(x, depthwise(self.resample_filter * 4, x), padding=1, groups=x.shape[1])
        else:
            x = F.conv2d(x, weight.to(x.dtype), padding=1)
        # From here on as `activate` has it, in fewer passes over memory, which cost as much as the convolution on a CPU: the
        # gain is positive, so it may go before the leaky ReLU, into the small factors; the product is ours to write into.
        scale = LEAKY_GAIN * gain
        x = x * (demodulation * scale).to(x.dtype)[:, :, None, None]
        if noise is not None and self.use_noise:
            x = x.add_((noise * (self.noise_strength * scale)).to(x.dtype))
        x = F.leaky_relu_(x.add_((self.bias * scale).to(x.dtype)[:, None, None]), 0.2)
        return x if self.clamp is None else x.clamp(-self.clamp * gain, self.clamp * gain)


class ToRGB(nn.Module):
    """1x1 modulated convolution to image channels, without demodulation."""

    def __init__(self, in_channels: int, config: StyleGAN2Config) -> None:
        super().__init__()
        self.clamp = config.conv_clamp
        self.affine = FullyConnected(config.w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(config.img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.img_channels))
        self.style_gain = 1 / sqrt(in_channels)

    def kernel(self) -> Kernel:
        return Kernel(self.weight, None)

    def forward(
        self, x: Float[Tensor, "b i r r"], style: Float[Tensor, "b i"], kernel: Kernel | None = None
    ) -> Float[Tensor, "b o r r"]:
        """One small matrix per example instead of a convolution of scaled features: nothing as large as `x` is written."""
        weight = (kernel or self.kernel()).weight
        matrices = (weight[None, :, :, 0, 0] * (style * self.style_gain)[:, None, :]).to(x.dtype)
        images = torch.baddbmm(self.bias.to(x.dtype)[:, None], matrices, x.flatten(2)).unflatten(
            2, x.shape[2:]
        )
        return images if self.clamp is None else images.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """The parameters of one resolution; `Synthesis.render` walks them."""

    def __init__(self, resolution: int, is_last: bool, config: StyleGAN2Config) -> None:
        super().__init__()
        out_channels = config.channels(resolution)
        in_channels = config.channels(resolution // 2)
        self.register_buffer("resample_filter", fir())
        if resolution == 4:
            self.const = nn.Parameter(torch.randn(out_channels, 4, 4))
        else:
            self.conv0 = StyledConv(in_channels, out_channels, resolution, True, config)
        self.conv1 = StyledConv(out_channels, out_channels, resolution, False, config)
        if is_last or config.architecture == "skip":
            self.torgb = ToRGB(out_channels, config)
        if resolution > 4 and config.architecture == "resnet":
            self.skip = Conv(in_channels, out_channels, 1, leaky=False, bias=False, resample=2)


@dataclass(frozen=True)
class Layer:
    """One style-consuming step of the synthesis network, in execution order."""

    resolution: int
    kind: str  # conv0, conv1 or torgb
    ws_index: int  # which w feeds its style
    in_channels: int

    @property
    def style_site(self) -> str:
        return f"style/{self.resolution}/{self.kind}"

    @property
    def noise_site(self) -> str:
        return f"noise/{self.resolution}/{self.kind}"


class Activations(NamedTuple):
    """All that flows between two layers. `images` is the running RGB sum of the skip architecture and `shortcut` the pending
    residual branch of the resnet one; None where there is none."""

    x: Float[Tensor, "b c h w"] | None
    images: Float[Tensor, "b i h2 w2"] | None = None
    shortcut: Float[Tensor, "b o h3 w3"] | None = None

    def take(self, rows: Tensor) -> "Activations":
        return Activations(*(t if t is None else t.index_select(0, rows) for t in self))


class Synthesis(nn.Module):
    """Styles and noise to an image."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        layers = []
        for k, resolution in enumerate(config.block_resolutions):
            is_last = resolution == config.img_resolution
            block = SynthesisBlock(resolution, is_last, config)
            setattr(self, f"b{resolution}", block)
            channels = config.channels(resolution)
            if resolution > 4:
                layers.append(Layer(resolution, "conv0", 2 * k - 1, config.channels(resolution // 2)))
            layers.append(Layer(resolution, "conv1", 2 * k, channels))
            if hasattr(block, "torgb"):
                layers.append(Layer(resolution, "torgb", 2 * k + 1, channels))
        self.layers: tuple[Layer, ...] = tuple(layers)

    def module(self, layer: Layer) -> StyledConv | ToRGB:
        return getattr(getattr(self, f"b{layer.resolution}"), layer.kind)

    def styles(self, ws: Float[Tensor, "b num_ws w"]) -> dict[str, Float[Tensor, "b c"]]:
        """The learned affine of every layer applied to its w. The ToRGB style is stored before its 1/sqrt(channels) gain."""
        return {layer.style_site: self.module(layer).affine(ws[:, layer.ws_index]) for layer in self.layers}

    def noise_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Per-example shape of every noise input."""
        if not self.config.use_noise:
            return {}
        return {
            layer.noise_site: (1, layer.resolution, layer.resolution)
            for layer in self.layers
            if layer.kind != "torgb"
        }

    def const_noise(self) -> dict[str, Float[Tensor, "1 1 r r"]]:
        """The noise maps stored in the checkpoint, shared by all examples (`noise_mode='const'` of the official code)."""
        modules = {layer.noise_site: self.module(layer) for layer in self.layers}
        return {
            site: module.noise_const[None, None]
            for site, module in modules.items()
            if isinstance(module, StyledConv) and module.use_noise
        }

    def kernels(self, dtype: torch.dtype = torch.float32) -> dict[Layer, Kernel]:
        """Weights and demodulation tables of all layers, computed once for a frozen generator.

        Args:
            dtype: of the convolution weights; the tables stay float32.
        """
        with torch.no_grad():
            kernels = {layer: self.module(layer).kernel() for layer in self.layers}
        return {
            layer: Kernel(weight.to(dtype).contiguous(memory_format=torch.channels_last), energy)
            for layer, (weight, energy) in kernels.items()
        }

    def advance(
        self,
        layer: Layer,
        before: Activations,
        style: Float[Tensor, "b c"],
        noise: Float[Tensor, "#b 1 r r"] | None,
        kernel: Kernel | None = None,
        dtype: torch.dtype | None = None,
    ) -> Activations:
        """One layer. `dtype` is that of the first activation (None: the style's); everything after it follows."""
        block, module = getattr(self, f"b{layer.resolution}"), self.module(layer)
        resnet = self.config.architecture == "resnet" and layer.resolution > 4
        x, images, shortcut = before
        if isinstance(module, ToRGB):
            assert x is not None
            rgb = module(x, style, kernel).float()
            images = rgb if images is None else upsample(images, block.resample_filter) + rgb
            return Activations(x, images, None)
        if x is None:
            x = block.const.to(dtype or style.dtype).expand(style.shape[0], -1, -1, -1)
            x = x.contiguous(memory_format=torch.channels_last)
        if resnet and layer.kind == "conv0":
            shortcut = block.skip(x, gain=sqrt(0.5))
        if resnet and layer.kind == "conv1":
            return Activations(shortcut + module(x, style, noise, kernel, gain=sqrt(0.5)), images, None)
        return Activations(module(x, style, noise, kernel), images, shortcut)

    def render(
        self,
        styles: MappingType[str, Tensor],
        noise: MappingType[str, Tensor],
        kernels: MappingType[Layer, Kernel] | None = None,
        start: int = 0,
        before: Activations | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "b c r r"]:
        """Run layers `start`, `start + 1`, ... to the image.

        Args:
            styles: by site; only the layers that run need one.
            noise: by site, [n, 1, r, r] or [1, 1, r, r] to share it over the batch; a missing site gets no noise.
            kernels: `self.kernels()` of a frozen generator; None recomputes them and lets gradients reach the weights.
            start: index into `self.layers`.
            before: activations in front of that layer; needed if `start` is not 0.
            dtype: of the activations (None: the styles'); the image is accumulated in float32 in any case.

        Returns:
            Images, nominally in [-1, 1], not clamped.
        """
        state = before or Activations(None)
        for layer in self.layers[start:]:
            kernel = None if kernels is None else kernels[layer]
            state = self.advance(
                layer, state, styles[layer.style_site], noise.get(layer.noise_site), kernel, dtype
            )
        assert state.images is not None
        return state.images


class Generator(nn.Module):
    """z and label to image: `mapping`, `synthesis.styles`, `synthesis.render` in a row."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config)
        self.synthesis = Synthesis(config)

    def noise(self, n: int, mode: str, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Noise inputs for `n` images: 'const' (stored in the checkpoint), 'random' (drawn from `generator`) or 'none'."""
        if mode == "none":
            return {}
        if mode == "const":
            return dict(self.synthesis.const_noise())
        if mode == "random":
            device = self.mapping.w_avg.device
            return {
                site: torch.randn(
                    n, *shape, generator=generator, device=generator.device if generator else device
                ).to(device)
                for site, shape in self.synthesis.noise_shapes().items()
            }
        raise ValueError(f"noise must be 'const', 'random' or 'none', got {mode!r}")

    def forward(
        self,
        z: Float[Tensor, "b z"] | None,
        c: Float[Tensor, "b k"] | None = None,
        psi: float = 1.0,
        cutoff: int | None = None,
        noise: str = "const",
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "b i r r"]:
        """Images, nominally in [-1, 1]. See `Mapping.forward` for psi and cutoff, `noise` for its modes."""
        ws = self.mapping(z, c, psi, cutoff)
        return self.synthesis.render(
            self.synthesis.styles(ws), self.noise(len(ws), noise, generator), dtype=dtype
        )
