"""Sparse convolution noise (Lewis 1989): weights at random points, convolved with a kernel that each example has of its own."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from gat.latents import Rows, seeded_uniform
from gat.spaces.corruptions.gathered import Gathered


def scattered(
    seed: int, ids: Rows, layers: int, size: tuple[int, int], count: int, stream: str
) -> Int[Tensor, "b l k"]:
    """`count` different points (row * width + column) of an image per layer, which depend on (seed, id) alone.

    One in each of `count` equal parts of the image's rows laid end to end: as even as a jittered grid, and no two coincide.
    """
    first = torch.arange(count + 1, device=ids.device) * (size[0] * size[1]) // count
    room = first[1:] - first[:-1]
    return first[:-1] + (seeded_uniform(seed, ids, (layers, count), stream) * room).long()


def smooth(n: int) -> int:
    """The least number from n on without prime factors above 5, of which Fourier transforms are fast."""
    rest = n
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return n if rest == 1 else smooth(n + 1)


class SparseConvolution:
    """Weights at fixed points -> noise, by the fast Fourier transform of kernels that is computed once.

    Args:
        kernels: odd sides, their middle is the origin; one of several layers, or one for all layers.
        points: see `scattered`.
        size: (height, width) of the noise.
        merged: whether layers add up to one.
    """

    def __init__(
        self,
        kernels: Float[Tensor, "n _ k k"],
        points: Int[Tensor, "n l p"],
        size: tuple[int, int],
        merged: bool = False,
    ) -> None:
        (self._height, self._width), self._merged = size, merged
        side = kernels.shape[-1]
        self._padded = tuple(
            smooth(max(edge + side // 2, side)) for edge in size
        )  # room for what would wrap around
        wide = F.pad(kernels, (0, self._padded[1] - side, 0, self._padded[0] - side))
        self._gathered = Gathered(
            torch.fft.rfft2(wide.roll((-(side // 2), -(side // 2)), (2, 3))),
            points // size[1] * self._padded[1] + points % size[1],
        )

    def __call__(self, weights: Float[Tensor, "b l p"], rows: Rows) -> Float[Tensor, "b _ h w"]:
        """Noise of examples `rows`."""
        spectra, points = self._gathered(rows)
        flat = weights.new_zeros(len(weights), points.shape[1], self._padded[0] * self._padded[1])
        spectrum = torch.fft.rfft2(flat.scatter(2, points, weights).unflatten(2, self._padded)) * spectra
        if self._merged:
            spectrum = spectrum.sum(1, keepdim=True)
        return torch.fft.irfft2(spectrum, s=self._padded)[:, :, : self._height, : self._width]
