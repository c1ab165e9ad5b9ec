"""The first layer of every model: from images in [0, 1] to what its network was made for."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Normalized(nn.Module):
    """A network that reads images in [0, 1]: (images - mean) / std, resized if asked, then `network`.

    Both steps are differentiable, so an attack moves the image and not its normalised copy. `mean` and `std`
    are buffers: they are saved with the weights.

    Args:
        network: Normalised images to logits.
        mean, std: One number per channel, in units of images in [0, 1].
        resize: Height and width in pixels that `network` gets, bilinear and antialiased; None leaves the size
            alone.

    Raises:
        ValueError: If `mean` and `std` have different lengths, or `std` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], resize: int | None = None
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) == 0 or min(std) <= 0:
            raise ValueError(
                f"mean and std need one number per channel, std above 0; got {tuple(mean)} and {tuple(std)}"
            )
        self.network = network
        self.resize = resize
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Any:
        """What `network` makes of a batch of images: logits, if it is a classifier.

        Raises:
            ValueError: If the number of channels is not that of `mean`.
        """
        return self.network(self.prepare(images))

    def prepare(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """What `network` gets to see. Raises what `forward` does."""
        if images.shape[1] != len(self.mean):
            hint = "; repeat the grey channel: images.expand(-1, 3, -1, -1)" if images.shape[1] == 1 else ""
            raise ValueError(
                f"the model reads images of {len(self.mean)} channels, got {list(images.shape)}{hint}"
            )
        if self.resize is not None and images.shape[2:] != (self.resize, self.resize):
            images = F.interpolate(images, (self.resize, self.resize), mode="bilinear", antialias=True)
        return (images - self.mean) / self.std


class Segmenter(Normalized):
    """A network that labels pixels, made to return logits of the size of the images alone.

    Of several outputs the one named 'out' is the main one. Logits of another size are resized, bilinear.

    Args:
        network: Normalised images to logits [b, k, h', w'], or to a mapping with such an entry 'out'.
        mean, std, resize: See `Normalized`.
    """

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Logits of every pixel.

        Raises:
            ValueError: If the number of channels is not that of `mean`, or a network that pools the whole image before a batch norm
                is trained on a batch of one.
        """
        try:
            outputs = super().forward(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "this network has a batch norm behind a pooling of the whole image, which has no variance over a batch of one image; "
                "train it with at least 2 images per process (batch_size: 2 or more, and no smaller last batch), or in eval mode"
            ) from error
        logits: Tensor = outputs["out"] if isinstance(outputs, Mapping) else outputs
        if logits.shape[2:] != images.shape[2:]:
            logits = F.interpolate(logits, images.shape[2:], mode="bilinear")
        return logits
