"""The shape of a StyleGAN2: everything needed to build its networks, nothing about how it was trained."""

from math import log2
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StyleGAN2Config(BaseModel):
    """Architecture of a StyleGAN2(-ADA) generator and its discriminator.

    Field meanings and defaults follow stylegan2-ada-pytorch (Karras et al. 2020, "Training Generative Adversarial
    Networks with Limited Data"), so that a config read from an official checkpoint maps one to one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    z_dim: int = Field(
        512, ge=0, description="length of the input latent z; 0 for a purely conditional generator"
    )
    c_dim: int = Field(
        0, ge=0, description="number of classes (length of the one-hot label); 0 is unconditional"
    )
    w_dim: int = Field(512, ge=1, description="length of the intermediate latent w")
    img_resolution: int = Field(ge=4, description="side of the square image in pixels, 4 * 2^k")
    img_channels: int = Field(3, ge=1)
    channel_base: int = Field(
        32768, ge=1, description="channels at resolution r are min(channel_base // r, channel_max)"
    )
    channel_max: int = Field(512, ge=1)
    architecture: Literal["skip", "resnet", "orig"] = Field("skip", description="of the synthesis network")
    mapping_layers: int = Field(8, ge=1)
    mapping_features: int | None = Field(
        None, description="width of the hidden mapping layers; None is w_dim"
    )
    embed_features: int | None = Field(None, description="width of the label embedding; None is w_dim")
    mapping_lr_multiplier: float = Field(0.01, gt=0)
    w_avg_beta: float = Field(0.995, ge=0, le=1, description="decay of the running mean of w while training")
    conv_clamp: float | None = Field(
        None, gt=0, description="activations are clamped to +- this; None is no clamp"
    )
    use_noise: bool = True

    discriminator_architecture: Literal["skip", "resnet", "orig"] = "resnet"
    discriminator_mapping_layers: int = Field(
        8, ge=0, description="layers of the label mapping, if conditional"
    )
    mbstd_group_size: int | None = Field(4, ge=1, description="None is the whole batch")
    mbstd_channels: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _resolution_is_a_power_of_two(self) -> "StyleGAN2Config":
        if self.img_resolution & (self.img_resolution - 1):
            raise ValueError(f"img_resolution must be 4 * 2^k (4, 8, 16, ...), got {self.img_resolution}")
        if self.z_dim == 0 and self.c_dim == 0:
            raise ValueError("a generator needs an input: z_dim and c_dim are both 0")
        return self

    @property
    def block_resolutions(self) -> tuple[int, ...]:
        """4, 8, ..., img_resolution."""
        return tuple(2**k for k in range(2, int(log2(self.img_resolution)) + 1))

    @property
    def num_ws(self) -> int:
        """How many copies of w the synthesis network consumes: one per convolution and one for the last ToRGB."""
        return 2 * int(log2(self.img_resolution)) - 2

    def channels(self, resolution: int) -> int:
        """Feature maps at `resolution`."""
        return min(self.channel_base // resolution, self.channel_max)
