"""Adam as a step rule: an optimiser with a memory per example."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gat.attacks.ascent import Slots
from gat.latents import Latents, per_example

Confine = Callable[[str, Tensor, Tensor], Tensor]
"""Name of a site, its latents, what distances are measured from -> the latents, where they are allowed to be."""


def anywhere(name: str, x: Tensor, home: Tensor) -> Tensor:
    """No limit."""
    return x


@dataclass(eq=False)
class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1), uphill, each example by its own count of steps.

    Moments live with the slots, not with all examples, and are sorted anew only when slots change hands; so one object serves
    one `ascend` at a time, and any number of them in turn.

    Attributes:
        size: step size by site.
        confine: where latents may be, applied after every step: for instance `Steps.confine`.
        beta1, beta2, eps: as in the paper.
    """

    size: Mapping[str, float]
    confine: Confine = anywhere
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    _examples: Tensor | None = field(default=None, init=False, repr=False)
    _first: Latents = field(default_factory=dict, init=False, repr=False)
    _second: Latents = field(default_factory=dict, init=False, repr=False)

    @torch.no_grad()
    def __call__(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        if slots.examples is not self._examples:
            self._sort(latents, slots)
        steps = slots.age + 1
        moved = {}
        for name, x in latents.items():
            g, first, second = gradient[name], self._first[name], self._second[name]
            first.lerp_(g, 1 - self.beta1)
            second.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
            rate = per_example(self.size[name] / (1 - self.beta1**steps), x)
            spread = second.sqrt().div_(per_example((1 - self.beta2**steps).sqrt(), x)).add_(self.eps)
            moved[name] = self.confine(name, torch.addcdiv(x, rate * first, spread), slots.home[name])
        return moved

    def _sort(self, latents: Latents, slots: Slots) -> None:
        """Moments of the examples now in the slots, zero for newcomers."""
        shapes = {name: x.shape[1:] for name, x in latents.items()}
        if shapes != {name: moments.shape[1:] for name, moments in self._first.items()}:
            self._first = {name: torch.zeros_like(x) for name, x in latents.items()}
            self._second = {name: torch.zeros_like(x) for name, x in latents.items()}
        else:
            assert self._examples is not None
            before = (slots.examples[:, None] == self._examples[None, :]).int().argmax(1)
            old = slots.age > 0
            for moments in (self._first, self._second):
                for name, x in latents.items():
                    # A comparison, since moments that are not finite would survive a product with 0.
                    moments[name] = torch.where(per_example(old, x), moments[name][before], 0.0)
        self._examples = slots.examples
