"""Models of all tasks: one family per file, registered by its name. Images in [0, 1] in, what the task reads out."""

from typing import TYPE_CHECKING, Annotated, TypeAlias, Union

from pydantic import Field

from gat.outputs import check_classifier_outputs
from tasks.models.deeplab_v2 import DeepLabV2Config
from tasks.models.detectron2 import Detectron2Config
from tasks.models.efficientnet_lite import EfficientNetLite0Config
from tasks.models.normalized import Normalized
from tasks.models.settings import ModelSettings, NetworkConfig
from tasks.models.small_convnet import SmallConvNetConfig
from tasks.models.small_fcos import SmallFCOSConfig
from tasks.models.small_resnet import SmallResNetConfig
from tasks.models.small_segnet import SmallSegNetConfig
from tasks.models.smp import SMPConfig
from tasks.models.timm import TimmConfig
from tasks.models.torchvision import TorchvisionConfig
from tasks.models.torchvision_detection import TorchvisionDetectionConfig
from tasks.models.torchvision_segmentation import TorchvisionSegmentationConfig

MODELS: dict[str, type[NetworkConfig]] = {
    "deeplab_v2": DeepLabV2Config,
    "detectron2": Detectron2Config,
    "efficientnet_lite0": EfficientNetLite0Config,
    "small_convnet": SmallConvNetConfig,
    "small_fcos": SmallFCOSConfig,
    "small_resnet": SmallResNetConfig,
    "small_segnet": SmallSegNetConfig,
    "smp": SMPConfig,
    "timm": TimmConfig,
    "torchvision": TorchvisionConfig,
    "torchvision_detection": TorchvisionDetectionConfig,
    "torchvision_segmentation": TorchvisionSegmentationConfig,
}

if TYPE_CHECKING:
    ModelConfig: TypeAlias = ModelSettings
else:
    ModelConfig = Annotated[Union[tuple(MODELS.values())], Field(discriminator="name")]  # noqa: UP007

__all__ = ["MODELS", "ModelConfig", "ModelSettings", "Normalized", "check_classifier_outputs"]
