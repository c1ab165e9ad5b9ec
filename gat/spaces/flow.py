"""Images bent by a flow field (stAdv, Xiao et al. 2018): every pixel is looked up a little beside its place."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gat.latents import Images, Latents, PerExample, Rows, seeded_uniform
from gat.protocols import Renderer, Site
from gat.spaces.confined import confined

FlowUnit = Literal["grid", "px"]
"""'grid': half the image's side, as in `torch.nn.functional.grid_sample`; 'px': pixels."""
Padding = Literal["border", "zeros"]
Flow = Float[Tensor, "b 2 h w"]  # to the right, downwards
Padded = Float[Tensor, "b c h2 w2"]  # images with something to the right and below

_SMOOTHING = 1e-10  # under the root of the published roughness, in its square units


def roughness(field: Float[Tensor, "b ..."]) -> PerExample:
    """How much neighbours differ: the sum over positions and their two neighbours along every axis of the Euclidean length of the
    difference (Xiao et al. 2018, eq. 4; every pair of neighbours counts twice, as there). A constant field has 0.

    Args:
        field: [b, channels, *axes].
    """
    total = field.new_zeros(len(field))
    for axis in range(2, field.ndim):
        n = field.shape[axis]
        total = total + length(field.narrow(axis, 1, n - 1) - field.narrow(axis, 0, n - 1), 1).flatten(1).sum(
            1
        )
    return 2 * total


def length(difference: Tensor, axis: int) -> Tensor:
    """Euclidean length along an axis, with a gradient everywhere."""
    return (difference.square().sum(axis) + _SMOOTHING).sqrt() - _SMOOTHING**0.5


class Sampler:
    """Bilinear look-up of images of one size at their pixels' places plus a flow.

    Zero flow gives the image back bit by bit. That takes care, because `grid_sample` works in normalised coordinates, where pixel
    centres are rounded: they are exact only if the side is a power of two, so images are padded to one.

    Args:
        height, width: of the images.
        unit: of the flow.
        padding: what is outside the image: its 'border' pixels, or 'zeros' (as published; look-ups then go half a pixel over the
            border at most, where the image is half dark).
    """

    def __init__(
        self, height: int, width: int, unit: FlowUnit, padding: Padding, device: torch.device
    ) -> None:
        self.size, self.padding = (width, height), padding
        self.padded = (_power_of_two_above(width), _power_of_two_above(height))
        over = 0.5 if padding == "zeros" else 0.0
        axes = [
            (2 * torch.arange(n, device=device) + 1) / p - 1
            for n, p in zip(self.size, self.padded, strict=True)
        ]
        self.base = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1)
        self.low = torch.tensor([(1 - 2 * over) / p - 1 for p in self.padded], device=device)
        self.high = torch.tensor(
            [(2 * (n - 1 + over) + 1) / p - 1 for n, p in zip(self.size, self.padded, strict=True)],
            device=device,
        )
        pixels = self.size if unit == "grid" else (2, 2)
        self.scale = torch.tensor([n / p for n, p in zip(pixels, self.padded, strict=True)], device=device)

    def pad(self, images: Images) -> Padded:
        """What `sample` looks up in."""
        right, below = (p - n for n, p in zip(self.size, self.padded, strict=True))
        mode = "replicate" if self.padding == "border" else "constant"
        return F.pad(images, (0, right, 0, below), mode=mode)

    def sample(self, padded: Padded, flow: Flow) -> Images:
        """Differentiable with respect to both. A look-up outside the image is moved to its border, with its gradient there."""
        places = torch.addcmul(self.base, flow.permute(0, 2, 3, 1), self.scale)
        places = confined(places, torch.clamp(places.detach(), self.low, self.high))
        return F.grid_sample(padded, places, mode="bilinear", padding_mode="zeros", align_corners=False)


def _power_of_two_above(n: int) -> int:
    """The least that is greater than n, so that there is something beyond the last pixel."""
    return 1 << n.bit_length()


class FlowSpace:
    """One site, `flow`: [b, 2, h, w], how far right and how far down of its place a pixel looks. Zero flow is the image itself.

    Args:
        images: [b, c, h, w] of any aspect ratio; they do not move.
        unit: of the flow, see `FlowUnit`.
        padding: see `Sampler`.
    """

    name = "flow"

    def __init__(self, images: Images, unit: FlowUnit = "grid", padding: Padding = "border") -> None:
        self.sampler = Sampler(images.shape[2], images.shape[3], unit, padding, images.device)
        self.padded = self.sampler.pad(images.float())
        self._sites = {"flow": Site((2, *images.shape[2:]))}

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def rest(self) -> Latents:
        """Latents of the unchanged images."""
        return {"flow": self.padded.new_zeros(len(self.padded), *self._sites["flow"].shape)}

    def scattered(self, seed: int, ids: Rows, stream: str) -> Latents:
        """Latents uniform in [-1, 1], independent of each other and of the batch."""
        return {"flow": seeded_uniform(seed, ids, self._sites["flow"].shape, stream) * 2 - 1}

    def roughness(self, moved: Latents, rows: Rows) -> dict[str, PerExample]:
        """Per field that moves."""
        return {"flow": roughness(moved["flow"])}

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        if "flow" not in moved:
            images = self.sampler.sample(self.padded, latents["flow"])
            return lambda moved, rows: images.index_select(0, rows)
        return _Bent(self)


class _Bent:
    """Renders flows. Images are gathered anew only when other rows are asked for."""

    def __init__(self, space: FlowSpace) -> None:
        self.space = space
        self._rows: Rows | None = None
        self._padded = space.padded

    def __call__(self, moved: Latents, rows: Rows) -> Images:
        if self._rows is not rows:
            self._rows, self._padded = rows, self.space.padded.index_select(0, rows)
        return self.space.sampler.sample(self._padded, moved["flow"])
