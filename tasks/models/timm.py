"""Any classifier of the timm library, by its name."""

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator
from torch import nn

from tasks.models.errors import one_line
from tasks.models.normalized import Normalized
from tasks.models.settings import LibraryConfig, check_num_classes, try_out


class TimmConfig(LibraryConfig, frozen=True, extra="forbid"):
    """A network of timm (https://github.com/huggingface/pytorch-image-models).

    Attributes:
        name: Registered name.
        arch: timm's name, with or without the tag of its weights: 'resnet18', 'resnet18.a1_in1k'.
        pretrained: Start from timm's weights, with a new last layer; they are downloaded on first use.
        drop_rate: Dropout before the last layer. None is the network's default.
        stem_stride: Stride of the first convolution instead of the network's own (2 or more), for small
            images: most networks leave one pixel of a 32x32 image. Fits weights made with another stride.
        resize: Side in pixels the network gets its images in, whatever their size. None leaves them alone.
        options: Further arguments of `timm.create_model`, for example {drop_path_rate: 0.1}.
        mean, std: None is what timm gives for these weights.
    """

    name: Literal["timm"] = "timm"
    drop_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    stem_stride: PositiveInt | None = None
    options: dict[str, Any] = {}

    @field_validator("arch")
    @classmethod
    def _arch_is_known(cls, arch: str) -> str:
        import timm  # half a second that other models need not spend

        if arch.startswith(("hf-hub:", "local-dir:")) or not timm.is_model(arch):
            near = get_close_matches(arch.split(".")[0], timm.list_models(), n=5)
            hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models('*part*') lists them"
            raise ValueError(f"timm has no model {arch!r}; {hint}")
        name, _, tag = arch.partition(".")
        tags = [trained.partition(".")[2] for trained in timm.list_pretrained(f"{name}.*")]
        if tag and tag not in tags:
            raise ValueError(f"timm has no weights {tag!r} of {name}; on offer: {', '.join(tags) or 'none'}")
        return arch

    def build(self, num_classes: int, image_size: int) -> Normalized:
        """The network, shown one image.

        Networks of a fixed input size are built for `image_size` (or `resize`) where timm can.

        Raises:
            ValueError: If there are fewer than 2 classes, timm refuses the options, the pretrained weights
                cannot be had, `weights` do not fit, or the network cannot read images of this size.
        """
        check_num_classes(num_classes)
        network = self._create(num_classes, self.resize or image_size)
        settings = network.pretrained_cfg
        if self.stem_stride is not None:
            self._set_stem_stride(network)
        model = self.finish(network, num_classes, settings["mean"], settings["std"], self.resize)
        usual = settings["input_size"][-1]
        try_out(
            model, num_classes, image_size, f"timm {self.arch}",
            f"it is made for {usual} px: use larger images, set resize: {usual}, or choose another arch",
        )  # fmt: skip
        return model

    def _create(self, num_classes: int, side: int) -> Any:
        import timm

        arguments: dict[str, Any] = dict(self.options)
        usual = timm.get_pretrained_cfg(self.arch)
        if usual is not None and usual.fixed_input_size and side != usual.input_size[-1]:
            arguments.setdefault("img_size", side)
        if self.drop_rate is not None:
            arguments["drop_rate"] = self.drop_rate
        try:
            return timm.create_model(
                self.arch, pretrained=self.pretrained, num_classes=num_classes, **arguments
            )
        except TypeError as error:  # raised by the constructor for arguments that it does not know
            raise ValueError(f"timm {self.arch} does not take {arguments} ({one_line(error)})") from error
        except Exception as error:
            if self.pretrained:
                raise ValueError(
                    f"pretrained weights of timm {self.arch} could not be had ({one_line(error)}); without a "
                    "network, set weights: to a file you have, or pretrained: false"
                ) from error
            raise ValueError(
                f"timm {self.arch} cannot be built with {arguments} ({one_line(error)})"
            ) from error

    def _set_stem_stride(self, network: Any) -> None:
        where = network.pretrained_cfg["first_conv"]
        stem = network.get_submodule(where) if isinstance(where, str) else None
        if not isinstance(stem, nn.Conv2d):
            raise ValueError(f"timm {self.arch} has no single first convolution; leave stem_stride out")
        stem.stride = (self.stem_stride or 1, self.stem_stride or 1)
