"""How latents move: one step uphill, and what is allowed.

Everything here is per example and never waits for the device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gat.latents import Latents, per_example

Norm = Literal["linf", "l2"]


def l2_norm(x: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Euclidean length of every example."""
    return x.flatten(1).norm(dim=1)


def linf_norm(x: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Largest absolute entry of every example."""
    return x.flatten(1).abs().amax(dim=1)


def project(
    x: Float[Tensor, "b ..."], center: Float[Tensor, "b ..."], eps: float, norm: Norm
) -> Float[Tensor, "b ..."]:
    """The nearest point (in L2) of the closed ball of radius `eps` around `center`."""
    offset = x - center
    if norm == "linf":
        return center + offset.clamp(-eps, eps)
    length = l2_norm(offset).clamp(min=1e-12)
    return center + offset * per_example((eps / length).clamp(max=1.0), offset)


@dataclass(frozen=True)
class Steps:
    """A rule `latents, gradient, start -> latents`.

    Attributes:
        size: step size by site. `linf` steps move every entry by it along the sign of the gradient (the paper's Eqs. 1-4),
            `l2` steps move the site's tensor by it along the normalised gradient.
        norm: of the step and of the budget.
        eps: largest distance from the start by site; a site that is absent is unbounded, as in the paper.
        bounds: (low, high) by site, for values with a range of their own, such as pixels.
    """

    size: Mapping[str, float]
    norm: Norm = "linf"
    eps: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __call__(self, latents: Latents, gradient: Latents, start: Latents) -> Latents:
        moved = {}
        for name, x in latents.items():
            g = gradient[name]
            if self.norm == "linf":
                x = x + self.size[name] * g.sign()
            else:
                # Scaled by its largest entry first, so that the squares of tiny gradients do not vanish.
                g = g / per_example(linf_norm(g).clamp(min=1e-30), g)
                x = x + self.size[name] * g / per_example(l2_norm(g).clamp(min=1e-12), g)
            moved[name] = self.confine(name, x, start[name])
        return moved

    def confine(
        self, name: str, x: Float[Tensor, "b ..."], start: Float[Tensor, "b ..."]
    ) -> Float[Tensor, "b ..."]:
        """Into the budget, then into the bounds (for a start within bounds the result satisfies both)."""
        if name in self.eps:
            x = project(x, start, self.eps[name], self.norm)
        if name in self.bounds:
            x = torch.clamp(x, *self.bounds[name])
        return x
