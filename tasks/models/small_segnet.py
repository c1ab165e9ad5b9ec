"""A small U-Net for images of 64 px, shaped for a CPU."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from tasks.models.normalized import Normalized
from tasks.models.settings import NetworkConfig, check_num_classes
from tasks.models.small_resnet import Activation, Norm, ResidualBlock, Width, make_activation, make_norm


class SmallSegNetConfig(NetworkConfig, frozen=True, extra="forbid"):
    """A U-Net (Ronneberger et al. 2015) of pre-activation residual blocks, scaled down.

    Attributes:
        name: Registered name.
        widths: Channels of each stage, multiples of 8; every stage after the first halves the resolution.
        blocks: Residual blocks of two 3x3 convolutions per stage on the way down. On the way up there is one.
        patch_px: Pixels are read and labelled in squares of this side: 2 makes the first stage run at half the resolution, which
            costs a quarter, and still answers for every single pixel.
        norm: 'batch', or 'group' (groups of 8 channels) for a network whose answer to an image does not depend on the training
            batch.
        activation: 'relu', or 'silu', which is smooth.
    """

    task: ClassVar[str] = "segmentation"
    name: Literal["small_segnet"] = "small_segnet"
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (24, 48, 64)
    blocks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 1)
    patch_px: Literal[1, 2, 4] = 2
    norm: Norm = "batch"
    activation: Activation = "relu"

    @model_validator(mode="after")
    def _stages_agree(self) -> "SmallSegNetConfig":
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths and blocks need one number per stage each, got {self.widths} and {self.blocks}"
            )
        return self

    def build(self, num_classes: int, image_size: int) -> Normalized:
        """A network for square images; logits [b, num_classes, image_size, image_size].

        Raises:
            ValueError: If there are fewer than 2 classes, the side of the images cannot be halved so often, or `weights` do not fit.
        """
        check_num_classes(num_classes)
        step = self.patch_px * 2 ** (len(self.widths) - 1)
        if image_size < step or image_size % step:
            raise ValueError(
                f"{self.name} with these settings needs images whose side is a multiple of {step} px, got {image_size}"
            )
        network = SmallSegNet(
            num_classes, self.widths, self.blocks, self.patch_px, self.norm, self.activation
        )
        return self.finish(network, num_classes)


class SmallSegNet(nn.Module):
    """Patches to channels, residual blocks down and up with the fine stages joined in, channels to patches (ours)."""

    def __init__(
        self,
        num_classes: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        patch_px: int = 2,
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.stem = nn.Conv2d(3 * patch_px**2, widths[0], 3, padding=1, bias=False)
        down: list[nn.Module] = []
        width = widths[0]
        for stage, (out_width, num_blocks) in enumerate(zip(widths, blocks, strict=True)):
            body: list[nn.Module] = []
            for i in range(num_blocks):
                body.append(ResidualBlock(width, out_width, stage > 0 and i == 0, norm, activation))
                width = out_width
            down.append(nn.Sequential(*body))
        self.down = nn.ModuleList(down)
        fine_to_coarse = list(zip(widths[:-1], widths[1:], strict=True))
        self.up = nn.ModuleList(
            ResidualBlock(fine + coarse, fine, False, norm, activation)
            for fine, coarse in reversed(fine_to_coarse)
        )
        self.norm = make_norm(norm, widths[0])
        self.activation = make_activation(activation)
        self.head = nn.Conv2d(widths[0], num_classes * patch_px**2, 1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        x = self.stem(F.pixel_unshuffle(x, self.patch_px))
        stages = []
        for body in self.down:
            x = body(x)
            stages.append(x)
        for join, fine in zip(self.up, reversed(stages[:-1]), strict=True):
            coarse = F.interpolate(x, size=fine.shape[2:], mode="bilinear")
            x = join(torch.cat([fine, coarse], dim=1))
        logits: Tensor = self.head(self.activation(self.norm(x)))
        return F.pixel_shuffle(logits, self.patch_px)
