"""The SPADE generator, in plain torch operations.

Written from the paper (Park et al. 2019) and from the published layout of checkpoints. State-dict names are those of the
released models after their spectral norm is folded into plain weights; `tests/golden/spade` holds the agreement.

A forward pass is two functions, because the attack moves what lies between them, and what comes first depends on the label
map alone:

    modulation = generator.modulation(semantics)            # {"gamma/head_0/norm_0": [b, c, h, w], "beta/...": ...}
    images = generator.render(generator.start(semantics, z), modulation)  # [b, 3, h, w] in [-1, 1]

`render` walks a flat list of blocks and can start at any of them from the saved output of the block before.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from generators.spade.config import UNKNOWN, SPADEConfig

Semantics = Float[Tensor, "b k h w"]  # one-hot classes, unknown, edges: see `encode_layouts`
Layouts = Int64[Tensor, "b 2 h w"]  # semantic map and instance map
SLOPE = 0.2  # of the leaky ReLUs of the backbone


class SPADENorm(nn.Module):
    """Parameter-free batch norm, then `x * (1 + gamma) + beta` with maps computed from the layout (Eq. 1; 1 + is the code's)."""

    def __init__(self, channels: int, config: SPADEConfig) -> None:
        super().__init__()
        size, padding = config.kernel_size, config.kernel_size // 2
        self.param_free_norm = nn.BatchNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(
            nn.Conv2d(config.semantic_nc, config.nhidden, size, padding=padding), nn.ReLU()
        )
        self.mlp_gamma = nn.Conv2d(config.nhidden, channels, size, padding=padding)
        self.mlp_beta = nn.Conv2d(config.nhidden, channels, size, padding=padding)

    def modulation(self, semantics: Semantics) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """Gamma and beta, from semantics at the size of the activations."""
        shared = self.mlp_shared(semantics)
        return self.mlp_gamma(shared), self.mlp_beta(shared)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        gamma: Float[Tensor, "b c h w"],
        beta: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b c h w"]:
        x = self.param_free_norm(
            x
        )  # summed in this order, autograd keeps gamma itself, not a copy of 1 + gamma
        return torch.addcmul(x + beta.to(x.dtype), x, gamma.to(x.dtype))


class SPADEBlock(nn.Module):
    """A residual block of two convolutions, each behind a norm; a third norm and 1x1 convolution where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, config: SPADEConfig) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        self.conv_0 = nn.Conv2d(in_channels, middle, 3, padding=1)
        self.conv_1 = nn.Conv2d(middle, out_channels, 3, padding=1)
        self.norm_0 = SPADENorm(in_channels, config)
        self.norm_1 = SPADENorm(middle, config)
        self.channels = {"norm_0": in_channels, "norm_1": middle}
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.conv_s = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.norm_s = SPADENorm(in_channels, config)
            self.channels["norm_s"] = in_channels

    def forward(
        self, x: Float[Tensor, "b c h w"], sites: Mapping[str, Tensor], name: str
    ) -> Float[Tensor, "b d h w"]:
        """`sites` holds this block's maps as `gamma/<name>/<norm>` and `beta/<name>/<norm>`."""
        modulations = {
            norm: (sites[f"gamma/{name}/{norm}"], sites[f"beta/{name}/{norm}"]) for norm in self.channels
        }
        shortcut = self.conv_s(self.norm_s(x, *modulations["norm_s"])) if self.learned_shortcut else x
        x = self.norm_0(x, *modulations["norm_0"])
        x = self.conv_0(F.leaky_relu(x, SLOPE, inplace=True))
        x = self.norm_1(x, *modulations["norm_1"])
        return shortcut + self.conv_1(F.leaky_relu(x, SLOPE, inplace=True))


@dataclass(frozen=True)
class Stage:
    """One block of the backbone.

    Attributes:
        name: attribute of the generator.
        upsample: whether its input is enlarged twice first.
        size: height and width in px of its maps.
        channels: of its norms, by name.
    """

    name: str
    upsample: bool
    size: tuple[int, int]
    channels: Mapping[str, int]

    @property
    def sites(self) -> list[str]:
        """Names of its maps in computing order."""
        order = [norm for norm in ("norm_s", "norm_0", "norm_1") if norm in self.channels]
        return [f"{kind}/{self.name}/{norm}" for norm in order for kind in ("gamma", "beta")]


class Generator(nn.Module):
    """Layout to image. In train mode batch norm uses, and records, the statistics of the batch.

    Args:
        spectral: keep the block convolutions spectrally normalised, to train; `folded_state_dict` gives plain weights.
    """

    def __init__(self, config: SPADEConfig, spectral: bool = False) -> None:
        super().__init__()
        self.config = config
        wide = 16 * config.ngf
        height, width = config.start_size
        if config.use_vae:
            self.fc: nn.Module = nn.Linear(config.z_dim, wide * height * width)
        else:
            self.fc = nn.Conv2d(config.semantic_nc, wide, 3, padding=1)
        more = config.num_upsampling_layers in ("more", "most")
        plan = [
            ("head_0", wide, False),
            ("G_middle_0", wide, True),
            ("G_middle_1", wide, more),
            *((f"up_{i}", wide >> i + 1, True) for i in range(4 + (config.num_upsampling_layers == "most"))),
        ]
        self.stages: list[Stage] = []
        channels = wide
        for name, out_channels, upsample in plan:
            block = SPADEBlock(channels, out_channels, config)
            self.add_module(name, block)
            height, width = (2 * height, 2 * width) if upsample else (height, width)
            self.stages.append(Stage(name, upsample, (height, width), dict(block.channels)))
            channels = out_channels
        self.conv_img = nn.Conv2d(channels, 3, 3, padding=1)
        if spectral:
            for stage in self.stages:
                for name, conv in self.get_submodule(stage.name).named_children():
                    if name.startswith("conv_"):
                        spectral_norm(conv)

    def site_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Channels, height and width of every map, in computing order."""
        return {
            site: (stage.channels[site.rsplit("/", 1)[1]], *stage.size)
            for stage in self.stages
            for site in stage.sites
        }

    def start(
        self, semantics: Semantics, z: Float[Tensor, "b z"] | None = None
    ) -> Float[Tensor, "b c h2 w2"]:
        """The input of the first block: from z with the VAE branch, otherwise from the layout.

        Raises:
            ValueError: if z is missing or not wanted.
        """
        if self.config.use_vae != (z is not None):
            raise ValueError(
                f"this generator starts from z [b, {self.config.z_dim}], but none was given"
                if self.config.use_vae
                else "this generator starts from the layout and has no use for z"
            )
        if z is not None:
            return self.fc(z).unflatten(1, (-1, *self.config.start_size))
        return self.fc(F.interpolate(semantics, self.config.start_size, mode="nearest"))

    def modulation(self, semantics: Semantics) -> dict[str, Float[Tensor, "b c h2 w2"]]:
        """Gamma and beta of every norm, in computing order. They depend on the layout alone."""
        maps: dict[str, Tensor] = {}
        resized: dict[tuple[int, int], Tensor] = {}
        for stage in self.stages:
            if stage.size not in resized:
                resized[stage.size] = F.interpolate(semantics, stage.size, mode="nearest")
            for gamma, beta in zip(stage.sites[::2], stage.sites[1::2], strict=True):
                norm = self.get_submodule(gamma.removeprefix("gamma/").replace("/", "."))
                assert isinstance(norm, SPADENorm)
                maps[gamma], maps[beta] = norm.modulation(resized[stage.size])
        return maps

    def render(
        self,
        state: Float[Tensor, "b c h2 w2"],
        sites: Mapping[str, Float[Tensor, "b ..."]],
        first: int = 0,
    ) -> Float[Tensor, "b 3 h w"]:
        """Images in [-1, 1].

        Args:
            state: the output of block `first - 1`; of `start` for the first one.
            sites: maps of the blocks from `first` on, at their full size.
        """
        for stage in self.stages[first:]:
            state = self.advance(stage, state, sites)
        return self.finish(state)

    def finish(self, state: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
        """The image, in [-1, 1], from the output of the last block."""
        return self.conv_img(F.leaky_relu(state, SLOPE)).tanh()

    def advance(
        self, stage: Stage, state: Float[Tensor, "b c h w"], sites: Mapping[str, Float[Tensor, "b ..."]]
    ) -> Float[Tensor, "b d h2 w2"]:
        """One block."""
        if stage.upsample:
            state = F.interpolate(state, scale_factor=2, mode="nearest")
        return self.get_submodule(stage.name)(state, sites, stage.name)

    def forward(
        self, semantics: Semantics, z: Float[Tensor, "b z"] | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        return self.render(self.start(semantics, z), self.modulation(semantics))

    @torch.no_grad()
    def folded_state_dict(self) -> dict[str, Tensor]:
        """The state with spectral norms folded into plain weights, as a generator without them loads it.

        Detached copies: they stay as they are when training goes on.
        """
        folded = {}
        for name, module in self.named_modules():
            weights = list(module.parametrizations.weight) if parametrize.is_parametrized(module) else []
            modes = [part.training for part in weights]
            for part in weights:  # in train mode reading a weight would make another power iteration
                part.eval()
            if weights:
                folded[f"{name}.weight"] = module.weight.clone()
            for part, mode in zip(weights, modes, strict=True):
                part.train(mode)
        plain = {
            name: value.clone()
            for name, value in self.state_dict().items()
            if ".parametrizations." not in name
        }
        return plain | folded


def index_layouts(
    layouts: Layouts, config: SPADEConfig
) -> tuple[Int64[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    """Which channel every pixel belongs to, and whether it is on an edge: one of its four neighbours is of another instance.

    Raises:
        ValueError: for maps of another size, or values the generator has no channel for.
    """
    if tuple(layouts.shape[-2:]) != config.image_size:
        raise ValueError(
            f"the generator draws layouts of {config.image_size[0]}x{config.image_size[1]} px (height x width), "
            f"got {layouts.shape[-2]}x{layouts.shape[-1]}"
        )
    labels, instances = layouts.unbind(1)
    unknown = labels == UNKNOWN
    wrong = ((labels < 0) | (labels >= config.label_nc)) & ~unknown
    if wrong.any():
        raise ValueError(
            f"values of semantic maps are 0..{config.label_nc - 1} or {UNKNOWN} (unknown), "
            f"got {', '.join(str(int(value)) for value in labels[wrong].unique()[:5])}"
        )
    if not config.contain_dontcare and unknown.any():
        raise ValueError(
            f"the generator has no channel for unknown pixels ({UNKNOWN}), and the layouts have some"
        )
    channels = (labels + config.dontcare_first).masked_fill(
        unknown, 0 if config.dontcare_first else config.label_nc
    )
    edges = torch.zeros_like(unknown)
    down, across = instances[:, 1:] != instances[:, :-1], instances[:, :, 1:] != instances[:, :, :-1]
    edges[:, 1:] |= down
    edges[:, :-1] |= down
    edges[:, :, 1:] |= across
    edges[:, :, :-1] |= across
    return channels, edges


def encode_indices(
    channels: Int64[Tensor, "b h w"], edges: Bool[Tensor, "b h w"], config: SPADEConfig
) -> Semantics:
    """What the generator reads: one-hot channels, and the edges last if it has a channel for them."""
    semantics = torch.zeros(len(channels), config.semantic_nc, *channels.shape[1:], device=channels.device)
    semantics.scatter_(1, channels[:, None], 1.0)
    if config.use_instance:
        semantics[:, -1] = edges.float()
    return semantics


def encode_layouts(layouts: Layouts, config: SPADEConfig) -> Semantics:
    """Channels as the generator has them: one-hot classes, one for the unknown (255), one with the edges of instances.

    Raises:
        ValueError: see `index_layouts`.
    """
    return encode_indices(*index_layouts(layouts, config), config)
