"""JPEG artefacts: the discrete cosine coefficients of 8 x 8 blocks move, in Y'CbCr."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from gat.latents import Images, Latents, Rows, per_example, split, take
from gat.protocols import Renderer, Site
from gat.spaces.corruptions.gathered import Gathered

BLOCK = 8  # pixels, the side of a block
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # ITU T.81, table K.1, in 8-bit levels  # fmt: skip
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *([(99,) * 8] * 4),
)  # table K.2  # fmt: skip
MIDDLE = 128 / 255  # what JPEG subtracts before the transform
RGB_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # JFIF


def dct_matrix() -> Float[Tensor, "8 8"]:
    """The orthonormal DCT-II: `matrix @ signal` are its coefficients."""
    frequency, place = torch.arange(8.0).double()[:, None], torch.arange(8.0).double()[None, :]
    matrix = torch.cos(math.pi / 8 * (place + 0.5) * frequency) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def quantisation(quality: int, channels: int) -> Float[Tensor, "c 8 8"]:
    """Step between the levels of each coefficient, for images in [0, 1], as libjpeg scales the standard tables.

    Raises:
        ValueError: if quality is not in 1..100.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality must be in 1..100, got {quality}")
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    tables = torch.tensor([LUMINANCE, CHROMINANCE, CHROMINANCE][:channels])
    return ((tables * percent + 50) // 100).clamp(1, 255).float() / 255


class BlockTransform:
    """Images to DCT coefficients of Y'CbCr and back, for images of one shape (rounded up to whole blocks with border pixels).

    Both directions are products with block-diagonal matrices: more arithmetic than block by block, but nothing is copied about.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device | None = None) -> None:
        self._channels, self._height, self._width = shape
        high, wide = -(-self._height // BLOCK), -(-self._width // BLOCK)
        self.padded = (high * BLOCK, wide * BLOCK)
        self._down, self._across = (
            torch.block_diag(*[dct_matrix()] * blocks).to(device) for blocks in (high, wide)
        )
        to_ycc = torch.tensor(RGB_TO_YCC)
        self._to_ycc, self._to_rgb = to_ycc.to(device), torch.linalg.inv(to_ycc.double()).float().to(device)

    def analyse(self, images: Images) -> Float[Tensor, "b c y x"]:
        if self._channels == 3:
            images = torch.einsum("dc,bchw->bdhw", self._to_ycc, images)
        pad = (0, self.padded[1] - self._width, 0, self.padded[0] - self._height)
        return self._down @ F.pad(images, pad, mode="replicate") @ self._across.T

    def synthesise(self, coefficients: Float[Tensor, "b c y x"]) -> Images:
        images = self._down.T[: self._height] @ coefficients @ self._across[:, : self._width]
        return images if self._channels == 1 else torch.einsum("dc,bchw->bdhw", self._to_rgb, images)


class JPEGSpace:
    """`jpeg`: what is added to the DCT coefficients of the image; [c, h, w] with the sides rounded up to whole blocks.

    Entry [c, 8 i + u, 8 j + v] belongs to frequency (u, v) of block (i, j) of Y', Cb or Cr (of the grey value for one channel).

    Without `quality` nothing is rounded, as in ImageNet-UA. The transform is orthonormal and images are in [0, 1]: a coefficient
    moved by 1/255 changes its block by one 8-bit level in L2.

    With `quality` the unit is one level of that quality's table, moved coefficients are rounded to whole levels (gradients pass
    straight through), as in Kang et al., and images are those of a JPEG file (4:4:4). An example whose coefficients are not moved at
    all is not even compressed, so that rest is the identity there too; the least move compresses it. At quality 100 all levels are
    8-bit levels, and compression changes little more than rounding pixels does.

    Args:
        images: [b, 1 or 3, h, w] of any size.
        quality: None or 1..100.
    """

    name = "jpeg"

    def __init__(self, images: Images, quality: int | None = None) -> None:
        channels = images.shape[1]
        self._images, self._transform = images, BlockTransform(tuple(images.shape[1:]), images.device)
        padded = self._transform.padded
        self._sites = {"jpeg": Site((channels, *padded), scale=1 / 255 if quality is None else 1.0)}
        self._levels: Tensor | None = None
        if quality is not None:
            table = quantisation(quality, channels).to(images.device)
            self._levels = table.repeat(1, padded[0] // BLOCK, padded[1] // BLOCK)

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def rest(self) -> Latents:
        """Latents of the unchanged images."""
        return {"jpeg": self._images.new_zeros(len(self._images), *self._sites["jpeg"].shape)}

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        _, kept = split(latents, moved)
        if (levels := self._levels) is not None:
            return self._freeze_rounded(kept, levels)
        gathered = Gathered(self._images)

        def render(moved: Latents, rows: Rows) -> Images:
            (images,) = gathered(rows)
            shift = (take(kept, rows) | moved)["jpeg"]
            return (images + self._transform.synthesise(shift)).clamp(0, 1)

        return render

    def _freeze_rounded(self, kept: Latents, levels: Float[Tensor, "c y x"]) -> Renderer:
        gathered = Gathered(self._images, self._transform.analyse(self._images - MIDDLE) / levels)

        def render(moved: Latents, rows: Rows) -> Images:
            images, codes = gathered(rows)
            shift = (take(kept, rows) | moved)["jpeg"]
            codes = codes + shift
            rounded = codes + (codes.round() - codes).detach()
            compressed = (MIDDLE + self._transform.synthesise(rounded * levels)).clamp(0, 1)
            return torch.where(per_example((shift != 0).flatten(1).any(1), images), compressed, images)

        return render
