"""What the perceptual attacks have in common: their ball, start, loss, and how they end inside."""

from abc import abstractmethod
from dataclasses import replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from gat.attacks.ascent import Keep, Slots
from gat.attacks.image_attack import ImageAttack, positions
from gat.attacks.losses import Loss, margin_of
from gat.attacks.objective import Penalty
from gat.attacks.perceptual.ball import Ball, Projection, full_float32, open_ball
from gat.attacks.run import Compute, Outcome, look, run_attack
from gat.attacks.steps import l1_norm, l2_norm, linf_norm
from gat.latents import Images, Latents, per_example, seeded_normal
from gat.protocols import Task
from gat.spaces.pixels import PixelSpace


@runtime_checkable
class Rule(Protocol):
    """How an attack steps in a ball.

    Attributes:
        penalty: see `gat.attacks.objective`; None for a rule whose iterates all lie inside.
        last: with such a penalty, the last iterate of every example, [n, c, h, w].
        must_end_there: whether the attack returns those, projected, come what may (published); else only where they are better.
    """

    @property
    def penalty(self) -> Penalty | None: ...

    last: Images | None
    must_end_there: bool

    def __call__(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents: ...


def unit(gradient: Images) -> Images:
    """Of length 1; zero stays zero."""
    # By the largest entry first: squares of tiny numbers vanish.
    g = gradient / per_example(linf_norm(gradient).clamp(min=1e-30), gradient)
    return g / per_example(l2_norm(g).clamp(min=1e-12), g)


class PerceptualAttack(ImageAttack):
    """Settings of all of them.

    Attributes:
        bound: largest perceptual distance from the original (see `gat.perceptual`); the published ones are 0.5 and 1 for small
            images, 0.25 and 0.5 for ImageNet. It only means something together with the network.
        network: whose distance: 'self' (the attacked classifier), 'alexnet', 'vgg', or one that `gat.perceptual.add_network`
            was told. An attack bounded by an undefended classifier's own features is weak: judge with another network.
        layers: names of its modules; None leaves it to the network.
        kappa: the loss is the margin (largest wrong logit minus the label's), which stops to count above this; None: never.
        noise: standard deviation per pixel of the start around the original. With 0 steps and 1 it is the control that does not
            optimise: a random direction, to the boundary.
        projection: of what ends outside: 'boundary', exactly; 'newton', as published (with its overshoot, some 20 % of the bound
            stay unused); 'none'.
        keep: 'best' or 'last' (published) iterate of examples that are not stopped early.
        stop_when_fooled: an example is done once fooled inside the bound.
    """

    bound: float = Field(0.5, ge=0)
    network: str = "self"
    layers: tuple[str, ...] | None = Field(None, min_length=1)
    kappa: float | None = Field(1.0, gt=0)
    noise: float = Field(0.01, ge=0)
    projection: Projection = "boundary"
    keep: Keep = "best"
    stop_when_fooled: bool = True

    @property
    def family(self) -> str:
        return "perceptual"

    @property
    def distance_name(self) -> str:
        """Of the perceptual distance in `Outcome.distances`."""
        return f"lpips_{self.network}"

    @property
    def bounds(self) -> dict[str, float]:
        # The published projection may end outside, by a little.
        return {self.distance_name: self.bound} if self.projection == "boundary" else {}

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Gradient steps at most."""

    @abstractmethod
    def rule(self, ball: Ball, share: bool) -> Rule:
        """The step rule for one batch. `share`: the classifier's own passes may tell the distance."""

    def _describe(self, steps: str) -> str:
        """One line for all."""
        layers = "" if self.layers is None else f" ({', '.join(self.layers)})"
        ending = {"boundary": "exact", "newton": "published", "none": "no"}[self.projection]
        return f"{self.network}{layers} {self.bound:g}; {self.goal}; {steps}; {self.keep} iterate; {ending} projection"

    def run(
        self,
        task: Task,
        model: nn.Module,
        images: Images,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        compute: Compute | None = None,
        record: bool = False,
        ids: Tensor | None = None,
    ) -> Outcome:
        compute = compute or Compute()
        noise = seeded_normal(self.seed, positions(images, ids), tuple(images.shape[1:]), "perceptual")
        start = (images + self.noise * noise).clamp(0, 1) if self.bound > 0 else images
        with open_ball(self.network, self.layers, model, images, self.bound, compute.width) as ball:
            # In mixed precision the classifier's own pass is too coarse to say whether a bound holds.
            rule = self.rule(ball, share=compute.autocast is None or self.projection == "none")
            if self.projection == "boundary" and (rule.penalty is None or self.total_steps == 0):
                start = ball.in_parts(ball.to_boundary, start)
            outcome = run_attack(
                task, model, PixelSpace(tuple(images.shape[1:])), {"pixels": images}, labels, rule, ["pixels"], self.total_steps,
                goal=self.goal, targets=targets, stop_when_fooled=self.stop_when_fooled, keep=self.keep,
                starts=[{"pixels": start}], loss=self._loss(task), penalty=rule.penalty, compute=compute, record=record,
            )  # fmt: skip
            with full_float32():
                outcome = self._end_inside(outcome, rule, ball, task, model, labels)
            if self.network == "self":
                outcome.forwards = outcome.forwards + ball.forwards
                outcome.backwards = outcome.backwards + ball.backwards
        return outcome

    def _loss(self, task: Task) -> Loss | None:
        margin, kappa = margin_of(task), self.kappa
        if margin is None or kappa is None:
            return margin
        return lambda outputs, labels, targets: margin(outputs, labels, targets).clamp(max=kappa)

    def _end_inside(
        self, outcome: Outcome, rule: Rule, ball: Ball, task: Task, model: nn.Module, labels: Tensor
    ) -> Outcome:
        """Measures the distance anew. Nothing outside is returned, and what did not succeed gets another chance: its last iterate,
        projected."""
        reached = ball.measure(outcome.images)
        outcome.distances[self.distance_name] = reached
        outside, last = outcome.attacked & (reached > self.bound), rule.last
        again = outside
        if last is not None:
            again = outcome.attacked & (outside | ~outcome.success | rule.must_end_there)
        rows = again.nonzero().squeeze(1)
        left_to_steps = rule.penalty is None and self.projection != "boundary"  # as published
        if len(rows) == 0 or left_to_steps or self.projection == "none":
            return outcome
        images, success = outcome.images[rows], outcome.success[rows]
        if last is not None:
            stays = success & (not rule.must_end_there)
            images = torch.where(per_example(stays, images), images, last[rows])
        images = ball.in_parts(partial(ball.project, self.projection), images, rows)
        seen = look(
            task, model, lambda moved, rows: moved["pixels"], {"pixels": images}, labels[rows], ball.width,
            targets=None if outcome.targets is None else outcome.targets[rows],
        )  # fmt: skip
        hit = seen.fooled(self.goal == "targeted")
        better = outside[rows] | (hit & ~success) | ((hit == success) & (seen.loss > outcome.loss[rows]))
        better = better | rule.must_end_there
        won = rows[better]
        distances = ball.in_parts(ball.distance, images, rows)
        moved = outcome.images.index_copy(0, won, images[better])
        change = moved - outcome.start_images
        return replace(
            outcome,
            images=moved,
            latents={"pixels": moved},
            predictions=outcome.predictions.index_copy(0, won, seen.predictions[better]),
            success=outcome.success.index_copy(0, won, hit[better]),
            loss=outcome.loss.index_copy(0, won, seen.loss[better]),
            distances={
                "linf_pixels": linf_norm(change),
                "l2_pixels": l2_norm(change),
                "l1_pixels": l1_norm(change),
                self.distance_name: reached.index_copy(0, won, distances[better]),
            },
            forwards=outcome.forwards.index_add(0, rows, torch.ones_like(rows)),
        )
