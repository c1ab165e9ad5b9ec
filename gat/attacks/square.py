"""Square attack: random search by squares, without a single gradient."""

import math
from bisect import bisect_right
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from gat.attacks.ascent import Slots
from gat.attacks.image_attack import ImageAttack, positions
from gat.attacks.losses import margin_of
from gat.attacks.pgd import ball
from gat.attacks.run import Compute, Outcome, run_attack
from gat.attacks.steps import NORMS, Norm, project
from gat.latents import Images, Latents, PerExample, Rows, per_example, seeded_uniform
from gat.protocols import Task
from gat.spaces.pixels import PixelSpace

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the share of pixels that a square covers is halved (as published for 10000; not rescaled to fewer)."""

Windows = Bool[Tensor, "b 1 h w"]


class Square(ImageAttack):
    """Square attack (Andriushchenko et al. 2020; for l1 Croce & Hein 2021): a black-box attack on the margin.

    It changes a random square at a time and keeps the change if the margin fell. Against the authors' code: every example draws its own
    squares, from (seed, id, query) alone, and all positions of a square in the image are equally likely.

    Attributes:
        eps: radius of the ball, for images in [0, 1].
        norm: 'linf', 'l2' or 'l1'.
        queries: that one attempt makes at most after its start.
        restarts: attempts, the worst of which counts.
        p_init: share of the pixels that the first squares cover.
    """

    kind: ClassVar[str] = "additive"
    name: Literal["square"] = "square"
    eps: float = Field(8 / 255, ge=0)
    norm: Norm = "linf"
    queries: int = Field(5000, ge=0, lt=2**20)
    restarts: int = Field(1, ge=1)
    p_init: float = Field(0.8, gt=0, le=1)

    @property
    def summary(self) -> str:
        return (
            f"{ball(self.norm, self.eps)}; {self.goal}; {self.restarts} x {self.queries} queries; black box"
        )

    @property
    def bounds(self) -> dict[str, float]:
        return {f"{self.norm}_pixels": self.eps}

    def run(
        self,
        task: Task,
        model: nn.Module,
        images: Images,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        compute: Compute | None = None,
        record: bool = False,
        ids: Tensor | None = None,
    ) -> Outcome:
        search = Squares(self, images, positions(images, ids))
        return run_attack(
            task, model, PixelSpace(tuple(images.shape[1:])), {"pixels": images}, labels, search, ["pixels"],
            self.queries, goal=self.goal, targets=targets, loss=margin_of(task), use_gradient=False, compute=compute, record=record,
            starts=[{"pixels": search.start(images, restart)} for restart in range(self.restarts)],
        )  # fmt: skip


class Squares:
    """The step rule: the best image so far with one more square.

    Every start begins a new sequence of random numbers, so restarts differ.

    Args:
        settings: of the attack.
        images: of all examples, [b, c, h, w].
        ids: of all examples.
    """

    def __init__(self, settings: Square, images: Images, ids: Rows) -> None:
        self.settings, self.ids = settings, ids
        self.shape = tuple(images.shape[1:])
        h, w = self.shape[1:]
        self.restart = torch.full_like(ids, -1)
        sides = [self._side(query) for query in range(settings.queries + 1)]
        device = images.device
        self.sides = torch.tensor(sides, device=device)
        self.rows, self.columns = torch.arange(h, device=device), torch.arange(w, device=device)
        if settings.norm != "linf":
            distinct = sorted(set(sides))
            self.kind = torch.tensor([distinct.index(side) for side in sides], device=device)
            bumps = torch.zeros(2, len(distinct), h, w, device=device)
            for i, side in enumerate(distinct):
                bumps[0, i, :side, :side] = bump(side, settings.norm)
                bumps[1, i, :side, :side] = bump(side, settings.norm).T
            self.bumps = bumps

    def _side(self, query: int) -> int:
        """Of the square of this query, in pixels."""
        _, h, w = self.shape
        area = self.settings.p_init / 2 ** bisect_right(HALVED_AFTER, query - 1) * h * w
        side = round(math.sqrt(area))
        if self.settings.norm != "linf":
            side = max(side, 3)
            side += 1 - side % 2
        return min(max(side, 1), h, w)

    def _uniform(self, ids: Rows, queries: Rows, count: int) -> Float[Tensor, "b n"]:
        """Fresh numbers for every (id, query)."""
        return seeded_uniform(self.settings.seed, ids * 2**20 + queries, (count,), "square")

    def start(self, images: Images, restart: int) -> Images:
        """Vertical stripes for linf, a grid of bumps for l2 and l1."""
        c, h, w = self.shape
        eps, norm = self.settings.eps, self.settings.norm
        if norm == "linf":
            noise = seeded_uniform(self.settings.seed, self.ids, (c, 1, w), f"square/start/{restart}")
            return (images + eps * (noise - 0.5).sign()).clamp(0, 1)
        side = max(min(h, w) // 5, 1)
        tiles = h // side, w // side
        noise = seeded_uniform(self.settings.seed, self.ids, (c, *tiles), f"square/start/{restart}")
        signs = (noise - 0.5).sign().repeat_interleave(side, 2).repeat_interleave(side, 3)
        grid = signs * bump(side, norm).to(images).repeat(*tiles)
        top, left = (h - grid.shape[2]) // 2, (w - grid.shape[3]) // 2
        offset = torch.zeros_like(images)
        offset[:, :, top : top + grid.shape[2], left : left + grid.shape[3]] = grid
        return self._fill_ball(offset, images)

    def __call__(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        rows = slots.examples
        self.restart[rows] += (slots.age == 0).long()
        best, home = slots.best["pixels"], slots.home["pixels"]
        c = self.shape[0]
        # Restarts are told apart by the id, so that the query stays below the 2**20 that `_uniform` has room for.
        noise = self._uniform(self.ids[rows] + self.restart[rows] * 2**40, slots.age, c + 5)
        signs = (noise[:, 5:, None, None] - 0.5).sign()
        side = self.sides[slots.age]
        if self.settings.norm == "linf":
            window, _, _ = self._window(noise[:, 0], noise[:, 1], side)
            return {"pixels": torch.where(window, home + self.settings.eps * signs, best).clamp(0, 1)}
        return {"pixels": self._move_mass(best - home, home, noise, signs, side, slots.age)}

    def _window(self, down: PerExample, right: PerExample, side: Rows) -> tuple[Windows, Rows, Rows]:
        """A square at a random place, and where its upper left corner is."""
        _, h, w = self.shape
        top, left = ((u * (n - side + 1)).long() for u, n in ((down, h), (right, w)))
        in_rows = (self.rows >= top[:, None]) & (self.rows < (top + side)[:, None])
        in_columns = (self.columns >= left[:, None]) & (self.columns < (left + side)[:, None])
        return in_rows[:, None, :, None] & in_columns[:, None, None, :], top, left

    def _move_mass(
        self,
        offset: Images,
        home: Images,
        noise: Float[Tensor, "b n"],
        signs: Float[Tensor, "b c 1 1"],
        side: Rows,
        age: Rows,
    ) -> Images:
        """The norm of one square and whatever is unused goes to another one, as a bump on what is there."""
        c, h, w = self.shape
        eps, norm = self.settings.eps, self.settings.norm
        here, top, left = self._window(noise[:, 0], noise[:, 1], side)
        there, _, _ = self._window(noise[:, 2], noise[:, 3], side)
        turned = (noise[:, 4] > 0.5).long()
        shape = self.bumps[
            turned[:, None, None],
            self.kind[age][:, None, None],
            (self.rows - top[:, None]).clamp(0)[:, :, None],
            (self.columns - left[:, None]).clamp(0)[:, None, :],
        ]

        def per_channel(x: Images) -> Float[Tensor, "b c 1 1"]:
            return NORMS[norm](x.reshape(-1, h * w)).reshape(-1, c, 1, 1)

        inside = offset * here
        new = shape[:, None] * here * signs + inside / per_channel(inside).clamp(min=1e-12)
        held = per_channel(offset * (here | there))
        used = per_example(NORMS[norm](offset), offset)
        if norm == "l2":
            size = ((eps**2 - used**2).clamp(min=0) / c + held**2).sqrt()
        else:
            size = (eps - used).clamp(min=0) + c * held
        new = new / per_channel(new).clamp(min=1e-12) * size
        return self._fill_ball(torch.where(here, new, offset * ~there), home)

    def _fill_ball(self, offset: Images, home: Images) -> Images:
        """The image at this offset, brought to the border of the ball."""
        eps, norm = self.settings.eps, self.settings.norm
        if norm == "l2":
            length = per_example(NORMS[norm](offset).clamp(min=1e-12), offset)
            return (home + offset * (eps / length)).clamp(0, 1)
        return project(home + offset, home, eps, norm, (0.0, 1.0))


def bump(side: int, norm: Norm) -> Float[Tensor, "s s"]:
    """Two peaks side by side, up and down, alike in norm, of norm 1 together; for l1 they are steeper."""
    power = 2 if norm == "l2" else 4
    first = side // 2
    if first == 0:
        return torch.ones(side, side)
    peaks = [_peak(height, side, power) for height in (first, side - first)]
    both = torch.cat(
        [sign * peak / NORMS[norm](peak[None]) for sign, peak in zip((1, -1), peaks, strict=True)]
    )
    return both / NORMS[norm](both[None])


def _peak(height: int, width: int, power: int) -> Float[Tensor, "h w"]:
    """A pyramid whose layers, from the widest to the single pixel, weigh 1 / layer**power."""
    half = max(height // 2, width // 2) + 1
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = rows.abs()[:, None].maximum(columns.abs()[None, :])
    layers = 1 / torch.arange(1, half + 1, dtype=torch.float32) ** power
    return layers.flip(0).cumsum(0).flip(0)[ring]
