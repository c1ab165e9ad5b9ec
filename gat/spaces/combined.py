"""Images recoloured, then bent, then added to (Laidlaw & Feizi 2019, Sec. 5: combined threat models)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gat.latents import Images, Latents, PerExample, Rows, seeded_uniform, split, take
from gat.protocols import Renderer, Site
from gat.spaces.color import ColorSpace
from gat.spaces.confined import confined
from gat.spaces.flow import FlowSpace, FlowUnit, Padding


class CombinedSpace:
    """Three sites, applied in this order: `color` of `ColorSpace`, `flow` of `FlowSpace`, and `delta` [b, 3, h, w], which is added
    to the pixels. All at zero is the image itself.

    Args:
        images: [b, 3, h, w]; they do not move.
        grid, channels: see `ColorSpace`.
        unit, padding: see `FlowSpace`.
    """

    name = "combined"

    def __init__(
        self,
        images: Images,
        grid: tuple[int, int, int] = (16, 32, 32),
        channels: tuple[float, float, float] = (1.0, 1.0, 1.0),
        unit: FlowUnit = "grid",
        padding: Padding = "border",
    ) -> None:
        self.images = images.float()
        self.color = ColorSpace(images, grid, channels)
        self.flow = FlowSpace(images, unit, padding)
        self._sites = {**self.color.sites, **self.flow.sites, "delta": Site(tuple(images.shape[1:]))}

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def rest(self) -> Latents:
        """Latents of the unchanged images."""
        return {**self.color.rest(), **self.flow.rest(), "delta": torch.zeros_like(self.images)}

    def scattered(self, seed: int, ids: Rows, stream: str) -> Latents:
        """Latents uniform in [-1, 1], independent of each other and of the batch."""
        delta = seeded_uniform(seed, ids, self._sites["delta"].shape, stream + "/delta") * 2 - 1
        return {
            **self.color.scattered(seed, ids, stream + "/color"),
            **self.flow.scattered(seed, ids, stream + "/flow"),
            "delta": delta,
        }

    def roughness(self, moved: Latents, rows: Rows) -> dict[str, PerExample]:
        """Per field that moves; what is added to the pixels need not be smooth."""
        found: dict[str, PerExample] = {}
        for part in (self.color, self.flow):
            if part.name in moved:
                found |= part.roughness(moved, rows)
        return found

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        return _Changed(self, latents, moved)


class _Changed:
    """Renders from the first site that moves. What does not is gathered anew only when other rows are asked for."""

    def __init__(self, space: CombinedSpace, latents: Latents, moved: Sequence[str]) -> None:
        self.sampler = space.flow.sampler
        self.recolor = space.color.freeze(latents, moved) if "color" in moved else None
        _, self.kept = split(latents, moved)
        if self.recolor is None:
            everyone = torch.arange(len(space.images), device=space.images.device)
            recolored = space.color.freeze(latents, [])({}, everyone)
            self.kept["padded"] = self.sampler.pad(recolored)
            if "flow" not in moved:
                self.kept["bent"] = self.sampler.sample(self.kept.pop("padded"), latents["flow"])
        self._rows: Rows | None = None
        self._kept: Latents = {}

    def __call__(self, moved: Latents, rows: Rows) -> Images:
        if self._rows is not rows:
            self._rows, self._kept = rows, take(self.kept, rows)
        latents = moved | self._kept
        bent: Tensor | None = latents.get("bent")
        if bent is None:
            padded = self.sampler.pad(self.recolor(moved, rows)) if self.recolor else latents["padded"]
            bent = self.sampler.sample(padded, latents["flow"])
        images = bent + latents["delta"]
        return confined(images, images.detach().clamp(0, 1))
