"""Rows of what does not move."""

from torch import Tensor

from gat.latents import Rows


class Gathered:
    """Constants of all examples; those of the rows that are asked for are gathered anew only when other rows are asked for."""

    def __init__(self, *constants: Tensor) -> None:
        self._constants = constants
        self._rows: Rows | None = None
        self._held: tuple[Tensor, ...] = ()

    def __call__(self, rows: Rows) -> tuple[Tensor, ...]:
        if self._rows is not rows:
            self._rows = rows
            self._held = tuple(constant.index_select(0, rows) for constant in self._constants)
        return self._held
