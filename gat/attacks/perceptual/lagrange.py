"""LPA and FastLPA: the bound as a penalty, and steps whose length is a perceptual distance."""

from typing import Literal

import torch
from pydantic import Field

from gat.attacks.ascent import Keep, Slots
from gat.attacks.perceptual.attack import PerceptualAttack, unit
from gat.attacks.perceptual.ball import Ball, Projection
from gat.attacks.perceptual.ppgd import PPGD
from gat.attacks.worst import WorstOf
from gat.latents import Images, Latents, PerExample, Rows, Verdicts, per_example

PROBE = 0.1  # L2 length of the step that tells how much perceptual distance a direction costs
RAISE = 10.0  # growth of the penalty's weight after a round that ends outside


class LagrangeRule:
    """One step uphill on `loss - weight * max(0, distance - bound)`, along the normalised gradient, as long as a tenth to all of the
    bound in perceptual distance: `bound * 0.1^(t / steps)`, t counted within the round (Laidlaw et al. 2021, Alg. 2 and 3; ours).

    Each example has its own weight. It starts at `first_weight` and grows tenfold after each round that ends outside (LPA), or
    without one grows from 1 to 10 over the steps, of which there is one round (FastLPA).

    Args:
        steps, total_steps: of a round, and of all.
        share: see `PerceptualAttack.rule`.
        bounded: only iterates inside the bound may fool.
        only_inside: only they may be the best iterate. The last iterates are then followed in `last`.
        overstep: `last` goes one step beyond the iterate that fools, and the attack must end there (published).
    """

    def __init__(
        self,
        ball: Ball,
        steps: int,
        first_weight: float | None,
        total_steps: int,
        share: bool,
        bounded: bool = True,
        only_inside: bool = True,
        overstep: bool = False,
    ) -> None:
        self.ball, self.steps, self.growing = ball, steps, first_weight is None
        self.total_steps, self.share = total_steps, share
        self.bounded, self.only_inside, self.overstep = bounded, only_inside, overstep
        n = len(ball.originals)
        self.weight = torch.full(
            [n], 1.0 if first_weight is None else first_weight, device=ball.originals.device
        )
        self.last: Images | None = ball.originals.clone() if only_inside or overstep else None
        self.must_end_there = overstep
        # Embedding and distance of the iterates that were looked at last.
        self._here = (ball.center[:0], self.weight[:0])

    def penalty(self, latents: Latents, images: Images, rows: Rows) -> tuple[PerExample, Verdicts]:
        embedding = self.ball.embed(images, rows, self.share)
        reached = self.ball.from_center(embedding, rows)
        self._here = (embedding.detach(), reached.detach())
        inside = reached.detach() <= self.ball.radius
        cost = self.weight[rows] * (reached - self.ball.radius).clamp(min=0)
        if self.only_inside:
            cost = cost + torch.where(inside, 0.0, torch.inf)
        return cost, inside | (not self.bounded)

    def __call__(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        x, g, rows = latents["pixels"], gradient["pixels"], slots.examples
        g = unit(g)
        embedding, reached = self._here
        ahead = self.ball.embed(x + PROBE * g, rows)
        per_length = (ahead - embedding).norm(dim=1) / PROBE
        turn = slots.age % self.steps
        length = self.ball.radius * 0.1 ** (turn / self.steps)
        x = (x + per_example(length / (per_length + 1e-8), x) * g).clamp(0, 1)
        if self.growing:
            weight = 10 * 0.1 ** (1 - (slots.age + 1) / self.steps)
        else:
            raised = (turn == self.steps - 1) & (reached >= self.ball.radius)
            weight = torch.where(raised, RAISE, 1.0) * self.weight[rows]
        self.weight[rows] = weight
        if self.last is not None:
            stays = slots.age >= self.total_steps if self.overstep else slots.finished
            self.last[rows] = torch.where(per_example(stays, x), self.last[rows], x)
        return {"pixels": x}


class LPA(PerceptualAttack):
    """Lagrangian perceptual attack (Laidlaw et al. 2021, Alg. 2).

    The defaults take a third of the published steps; on small Fashion-MNIST classifiers they fool more, since the best iterate inside
    counts and what ends outside is projected to the boundary. `strict` takes more of them.

    Attributes:
        steps: gradient steps per round.
        rounds: after each the penalty of what is outside grows tenfold.
        first_weight: of the penalty. The published 0.01 spends two rounds on its way to 1.
        overstep: the fault of the published code that an example which is done moves once more, which often undoes it.
    """

    name: Literal["lpa"] = "lpa"
    steps: int = Field(20, ge=0)
    rounds: int = Field(3, ge=1)
    first_weight: float = Field(1.0, gt=0)
    overstep: bool = False

    @classmethod
    def paper(cls, bound: float = 0.5, network: str = "self") -> "LPA":
        """As published: 5 x 40 steps from weight 0.01, last iterate, one step too many, Newton projection."""
        return cls(
            bound=bound, network=network, steps=40, rounds=5, first_weight=0.01, projection="newton", keep="last", overstep=True,
        )  # fmt: skip

    @classmethod
    def strict(cls, bound: float = 0.5, network: str = "self") -> WorstOf:
        """Short and long rounds, each from its own start, and PPGD for what is left."""
        return WorstOf(
            attacks=(
                cls(bound=bound, network=network, steps=20),
                cls(bound=bound, network=network, steps=40, seed=1),
                PPGD(bound=bound, network=network, steps=40, seed=2),
                cls(bound=bound, network=network, steps=100, seed=3),
            )
        )

    @property
    def total_steps(self) -> int:
        return self.steps * self.rounds

    @property
    def summary(self) -> str:
        return self._describe(f"{self.rounds} x {self.steps} steps, weight from {self.first_weight:g}")

    def rule(self, ball: Ball, share: bool) -> LagrangeRule:
        return LagrangeRule(
            ball, max(self.steps, 1), self.first_weight, self.total_steps, share, bounded=self.projection != "none",
            only_inside=self.keep != "last" and self.projection != "none", overstep=self.overstep,
        )  # fmt: skip


class FastLPA(PerceptualAttack):
    """The single-round Lagrangian attack of perceptual adversarial training (Laidlaw et al. 2021, Alg. 3).

    The bound is soft: nothing is projected, so images may end outside. It takes all steps and returns the last iterate, and the margin
    counts without limit, as published. With `projection='boundary'` it is an attack to evaluate with.

    Attributes:
        steps: gradient steps.
    """

    name: Literal["fast_lpa"] = "fast_lpa"
    steps: int = Field(10, ge=0)
    kappa: float | None = Field(None, gt=0)
    projection: Projection = "none"
    keep: Keep = "last"
    stop_when_fooled: bool = False

    @property
    def total_steps(self) -> int:
        return self.steps

    @property
    def summary(self) -> str:
        return self._describe(f"{self.steps} steps")

    def rule(self, ball: Ball, share: bool) -> LagrangeRule:
        return LagrangeRule(
            ball, max(self.steps, 1), None, self.total_steps, share, bounded=self.projection != "none",
            only_inside=self.keep != "last" and self.projection != "none",
        )  # fmt: skip
