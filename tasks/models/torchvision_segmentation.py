"""Any segmenter of torchvision, by its name."""

from typing import Any, ClassVar, Literal

from pydantic import field_validator
from torchvision import models

from tasks.models.normalized import Normalized
from tasks.models.settings import LibraryConfig, check_known, check_num_classes, try_out
from tasks.models.torchvision import load_trained

AUXILIARY_HEAD = "aux_classifier."


class TorchvisionSegmentationConfig(LibraryConfig, frozen=True, extra="forbid"):
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

    @field_validator("arch")
    @classmethod
    def _arch_is_known(cls, arch: str) -> str:
        known = models.list_models(module=models.segmentation)
        check_known(arch, known, "torchvision has no segmenter")
        return arch

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
