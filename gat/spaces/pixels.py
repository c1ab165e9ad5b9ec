"""The space in which an image is its own latent."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from gat.latents import Images, Latents, Rows
from gat.protocols import Renderer, Site


class PixelSpace:
    """One site, `pixels`: RGB in [0, 1], [b, c, h, w]. Rendering is the identity.

    Args:
        shape: (channels, height, width) of one image.
    """

    name = "pixels"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sites = {"pixels": Site(tuple(shape))}

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        if "pixels" not in moved:
            images: Tensor = latents["pixels"]
            return lambda moved, rows: images.index_select(0, rows)
        return _identity


def _identity(moved: Latents, rows: Rows) -> Images:
    return moved["pixels"]
