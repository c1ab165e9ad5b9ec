"""StyleGAN2 as a space: per-layer styles and noise in, images out."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from gat.latents import Images, Latents, Rows, seeded_normal, take
from gat.protocols import Renderer, Site
from generators.stylegan2.generator import Activations, Generator

GROUPS_1024 = {4: "coarse", 8: "coarse", 16: "middle", 32: "middle"}  # as in the StyleGAN paper; above: fine


def group_of(resolution: int, img_resolution: int) -> str:
    """coarse (4-8), middle (16-32) or fine, by resolution, not by index: StyleGAN1 and 2 count layers differently.

    Images of 32 pixels and less would have no fine layers, so there the last resolution is fine.
    """
    if img_resolution <= 32 and resolution == img_resolution:
        return "fine"
    return GROUPS_1024.get(resolution, "fine")


class StyleGAN2Space:
    """Sites `style/<res>/<conv0|conv1|torgb>` [b, channels] and `noise/<res>/<conv0|conv1>` [b, 1, res, res].

    The generator is frozen: its weights, modulation tables and site scales are computed once here.

    Args:
        generator: taken as it is and put into eval mode without parameter gradients.
        classes: names of its labels; one per class, or a single one if it is unconditional.
        psi: truncation of random latents (1 is none).
        noise: 'random' draws every example's own noise, 'const' starts all from the checkpoint's.
        dtype: of the activations; styles, noise and the image stay float32.

    Raises:
        ValueError: if the number of names does not fit the generator.
    """

    name = "stylegan2"
    conditions: Literal["labels", "layouts"] = "labels"

    def __init__(
        self,
        generator: Generator,
        classes: Sequence[str],
        psi: float = 1.0,
        noise: str = "random",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        config = generator.config
        if len(classes) != max(config.c_dim, 1):
            raise ValueError(
                f"the generator knows {config.c_dim or 'no'} classes, but {len(classes)} names were given: {', '.join(classes)}"
            )
        if noise not in ("random", "const"):
            raise ValueError(f"noise must be 'random' or 'const', got {noise!r}")
        self.generator = generator.eval().requires_grad_(False)
        self.classes, self.psi, self.noise, self.dtype = tuple(classes), psi, noise, dtype
        self.device = generator.mapping.w_avg.device
        self.kernels = generator.synthesis.kernels(dtype)
        self.image_size = (config.img_resolution, config.img_resolution)
        self._sites = self._measure_sites()

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def _measure_sites(self, num_samples: int = 1024) -> dict[str, Site]:
        """Scale of a style: standard deviation within a class, root mean square over channels. Of noise: 1 by definition."""
        synthesis, resolution = self.generator.synthesis, self.generator.config.img_resolution
        labels = torch.arange(num_samples) % len(self.classes)
        styles = synthesis.styles(self._ws(labels, torch.arange(num_samples), seed=0))
        sites = {}
        for layer in synthesis.layers:
            group = group_of(layer.resolution, resolution)
            style = styles[layer.style_site]
            within = torch.stack([style[labels == k].var(dim=0) for k in range(len(self.classes))])
            sites[layer.style_site] = Site((layer.in_channels,), group, float(within.mean().sqrt()))
            if layer.noise_site in synthesis.noise_shapes():
                sites[layer.noise_site] = Site(synthesis.noise_shapes()[layer.noise_site], group, 1.0)
        return sites

    @torch.no_grad()
    def _ws(self, labels: Tensor, ids: Tensor, seed: int) -> Tensor:
        config = self.generator.config
        z = seeded_normal(seed, ids, (config.z_dim,), "z").to(self.device) if config.z_dim else None
        c = (
            torch.nn.functional.one_hot(labels, config.c_dim).float().to(self.device)
            if config.c_dim
            else None
        )
        return self.generator.mapping(z, c, self.psi)

    @torch.no_grad()
    def sample(self, conditions: Tensor, ids: Tensor, seed: int) -> Latents:
        """Random latents of the given classes; an example depends on (seed, id, label) alone.

        Raises:
            ValueError: for a label the generator does not know.
        """
        ids, labels = ids.cpu(), conditions.cpu()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ValueError(
                f"labels must be 0..{len(self.classes) - 1}, got {int(labels.min())}..{int(labels.max())}"
            )
        latents = dict(self.generator.synthesis.styles(self._ws(labels, ids, seed)))
        const = self.generator.synthesis.const_noise()
        for site, shape in self.generator.synthesis.noise_shapes().items():
            if self.noise == "const":
                latents[site] = const[site].expand(len(ids), -1, -1, -1).clone()
            else:
                latents[site] = seeded_normal(seed, ids, shape, site).to(self.device)
        return {name: latents[name] for name in self._sites}

    @torch.no_grad()
    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        """See `Space.freeze`. Layers in front of the first moved one run once, here, for all examples."""
        synthesis = self.generator.synthesis
        first = len(synthesis.layers) - 1
        for index, layer in reversed(list(enumerate(synthesis.layers))):
            if layer.style_site in moved or layer.noise_site in moved:
                first = index
        before = Activations(None)
        for layer in synthesis.layers[:first]:
            before = synthesis.advance(
                layer,
                before,
                latents[layer.style_site],
                latents.get(layer.noise_site),
                self.kernels[layer],
                self.dtype,
            )
        kept = {
            site: latents[site]
            for layer in synthesis.layers[first:]
            for site in (layer.style_site, layer.noise_site)
            if site in latents and site not in moved
        }
        return _Resumed(self, first, before if first else None, kept)


class _Resumed:
    """Renders from layer `first`. The rows of what does not move are gathered anew only when other rows are asked for."""

    def __init__(self, space: StyleGAN2Space, first: int, before: Activations | None, kept: Latents) -> None:
        self.space, self.first, self.before, self.kept = space, first, before, kept
        self._rows: Rows | None = None
        self._state: tuple[Activations | None, Latents] = (None, {})

    def __call__(self, moved: Latents, rows: Rows) -> Images:
        if self._rows is not rows:
            self._rows = rows
            self._state = (self.before.take(rows) if self.before else None, take(self.kept, rows))
        before, kept = self._state
        latents = moved | kept
        styles = {name: value for name, value in latents.items() if name.startswith("style/")}
        noise = {name: value for name, value in latents.items() if name.startswith("noise/")}
        space = self.space
        with torch.autocast(
            space.device.type, enabled=False
        ):  # the generator's precision is the space's to choose
            images = space.generator.synthesis.render(
                styles, noise, space.kernels, self.first, before, space.dtype
            )
        return (images * 0.5 + 0.5).clamp(0, 1)
