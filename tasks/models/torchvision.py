"""Any classifier of torchvision, by its name."""

from typing import Any, Literal

from pydantic import field_validator, model_validator
from torch import nn
from torchvision import models

from tasks.models.errors import one_line
from tasks.models.normalized import Normalized
from tasks.models.settings import CENTRED, LibraryConfig, check_known, check_num_classes, try_out

# Networks with auxiliary heads return a tuple in train mode only; they are built without, as every loss here
# is of the main head. Their weights come from TensorFlow and want images in [-1, 1]; torchvision converts
# inside, we normalise so.
AUXILIARY_HEADS = {"inception_v3": ("AuxLogits.",), "googlenet": ("aux1.", "aux2.")}


class TorchvisionConfig(LibraryConfig, frozen=True, extra="forbid"):
    """A network of torchvision.models, for example Inception-v3, the classifier of the GAT paper.

    Attributes:
        name: Registered name.
        arch: torchvision's name, for example 'inception_v3' or 'resnet18'. Auxiliary heads are left out.
        pretrained: Start from torchvision's best ImageNet weights, with a new last layer; downloaded on first
            use.
        resize: Side in pixels the network gets its images in, whatever their size. None leaves them alone.
        options: Further arguments of the network's constructor, for example {dropout: 0.2}.
        mean, std: None is what torchvision gives for these weights.
    """

    name: Literal["torchvision"] = "torchvision"
    options: dict[str, Any] = {}

    @field_validator("arch")
    @classmethod
    def _arch_is_known(cls, arch: str) -> str:
        known = models.list_models(module=models)
        check_known(arch, known, "torchvision has no classifier", most=5)
        return arch

    @model_validator(mode="after")
    def _no_auxiliary_heads(self) -> "TorchvisionConfig":
        taken = [name for name in ("aux_logits", "transform_input") if name in self.options]
        if self.arch in AUXILIARY_HEADS and taken:
            raise ValueError(
                f"options of {self.arch} cannot set {', '.join(taken)}: it is built without auxiliary heads, and "
                "images are normalised before it (mean, std)"
            )
        return self

    def build(self, num_classes: int, image_size: int) -> Normalized:
        """The network, shown one image.

        Raises:
            ValueError: If there are fewer than 2 classes, the constructor refuses the options, the pretrained
                weights cannot be had, `weights` do not fit, or the network cannot read images of this size
                (inception_v3 needs 75 px).
        """
        check_num_classes(num_classes)
        ignored = AUXILIARY_HEADS.get(self.arch, ())
        arguments: dict[str, Any] = {"aux_logits": False, "init_weights": True} if ignored else {}
        arguments |= self.options
        try:
            network = models.get_model(self.arch, weights=None, num_classes=num_classes, **arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"torchvision {self.arch} cannot be built with {arguments} ({one_line(error)})"
            ) from error
        trained = models.get_model_weights(self.arch).DEFAULT
        if self.pretrained:
            load_trained(network, trained, self.arch, self.options, ignored)
        usual = trained.transforms()
        mean, std = (CENTRED, CENTRED) if ignored else (usual.mean, usual.std)
        model = self.finish(network, num_classes, mean, std, self.resize, ignored)
        side, smallest = usual.crop_size[0], min(trained.meta["min_size"])
        at_least = f"at least {smallest} px" if smallest < side else f"{side} px"
        try_out(
            model, num_classes, image_size, f"torchvision {self.arch}",
            f"it wants {at_least}: use larger images, set resize: {side}, or choose another arch",
        )  # fmt: skip
        return model


def load_trained(
    network: nn.Module,
    trained: models.WeightsEnum,
    arch: str,
    options: dict[str, Any],
    ignored: tuple[str, ...] = (),
) -> None:
    """Loads all of torchvision's weights but those of layers with another number of classes, and of auxiliary heads.

    Args:
        arch, options: For the message.
        ignored: Prefixes of the names of auxiliary heads.

    Raises:
        ValueError: If they cannot be had or do not fit.
    """
    try:
        weights = trained.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # OSError without a network, RuntimeError for a damaged download
        raise ValueError(
            f"pretrained weights of torchvision {arch} could not be had from {trained.url} "
            f"({one_line(error)}); without a network, set weights: to a file you have, or pretrained: "
            "false"
        ) from error
    own = network.state_dict()
    fitting = {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith(ignored) and (name not in own or tensor.shape == own[name].shape)
    }
    result = network.load_state_dict(fitting, strict=False)
    new = [name for name in weights if name in own and name not in fitting]
    if result.unexpected_keys or set(result.missing_keys) - set(new):
        raise ValueError(
            f"pretrained weights of torchvision {arch} do not fit the options {options}; leave out those that change its layers"
        )
