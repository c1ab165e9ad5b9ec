"""Settings that every model has, and the last steps of building one."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel, PositiveFloat, PositiveInt, model_validator
from torch import nn

from gat.outputs import check_classifier_outputs, check_segmenter_outputs
from tasks.models.errors import one_line
from tasks.models.normalized import Normalized, Segmenter
from tasks.models.weights import load_weights

Mean = tuple[float, float, float]
Std = tuple[PositiveFloat, PositiveFloat, PositiveFloat]

CENTRED: Mean = (0.5, 0.5, 0.5)


@runtime_checkable
class ModelSettings(Protocol):
    """What every config model of `MODELS` offers, for type checkers."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> str: ...

    def build(self, num_classes: int, image_size: int) -> nn.Module: ...

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> "ModelSettings": ...


class NetworkConfig(BaseModel, frozen=True, extra="forbid"):
    """Settings of any model.

    Attributes:
        task: Name of the task that reads its outputs.
        mean, std: Normalisation of images in [0, 1], per channel. None is what the family is used to.
        weights: A file to start from: .safetensors, or a state dict saved by torch. None starts from random
            numbers.
    """

    task: ClassVar[str] = "classification"
    mean: Mean | None = None
    std: Std | None = None
    weights: Path | None = None

    def finish(
        self,
        network: nn.Module,
        num_classes: int,
        mean: Sequence[float] = CENTRED,
        std: Sequence[float] = CENTRED,
        resize: int | None = None,
        ignored: Sequence[str] = (),
    ) -> Normalized:
        """Wraps a network, of a segmenter so that it returns logits of every pixel, and loads its weights.

        Args:
            mean, std: The family's, used where the settings say None.
            ignored: See `load_weights`.
        """
        wrapper = Segmenter if self.task == "segmentation" else Normalized
        model = wrapper(network, self.mean or mean, self.std or std, resize)
        if self.weights is not None:
            load_weights(model, self.weights, num_classes, ignored)
        return model


class LibraryConfig(NetworkConfig, frozen=True, extra="forbid"):
    """Settings of a network that a library builds, and has weights for.

    Attributes:
        arch: The library's name of it.
        pretrained: Start from the library's weights, with new last layers for other classes; downloaded on first use.
        resize: Side in pixels the network gets its images in, whatever their size. None leaves them alone.
    """

    arch: str
    pretrained: bool = False
    resize: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights both say where to start from; set one of them")
        return self


def check_known(name: str, known: Sequence[str], refusal: str, most: int = 3) -> None:
    """Raises ValueError, `refusal` with the name and at `most` names near it, or else all, if it is not a known one."""
    if name not in known:
        near = get_close_matches(name.lower(), known, n=most)
        hint = f"did you mean {', '.join(near)}?" if near else f"on offer: {', '.join(known)}"
        raise ValueError(f"{refusal} {name!r}; {hint}")


def check_num_classes(num_classes: int) -> None:
    """Raises ValueError if there is nothing to tell apart."""
    if num_classes < 2:
        raise ValueError(f"a model needs at least 2 classes, got {num_classes}")


def check_smallest_side(name: str, image_size: int, smallest: int) -> None:
    """Raises ValueError if the images are too small to be halved as often as the network does."""
    if image_size < smallest:
        raise ValueError(
            f"{name} with these settings needs images of at least {smallest} px, got {image_size}"
        )


def try_out(model: Normalized, num_classes: int, image_size: int, who: str, hint: str) -> None:
    """Shows a freshly built model one grey image, in eval mode, so that a misfit is found here and not in
    training.

    Args:
        who: Name of the model for the message.
        hint: What to do if the image has the wrong size, for the message.

    Raises:
        ValueError: If the model cannot read images of this size, or does not return logits.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: networks may cache tensors that training needs later
            outputs = model(torch.full((1, 3, image_size, image_size), 0.5))
    except Exception as error:  # a network too deep for its input ends in any exception type
        raise ValueError(
            f"{who} cannot read images of {image_size} px ({one_line(error)}); {hint}"
        ) from error
    finally:
        model.train(was_training)
    try:
        if isinstance(model, Segmenter):
            check_segmenter_outputs(outputs, num_classes)
        else:
            check_classifier_outputs(outputs, num_classes)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from error
