"""Weighted sums of a few entries, the same ones in every iteration: a sparse matrix per example, fast both ways."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gat.latents import Rows


@dataclass(frozen=True)
class Bags:
    """Per example, a weighted sum of `values[indices[i]]` over every bag of consecutive terms i.

    Attributes:
        indices: of every term, in [0, num_values).
        weights: of the terms.
        begins: the first term of every bag, rising; bags may be empty.
    """

    indices: Int[Tensor, "n t"]
    weights: Float[Tensor, "n t"]
    begins: Int[Tensor, "n o"]
    num_values: int

    def of(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, weights and begins of these examples one behind the other, for `embedding_bag`."""
        slot = torch.arange(len(rows), device=rows.device, dtype=torch.int32)[:, None]
        return (
            (self.indices[rows] + slot * self.num_values).flatten(),
            self.weights[rows].flatten(),
            (self.begins[rows] + slot * self.indices.shape[1]).flatten(),
        )


def even_bags(sources: Int[Tensor, "n o m"], weights: Float[Tensor, "n o m"], num_values: int) -> Bags:
    """Every output is the sum of m terms."""
    n, outputs, terms = sources.shape
    begins = torch.arange(0, outputs * terms, terms, device=sources.device, dtype=torch.int32)
    return Bags(sources.int().flatten(1), weights.flatten(1), begins.expand(n, -1), num_values)


def transposed_bags(sources: Int[Tensor, "n o m"], weights: Float[Tensor, "n o m"], num_values: int) -> Bags:
    """The transpose of `even_bags`: what every value adds to, in rising order."""
    n, outputs, terms = sources.shape
    ordered, order = sources.int().flatten(1).sort(dim=1)
    every = torch.arange(num_values, device=sources.device, dtype=torch.int32).expand(n, -1).contiguous()
    begins = torch.searchsorted(ordered, every, out_int32=True)
    return Bags((order // terms).int(), weights.flatten(1).gather(1, order), begins, outputs)


class Mixing:
    """The sums `forth` as a function that is differentiable with respect to the values.

    Both they and their gradient are bags of an embedding, which neither store the terms nor add with conflicts: on a CPU an order of
    magnitude faster than gathering and scattering.

    Args:
        back: the transpose of `forth`.
    """

    def __init__(self, forth: Bags, back: Bags) -> None:
        self.forth, self.back = forth, back
        self._rows: Rows | None = None
        self._bags: tuple[Any, Any] = ((), ())

    def __call__(self, values: Float[Tensor, "b v c"], rows: Rows) -> Float[Tensor, "b o c"]:
        """The sums of examples `rows`, whose values are given. Tables are gathered anew only when other rows are asked for."""
        if self._rows is not rows:
            self._rows, self._bags = rows, (self.forth.of(rows), self.back.of(rows))
        mixed: Tensor = _Mixed.apply(values, *self._bags)
        return mixed.reshape(len(rows), -1, values.shape[2])


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, forth: Any, back: Any) -> Tensor:
        ctx.shape, ctx.back = values.shape, back
        return _sums(values, *forth)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _sums(gradients[0], *ctx.back).reshape(ctx.shape), None, None


def _sums(values: Tensor, indices: Tensor, weights: Tensor, begins: Tensor) -> Tensor:
    table = values.reshape(-1, values.shape[-1])
    return F.embedding_bag(indices, table, begins, mode="sum", per_sample_weights=weights)
