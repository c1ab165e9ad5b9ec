"""Values moved to where they are allowed, with the gradient of where they were."""

from typing import Any

import torch
from torch import Tensor


class _Confined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, allowed: Tensor) -> Tensor:
        return allowed.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def confined(x: Tensor, allowed: Tensor) -> Tensor:
    """`allowed`, exactly, with the gradient of `x`.

    A clamp has no gradient outside its limits, so what once left them, by a step too long, would never come back. This is what
    projecting the latents themselves would be if the limit were theirs.

    Args:
        allowed: the projection of `x`, computed outside the graph.
    """
    result: Tensor = _Confined.apply(x, allowed)
    return result
