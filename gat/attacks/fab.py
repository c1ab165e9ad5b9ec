"""FAB: between the nearest point of the linearised boundary and the image itself, until the boundary is found where it is nearest."""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from gat.attacks.ascent import Slots
from gat.attacks.hyperplane import reach
from gat.attacks.minimum_norm import Boundary, Case, MinimumNorm, Search
from gat.attacks.steps import NORMS, Norm
from gat.latents import (
    Images,
    Latents,
    PerExample,
    Rows,
    Verdicts,
    per_example,
    seeded_normal,
    seeded_uniform,
)


class FAB(MinimumNorm):
    """Fast adaptive boundary attack (Croce & Hein 2020, algorithm 1), and FAB-T, the third part of AutoAttack.

    Ours. As published, every step asks the model twice: who is across, and then, from a point drawn back, where the boundary is.

    Attributes:
        steps: of every attempt.
        restarts: attempts; the first from the image, later ones from random points no further than half the nearest found.
        targeted: attack towards one class at a time, each with as many steps and restarts (FAB-T); any wrong answer counts.
        n_target_classes: the likeliest of the other classes, as many as there are at most: attacked in turn if `targeted`,
            otherwise the nearest of them counts (see `Boundary`).
        alpha_max: largest share of the pull back to the image.
        eta: a step goes to so many times the distance of the boundary.
        beta: where the next step starts from, on the way from the image to one that fools.
    """

    kind: ClassVar[str] = "additive"
    name: Literal["fab"] = "fab"
    norm: Norm = "linf"
    steps: int = Field(100, ge=0)
    restarts: int = Field(1, ge=1)
    targeted: bool = False
    n_target_classes: int = Field(9, ge=1)
    alpha_max: float = Field(0.1, ge=0, le=1)
    eta: float = Field(1.05, ge=1)
    beta: float = Field(0.9, ge=0, le=1)

    @property
    def summary(self) -> str:
        how = f"{self.n_target_classes} classes {'in turn' if self.targeted else 'at once'}"
        return f"{self.reach}; {self.goal}; {how}; {self.restarts} x {self.steps} steps"

    def search(self, case: Case) -> Search:
        return _Pursuit(self, case)


class _Pursuit(Boundary):
    def __init__(self, settings: FAB, case: Case) -> None:
        rivals = case.rivals(settings.n_target_classes)
        super().__init__(case, rivals, settings.norm)
        self.settings, self.rivals = settings, rivals
        self.turns = rivals.shape[1] if settings.targeted else 1
        self.attempts, self.max_steps = settings.restarts * self.turns, settings.steps

    def begin(self, attempt: int, rows: Rows) -> Images:
        """Class after class; a class's first attempt starts from the image."""
        restart, turn = divmod(attempt, self.turns)
        self.aim_at(self.rivals[:, turn : turn + 1] if self.settings.targeted else self.rivals)
        images = self.case.images[rows]
        if restart == 0:
            return images
        ids, shape, stream = self.case.ids[rows], tuple(images.shape[1:]), f"fab/{restart}/{turn}"
        seed, norm = self.settings.seed, self.settings.norm
        if norm == "linf":
            way = seeded_uniform(seed, ids, shape, stream) * 2 - 1
        else:
            way = seeded_normal(seed, ids, shape, stream)
        length = self.case.distance[rows].clamp(
            max=FARTHEST[norm] if self.settings.eps is None else self.settings.eps
        )
        return (images + way * per_example(0.5 * length / NORMS[norm](way), way)).clamp(0, 1)

    def objective(self, latents: Latents, rows: Rows) -> tuple[PerExample, Verdicts]:
        x = latents["pixels"]
        with torch.no_grad():
            _, fooled = self.case.ask(x, rows)
        slope = torch.zeros_like(x)
        if torch.is_grad_enabled():
            slope, _ = self.linearise(self._drawn_back(x.detach(), self.case.images[rows], fooled), rows)
        return self.report(x, rows, slope, fooled)

    def _drawn_back(self, x: Images, home: Images, fooled: Verdicts) -> Images:
        """Where a step starts from."""
        return torch.where(per_example(fooled, x), home + self.settings.beta * (x - home), x)

    def move(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        norm, eta, eps = self.norm, self.settings.eta, self.settings.eps
        if eps is not None:
            slots.finished = slots.finished | (slots.best_fooled & (-slots.best_loss <= eps))
        x, home, slope = latents["pixels"], slots.home["pixels"].flatten(1), gradient["pixels"].flatten(1)
        stand = self._drawn_back(x, slots.home["pixels"], slots.fooled).flatten(1)
        # Both go to the plane on which the linearisation where the example stands puts the boundary.
        rise = -self.gap[slots.examples]
        from_stand = reach(stand, slope, rise, norm)
        from_home = reach(home, slope, rise + ((stand - home) * slope).sum(1), norm)
        far, farther = NORMS[norm](from_stand), NORMS[norm](from_home)
        pull = (far / (far + farther).clamp(min=1e-8)).clamp(max=self.settings.alpha_max)[:, None]
        new = (1 - pull) * (stand + eta * from_stand) + pull * (home + eta * from_home)
        return {"pixels": new.clamp(0, 1).reshape(x.shape)}

    def end(self, rows: Rows) -> None:
        pass


FARTHEST: dict[Norm, float] = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
"""Random starts lie no further than half of this, where there is neither a budget nor an image found."""
