"""What an image is: float RGB in [0, 1], NCHW, everywhere in this project."""

import torch
from torch import Tensor

ROUNDING = 1e-3  # resampling and colour conversion may leave [0, 1] by this much


def check_images(images: Tensor) -> None:
    """Refuses what is not a batch of images: floating point, [b, 3, h, w] or [b, 1, h, w], finite, in [0, 1].

    Meant for the doors (a new data set, a new generator, a user's call), not for inner loops: it waits for
    the device.

    Raises:
        ValueError: saying what arrived and how to make images of it.
    """
    if not images.is_floating_point():
        raise ValueError(
            f"images must be floating point in [0, 1], got {_describe(images)}; "
            "for 8-bit images divide by 255: images.float() / 255"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be [b, 3, h, w] or [b, 1, h, w], got {_describe(images)}{_shape_hint(images)}"
        )
    if images.numel() == 0:
        raise ValueError(f"images must not be empty, got {_describe(images)}")
    low, high = (bound.item() for bound in torch.aminmax(images.detach()))
    if not (low > -float("inf") and high < float("inf")):  # also false for NaN
        num_bad = int((~images.detach().isfinite()).flatten(1).any(1).sum())
        raise ValueError(f"images must be finite, but {num_bad} of {len(images)} hold NaN or infinity")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}{_range_hint(low, high)}"
        )


def _describe(images: Tensor) -> str:
    return f"{str(images.dtype).removeprefix('torch.')}{list(images.shape)}"


def _shape_hint(images: Tensor) -> str:
    if images.ndim == 3:
        return "; one image needs a batch axis too: images[None]"
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return "; these look channels-last: images.permute(0, 3, 1, 2)"
    if images.ndim == 4 and images.shape[1] == 4:
        return "; drop the alpha channel: images[:, :3]"
    return ""


def _range_hint(low: float, high: float) -> str:
    """The likeliest cause, by where the values lie."""
    if low >= 0:
        return "; if they are 8-bit values divide by 255" if 2 < high <= 255 else ""
    if low >= -1 - ROUNDING and high <= 1 + ROUNDING:
        return (
            "; if they lie in [-1, 1] use (images + 1) / 2; a model that wants that range is wrapped, "
            + _WRAP
        )
    return "; if mean and standard deviation were already taken out, leave that to the model, " + _WRAP


_WRAP = (
    "so that attacks see images: Normalized(model, mean, std) of tasks.models, or a module of your own "
    "that does the same"
)
