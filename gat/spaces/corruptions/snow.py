"""Snow: streaks at random places, all blown the same way; their intensities move."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gat.latents import Images, Latents, Rows, per_example, seeded_uniform, split, take
from gat.protocols import Renderer, Site
from gat.spaces.corruptions.gathered import Gathered
from gat.spaces.corruptions.sparse import SparseConvolution, scattered

LUMINANCE = (0.2126, 0.7152, 0.0722)  # Rec. 709


def streaks(seed: int, ids: Rows, layers: int, flake_px: float) -> Float[Tensor, "b l k k"]:
    """One flake per layer: a line up to `flake_px` long, with soft edges and a peak of 1.

    An example's wind is up to 60 degrees off the vertical, its layers within 10 degrees of that.
    """
    reach = max(1, round((flake_px - 1) / 2))
    axis = torch.arange(-reach, reach + 1.0, device=ids.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    wind = seeded_uniform(seed, ids, (1,), "snow/wind") * 2 - 1
    gust, length, thick = (
        seeded_uniform(seed, ids, (layers,), f"snow/{what}") for what in ("gust", "length", "thick")
    )
    angle = (wind * 60 + (gust * 2 - 1) * 10)[:, :, None, None] * math.pi / 180
    width = (flake_px / 15 * (1 + 2 * thick)).clamp(min=1)[:, :, None, None]
    half = (flake_px * (0.6 + 0.4 * length))[:, :, None, None] / 2 - width / 2
    along, across = x * angle.sin() + y * angle.cos(), x * angle.cos() - y * angle.sin()
    distance = torch.hypot((along.abs() - half.clamp(min=0)).clamp(min=0), across)
    return (width / 2 + 0.5 - distance).clamp(0, 1)


class SnowSpace:
    """`snow`: intensity of every flake, [layers, flakes].

    A flake shines with the fourth power of its intensity, so that few are seen. The scene around turns paler with the snow that
    lies in it, up to `pale` where the intensities have the L2 norm `full_at`; without snow it is the image itself.

    Where flakes fall and how they are blown depends on (seed, id) of each example.

    Args:
        images: [b, 1 or 3, h, w].
        ids: of the examples.
        flake_px: length.
        spacing_px: root of the area for one flake of a layer.
        pale: share of the paled image.
        full_at: L2 norm of intensities at which it is reached.
    """

    name = "snow"

    def __init__(
        self,
        images: Images,
        ids: Rows,
        seed: int = 0,
        layers: int = 5,
        flake_px: float = 15.0,
        spacing_px: float = 15.0,
        pale: float = 0.15,
        full_at: float = 15.0,
    ) -> None:
        height, width = images.shape[2:]
        flakes = min(max(1, round(height * width / spacing_px**2)), height * width)
        self._sites = {"snow": Site((layers, flakes))}
        self._images, self._pale, self._full_at = images, pale, full_at
        weights = torch.tensor(LUMINANCE if images.shape[1] == 3 else [1.0], device=images.device)
        grey = (images * weights.reshape(-1, 1, 1)).sum(1, keepdim=True)
        self._paler = (grey * 1.5 + 0.5 - images).clamp(min=0)  # what turning all the way pale adds
        self._flakes = SparseConvolution(
            streaks(seed, ids, layers, flake_px),
            scattered(seed, ids, layers, (height, width), flakes, "snow/places"),
            (height, width),
            merged=True,
        )

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def rest(self) -> Latents:
        """Latents of the unchanged images."""
        return {"snow": self._images.new_zeros(len(self._images), *self._sites["snow"].shape)}

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        _, kept = split(latents, moved)
        gathered = Gathered(self._images, self._paler)

        def render(moved: Latents, rows: Rows) -> Images:
            images, paler = gathered(rows)
            intensity = (take(kept, rows) | moved)["snow"]
            amount = self._pale * (intensity.flatten(1).norm(dim=1) / self._full_at).clamp(max=1)
            snow = self._flakes(intensity.square().square(), rows)
            return (images + per_example(amount, images) * paler + snow).clamp(0, 1)

        return render
