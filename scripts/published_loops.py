"""stAdv, ReColorAdv, LPA and PPGD as their published programs work, for the benchmark to race against.

No package has them. These loops are written from the facts: whole batches, all steps, the last iterate, `loss.backward()`; what the
programs waste beyond that is left out. For attacks to use, see `gat.attacks`.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gat.latents import Images, PerExample
from gat.perceptual import find_layers


def wrong_lead(logits: Float[Tensor, "b k"], labels: Tensor) -> PerExample:
    """The largest logit besides the label's, minus the label's."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(own, -math.inf).amax(1) - logits.masked_fill(~own, -math.inf).amax(1)


def stadv(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    *,
    bound: float,
    steps: int,
    lr: float = 0.01,
    weight: float = 0.05,
) -> Images:
    """stAdv in the published programs' way (Laidlaw et al. 2021): Adam on a sampling grid, clipped before each look."""
    still = F.affine_grid(
        torch.eye(2, 3).expand(len(images), -1, -1), list(images.shape), align_corners=False
    )
    grid = still.clone().requires_grad_()
    optimizer = torch.optim.Adam([grid], lr=lr)

    def clip() -> None:
        with torch.no_grad():
            grid.copy_(torch.clamp(grid, -1, 1).clamp(still - bound, still + bound))

    for _ in range(steps):
        clip()
        bent = F.grid_sample(images, grid, align_corners=False)
        rough = roughness((grid - still).permute(0, 3, 1, 2))
        loss = (weight * rough - wrong_lead(model(bent), labels)).sum()
        model.zero_grad()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clip()
    return F.grid_sample(images, grid, align_corners=False).detach()


def roughness(fields: Float[Tensor, "b c ..."]) -> PerExample:
    """Lengths of the differences to all neighbours, summed over positions."""
    total = fields.new_zeros(len(fields))
    for axis in range(2, fields.ndim):
        difference = fields.diff(dim=axis)
        total = total + 2 * (difference.square().sum(1) + 1e-10).sqrt().flatten(1).sum(1)
    return total


XYZ = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE_U, WHITE_V = 0.1978, 0.4683
COLOR_STEPS = (16, 32, 32)


