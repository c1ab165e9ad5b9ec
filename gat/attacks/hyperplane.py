"""The nearest point of a hyperplane, for images that must stay in [0, 1]: what DeepFool and FAB step to."""

import torch
from jaxtyping import Float
from torch import Tensor

from gat.attacks.steps import Norm, l1_norm, l2_norm, linf_norm
from gat.latents import PerExample

ROUNDS = 8
"""Newton rounds of `reach`. It is exact once no further pixel hits the border of the range: on images after 2 to 5."""


def dual_norm(weights: Float[Tensor, "b ..."], norm: Norm) -> PerExample:
    """How far a linear function changes at most within a unit ball of `norm`."""
    return {"linf": l1_norm, "l2": l2_norm, "l1": linf_norm}[norm](weights)


def reach(
    x: Float[Tensor, "b n"], weights: Float[Tensor, "b n"], rise: PerExample, norm: Norm
) -> Float[Tensor, "b n"]:
    """The smallest change d with <weights, d> = rise and x + d in [0, 1]; exact, without a loop over pixels.

    Where no such change exists, the one that comes nearest to `rise`.

    Source: Croce & Hein 2020, Eq. 8 and its solutions for linf, l2 and l1. Ours: they sort the pixels by when they hit the
    border; for linf and l2 the rise is concave in the length of the change, so that Newton's method from below ends on
    the same point after a few rounds, at a fraction of the time.

    Args:
        x: in [0, 1].
        norm: in which d is smallest.
    """
    sign = weights.sign() * rise.sign()[:, None]
    room = torch.where(sign > 0, 1 - x, x)
    slope = weights.abs()
    rise = rise.abs()[:, None]
    if norm == "l1":
        return sign * _fill(slope, room, rise)
    # d = min(t * speed, room), with the slope as speed for l2 and 1 for linf; find the t at which sum(slope * d) is the rise.
    knot, gain, speed = room, slope, torch.ones_like(slope)
    if norm == "l2":
        knot, gain, speed = room / slope.clamp(min=1e-30), slope.square(), slope
    most_and_gain, total = torch.stack([slope * room, gain], dim=1), gain.sum(1, keepdim=True)
    t = rise / total.clamp(min=1e-30)
    for _ in range(ROUNDS):
        full = (knot <= t).to(x.dtype)
        made, lost = torch.bmm(most_and_gain, full[:, :, None]).unbind(1)
        before, t = t, t.maximum((rise - made) / (total - lost).clamp(min=1e-30))
        if t.device.type == "cpu" and torch.equal(t, before):
            break  # elsewhere a round costs less than to wait for the answer
    return sign * room.minimum(t * speed)


def _fill(
    slope: Float[Tensor, "b n"], room: Float[Tensor, "b n"], rise: Float[Tensor, "b 1"]
) -> Float[Tensor, "b n"]:
    """Pixels of the steepest slope first, each as far as there is room, until the rise is made."""
    steep, order = slope.sort(dim=1, descending=True)
    space = room.gather(1, order)
    gain = steep * space
    missing = (rise - (gain.cumsum(1) - gain)).clamp(min=0)
    amount = space.minimum(missing / steep.clamp(min=1e-30))
    return torch.zeros_like(slope).scatter(1, order, torch.where(steep > 0, amount, 0.0))
