"""How latents move: one step uphill, and what is allowed.

Everything here is per example and never waits for the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gat.attacks.ascent import Slots
from gat.latents import Latents, PerExample, per_example

Norm = Literal["linf", "l2", "l1"]


def l1_norm(x: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Sum of the absolute entries of every example."""
    return x.flatten(1).abs().sum(dim=1)


def l2_norm(x: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Euclidean length of every example."""
    return x.flatten(1).norm(dim=1)


def linf_norm(x: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Largest absolute entry of every example."""
    return x.flatten(1).abs().amax(dim=1)


NORMS: dict[Norm, Callable[[Tensor], PerExample]] = {"linf": linf_norm, "l2": l2_norm, "l1": l1_norm}


def project(
    x: Float[Tensor, "b ..."],
    center: Float[Tensor, "b ..."],
    eps: float,
    norm: Norm,
    bounds: tuple[float, float] | None = None,
) -> Float[Tensor, "b ..."]:
    """Into the closed ball of radius `eps` around `center` and, with `bounds`, into that range too (which holds `center`).

    Exactly the nearest point (in L2) for linf and l1 and for any ball alone. An l2 ball is left first and the range then, which
    stays in the ball, as the published attacks do.
    """
    if norm == "l1":
        return _project_l1(x, center, eps, bounds)
    # From here on in place: new memory costs a CPU more than the sums do.
    offset = x - center
    if norm == "linf":
        offset.clamp_(-eps, eps)
    else:
        length = l2_norm(offset).clamp(min=1e-12)
        offset.mul_(per_example((eps / length).clamp(max=1.0), offset))
    inside = offset.add_(center)
    return inside if bounds is None else inside.clamp_(*bounds)


def _project_l1(
    x: Float[Tensor, "b ..."], center: Float[Tensor, "b ..."], eps: float, bounds: tuple[float, float] | None
) -> Float[Tensor, "b ..."]:
    """The point of the l1 ball and the range that is nearest to `x` (the set of Croce & Hein 2021, Sec. 2; the method is ours).

    It moves the entries of the offset towards zero by one amount per example, stopping at zero, and then cuts what leaves the range:
    `min(max(|offset| - amount, 0), room)`. What is left is a falling, piecewise linear function of the amount, so halving
    brackets the amount that leaves `eps`, and a step along the last piece ends on it. (Sorting the knots instead, as published,
    takes four times as long on a CPU.)
    """
    offset = (x - center).flatten(1)
    size = offset.abs()
    if bounds is None:
        room = torch.full_like(size, torch.inf)
    else:
        room = torch.where(offset > 0, bounds[1] - center.flatten(1), center.flatten(1) - bounds[0])

    def shrunk(amount: Float[Tensor, "b 1"]) -> Float[Tensor, "b n"]:
        return (size - amount).clamp_(min=0).minimum(room)

    low = torch.zeros_like(size[:, :1])
    width = size.amax(1, keepdim=True)
    for _ in range(_HALVINGS):
        width = width / 2
        low = torch.where(shrunk(low + width).sum(1, keepdim=True) > eps, low + width, low)
    rest = shrunk(low)
    falling = ((rest > 0) & (rest < room)).sum(1, keepdim=True).clamp(min=1)
    amount = low + ((rest.sum(1, keepdim=True) - eps) / falling).clamp(min=0)
    return center + (offset.sign() * shrunk(amount)).reshape(x.shape)


_HALVINGS = 26  # to below the rounding of float32


@dataclass(frozen=True)
class Steps:
    """The step rule without a memory.

    Attributes:
        size: step size by site. `linf` steps move every entry by it along the sign of the gradient (the paper's Eqs. 1-4),
            `l2` and `l1` steps move the site's tensor by it along the gradient, normalised in l2. (Projection makes an l1 step
            sparse. Signs of the few largest entries, as in Tramer & Boneh 2019, ended up weaker for every share and size tried:
            they stop at even offsets.)
        norm: of the step and of the budget.
        eps: largest distance from the start by site; a site that is absent is unbounded, as in the paper.
        bounds: (low, high) by site, for values with a range of their own, such as pixels.
    """

    size: Mapping[str, float]
    norm: Norm = "linf"
    eps: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __call__(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        moved = {}
        for name, x in latents.items():
            g = gradient[name]
            if self.norm == "linf":
                x = g.sign().mul_(self.size[name]).add_(x)  # in place, as in `project`
            else:
                # Scaled by its largest entry first, so that the squares of tiny gradients do not vanish.
                g = g / per_example(linf_norm(g).clamp(min=1e-30), g)
                x = x + self.size[name] * g / per_example(l2_norm(g).clamp(min=1e-12), g)
            moved[name] = self.confine(name, x, slots.home[name])
        return moved

    def confine(
        self, name: str, x: Float[Tensor, "b ..."], start: Float[Tensor, "b ..."]
    ) -> Float[Tensor, "b ..."]:
        """Into the budget and the bounds (which `start` satisfies)."""
        bounds = self.bounds.get(name)
        if name in self.eps:
            return project(x, start, self.eps[name], self.norm, bounds)
        return x if bounds is None else x.clamp(*bounds)
