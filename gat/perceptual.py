"""How different two images look to a network: the distance of perceptual adversarial attacks.

`phi(x)` holds the activations of a few layers, each position's channels scaled to unit length and each layer divided by the
square root of its number of positions. The distance of two images is `|phi(x) - phi(y)|` in L2 (Laidlaw et al. 2021, Sec. 3), the
square root of LPIPS without learned weights (Zhang et al. 2018). Numbers only compare for the same network and layers.

Networks are opened by name: 'self' is the attacked classifier, 'alexnet' and 'vgg' are torchvision's ImageNet networks, and
anything else is what `add_network` was told, such as a classifier of one's own:

    add_network("mine", model)
    LPA(bound=0.5, network="mine")(classifier, images, labels)

The core cannot read a run's folder, so the command line adds the networks that a configuration names.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gat.latents import Images, PerExample

Embedding = Float[Tensor, "b d"]
Tap = tuple[str, int]
"""A module's name, and which of its calls in one pass: a module that serves several places is called at each of them."""

TINY = 1e-10  # added to the length of a position's channels (Laidlaw et al.'s code)


def distance(a: Embedding, b: Embedding) -> PerExample:
    """L2 between embeddings; 0 with gradient 0 where they are equal."""
    squared = (a - b).square().sum(1)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


class Phi:
    """The embedding `phi` of one network, usable inside `with`: its hooks are removed at the end.

    Args:
        network: images [b, c, h, w] in [0, 1] to anything; normalisation happens inside. In eval mode, or its answers depend on the batch.
        layers: names of modules that return [b, c, h, w], [b, positions, c] or [b, c]; of several calls the last counts. None takes
            what `find_layers` finds for `images`.
        images: what it will be asked about, or some of it.

    Raises:
        ValueError: for a layer that the network lacks or does not run, or a network that returns no maps.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str] | None, images: Images) -> None:
        self.network: nn.Module = getattr(
            network, "_orig_mod", network
        )  # a compiled module ignores new hooks
        self._taps = find_layers(self.network, images) if layers is None else [(name, -1) for name in layers]
        self._seen: dict[str, list[Any]] = {}
        self._pass: tuple[Tensor, int] | None = None  # what the network saw last
        self._handles: list[RemovableHandle] = []
        modules = dict(self.network.named_modules())
        if unknown := {name for name, _ in self._taps} - modules.keys():
            offers = ", ".join(list(filter(None, modules))[:40])
            raise ValueError(f"layers: the network has no {sorted(unknown)}; on offer: {offers}")

    def __enter__(self) -> "Phi":
        def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._seen.clear()
            self._pass = (inputs[0], inputs[0]._version)

        modules = dict(self.network.named_modules())
        self._handles.append(self.network.register_forward_pre_hook(begin))
        for name in dict.fromkeys(name for name, _ in self._taps):
            self._handles.append(modules[name].register_forward_hook(_remember(self._seen, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()
        self._pass = None

    def __call__(self, images: Images) -> Embedding:
        """One pass through the network. Differentiable."""
        self.network(images.contiguous(memory_format=torch.channels_last))  # the faster one for convolutions
        return self._embedding(len(images))

    def has_seen(self, images: Images) -> bool:
        """Whether the network's last pass was on this very tensor, so that `recall` can tell."""
        return self._pass is not None and self._pass[0] is images and self._pass[1] == images._version

    def recall(self, images: Images) -> Embedding:
        """What that pass showed, once: the embedding of `images` without a pass of its own."""
        assert self.has_seen(images)
        return self._embedding(len(images))

    @torch.no_grad()
    def of_all(self, images: Images, width: int) -> Embedding:
        """Of many images, in batches of `width`, outside any graph."""
        return torch.cat([self(part) for part in images.split(width)])

    def _embedding(self, num_images: int) -> Embedding:
        parts = []
        for name, call in self._taps:
            if name not in self._seen:
                raise ValueError(f"layers: the network did not run {name!r}")
            maps = self._seen[name][call]
            if not isinstance(maps, Tensor) or maps.ndim not in (2, 3, 4) or len(maps) != num_images:
                found = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
                raise ValueError(
                    f"layers: wanted [b, c, h, w], [b, positions, c] or [b, c], {name!r} gives {found}"
                )
            parts.append(_unit(maps.float()))
        self._seen.clear()  # holds the graph otherwise
        self._pass = None
        return torch.cat(parts, dim=1)


