"""Elastic warps: a coarse flow, smoothly interpolated, says where every pixel is looked up."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from gat.latents import Images, Latents, Rows, split, take
from gat.protocols import Renderer, Site
from gat.spaces.corruptions.gathered import Gathered
from gat.spaces.flow import Sampler


def bicubic_matrix(fine: int, coarse: int) -> Float[Tensor, "{fine} {coarse}"]:
    """Bicubic interpolation of `coarse` values to `fine` ones as a matrix."""
    unit = torch.eye(coarse)[None, :, :, None]
    return F.interpolate(unit, (fine, 1), mode="bicubic")[0, :, :, 0].T.contiguous()


class ElasticSpace:
    """`elastic`: flow at the nodes of a coarse grid (to the right, downwards), [2, g, g], in units of half an image side.

    Bicubic between nodes, bilinear between pixels; beyond the border the border pixel repeats.

    Args:
        images: [b, c, h, w].
        nodes: along each side.
    """

    name = "elastic"

    def __init__(self, images: Images, nodes: int = 7) -> None:
        height, width = images.shape[2:]
        # Matrices instead of `interpolate`, whose backward pass adds up in random order on a GPU.
        self._down, self._across = (bicubic_matrix(side, nodes).to(images.device) for side in (height, width))
        self._sampler = Sampler(height, width, "grid", "border", images.device)
        self._images = self._sampler.pad(images)
        self._sites = {"elastic": Site((2, nodes, nodes))}

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def rest(self) -> Latents:
        """Latents of the unchanged images."""
        return {"elastic": self._images.new_zeros(len(self._images), *self._sites["elastic"].shape)}

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        _, kept = split(latents, moved)
        gathered = Gathered(self._images)

        def render(moved: Latents, rows: Rows) -> Images:
            (images,) = gathered(rows)
            flow = self._down @ (take(kept, rows) | moved)["elastic"] @ self._across.T
            return self._sampler.sample(images, flow)

        return render
