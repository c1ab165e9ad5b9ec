"""A residual network for 32x32 images, small and shaped for a CPU."""

from typing import Annotated, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from tasks.models.normalized import Normalized
from tasks.models.settings import NetworkConfig, check_num_classes, check_smallest_side

Norm = Literal["batch", "group"]
Activation = Literal["relu", "silu"]
Width = Annotated[int, Field(ge=8, multiple_of=8)]


class SmallResNetConfig(NetworkConfig, frozen=True, extra="forbid"):
    """A pre-activation residual network (He et al. 2016, "Identity Mappings in Deep Residual Networks"),
    scaled down.

    Attributes:
        name: Registered name.
        widths: Channels of each stage, multiples of 8; every stage after the first halves the resolution.
        blocks: Residual blocks of two 3x3 convolutions per stage.
        stem_stride: 2 makes all stages run at half the resolution, which costs a quarter.
        norm: 'batch', or 'group' (groups of 8 channels) for a network whose answer to an image does not
            depend on the training batch.
        activation: A smooth one ('silu') gives an attack better gradients to train against (Xie et al. 2020,
            "Smooth Adversarial Training").
    """

    name: Literal["small_resnet"] = "small_resnet"
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (32, 64, 64)
    blocks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 1)
    stem_stride: Literal[1, 2] = 2
    norm: Norm = "batch"
    activation: Activation = "relu"

    @model_validator(mode="after")
    def _stages_agree(self) -> "SmallResNetConfig":
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths and blocks need one number per stage each, got {self.widths} and {self.blocks}"
            )
        return self

    def build(self, num_classes: int, image_size: int) -> Normalized:
        """A network for square images.

        Raises:
            ValueError: If there are fewer than 2 classes, the images are too small for so many stages, or
                `weights` do not fit.
        """
        check_num_classes(num_classes)
        check_smallest_side(self.name, image_size, self.stem_stride * 2 ** (len(self.widths) - 1))
        network = SmallResNet(
            num_classes, self.widths, self.blocks, self.stem_stride, self.norm, self.activation
        )
        return self.finish(network, num_classes)


class SmallResNet(nn.Module):
    """Stem, residual blocks, norm, activation, mean over space, linear (ours)."""

    def __init__(
        self,
        num_classes: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        stem_stride: int = 2,
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        # A 4x4 kernel with stride 2 sees every pixel equally often; a 3x3 one does not, and attacks find
        # that.
        kernel = 4 if stem_stride == 2 else 3
        self.stem = nn.Conv2d(3, widths[0], kernel, stem_stride, padding=1, bias=False)
        body: list[nn.Module] = []
        width = widths[0]
        for stage, (out_width, num_blocks) in enumerate(zip(widths, blocks, strict=True)):
            for i in range(num_blocks):
                body.append(ResidualBlock(width, out_width, stage > 0 and i == 0, norm, activation))
                width = out_width
        self.body = nn.Sequential(*body)
        self.norm = make_norm(norm, width)
        self.activation = make_activation(activation)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        x = self.activation(self.norm(self.body(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), after halving the resolution if asked.

    Both branches start from the averaged input: cheaper on a CPU than a strided convolution, and no pixel is
    skipped.
    """

    def __init__(
        self, in_channels: int, out_channels: int, halve: bool, norm: Norm, activation: Activation
    ) -> None:
        super().__init__()
        self.halve = halve
        self.norm1 = make_norm(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.activation = make_activation(activation)
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        if self.halve:
            x = F.avg_pool2d(x, 2)
        residual = self.conv1(self.activation(self.norm1(x)))
        residual = self.conv2(self.activation(self.norm2(residual)))
        shortcut: Tensor = self.shortcut(x)
        return shortcut + residual


def make_norm(norm: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(channels // 8, channels)


def make_activation(activation: Activation) -> nn.Module:
    return nn.ReLU() if activation == "relu" else nn.SiLU()
