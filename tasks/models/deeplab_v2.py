"""DeepLab-v2, the segmenter of the GAT paper, under the names of the public COCO-Stuff weights."""

from collections import OrderedDict
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from tasks.models.normalized import Normalized
from tasks.models.settings import NetworkConfig, check_num_classes, try_out

# ImageNet's mean in the bytes of Caffe, as RGB; the networks of that time divide by nothing.
CAFFE_MEAN = (122.675 / 255, 116.669 / 255, 104.008 / 255)
CAFFE_STD = (1 / 255, 1 / 255, 1 / 255)
BATCH_NORM_MOMENTUM = 0.001  # running statistics of pretrained backbones move slowly


class DeepLabV2Config(NetworkConfig, frozen=True, extra="forbid"):
    """DeepLab-v2 (Chen et al. 2018, "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
    Connected CRFs"), without the CRF; ours.

    With the defaults and 182 classes, `weights` may be the COCO-Stuff checkpoint of https://github.com/kazuto1011/deeplab-pytorch.

    Attributes:
        name: Registered name.
        blocks: Bottleneck blocks of the four stages: (3, 4, 23, 3) is ResNet-101, (3, 4, 6, 3) ResNet-50.
        rates: Dilations of the 3x3 convolutions whose sum is the answer.
        scales: The network also looks at the image at these sizes, and the largest logit counts at every pixel. Published results
            use (0.5, 0.75).
        width: Channels of the stem; stages have 4, 8, 16 and 32 times as many.
        resize: Side in pixels the network gets its images in, whatever their size. None leaves them alone.
        mean, std: None is what Caffe's weights are used to: bytes minus ImageNet's mean. Colours become BGR inside.
    """

    task: ClassVar[str] = "segmentation"
    name: Literal["deeplab_v2"] = "deeplab_v2"
    blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 23, 3)
    rates: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (6, 12, 18, 24)
    scales: tuple[PositiveFloat, ...] = ()
    width: PositiveInt = 64
    resize: PositiveInt | None = None

    def build(self, num_classes: int, image_size: int) -> Normalized:
        """The network, shown one image; logits [b, num_classes, h, w] of the size of the images.

        Raises:
            ValueError: If there are fewer than 2 classes, `weights` do not fit, or the images are too small.
        """
        check_num_classes(num_classes)
        network = DeepLabV2(num_classes, self.blocks, self.rates, self.scales, self.width)
        model = self.finish(network, num_classes, CAFFE_MEAN, CAFFE_STD, self.resize)
        try_out(model, num_classes, image_size, self.name, "use larger images or set resize")
        return model


class DeepLabV2(nn.Module):
    """RGB images to logits at an eighth of their resolution."""

    def __init__(
        self,
        num_classes: int,
        blocks: tuple[int, int, int, int] = (3, 4, 23, 3),
        rates: tuple[int, ...] = (6, 12, 18, 24),
        scales: tuple[float, ...] = (),
        width: int = 64,
    ) -> None:
        super().__init__()
        self.scales = scales
        widths = [4 * width, 8 * width, 16 * width, 32 * width]
        stem = OrderedDict(
            conv1=_conv(3, width, 7, stride=2), pool=nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        )
        self.base = nn.Sequential(
            OrderedDict(
                layer1=nn.Sequential(stem),
                layer2=_stage(blocks[0], width, widths[0], stride=1, dilation=1),
                layer3=_stage(blocks[1], widths[0], widths[1], stride=2, dilation=1),
                layer4=_stage(blocks[2], widths[1], widths[2], stride=1, dilation=2),
                layer5=_stage(blocks[3], widths[2], widths[3], stride=1, dilation=4),
                aspp=_Pyramid(widths[3], num_classes, rates),
            )
        )

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h8 w8"]:
        x = x.flip(1)
        logits: Tensor = self.base(x)
        for scale in self.scales:
            other = self.base(F.interpolate(x, scale_factor=scale, mode="bilinear"))
            logits = logits.maximum(F.interpolate(other, logits.shape[2:], mode="bilinear"))
        return logits


class _Pyramid(nn.Module):
    """The sum of 3x3 convolutions that reach differently far."""

    def __init__(self, in_channels: int, num_classes: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        for i, rate in enumerate(rates):
            layer = nn.Conv2d(in_channels, num_classes, 3, padding=rate, dilation=rate)
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
            self.add_module(f"c{i}", layer)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        first, *others = (layer(x) for layer in self.children())
        total: Tensor = first
        for other in others:
            total = total + other
        return total


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (He et al. 2016, as first published: the first one has the stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dilation: int, project: bool
    ) -> None:
        super().__init__()
        inner = out_channels // 4
        self.reduce = _conv(in_channels, inner, 1, stride)
        self.conv3x3 = _conv(inner, inner, 3, dilation=dilation)
        self.increase = _conv(inner, out_channels, 1, relu=False)
        self.shortcut = _conv(in_channels, out_channels, 1, stride, relu=False) if project else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        residual: Tensor = self.increase(self.conv3x3(self.reduce(x)))
        return F.relu(residual + self.shortcut(x))


def _stage(num_blocks: int, in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Sequential:
    first = _Bottleneck(in_channels, out_channels, stride, dilation, project=True)
    others = (
        _Bottleneck(out_channels, out_channels, 1, dilation, project=False) for _ in range(num_blocks - 1)
    )
    return nn.Sequential(OrderedDict((f"block{i}", block) for i, block in enumerate([first, *others], 1)))


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, relu: bool = True
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv=layer, bn=nn.BatchNorm2d(out_channels, momentum=BATCH_NORM_MOMENTUM)
    )
    if relu:
        parts["relu"] = nn.ReLU()
    return nn.Sequential(parts)
