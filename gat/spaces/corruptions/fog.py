"""Fog: the displacements of the diamond-square algorithm make a plasma, which veils the image in grey."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gat.latents import Images, Latents, Rows, split, take
from gat.protocols import Renderer, Site
from gat.spaces.corruptions.gathered import Gathered

GREY = (0.485, 0.456, 0.406)  # of ImageNet's average pixel
GROUPS = ("coarse", "middle", "fine")


def plasma(displacements: Sequence[Float[Tensor, "b 3 _ _"]], decay: float) -> Float[Tensor, "b side side"]:
    """Diamond-square (Fournier et al. 1982) on a torus: from one point to 2^levels points a side.

    Each level puts a point in the middle of every square, then of every diamond: the mean of its four neighbours plus a
    displacement. Linear in the displacements.

    Args:
        displacements: per level, n = 1, 2, 4, ...: of squares, of diamonds between neighbours in a row, and in a column.
        decay: what displacements are divided by from one level to the next.
    """
    first = displacements[0]
    grid = first.new_zeros(len(first), 1, 1)
    for level, shift in enumerate(displacements):
        shift = shift * decay**-level
        right = grid + grid.roll(-1, 2)
        square = (right + right.roll(-1, 1)) / 4 + shift[:, 0]
        row = (right + square + square.roll(1, 1)) / 4 + shift[:, 1]
        column = (grid + grid.roll(-1, 1) + square + square.roll(1, 2)) / 4 + shift[:, 2]
        above, below = torch.stack([grid, row], dim=3), torch.stack([column, square], dim=3)
        grid = torch.stack([above.flatten(2), below.flatten(2)], dim=2).flatten(1, 2)
    return grid


class FogSpace:
    """`fog/1`, `fog/2`, ...: displacements of the levels of `plasma`, [3, n, n].

    The density is the plasma's absolute value up to 1, by which every pixel is blended with grey.

    Args:
        images: [b, 1 or 3, h, w].
        decay: see `plasma`; larger means smoother.
    """

    name = "fog"

    def __init__(self, images: Images, decay: float = 3.0) -> None:
        channels, height, width = images.shape[1:]
        levels = max(1, math.ceil(math.log2(max(height, width))))
        side = 2**levels
        self._images, self._decay = images, decay
        self._window = (
            slice((side - height) // 2, (side + height) // 2),
            slice((side - width) // 2, (side + width) // 2),
        )
        grey = torch.tensor(GREY, device=images.device)
        self._grey = (grey if channels == 3 else grey.mean().expand(channels)).reshape(-1, 1, 1)
        self._sites = {
            f"fog/{2**level}": Site((3, 2**level, 2**level), GROUPS[3 * level // levels])
            for level in range(levels)
        }

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def rest(self) -> Latents:
        """Latents of the unchanged images."""
        return {
            name: self._images.new_zeros(len(self._images), *site.shape) for name, site in self._sites.items()
        }

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        _, kept = split(latents, moved)
        gathered = Gathered(self._images)

        def render(moved: Latents, rows: Rows) -> Images:
            (images,) = gathered(rows)
            here = take(kept, rows) | moved
            signed = plasma([here[name] for name in self._sites], self._decay)[:, None, *self._window]
            # Unlike `abs`, with a gradient where there is no fog yet.
            density = torch.where(signed >= 0, signed, -signed).clamp(max=1)
            return images + density * (self._grey - images)

        return render
