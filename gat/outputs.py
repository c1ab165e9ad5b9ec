"""What a classifier or segmenter must return, and help for those that return something else."""

from collections.abc import Mapping

import torch
from torch import Tensor

TOLERANCE = 1e-3


def check_classifier_outputs(outputs: object, num_classes: int) -> None:
    """Refuses what is not logits [b, num_classes]: finite scores before the softmax, as one floating-point
    tensor.

    Probabilities are refused because a loss or margin computed from them as if they were logits has almost no
    gradient, which makes a model look robust. Logarithms of probabilities are logits.

    A door check for a first batch: it waits for the device.

    Raises:
        ValueError: saying what arrived and how to wrap the model.
    """
    wanted = f"a classifier of {num_classes} classes must return logits [b, {num_classes}]"
    if not isinstance(outputs, Tensor):
        raise ValueError(f"{wanted} as one tensor, got {_describe(outputs)}; wrap it: {_unpacking(outputs)}")
    if outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1):
        hint = ""
        if num_classes == 2:
            hint = (
                "; one logit for class 1 becomes two by torch.stack([torch.zeros_like(x), x], 1) with x = "
                "outputs.flatten()"
            )
        raise ValueError(f"{wanted}, got {list(outputs.shape)}{hint}")
    if outputs.ndim != 2 or outputs.shape[1] != num_classes:
        raise ValueError(f"{wanted}, got {list(outputs.shape)}")
    if not outputs.is_floating_point():
        raise ValueError(f"{wanted} in floating point, got {outputs.dtype}")
    scores = outputs.detach().float()
    finite = scores.isfinite().all(1)
    if not finite.all():
        raise ValueError(
            f"{wanted}, all finite, but {int((~finite).sum())} of {len(scores)} rows hold NaN or infinity"
        )
    if (
        len(scores)
        and scores.min() >= 0
        and torch.allclose(scores.sum(1), torch.ones(()).to(scores), atol=TOLERANCE)
    ):
        raise ValueError(
            f"{wanted}, got probabilities (no entry below 0 and every row sums to 1); leave the softmax out of "
            "the model, or return their logarithm"
        )


def check_segmenter_outputs(outputs: object, num_classes: int, size: tuple[int, int] | None = None) -> None:
    """Refuses what is not logits [b, num_classes, h, w]: finite scores before the softmax, as one floating-point
    tensor.

    A door check for a first batch: it waits for the device.

    Args:
        size: height and width of the images in pixels; None if unknown.

    Raises:
        ValueError: saying what arrived and how to wrap the model.
    """
    wanted = f"a segmenter of {num_classes} classes must return logits [b, {num_classes}, h, w]"
    if not isinstance(outputs, Tensor):
        raise ValueError(f"{wanted} as one tensor, got {_describe(outputs)}; wrap it: {_unpacking(outputs)}")
    if outputs.ndim != 4 or outputs.shape[1] != num_classes:
        raise ValueError(f"{wanted}, got {list(outputs.shape)}")
    if size is not None and tuple(outputs.shape[2:]) != tuple(size):
        raise ValueError(
            f"{wanted} as large as the images, {size[0]}x{size[1]} px, got {list(outputs.shape)}; resize them inside "
            "the model: torch.nn.functional.interpolate(logits, images.shape[2:], mode='bilinear')"
        )
    if not outputs.is_floating_point():
        raise ValueError(f"{wanted} in floating point, got {outputs.dtype}")
    scores = outputs.detach().float()
    finite = scores.flatten(1).isfinite().all(1)
    if not finite.all():
        raise ValueError(
            f"{wanted}, all finite, but those of {int((~finite).sum())} of {len(scores)} images hold NaN or infinity"
        )
    sums = scores.sum(1)
    if len(scores) and scores.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), atol=TOLERANCE):
        raise ValueError(
            f"{wanted}, got probabilities (none below 0, and those of every pixel sum to 1); leave the softmax out of "
            "the model, or return their logarithm"
        )


def _describe(outputs: object) -> str:
    if isinstance(outputs, Mapping):
        return f"{type(outputs).__name__} with keys {list(outputs)}"
    if isinstance(outputs, tuple | list):
        return f"{type(outputs).__name__} of {len(outputs)}"
    return type(outputs).__name__


def _unpacking(outputs: object) -> str:
    """A line of a forward method that picks the logits out of `outputs`."""
    if hasattr(outputs, "logits"):
        return "return self.network(images).logits"
    if isinstance(outputs, Mapping):
        likely = next(
            (key for key in ("logits", "out", "scores") if key in outputs), next(iter(outputs), "logits")
        )
        return f"return self.network(images)[{likely!r}]"
    if isinstance(outputs, tuple | list):
        return "return self.network(images)[0]"
    return "a module whose forward returns the tensor of logits alone"
