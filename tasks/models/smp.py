"""Any segmenter of segmentation-models-pytorch, by its names."""

from types import ModuleType
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from tasks.models.errors import one_line
from tasks.models.normalized import Normalized
from tasks.models.settings import LibraryConfig, check_known, check_num_classes, try_out

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SMPConfig(LibraryConfig, frozen=True, extra="forbid"):
    """A network of segmentation-models-pytorch (https://github.com/qubvel-org/segmentation_models.pytorch), an optional dependency.

    Attributes:
        name: Registered name.
        arch: Of the decoder, for example 'unet', 'fpn' or 'deeplabv3plus'.
        encoder: Of the library, for example 'resnet18' or 'mobilenet_v2', or one of timm's: 'tu-' and its name.
        pretrained: Start from an encoder with ImageNet weights; downloaded on first use.
        resize: Side in pixels the network gets its images in, whatever their size. None leaves them alone.
        options: Further arguments of `segmentation_models_pytorch.create_model`, for example {encoder_depth: 4}.
        mean, std: None is ImageNet's, which most of the library's encoders were trained with.
    """

    task: ClassVar[str] = "segmentation"
    name: Literal["smp"] = "smp"
    encoder: str = "resnet18"
    options: dict[str, Any] = {}

    @field_validator("arch")
    @classmethod
    def _arch_is_known(cls, arch: str) -> str:
        known = list(library().MODEL_ARCHITECTURES_MAPPING)
        check_known(arch, known, "segmentation-models-pytorch has no architecture")
        return arch

    @field_validator("encoder")
    @classmethod
    def _encoder_is_known(cls, encoder: str) -> str:
        import timm  # half a second that other models need not spend

        known = library().encoders.get_encoder_names()
        if encoder.startswith("tu-"):
            known, found = [f"tu-{name}" for name in timm.list_models()], timm.is_model(encoder[3:])
        else:
            found = encoder in known
        if not found:
            check_known(encoder, known, "segmentation-models-pytorch has no encoder")
        return encoder

    def build(self, num_classes: int, image_size: int) -> Normalized:
        """The network, shown one image; logits [b, num_classes, h, w].

        Raises:
            ValueError: If there are fewer than 2 classes, the library refuses the options, the pretrained weights cannot be had,
                `weights` do not fit, or the network cannot read images of this size.
        """
        check_num_classes(num_classes)
        who = f"segmentation-models-pytorch {self.arch} with encoder {self.encoder}"
        try:
            network = library().create_model(
                self.arch,
                encoder_name=self.encoder,
                encoder_weights="imagenet" if self.pretrained else None,
                classes=num_classes,
                **self.options,
            )
        except Exception as error:  # of the library, of timm, or of the network
            if self.pretrained and not isinstance(error, TypeError):
                raise ValueError(
                    f"{who}: pretrained weights could not be had ({one_line(error)}); without a network, set weights: to a file you "
                    "have, or pretrained: false"
                ) from error
            raise ValueError(f"{who} cannot be built with {self.options} ({one_line(error)})") from error
        model = self.finish(network, num_classes, IMAGENET_MEAN, IMAGENET_STD, self.resize)
        try_out(
            model,
            num_classes,
            image_size,
            who,
            "use images of a multiple of 32 px, or set resize to such a side",
        )
        return model


def library() -> ModuleType:
    """segmentation-models-pytorch.

    Raises:
        ValueError: If it is not installed; says how to.
    """
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise ValueError(
            'models named smp come from a package that is not installed: pip install "gat-robust[seg]", or pip install '
            "segmentation-models-pytorch"
        ) from error
    return segmentation_models_pytorch