def to_luv(rgb: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
    """sRGB to CIELUV, all three scaled to [0, 1]."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    x, y, z = (linear @ XYZ.T).clamp(0, 1.1).unbind(-1)
    lightness = torch.where(y > 0.008856, 116 * y.clamp(min=0.008856) ** (1 / 3) - 16, 903.3 * y)
    total = (x + 15 * y + 3 * z).clamp(min=1e-6)
    u = 13 * lightness * (4 * x / total - WHITE_U)
    v = 13 * lightness * (9 * y / total - WHITE_V)
    return torch.stack([lightness / 100, (u + 100) / 200, (v + 100) / 200], dim=-1)


def to_rgb(luv: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
    """Back again, clipped to [0, 1]."""
    lightness, u, v = luv[..., 0] * 100, luv[..., 1] * 200 - 100, luv[..., 2] * 200 - 100
    scale = 13 * lightness.clamp(min=1e-2)
    u, v = u / scale + WHITE_U, (v / scale + WHITE_V).clamp(min=1e-2)
    y = torch.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    xyz = torch.stack([9 * u * y / (4 * v), y, (12 - 3 * u - 20 * v) * y / (4 * v)], dim=-1).clamp(0, 1.1)
    linear = xyz @ torch.linalg.inv(XYZ).T
    root = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, root, 12.92 * linear).clamp(0, 1)


def look_up(grid: Float[Tensor, "b i j k 3"], places: Float[Tensor, "b p 3"]) -> Float[Tensor, "b p 3"]:
    """Trilinear, by a gather per corner."""
    b = len(grid)
    sizes = torch.tensor(grid.shape[1:4])
    scaled = places.clamp(0, 1) * (sizes - 1)
    below = scaled.floor().long().minimum(sizes - 2)
    part = scaled - below
    flat, found = grid.reshape(b, -1, 3), torch.zeros_like(places)
    for corner in range(8):
        offset = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        node = below + offset
        index = (node[..., 0] * sizes[1] + node[..., 1]) * sizes[2] + node[..., 2]
        weight = torch.where(offset.bool(), part, 1 - part).prod(-1, keepdim=True)
        found = found + weight * flat.gather(1, index[..., None].expand(-1, -1, 3))
    return found


def recoloradv(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    *,
    bound: float,
    steps: int,
    lr: float = 0.001,
    weight: float = 0.06,
) -> Images:
    """ReColorAdv in the published program's way (Laidlaw & Feizi 2019): Adam on the colours of all nodes of a grid, which are pulled
    into the range, the gamut and the bound before each look."""
    axes = [torch.linspace(0, 1, n) for n in COLOR_STEPS]
    still = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).expand(len(images), -1, -1, -1, -1)
    grid = still.clone().requires_grad_()
    optimizer = torch.optim.Adam([grid], lr=lr)

    def clip() -> None:
        with torch.no_grad():
            grid.copy_(to_luv(to_rgb(grid.clamp(0, 1))).clamp(still - bound, still + bound))

    def recolored() -> Images:
        luv = to_luv(images.flatten(2).transpose(1, 2))
        return to_rgb(look_up(grid, luv)).transpose(1, 2).reshape(images.shape)

    for _ in range(steps):
        clip()
        rough = roughness((grid - still).permute(0, 4, 1, 2, 3))
        loss = (weight * rough - wrong_lead(model(recolored()), labels)).sum()
        model.zero_grad()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clip()
    return recolored().detach()


class Features:
    """A classifier's logits and its features, as PAT compares images by: unit length over channels, then over positions."""

    def __init__(self, model: nn.Module, images: Images) -> None:
        self.model = model
        self.maps: dict[str, list[Tensor]] = {}
        self.taps = find_layers(model, images)
        modules = dict(model.named_modules())
        self.handles = [
            modules[name].register_forward_hook(partial(self._keep, name)) for name, _ in self.taps
        ]

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.maps.setdefault(name, []).append(output)

    def __call__(self, images: Images) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k"]]:
        self.maps.clear()
        logits = self.model(images)
        parts = []
        for name, call in self.taps:
            maps = self.maps[name][call]
            unit = maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10)
            parts.append((unit / (maps[0, 0].numel() ** 0.5)).flatten(1))
        return torch.cat(parts, dim=1), logits

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def gradient_of(leaf: Tensor) -> Tensor:
    """What `backward` left there."""
    assert leaf.grad is not None
    return leaf.grad


def norm(x: Tensor) -> Float[Tensor, "b 1 1 1"]:
    """L2 of every example."""
    return x.flatten(1).norm(dim=1)[:, None, None, None]


def newton(features: Features, images: Images, moved: Images, bound: float) -> Images:
    """The published projection: steps on the distance that aim 0.1 inside, then halving, for the whole batch."""
    with torch.no_grad():
        home = features(images)[0]
    for _ in range(10):
        moved = moved.detach().requires_grad_()
        distance = (features(moved)[0] - home).norm(dim=1)
        if bool((distance <= bound).all()):
            break
        distance.sum().backward()
        slope = gradient_of(moved)
        excess = (distance.detach() - bound).clamp(min=0)[:, None, None, None]
        length = torch.where(excess > 0, (excess + 0.1) * 1.1, 0.0)
        moved = (moved - length / norm(slope).square().clamp(min=1e-12) * slope).clamp(0, 1)
    else:
        moved = bisect(features, images, moved, home, bound)
    return moved.detach()


