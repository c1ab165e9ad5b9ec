"""Using a model without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside; every module's mode and every parameter's flag as found, afterwards.

    Batch-norm statistics do not move, dropout is off, and a backward pass costs half, since no weight gradient is computed.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    flags = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    try:
        for part, _ in modes:
            part.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
