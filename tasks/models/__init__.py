"""Classifiers: one family per file, registered by its name. Images in [0, 1] in, logits out."""

from typing import TYPE_CHECKING, Annotated, TypeAlias, Union

from pydantic import BaseModel, Field

from gat.outputs import check_classifier_outputs
from tasks.models.efficientnet_lite import EfficientNetLite0Config
from tasks.models.normalized import Normalized
from tasks.models.settings import ModelSettings
from tasks.models.small_convnet import SmallConvNetConfig
from tasks.models.small_resnet import SmallResNetConfig
from tasks.models.timm import TimmConfig
from tasks.models.torchvision import TorchvisionConfig

MODELS: dict[str, type[BaseModel]] = {
    "efficientnet_lite0": EfficientNetLite0Config,
    "small_convnet": SmallConvNetConfig,
    "small_resnet": SmallResNetConfig,
    "timm": TimmConfig,
    "torchvision": TorchvisionConfig,
}

if TYPE_CHECKING:
    ModelConfig: TypeAlias = ModelSettings
else:
    ModelConfig = Annotated[Union[tuple(MODELS.values())], Field(discriminator="name")]  # noqa: UP007

__all__ = ["MODELS", "ModelConfig", "ModelSettings", "Normalized", "check_classifier_outputs"]
