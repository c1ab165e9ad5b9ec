"""Carlini & Wagner's attack: the smallest l2 change whose margin is wide enough, by a weight that is searched per example."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gat.attacks.adam import Adam
from gat.attacks.ascent import Slots
from gat.attacks.losses import margin
from gat.attacks.minimum_norm import Case, MinimumNorm, Search, valued
from gat.attacks.steps import l2_norm
from gat.latents import Images, Latents, PerExample, Rows, Verdicts, per_example

PATIENCE = 20
"""Steps without progress after which a round ends."""
REACH = 0.5
"""Longest step of Adam, all pixels together, as a share of the distance already found: longer ones step over what is nearer."""


class CW(MinimumNorm):
    """Minimises |change|^2 + c * max(0, confidence - margin) with Adam, and searches the c of every example.

    Source: Carlini & Wagner 2017, sec. V and VI (their f6 and L2 attack). Adapted: pixels are clipped after every step, where
    the published attack moves arctanh(2x - 1), which hardly leaves pixels that are black or white; the first c is, unless
    given, twice what a linear model would need, and the search halves its logarithm; rounds after the first start from the
    nearest image found, with shorter steps if that is near, or go on where the one before ended; and every example stops
    by itself.

    Attributes:
        steps: of every round.
        rounds: of the search for c (the paper: binary search steps).
        step_size: of Adam, per pixel, at most; it falls to a tenth in every round.
        constant: c of the first round; None is twice 2 * (confidence - margin) / |gradient of the margin|^2, for each example.
        confidence: the margin of logits wanted.
        abort_early: end a round whose lowest cost has not fallen by 0.01 % for PATIENCE steps.
    """

    kind: ClassVar[str] = "additive"
    name: Literal["cw"] = "cw"
    norm: Literal["l2"] = "l2"
    steps: int = Field(50, ge=0)
    rounds: int = Field(6, ge=1)
    step_size: float = Field(0.01, gt=0)
    constant: float | None = Field(None, gt=0)
    confidence: float = Field(0.0, ge=0)
    abort_early: bool = True

    @property
    def summary(self) -> str:
        return (
            f"{self.reach}; {self.goal}; {self.rounds} x {self.steps} steps of {self.step_size:g}; "
            f"confidence {self.confidence:g}"
        )

    def search(self, case: Case) -> Search:
        return _WeightSearch(self, case)


class _WeightSearch:
    def __init__(self, settings: CW, case: Case) -> None:
        self.settings, self.case = settings, case
        self.attempts, self.max_steps = settings.rounds, settings.steps
        self.weight = torch.full_like(case.distance, settings.constant or 1.0)
        self.unweighted = settings.constant is None
        self.fall = 2.0 if self.unweighted else 10.0  # a weight from the gradient is of the right order
        self.low, self.high = torch.zeros_like(self.weight), torch.full_like(self.weight, torch.inf)
        self.cost, self.short = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.lowest, self.lowest_at = torch.zeros_like(self.weight), torch.zeros_like(case.ids)
        self.held = torch.zeros_like(case.labels, dtype=torch.bool)
        self.last = case.images.clone()
        self.rate = torch.full_like(self.weight, settings.step_size)
        self.adam = Adam({"pixels": 1.0})

    def begin(self, attempt: int, rows: Rows) -> Images:
        self.unweighted = self.unweighted and attempt == 0
        self.held[rows] = False
        distance = self.case.distance[rows]
        self.rate[rows] = (REACH * distance / self.case.images[0].numel() ** 0.5).clamp(
            max=self.settings.step_size
        )
        last = self.last[rows]
        return torch.where(per_example(distance.isinf(), last), last, self.case.nearest[rows])

    def objective(self, latents: Latents, rows: Rows) -> tuple[PerExample, Verdicts]:
        """An `Objective`: minus the cost, with the value that `Search` wants."""
        case, x = self.case, latents["pixels"]
        logits, fooled = case.ask(x, rows)
        case.backwards[rows] += 1
        ahead = margin(logits, case.labels[rows], None if case.targets is None else case.targets[rows])
        short = (self.settings.confidence - ahead).clamp(min=0)
        fooled = fooled & (ahead >= self.settings.confidence)
        square = (x - case.images[rows]).flatten(1).square().sum(1)
        cost = square + self.weight[rows] * short
        self.cost[rows], self.short[rows] = cost.detach(), short.detach()
        return valued(-cost, torch.where(fooled, -square.detach().sqrt(), -cost.detach())), fooled

    def move(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        rows = slots.examples
        if self.unweighted:
            gradient = {"pixels": self._weigh(latents["pixels"], gradient["pixels"], slots)}
        if self.settings.eps is not None:
            slots.finished = slots.finished | (slots.best_fooled & (-slots.best_loss <= self.settings.eps))
        if self.settings.abort_early:
            cost, first = self.cost[rows], slots.age == 0
            lower = first | (cost < 0.9999 * self.lowest[rows])
            self.lowest[rows] = torch.where(lower, cost, self.lowest[rows])
            self.lowest_at[rows] = torch.where(lower, slots.age, self.lowest_at[rows])
            slots.finished = slots.finished | (slots.age - self.lowest_at[rows] >= PATIENCE)
        # A round may start with an image that fools. Its weight is large enough if later ones still do.
        self.held[rows] |= slots.fooled & (slots.age >= self.max_steps // 5)
        x = latents["pixels"]
        way = self.adam(latents, gradient, slots)["pixels"] - x
        rate = self.rate[rows] * (1 - 0.9 * slots.age / self.max_steps)
        x = (x + per_example(rate, x) * way).clamp(0, 1)
        self.last[rows] = x
        return {"pixels": x}

    def _weigh(self, x: Tensor, gradient: Tensor, slots: Slots) -> Tensor:
        """Weights of those at their first step from the gradient there, which was taken with weight 1."""
        rows, first = slots.examples, slots.age == 0
        free = torch.where(gradient > 0, x < 1, x > 0)
        steepness = l2_norm(gradient * free).square().clamp(min=1e-12)
        weight = torch.where(first, (4 * self.short[rows] / steepness).clamp(1e-6, 1e6), self.weight[rows])
        self.weight[rows] = weight
        return gradient * per_example(torch.where(first, weight, 1.0), gradient)

    def end(self, rows: Rows) -> None:
        weight, enough = self.weight[rows], self.held[rows]
        low = torch.where(enough, self.low[rows], self.low[rows].maximum(weight))
        high = torch.where(enough, self.high[rows].minimum(weight), self.high[rows])
        self.low[rows], self.high[rows] = low, high
        bracketed = torch.where(high.isinf(), low * 10, (low * high).sqrt())
        self.weight[rows] = torch.where(low == 0, high / self.fall, bracketed)
