"""Images recoloured by one map of colours (ReColorAdv, Laidlaw & Feizi 2019): what was one colour stays one colour."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gat.latents import Images, Latents, PerExample, Rows, seeded_uniform
from gat.protocols import Renderer, Site
from gat.spaces.confined import confined
from gat.spaces.flow import length
from gat.spaces.mixing import Mixing, even_bags, transposed_bags

Luv = Float[Tensor, "b 3 *axes"]  # L* in [0, 100], u* and v* around 0 for greys

# Linear sRGB to CIE XYZ (IEC 61966-2-1). White is where all three are 1, so that greys have u* = v* = 0.
_XYZ = torch.tensor(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], dtype=torch.float64
)


@cache
def _to_linear(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "3 3"]:
    """XYZ to linear sRGB; kept, because copying to a device waits for it."""
    return _XYZ.inverse().to(device, dtype)


def _chromaticity(xyz: Tensor) -> tuple[float, float]:
    """u' and v'."""
    x, y, z = xyz.tolist()
    return 4 * x / (x + 15 * y + 3 * z), 9 * y / (x + 15 * y + 3 * z)


_WHITE_UV = _chromaticity(_XYZ.sum(1))
_SHOWN = tuple((min(axis), max(axis)) for axis in zip(*map(_chromaticity, _XYZ.T), strict=True))
_KAPPA = (29 / 3) ** 3  # L* of Y where it is linear, up to L* = 8
_DARK = 1e-4  # L* below which there is no colour

UNITS = (100.0, 200.0, 200.0)
"""L*, u* and v* per unit of the colour grid, which spans [0, 100] x [-100, 100] x [-100, 100]."""


def rgb_to_luv(images: Float[Tensor, "b 3 *axes"]) -> Luv:
    """sRGB in [0, 1] to CIE 1976 L*u*v* (white: D65)."""
    rgb = images.double()
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = torch.einsum("ij,bj...->ib...", _XYZ.to(rgb.device), linear)
    lightness = torch.where(y <= (6 / 29) ** 3, _KAPPA * y, 116 * y.clamp(min=1e-12) ** (1 / 3) - 16)
    total = (x + 15 * y + 3 * z).clamp(min=1e-12)
    u = 13 * lightness * (4 * x / total - _WHITE_UV[0])
    v = 13 * lightness * (9 * y / total - _WHITE_UV[1])
    return torch.stack([lightness, u, v], dim=1).to(images.dtype)


def luv_to_rgb(luv: Luv) -> Float[Tensor, "b 3 *axes"]:
    """CIE 1976 L*u*v* to sRGB, differentiable everywhere and beyond what a screen can show.

    Chromaticities are first confined to those between the primaries of sRGB. Without that, a dark colour with a little too much of
    u* or v* stands for a light that does not exist, whose nearest screen colour is bright. Where this or the darkest colour
    cuts off, the gradient with respect to u* and v* is that at the cut, so that they can come back.
    """
    flat = luv.movedim(1, 0).reshape(3, -1)
    rgb: Tensor = _LuvToRgb.apply(flat)
    return rgb.reshape(3, len(luv), *luv.shape[2:]).movedim(0, 1)


class _LuvToRgb(torch.autograd.Function):
    """[3, colours] to the same, with its derivative written out: three times as fast as the recorded one."""

    @staticmethod
    def forward(ctx: Any, luv: Tensor) -> Tensor:
        lightness, u, v = luv
        bright = lightness > 8
        y = torch.where(bright, ((lightness + 16) / 116) ** 3, lightness / _KAPPA)
        scale = 13 * lightness.clamp(min=_DARK)
        u = torch.add(u, scale, alpha=_WHITE_UV[0])  # 13 L* u'
        v = torch.add(v, scale, alpha=_WHITE_UV[1])
        u_in, v_in = (
            part.minimum(scale * most).maximum(scale * least)
            for part, (least, most) in zip((u, v), _SHOWN, strict=True)
        )
        ratio = y / (4 * v_in)
        rest = 12 * scale - 3 * u_in - 20 * v_in
        xyz = torch.stack([9 * u_in * ratio, y, rest * ratio])
        linear = _to_linear(xyz.device, xyz.dtype) @ xyz
        knee = linear > 0.0031308
        power = linear.clamp(min=0.0031308) ** (1 / 2.4)
        ctx.save_for_backward(lightness, bright, u, v, u_in, v_in, ratio, rest, linear, knee, power)
        return torch.where(knee, 1.055 * power - 0.055, 12.92 * linear)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        lightness, bright, u, v, u_in, v_in, ratio, rest, linear, knee, power = ctx.saved_tensors
        slope = torch.where(knee, (1.055 / 2.4) * power / linear, 12.92)
        g_x, g_y, g_z = _to_linear(linear.device, linear.dtype).T @ (gradients[0] * slope)
        g_ratio = 9 * u_in * g_x + rest * g_z
        g_u = (9 * g_x - 3 * g_z) * ratio
        g_v = -20 * ratio * g_z - g_ratio * ratio / v_in
        g_y = g_y + g_ratio / (4 * v_in)
        g_scale = 12 * ratio * g_z
        for g, part, inside, white, (least, most) in zip(
            (g_u, g_v), (u, v), (u_in, v_in), _WHITE_UV, _SHOWN, strict=True
        ):
            limit = torch.where(part > inside, most, torch.where(part < inside, least, white))
            g_scale = torch.addcmul(g_scale, g, limit)
        g_lightness = g_y * torch.where(bright, 3 / 116**3 * (lightness + 16) ** 2, 1 / _KAPPA)
        g_lightness = torch.where(lightness > _DARK, torch.add(g_lightness, g_scale, alpha=13), g_lightness)
        return torch.stack([g_lightness, g_u, g_v])


class ColorSpace:
    """One site, `color`: [b, nodes, 3], how far the map of colours moves a colour at the nodes of a grid, in CIELUV.

    The map adds to a colour what the eight nodes around it say, interpolated trilinearly. It adds, instead of replacing as the
    published one does: zero is the image itself, bit by bit, even where its colours lie outside of the grid (saturated red,
    green and blue do; they take the offset of the border). Only nodes that some pixel of the image lies next to are latents, since
    no other one shows, and a small image touches a few hundred of 16384.

    Args:
        images: [b, 3, h, w]; they do not move.
        grid: nodes along L*, u* and v*.
        channels: factors of the offsets of L*, u* and v*.

    Raises:
        ValueError: for images without three channels, or an axis of the grid with less than two nodes.
    """

    name = "color"

    def __init__(
        self,
        images: Images,
        grid: tuple[int, int, int] = (16, 32, 32),
        channels: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> None:
        if images.shape[1] != 3:
            raise ValueError(f"recolouring needs RGB images [b, 3, h, w], got {list(images.shape)}")
        if min(grid) < 2:
            raise ValueError(f"the colour grid needs at least two nodes along every axis, got {grid}")
        device = images.device
        self.images, self.grid = images.float(), grid
        self.luv = rgb_to_luv(images.flatten(2).double()).float()
        self.units = torch.tensor([c * unit for c, unit in zip(channels, UNITS, strict=True)], device=device)
        corners, weights = _cells(self.luv, grid)
        self.nodes, places = _used(corners, grid)
        terms = places, weights, self.nodes.shape[1]
        self.colors = Mixing(even_bags(*terms), transposed_bags(*terms))
        self.differences = _differences(self.nodes, grid)
        self._sites = {"color": Site((self.nodes.shape[1], 3))}

    @property
    def sites(self) -> Mapping[str, Site]:
        return self._sites

    def rest(self) -> Latents:
        """Latents of the unchanged images."""
        return {"color": self.images.new_zeros(len(self.images), *self._sites["color"].shape)}

    def scattered(self, seed: int, ids: Rows, stream: str) -> Latents:
        """Latents uniform in [-1, 1], independent of each other and of the batch."""
        keys = ids[:, None].long() * math.prod(self.grid) + self.nodes
        numbers = seeded_uniform(seed, keys.flatten(), (3,), stream)
        return {"color": numbers.reshape(*self.nodes.shape, 3) * 2 - 1}

    def roughness(self, moved: Latents, rows: Rows) -> dict[str, PerExample]:
        """As `gat.spaces.flow.roughness`, over neighbouring nodes that are both latents."""
        return {"color": 2 * length(self.differences(moved["color"], rows), 2).sum(1)}

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        if "color" not in moved:
            rows = torch.arange(len(self.images), device=self.images.device)
            images = _Recolored(self)(latents, rows)
            return lambda moved, rows: images.index_select(0, rows)
        return _Recolored(self)


class _Recolored:
    """Renders colour maps. Images are gathered anew only when other rows are asked for."""

    def __init__(self, space: ColorSpace) -> None:
        self.space = space
        self._rows: Rows | None = None
        self._images, self._luv = space.images, space.luv

    def __call__(self, moved: Latents, rows: Rows) -> Images:
        space = self.space
        if self._rows is not rows:
            self._rows = rows
            self._images, self._luv = space.images.index_select(0, rows), space.luv.index_select(0, rows)
        with torch.autocast(rows.device.type, enabled=False):
            offsets = (space.colors(moved["color"], rows) * space.units).transpose(1, 2)
            rgb = luv_to_rgb(self._luv + offsets).reshape(self._images.shape)
        with torch.no_grad():  # rounding does not touch colours that stay
            stays = (offsets == 0).all(dim=1).reshape(len(rows), 1, *rgb.shape[2:])
            allowed = torch.where(stays, self._images, rgb.clamp(0, 1))
        return confined(rgb, allowed)


def _cells(luv: Luv, grid: tuple[int, int, int]) -> tuple[Int[Tensor, "b p 8"], Float[Tensor, "b p 8"]]:
    """The eight nodes around every colour, counted through the grid, and their trilinear weights."""
    nodes = luv.new_zeros(len(luv), luv.shape[2], 1, dtype=torch.long)
    weights = luv.new_ones(len(luv), luv.shape[2], 1)
    for channel, (n, unit) in enumerate(zip(grid, UNITS, strict=True)):
        place = luv[:, channel] / unit + (0.5 if channel else 0.0)
        place = place.clamp(0, 1) * (n - 1)
        below = place.floor().clamp(max=n - 2)
        part = (place - below)[..., None]
        nodes = nodes * n + below.long()[..., None]
        nodes = torch.cat([nodes, nodes + 1], dim=2)
        weights = torch.cat([weights * (1 - part), weights * part], dim=2)
    return nodes, weights


def _used(
    corners: Int[Tensor, "b p 8"], grid: tuple[int, int, int]
) -> tuple[Int[Tensor, "b k"], Int[Tensor, "b p 8"]]:
    """The distinct nodes of every example, rising and filled up to a common number with ones far away, and the corners' places
    among them."""
    b = len(corners)
    used = torch.zeros(b, math.prod(grid), dtype=torch.bool, device=corners.device)
    used.scatter_(1, corners.flatten(1), True)
    place = used.cumsum(1, dtype=torch.int32) - 1
    example, node = used.nonzero(as_tuple=True)
    nodes = torch.full([b, int(place[:, -1].amax()) + 1], _NOWHERE, device=corners.device)
    nodes[example, place[example, node]] = node
    return nodes, place.gather(1, corners.flatten(1)).reshape(corners.shape)


_NOWHERE = 2**40  # after all nodes of any grid


def _differences(nodes: Int[Tensor, "b k"], grid: tuple[int, int, int]) -> Mixing:
    """Next neighbour minus node, for every node along every axis; zero where there is no such neighbour."""
    b, k = nodes.shape
    every = torch.arange(k, device=nodes.device).expand(b, k)
    nexts, previous, pairs, edges = [], [], [], []
    for axis, (stride, n) in enumerate(((grid[1] * grid[2], grid[0]), (grid[2], grid[1]), (1, grid[2]))):
        wanted = torch.where((nodes // stride) % n < n - 1, nodes + stride, -1)
        found = torch.searchsorted(nodes, wanted).clamp(max=k - 1)
        there = nodes.gather(1, found) == wanted
        # Who has me as the next one: written into a column of its own where nobody has.
        before = torch.full([b, k + 1], -1, device=nodes.device)
        before = before.scatter(1, torch.where(there, found, k), every)[:, :k]
        nexts.append(torch.stack([found, every], dim=2))
        pairs.append(torch.stack([there, -there.float()], dim=2))
        previous.append(torch.stack([axis * k + every, axis * k + before.clamp(min=0)], dim=2))
        edges.append(torch.stack([-there.float(), before >= 0], dim=2))
    forth = even_bags(torch.cat(nexts, dim=1), torch.cat(pairs, dim=1), k)
    return Mixing(forth, even_bags(torch.cat(previous, dim=2), torch.cat(edges, dim=2), 3 * k))
