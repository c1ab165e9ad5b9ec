"""Any segmenter of torchvision, by its name."""

from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt, field_validator, model_validator
from torchvision import models

from tasks.models.normalized import Normalized
from tasks.models.settings import NetworkConfig, check_num_classes, try_out
from tasks.models.torchvision import load_trained

AUXILIARY_HEAD = "aux_classifier."


class TorchvisionSegmentationConfig(NetworkConfig, frozen=True, extra="forbid"):
    """A network of torchvision.models.segmentation, built without its auxiliary head.

    Attributes:
        name: Registered name.
        arch: torchvision's name, for example 'deeplabv3_resnet50', 'fcn_resnet50' or 'lraspp_mobilenet_v3_large'. Those of DeepLabV3
            have a batch norm behind a pooling of the whole image: they cannot be trained on a batch of one.
        pretrained: Start from torchvision's weights (COCO images, the 21 classes of Pascal VOC), with new last layers for other
            numbers of classes; downloaded on first use.
        resize: Side in pixels the network gets its images in, whatever their size. None leaves them alone.
        mean, std: None is what torchvision gives for these weights.
    """

    task: ClassVar[str] = "segmentation"
    name: Literal["torchvision_segmentation"] = "torchvision_segmentation"
    arch: str
    pretrained: bool = False
    resize: PositiveInt | None = None

    @field_validator("arch")
    @classmethod
    def _arch_is_known(cls, arch: str) -> str:
        known = models.list_models(module=models.segmentation)
        if arch not in known:
            near = get_close_matches(arch.lower(), known, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"on offer: {', '.join(known)}"
            raise ValueError(f"torchvision has no segmenter {arch!r}; {hint}")
        return arch

    @model_validator(mode="after")
    def _one_start(self) -> "TorchvisionSegmentationConfig":
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights both say where to start from; set one of them")
        return self

    def build(self, num_classes: int, image_size: int) -> Normalized:
        """The network, shown one image; logits [b, num_classes, h, w] of the size of the images.

        Raises:
            ValueError: If there are fewer than 2 classes, the pretrained weights cannot be had, `weights` do not fit, or the network cannot
                read images of this size.
        """
        check_num_classes(num_classes)
        # Unless told otherwise, the constructors download weights of the backbone.
        arguments: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
        if not self.arch.startswith("lraspp"):
            arguments["aux_loss"] = False
        network = models.get_model(self.arch, **arguments)
        trained = models.get_model_weights(self.arch).DEFAULT
        if self.pretrained:
            load_trained(network, trained, self.arch, {}, (AUXILIARY_HEAD,))
        usual = trained.transforms()
        model = self.finish(network, num_classes, usual.mean, usual.std, self.resize, (AUXILIARY_HEAD,))
        try_out(model, num_classes, image_size, f"torchvision {self.arch}", "use larger images or set resize")
        return model
