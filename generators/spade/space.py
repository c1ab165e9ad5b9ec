"""SPADE as a space: gamma and beta of every norm in, images out."""

import copy
from collections.abc import Mapping, Sequence
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gat.latents import Images, Latents, Rows, num_examples, seeded_normal, take
from gat.protocols import Renderer, Site
from generators.spade.config import SPADEConfig
from generators.spade.networks import Generator, Layouts, Stage, encode_indices, index_layouts

SEED, LAYOUT = (
    "seed/fc",
    "layout/map",
)  # what rendering needs besides gamma and beta, and what no attack may move
CHUNK = 8  # examples at a time in the label branch and in front of the first moved block: both are wide

# Float32 copies of the moved latents in an attack. Always: start, reference for distances, best of all restarts, outcome, and per
# slot the iterate, home and best. During a backward pass the gradient joins them, during a step (when what the backward pass
# needed is gone) the gradient and values under way. tests/unit/generators/spade/test_memory.py holds them to what is used.
COPIES_IN_BACKWARD, COPIES_IN_STEP = 8, 10


def group_of(width_px: int, image_width_px: int) -> str:
    """coarse (an 8th of the image's width and less), middle (a quarter and half) or fine (the full width)."""
    return "fine" if width_px == image_width_px else "middle" if 4 * width_px >= image_width_px else "coarse"