@torch.no_grad()
def bisect(features: Features, images: Images, moved: Images, home: Tensor, bound: float) -> Images:
    """Halving on the line to the image; of what is outside, the last point tried is returned."""
    low, high = torch.zeros(len(images), 1, 1, 1), torch.ones(len(images), 1, 1, 1)
    outside = ((features(moved)[0] - home).norm(dim=1) > bound)[:, None, None, None]
    tried = moved
    if bool(outside.any()):
        for _ in range(10):
            middle = (low + high) / 2
            tried = images + middle * (moved - images)
            beyond = ((features(tried)[0] - home).norm(dim=1) > bound)[:, None, None, None]
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return torch.where(outside, tried, moved)


def lagrange(
    model: nn.Module, images: Images, labels: Tensor, *, bound: float, steps: int, rounds: int
) -> Images:
    """LPA in the published program's way (Laidlaw et al. 2021), which drops examples that are done, and sees a classifier's features
    and logits in one pass."""
    features = Features(model, images)
    try:
        with torch.no_grad():
            home = features(images)[0]
        change = 0.01 * torch.randn_like(images)
        weight = torch.full([len(images)], 0.01)
        live = torch.ones(len(images), dtype=torch.bool)
        for _ in range(rounds):
            for step in range(steps):
                if not bool(live.any()):
                    break
                moved = (images[live] + change[live]).detach().requires_grad_()
                embedding, logits = features(moved)
                distance = (embedding - home[live]).norm(dim=1)
                loss = (
                    weight[live] * (distance - bound).clamp(min=0)
                    - wrong_lead(logits, labels[live]).clamp(max=1)
                ).sum()
                model.zero_grad()
                loss.backward()
                with torch.no_grad():
                    slope = gradient_of(moved)
                    way = slope / (norm(slope) + 1e-8)
                    ahead = features(moved - 0.1 * way)[0]
                    rate = (ahead - embedding).norm(dim=1)[:, None, None, None] / 0.1
                    length = bound * 0.1 ** (step / steps) / (rate + 1e-8)
                    change[live] = (moved - length * way).clamp(0, 1) - images[live]
                    live[live.clone()] = ~((logits.argmax(1) != labels[live]) & (distance <= bound))
            with torch.no_grad():
                distance = (features(images + change)[0] - home).norm(dim=1)
                weight = torch.where(distance >= bound, weight * 10, weight)
        return newton(features, images, images + change, bound)
    finally:
        features.close()


def perceptual_pgd(
    model: nn.Module, images: Images, labels: Tensor, *, bound: float, steps: int, cg_steps: int
) -> Images:
    """PPGD in the published program's way (Laidlaw et al. 2021)."""
    features = Features(model, images)

    def multiply(moved: Images, embedding: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            ahead = features(moved + 1e-3 * v / norm(v).clamp(min=1e-12))[0]
            along = (ahead - embedding) / 1e-3 * norm(v).flatten(1)
        leaf = moved.detach().requires_grad_()
        (features(leaf)[0] * along).sum().backward()
        return gradient_of(leaf)

    try:
        moved = (images + 0.01 * torch.randn_like(images)).clamp(0, 1)
        for _ in range(steps):
            leaf = moved.detach().requires_grad_()
            embedding, logits = features(leaf)
            model.zero_grad()
            wrong_lead(logits, labels).clamp(max=1).sum().backward()
            gradient, embedding = gradient_of(leaf), embedding.detach()
            v, residual, direction = torch.zeros_like(gradient), gradient, gradient
            square = norm(residual).square()
            for _ in range(cg_steps):
                image = multiply(moved, embedding, direction)
                by = square / (direction * image).flatten(1).sum(1)[:, None, None, None].clamp(min=1e-20)
                v, residual = v + by * direction, residual - by * image
                before, square = square, norm(residual).square()
                direction = residual + square / before.clamp(min=1e-20) * direction
            with torch.no_grad():
                ahead = features(moved + 1e-3 * v / norm(v).clamp(min=1e-12))[0]
                rate = (ahead - embedding).norm(dim=1)[:, None, None, None] / 1e-3
                stepped = (moved + 2 * bound / steps * v / (norm(v) * rate).clamp(min=1e-12)).clamp(0, 1)
            moved = newton(features, images, stepped, bound)
        return moved
    finally:
        features.close()
