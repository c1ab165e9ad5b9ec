"""A plain convolutional network without shortcuts or batch statistics."""

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tasks.models.normalized import Normalized
from tasks.models.settings import NetworkConfig, check_num_classes, check_smallest_side


class SmallConvNetConfig(NetworkConfig, frozen=True, extra="forbid"):
    """A VGG-like network for small images, meant as a second opinion beside `small_resnet`.

    It has neither shortcuts nor batch statistics nor a strided stem, and another activation and pooling, so
    that the two are wrong about different images.

    Attributes:
        name: Registered name.
        width: Channels at full resolution, a multiple of 8; doubled at each halving.
        stages: How often the resolution is halved.
        depth: 3x3 convolutions at each halved resolution. There is one at full resolution.
        dropout: Of the pooled features.
    """

    name: Literal["small_convnet"] = "small_convnet"
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    stages: PositiveInt = 2
    depth: PositiveInt = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def build(self, num_classes: int, image_size: int) -> Normalized:
        """A network for square images.

        Raises:
            ValueError: If there are fewer than 2 classes, the images are too small to be halved `stages`
                times, or `weights` do not fit.
        """
        check_num_classes(num_classes)
        check_smallest_side(self.name, image_size, 2**self.stages)
        network = SmallConvNet(num_classes, self.width, self.stages, self.depth, self.dropout)
        return self.finish(network, num_classes)


class SmallConvNet(nn.Module):
    """(convolution, GroupNorm, SiLU) repeated, 2x2 maximum between resolutions, mean, linear (ours)."""

    def __init__(self, num_classes: int, width: int, stages: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        layers = [*_layer(3, width)]
        for _ in range(stages):
            layers.append(nn.MaxPool2d(2))
            for i in range(depth):
                layers += _layer(width if i == 0 else 2 * width, 2 * width)
            width *= 2
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.head(self.dropout(self.features(x).mean((2, 3))))
        return logits


def _layer(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(out_channels // 8, out_channels),
        nn.SiLU(),
    )