def example_layouts(config: SPADEConfig, num: int = 4) -> Layouts:
    """Random maps of 8 x 8 rectangles, every one a class and an instance; always the same ones."""
    cells = torch.randint(config.label_nc, (num, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    instances = torch.arange(64).reshape(1, 1, 8, 8).expand(num, -1, -1, -1)
    coarse = torch.cat([cells, instances], dim=1)
    return F.interpolate(coarse.double(), config.image_size, mode="nearest").long()


@torch.no_grad()
def measure_scales(generator: Generator, layouts: Layouts) -> dict[str, float]:
    """Standard deviation of every gamma and beta over examples and places, root mean square over channels.

    Args:
        layouts: some of those the generator was trained on.
    """
    device, sums = generator.conv_img.weight.device, dict[str, list[Tensor]]()
    for rows in layouts.split(CHUNK):
        semantics = encode_indices(*index_layouts(rows.to(device), generator.config), generator.config)
        for site, value in generator.modulation(semantics).items():
            value = value.double()
            moments = torch.stack([value.sum((0, 2, 3)), value.square().sum((0, 2, 3))])
            sums.setdefault(site, []).append(moments)
    scales = {}
    for site, (_, *size) in generator.site_shapes().items():
        mean, square = torch.stack(sums[site]).sum(0) / (len(layouts) * prod(size))
        scales[site] = float((square - mean.square()).clamp_min(0).mean().sqrt())
    return scales


class SPADESpace:
    """Sites `gamma/<block>/<norm>` and `beta/<block>/<norm>` [b, channels, h, w], in the order in which the image is computed.

    The generator is frozen. The label branch runs once per `sample` (with `coarse_grid` once per `freeze`), never in an
    attack's loop. Latents hold besides the sites what rendering also needs and nobody may move: `seed/fc`, the input of the
    first block, and with `coarse_grid` `layout/map`, the encoded layout.

    Memory is what limits attacks: at 256 px the maps of one image take 324 MB. With `coarse_grid` a site is an offset instead,
    at most so many px wide, which starts at zero and is enlarged bilinearly and added to the map of the layout.

    Args:
        generator: taken as it is and put into eval mode without parameter gradients.
        classes: names of its semantic classes.
        scales: standard deviations of the sites, from `measure_scales`; None measures them on `example_layouts`.
        coarse_grid: largest width in px of a site; None moves the maps themselves.
        memory_budget_gib: what an attack may use, see `max_width`; None is no limit.
        dtype: of the activations, and of maps that do not move.

    Raises:
        ValueError: if names or scales do not fit the generator.
    """

    name = "spade"
    conditions: Literal["labels", "layouts"] = "layouts"

    def __init__(
        self,
        generator: Generator,
        classes: Sequence[str],
        scales: Mapping[str, float] | None = None,
        coarse_grid: int | None = None,
        memory_budget_gib: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = generator.config
        if len(classes) != self.config.label_nc:
            raise ValueError(
                f"the generator knows {self.config.label_nc} classes, but {len(classes)} names were given: {', '.join(classes)}"
            )
        if coarse_grid is not None and coarse_grid < 1:
            raise ValueError(f"coarse_grid must be at least 1 px, got {coarse_grid}")
        self.generator = generator.eval().requires_grad_(False)
        self.classes, self.dtype = tuple(classes), dtype
        self.coarse_grid, self.memory_budget_gib = coarse_grid, memory_budget_gib
        self.device = generator.conv_img.weight.device
        self.backbone = generator
        if dtype != torch.float32:
            self.backbone = copy.deepcopy(generator)
            for name, module in self.backbone.named_modules():
                if name.rsplit(".", 1)[-1].startswith("conv_"):
                    module.to(dtype)
        if scales is None:
            scales = measure_scales(generator, example_layouts(self.config))
        shapes = generator.site_shapes()
        if scales.keys() != shapes.keys():
            different = sorted(scales.keys() ^ shapes.keys())
            raise ValueError(f"scales are of other sites than the generator's: {', '.join(different[:5])}")
        image_width = self.config.image_size[1]
        self._sites = {  # a map that is the same everywhere can still be moved, in absolute steps
            name: Site(
                (channels, *self._grid(size)), group_of(size[1], image_width), max(scales[name], 1e-12)
            )
            for name, (channels, *size) in shapes.items()
        }

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.config.image_size

    def _grid(self, size: Sequence[int]) -> Sequence[int]:
        """Height and width of a site whose map has this size."""
        height, width = size
        if self.coarse_grid is None or width <= self.coarse_grid:
            return size
        return max(1, round(height * self.coarse_grid / width)), self.coarse_grid

    @torch.no_grad()
    def sample(self, layouts: Layouts, ids: Rows, seed: int) -> Latents:
        """Latents of these layouts; an example depends on (seed, id, layout) alone, and without the VAE branch on its layout.

        Args:
            layouts: semantic map (0..k-1, 255 unknown) and instance map (any numbers; edges count).

        Raises:
            ValueError: for layouts of another size or with values the generator does not know.
        """
        channels, edges = index_layouts(layouts.to(self.device), self.config)
        z = None
        if self.config.use_vae:
            z = seeded_normal(seed, ids.cpu(), (self.config.z_dim,), "z").to(self.device)
        parts: list[Latents] = []
        for rows in torch.arange(len(layouts), device=self.device).split(CHUNK):
            semantics = encode_indices(channels[rows], edges[rows], self.config)
            part = {SEED: self.generator.start(semantics, None if z is None else z[rows])}
            if self.coarse_grid is None:
                part |= self.generator.modulation(semantics)
            parts.append(part)
        latents = {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}
        if self.coarse_grid is not None:
            latents[LAYOUT] = torch.stack([channels, edges], dim=1).float()
            for name, site in self._sites.items():
                latents[name] = torch.zeros(len(layouts), *site.shape, device=self.device)
        return latents

    @torch.no_grad()
    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        """See `Space.freeze`. Blocks in front of the first moved one run once, here, for all examples.

        Raises:
            ValueError: for a site that is not there, or latents of another space.
        """
        if unknown := [name for name in moved if name not in self._sites]:
            raise ValueError(f"{', '.join(unknown)} cannot be moved; on offer: {', '.join(self._sites)}")
        wanted = {SEED, *self._sites} | ({LAYOUT} if self.coarse_grid is not None else set())
        if missing := sorted(wanted - latents.keys()):
            raise ValueError(f"these are not latents of this space: there is no {', '.join(missing[:5])}")
        stages = self.backbone.stages
        first = self._first(moved)
        later = [site for stage in stages[first:] for site in stage.sites]
        states: list[Tensor] = []
        maps: dict[str, list[Tensor]] = {}
        for start in range(0, num_examples(latents), CHUNK):
            part = {name: value[start : start + CHUNK] for name, value in latents.items()}
            here = part if self.coarse_grid is None else self._moved_off(self._maps_of(part), part, moved)
            state = part[SEED].to(self.dtype)
            for stage in stages[:first]:
                state = self.backbone.advance(stage, state, here)
            states.append(state)
            if self.coarse_grid is not None:
                for site in later:
                    maps.setdefault(site, []).append(here.pop(site).to(self.dtype))
        if self.coarse_grid is None:
            kept = {site: latents[site].to(self.dtype) for site in later if site not in moved}
        else:
            kept = {site: torch.cat(maps.pop(site)) for site in later}
        return _Resumed(self, first, torch.cat(states), kept)

    def _maps_of(self, latents: Latents) -> Latents:
        """The label branch, from the encoded layout."""
        channels, edges = latents[LAYOUT].unbind(1)
        return self.generator.modulation(encode_indices(channels.long(), edges > 0, self.config))

    def _moved_off(self, maps: Latents, offsets: Latents, moved: Sequence[str]) -> Latents:
        """Maps with the offsets of all sites that are not about to move."""
        return {
            site: value if site in moved else value + self._enlarged(offsets[site], value)
            for site, value in maps.items()
        }

    @staticmethod
    def _enlarged(
        offset: Float[Tensor, "b c h2 w2"], like: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        offset = offset.to(like.dtype)
        if offset.shape == like.shape:
            return offset
        return F.interpolate(offset, like.shape[-2:], mode="bilinear", align_corners=False)

    def memory_needed(self, moved: Sequence[str], batch: int) -> int:
        """Bytes of memory at the peak of an attack on `batch` examples at once, all of them in the loop.

        Weights, latents, the copies of them that the loop keeps, and what the backward pass remembers of the rendering; without
        the attacked model.
        """
        per_example = self._bytes_per_example(moved)
        parts = {part for module in (self.generator, self.backbone) for part in module.parameters()}
        return sum(part.nbytes for part in parts) + batch * per_example

    def _bytes_per_example(self, moved: Sequence[str]) -> int:
        item = self.dtype.itemsize
        coarse = self.coarse_grid is not None
        first = self._first(moved)
        latents = sum(site.bytes_per_example for site in self._sites.values())
        latents += 4 * 2 * prod(self.image_size) if coarse else 0
        kept = remembered = largest = 0
        for stage in self.backbone.stages[first:]:
            area = prod(stage.size) * item
            for norm, channels in stage.channels.items():
                # Remembered for the backward pass: what comes in (the shortcut shares it), normalised, and modulated.
                remembered += (2 if norm == "norm_s" else 3) * channels * area
                largest = max(largest, channels * area)
                for kind in ("gamma", "beta"):
                    is_moved = f"{kind}/{stage.name}/{norm}" in moved
                    if coarse or not is_moved:
                        kept += channels * area
                    if is_moved and (coarse or item != 4):  # what is used is not what is moved
                        remembered += channels * area
        remembered += 2 * largest  # of the image's own layer, and gradients on their way
        images = 5 * 4 * 3 * prod(self.image_size)  # before, after, and three on their way through the loop
        change = sum(self._sites[site].bytes_per_example for site in moved)
        kept *= (
            2 if coarse or item != 4 else 1
        )  # of those in the slots; and of all, unless they are the latents themselves
        return (
            latents + images + kept + max(COPIES_IN_BACKWARD * change + remembered, COPIES_IN_STEP * change)
        )

    def _first(self, moved: Sequence[str]) -> int:
        """Index of the first block with a moved site; behind the last one if there is none."""
        stages = self.backbone.stages
        return next((i for i, stage in enumerate(stages) if set(stage.sites) & set(moved)), len(stages))

    def max_width(self, moved: Sequence[str]) -> int | None:
        """The largest batch that fits `memory_budget_gib`; None without a budget.

        Raises:
            ValueError: if not even one example fits.
        """
        if self.memory_budget_gib is None:
            return None
        budget = self.memory_budget_gib * 2**30
        width = int(budget - self.memory_needed(moved, 0)) // self._bytes_per_example(moved)
        if width < 1:
            raise ValueError(
                f"one example needs {self.memory_needed(moved, 1) / 2**30:.2f} GiB and the budget is "
                f"{self.memory_budget_gib:g} GiB: move coarser groups, set coarse_grid, or raise memory_budget_gib"
            )
        return width


class _Resumed:
    """Renders from block `first`. The rows of what does not move are gathered anew only when other rows are asked for."""

    def __init__(self, space: SPADESpace, first: int, state: Tensor, kept: Latents) -> None:
        self.space, self.stages = space, space.backbone.stages[first:]
        self.before: Latents = {SEED: state} | kept
        self._rows: Rows | None = None
        self._here: Latents = {}

    def __call__(self, moved: Latents, rows: Rows) -> Images:
        if self._rows is not rows:
            self._here = {}  # before the next ones are gathered: both at once may not fit
            self._rows, self._here = rows, take(self.before, rows)
        backbone = self.space.backbone
        # The generator's precision is the space's to choose.
        with torch.autocast(self.space.device.type, enabled=False):
            state = self._here[SEED]
            for stage in self.stages:
                state = backbone.advance(stage, state, self._maps(stage, moved))
            return backbone.finish(state).float() * 0.5 + 0.5  # tanh keeps it in [0, 1]

    def _maps(self, stage: Stage, moved: Latents) -> Latents:
        maps: Latents = {}
        for site in stage.sites:
            if site not in moved:
                maps[site] = self._here[site]
            elif site in self._here:
                maps[site] = self._here[site] + self.space._enlarged(moved[site], self._here[site])
            else:
                maps[site] = moved[site]
        return maps
