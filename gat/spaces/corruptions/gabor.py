"""Gabor noise (Lagae et al. 2009): weights at random points, convolved with a wave in a Gaussian window."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gat.latents import Images, Latents, Rows, seeded_uniform, split, take
from gat.protocols import Renderer, Site
from gat.spaces.corruptions.gathered import Gathered
from gat.spaces.corruptions.sparse import SparseConvolution, scattered

PUBLISHED_SIDE = 23  # pixels, of ImageNet-UA's kernel, whose window is flat: its energy is half its area


def waves(seed: int, ids: Rows, window_px: float, directions: int) -> Float[Tensor, "b 1 k k"]:
    """A kernel per example: a cosine of random direction and frequency, and weaker ones turned by equal parts of 180 degrees.

    The standard deviation of the window is a fifth of its width. Wavelengths are a quarter to an eighth of it (3 to 5.75 cycles), but
    at least 4 pixels. All kernels have the energy of the published ones, so that weights mean the same contrast at every size.
    """
    reach = max(1, round((window_px - 1) / 2))
    axis = torch.arange(-reach, reach + 1.0, device=ids.device) / window_px
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    highest = min(5.75, window_px / 4)
    lowest = min(3.0, highest)
    cycles = lowest + (highest - lowest) * seeded_uniform(seed, ids, (1, 1), "gabor/frequency")
    turn = math.pi * seeded_uniform(seed, ids, (1, 1), "gabor/angle")
    kernel = torch.zeros(len(ids), *x.shape, device=ids.device)
    for k in range(directions):
        angle = turn + math.pi * k / directions
        wave = torch.cos(2 * math.pi * cycles * (x * angle.cos() + y * angle.sin()))
        kernel = kernel + wave * (1 if k == 0 else 1 / directions)
    kernel = kernel * torch.exp(-0.5 * (x.square() + y.square()) / 0.2**2)
    energy = PUBLISHED_SIDE**2 / 2 * (1 + (directions - 1) / directions**2)
    return (kernel * (energy / kernel.square().sum((1, 2), keepdim=True)).sqrt())[:, None]


class GaborSpace:
    """`gabor`: weights of the kernel at the points of each channel, [c, points].

    Where the points are and what the kernel looks like depends on (seed, id) of each example.

    Args:
        images: [b, c, h, w].
        ids: of the examples.
        window_px: width of the kernel.
        directions: of its waves.
        density: points per pixel.
    """

    name = "gabor"

    def __init__(
        self,
        images: Images,
        ids: Rows,
        seed: int = 0,
        window_px: float = 23.0,
        directions: int = 3,
        density: float = 0.1,
    ) -> None:
        channels, height, width = images.shape[1:]
        points = min(max(1, round(density * height * width)), height * width)
        self._images = images
        self._sites = {"gabor": Site((channels, points))}
        self._noise = SparseConvolution(
            waves(seed, ids, window_px, directions),
            scattered(seed, ids, channels, (height, width), points, "gabor/places"),
            (height, width),
        )

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def rest(self) -> Latents:
        """Latents of the unchanged images."""
        return {"gabor": self._images.new_zeros(len(self._images), *self._sites["gabor"].shape)}

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        _, kept = split(latents, moved)
        gathered = Gathered(self._images)

        def render(moved: Latents, rows: Rows) -> Images:
            (images,) = gathered(rows)
            return (images + self._noise((take(kept, rows) | moved)["gabor"], rows)).clamp(0, 1)

        return render