class _Unit(torch.autograd.Function):
    """a -> a / (|a| + TINY) / sqrt(positions), [b, positions, c]. Autograd's own chain takes three times as long."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(maps, dim=2, keepdim=True)
        scale = 1 / ((length + TINY) * (maps.shape[1] ** 0.5))
        unit = maps * scale
        ctx.save_for_backward(unit, scale)
        return unit

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, scale = ctx.saved_tensors
        # A longer vector is the same direction: only what lies across it counts.
        along = (gradient * unit).sum(2, keepdim=True) * unit.shape[1]
        return torch.addcmul(gradient, unit, along, value=-1).mul(scale)


def _unit(maps: Float[Tensor, "b ..."]) -> Embedding:
    """Channels of unit length at each position, over the square root of the number of positions."""
    if (
        maps.ndim == 4
    ):  # channels last always, whatever the layout in memory: most networks run in it, then this is a view
        maps = maps.permute(0, 2, 3, 1).flatten(1, 2)
    elif maps.ndim == 2:
        maps = maps[:, None]
    unit: Tensor = _Unit.apply(maps)
    return unit.flatten(1)


def _remember(seen: dict[str, list[Any]], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.setdefault(name, []).append(output)

    return hook


@torch.no_grad()
def find_layers(network: nn.Module, images: Images) -> list[Tap]:
    """The last feature map of each resolution: in a residual network the end of each stage.

    So a network for small images gives what Laidlaw et al. name by hand for theirs (the four stages of a residual network); an
    ImageNet network gives its stem too. A network without feature maps gives the last output of each width.

    Raises:
        ValueError: if no module returns either.
    """
    maps: dict[tuple[int, ...], Tap] = {}
    vectors: dict[tuple[int, ...], Tap] = {}
    calls: dict[str, int] = {}
    image_shape, flat_shape = images.shape[1:], (images[0].numel(),)

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            call = calls[name] = calls.get(name, -1) + 1
            if not isinstance(output, Tensor):
                return
            shape = output.shape[1:]
            if output.ndim == 4 and shape[1:].numel() > 1 and shape != image_shape:
                maps[shape[1:]] = (name, call)
            elif output.ndim == 2 and shape != flat_shape:
                vectors[shape] = (name, call)

        return hook

    handles = [
        module.register_forward_hook(hook_of(name)) for name, module in network.named_modules() if name
    ]
    try:
        network(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not maps and not vectors:
        raise ValueError("no module of the network returns feature maps [b, c, h, w]; name some `layers`")
    return list((maps or vectors).values())


# Networks by name.


@dataclass(frozen=True)
class PerceptualNetwork:
    """A network that says how images look.

    Attributes:
        module: images in [0, 1] to anything.
        layers: see `Phi`.
    """

    module: nn.Module
    layers: tuple[str, ...] | None = None


_ADDED: dict[str, PerceptualNetwork] = {}


def add_network(name: str, module: nn.Module, layers: Sequence[str] | None = None) -> None:
    """Let attacks use `module` as `network=name`. It is used in eval mode and left as found.

    Raises:
        ValueError: for a name that has a meaning already.
    """
    if name in ("self", *_PRETRAINED):
        raise ValueError(f"the name {name!r} is taken; choose another")
    _ADDED[name] = PerceptualNetwork(module, None if layers is None else tuple(layers))


def open_network(name: str, model: nn.Module, images: Images) -> PerceptualNetwork:
    """The network of that name, on the device of `images`; 'self' is `model`.

    Raises:
        ValueError: for an unknown name, images too small for the network, or weights that are not on this machine.
    """
    if name == "self":
        return PerceptualNetwork(model)
    if name in _ADDED:
        return _ADDED[name]
    if name not in _PRETRAINED:
        offers = ", ".join(["self", *_PRETRAINED, *_ADDED])
        raise ValueError(
            f"network: {name!r} is not known; on offer: {offers}. Add your own: gat.perceptual.add_network({name!r}, module)"
        )
    layers, smallest_px = _PRETRAINED[name]
    if min(images.shape[2:]) < smallest_px:
        raise ValueError(
            f"network: {name} needs images of {smallest_px} px at least, got {list(images.shape[2:])}; take 'self' or a "
            "classifier of such images (gat.perceptual.add_network)"
        )
    return PerceptualNetwork(_pretrained(name).to(images.device), layers)


# Behind each nonlinearity, as in LPIPS; the last one of each block in VGG.
_PRETRAINED = {
    "alexnet": (tuple(f"features.{i}" for i in (1, 4, 7, 9, 11)), 63),
    "vgg": (tuple(f"features.{i}" for i in (3, 8, 15, 22, 29)), 32),
}


class ImageNetFeatures(nn.Module):
    """The convolutional part of a torchvision network, for images in [0, 1], grey ones too.

    Args:
        features: of a network that wants ImageNet's normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1))

    def forward(self, images: Images) -> Tensor:
        maps: Tensor = self.features((images - self.mean) / self.std)
        return maps


@cache
def _pretrained(name: str) -> ImageNetFeatures:
    """From torchvision's weights where torch.hub keeps them. Nothing is downloaded behind the user's back."""
    from torchvision import models

    build, weights = {
        "alexnet": (models.alexnet, models.AlexNet_Weights.IMAGENET1K_V1),
        "vgg": (models.vgg16, models.VGG16_Weights.IMAGENET1K_V1),
    }[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not path.is_file():
        raise ValueError(
            f"network: the ImageNet weights of {name} are not on this machine; put {weights.url} at {path}, or take 'self' or a "
            "classifier of your own (gat.perceptual.add_network)"
        )
    with torch.device("meta"):  # the classifier's end is most of the network, and of no use here
        features = build(weights=None).features
    state = torch.load(path, map_location="cpu", weights_only=True)
    kept = {name: value for name, value in state.items() if name.startswith("features.")}
    features.load_state_dict(
        {name.removeprefix("features."): value for name, value in kept.items()}, assign=True
    )
    return ImageNetFeatures(features).eval().requires_grad_(False)


@torch.no_grad()
def perceptual_distance(
    network: nn.Module,
    images: Images,
    others: Images,
    layers: Sequence[str] | None = None,
    width: int = 128,
) -> PerExample:
    """The distance of each pair.

    Args:
        network, layers: see `Phi`.
        images, others: [b, c, h, w] in [0, 1].
        width: batch size of every pass.

    Raises:
        ValueError: for a network in training mode, or see `Phi`.
    """
    if any(part.training for part in network.modules()):
        raise ValueError(
            "the network is in training mode, so its features depend on the batch: network.eval()"
        )
    with Phi(network, layers, images) as phi:
        return distance(phi.of_all(images, width), phi.of_all(others, width))
