"""Two sets of batch-norm statistics in one model: clean images go through the main ones, adversarial ones through auxiliary ones.

Adversarial images have other activations than clean ones, and one mean for both fits neither (Xie et al. 2020, "Adversarial
Examples Improve Image Recognition", Sec. 4). This works on any model that has batch norms; ours.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Branch = Literal["main", "auxiliary"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class DualBatchNorm(nn.Module):
    """A batch norm and a second one that starts as its copy.

    Attributes:
        num_main: so many images of a batch, the first ones, go through `main`, the others through `auxiliary`; None is all.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.main, self.auxiliary = norm, copy.deepcopy(norm)
        self.num_main: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        n = len(x) if self.num_main is None else min(self.num_main, len(x))
        if 0 < n < len(x):
            return torch.cat([self.main(x[:n]), self.auxiliary(x[n:])])
        used, idle = (self.auxiliary, self.main) if n == 0 and len(x) else (self.main, self.auxiliary)
        y: Tensor = used(x)
        if self.training and torch.is_grad_enabled():
            # Distributed training waits for a gradient of every parameter, also in a step that does not use it.
            for parameter in idle.parameters():
                y = y + 0 * parameter.sum()
        return y


def split_batch_norms(model: nn.Module) -> None:
    """Give every batch norm of `model` an auxiliary twin, in place. Its answers do not change.

    Raises:
        ValueError: if it has none.
    """
    twins: dict[nn.Module, DualBatchNorm] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BATCH_NORMS):
                twins.setdefault(child, DualBatchNorm(child))
                setattr(parent, name, twins[child])
    if not twins:
        raise ValueError(
            f"separate batch norms were asked for, but {type(model).__name__} has none "
            "(group and layer norms keep no statistics); take a model with BatchNorm2d, or another method"
        )


def join_batch_norms(model: nn.Module, keep: Branch) -> None:
    """Undo `split_batch_norms`, in place: one branch stays, under the names that the plain architecture has.

    A model without twins is left alone.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DualBatchNorm):
                setattr(parent, name, child.main if keep == "main" else child.auxiliary)


@contextmanager
def routed(model: nn.Module, num_main: int) -> Iterator[None]:
    """Inside, the first `num_main` images of every batch go through the main branch, the others through the auxiliary one;
    with 0, all go through the auxiliary one. A model without twins is used as it is."""
    duals = [module for module in model.modules() if isinstance(module, DualBatchNorm)]
    before = [dual.num_main for dual in duals]
    try:
        for dual in duals:
            dual.num_main = num_main
        yield
    finally:
        for dual, value in zip(duals, before, strict=True):
            dual.num_main = value
