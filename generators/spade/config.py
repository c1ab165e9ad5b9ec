"""The shape of a SPADE generator: everything needed to build it, nothing about how it was trained."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

UNKNOWN = 255  # the value of a semantic map that means "no class"
UPSAMPLINGS = {"normal": 5, "more": 6, "most": 7}


class SPADEConfig(BaseModel):
    """Architecture of a SPADE generator (Park et al. 2019, "Semantic Image Synthesis with Spatially-Adaptive Normalization").

    Field names and defaults follow the options of the published code, so that an official checkpoint maps one to one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label_nc: int = Field(ge=1, description="semantic classes, without the channel of the unknown")
    contain_dontcare: bool = Field(True, description="a channel of its own for unknown pixels (255)")
    dontcare_first: bool = Field(
        False,
        description="that channel is the first, as in the released ADE20K model, not the one after the classes",
    )
    use_instance: bool = Field(True, description="a last channel with the edges of instances")
    classes: tuple[str, ...] = Field((), description="names of the semantic classes, if known")

    ngf: int = Field(64, ge=2, description="feature maps at full size (half of it with 'most')")
    nhidden: int = Field(128, ge=1, description="feature maps of the label branch of every norm")
    kernel_size: int = Field(3, ge=1, description="of the label branch")
    num_upsampling_layers: Literal["normal", "more", "most"] = "normal"
    crop_size: int = Field(256, ge=1, description="width of the image in pixels")
    aspect_ratio: float = Field(1.0, gt=0, description="width / height")
    use_vae: bool = Field(False, description="start from a random z, not from the label map")
    z_dim: int = Field(256, ge=1, description="length of z; without meaning unless use_vae")

    @model_validator(mode="after")
    def _fits(self) -> "SPADEConfig":
        factor = 2 ** UPSAMPLINGS[self.num_upsampling_layers]
        if self.crop_size % factor:
            raise ValueError(
                f"crop_size must be a multiple of {factor} with '{self.num_upsampling_layers}' upsampling layers, "
                f"got {self.crop_size}"
            )
        if self.start_size[0] < 1:
            raise ValueError(
                f"an image of {self.crop_size} px is too flat for an aspect ratio of {self.aspect_ratio}"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        if self.dontcare_first and not self.contain_dontcare:
            raise ValueError("dontcare_first needs contain_dontcare")
        if self.classes and len(self.classes) != self.label_nc:
            raise ValueError(f"{self.label_nc} semantic classes, but {len(self.classes)} names")
        return self

    @property
    def semantic_nc(self) -> int:
        """Channels of the encoded layout: classes, unknown, edges of instances."""
        return self.label_nc + self.contain_dontcare + self.use_instance

    @property
    def start_size(self) -> tuple[int, int]:
        """Height and width in px of the first block."""
        width = self.crop_size // 2 ** UPSAMPLINGS[self.num_upsampling_layers]
        return round(width / self.aspect_ratio), width

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image in px."""
        height, width = self.start_size
        factor = 2 ** UPSAMPLINGS[self.num_upsampling_layers]
        return height * factor, width * factor
