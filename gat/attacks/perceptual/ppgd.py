"""PPGD: projected gradient steps, steepest in perceptual distance."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gat.attacks.ascent import Slots
from gat.attacks.objective import Penalty
from gat.attacks.perceptual.attack import PerceptualAttack, unit
from gat.attacks.perceptual.ball import Ball, Projection, full_float32
from gat.attacks.steps import l2_norm
from gat.attacks.worst import WorstOf
from gat.latents import Images, Latents, per_example

PROBE = 0.01  # L2 length of the step whose change of embedding stands for the derivative along it


class NaturalRule:
    """A step in the direction that gains most loss per perceptual distance, then back into the ball (Laidlaw et al. 2021, Alg. 1; ours).

    With J the Jacobian of the embedding that is the solution v of `J^T J v = gradient`, found by a few conjugate gradient steps,
    scaled to `|J v| = step_size`.

    Attributes:
        penalty: none; all iterates lie inside.
    """

    penalty: Penalty | None = None
    last: Images | None = None
    must_end_there = False

    def __init__(self, ball: Ball, step_size: float, cg_steps: int, projection: Projection) -> None:
        self.ball, self.step_size, self.cg_steps, self.projection = ball, step_size, cg_steps, projection

    @full_float32()  # the probe is shorter than what TF32 rounds away
    def __call__(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        x, g, rows = latents["pixels"], unit(gradient["pixels"]), slots.examples
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            embedding = self.ball.embed(leaf, rows)
        here = embedding.detach()

        def multiply(v: Tensor) -> Tensor:
            """J^T J v."""
            length = l2_norm(v).clamp(min=1e-12)
            ahead = self.ball.embed(x + per_example(PROBE / length, v) * v, rows)
            along = (ahead - here) * (length / PROBE)[:, None]
            return self.ball.pull_back(embedding, leaf, rows, along)

        v, residual = torch.zeros_like(g), g
        direction, square = g, _dot(g, g)
        for _ in range(self.cg_steps):
            image = multiply(direction)
            # Solved to a hundredth is enough; beyond, the probe's rounding is all that is left.
            by = torch.where(square > 1e-4, square / _dot(direction, image).clamp(min=1e-20), 0.0)
            v = v + per_example(by, v) * direction
            residual = residual - per_example(by, v) * image
            before, square = square, _dot(residual, residual)
            direction = residual + per_example(square / before.clamp(min=1e-20), v) * direction
        length = _dot(v, g - residual).clamp(min=1e-20).sqrt()  # |J v|, since J^T J v = g - residual
        x = (x + per_example(self.step_size / length, v) * v).clamp(0, 1)
        return {"pixels": self.ball.project(self.projection, x, rows, looks=3)}


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


class PPGD(PerceptualAttack):
    """Perceptual projected gradient descent (Laidlaw et al. 2021, Alg. 1).

    Attributes:
        steps: gradient steps.
        step_size: in perceptual distance; None is 2 bound / steps.
        cg_steps: of the solver within each step; each costs a pass forwards and one backwards.
    """

    name: Literal["ppgd"] = "ppgd"
    steps: int = Field(20, ge=0)
    step_size: float | None = Field(None, gt=0)
    cg_steps: int = Field(5, ge=1)

    @classmethod
    def paper(cls, bound: float = 0.5, network: str = "self") -> "PPGD":
        """As published: 40 steps for every example, Newton projection, last iterate."""
        return cls(
            bound=bound, network=network, steps=40, projection="newton", keep="last", stop_when_fooled=False,
        )  # fmt: skip

    @classmethod
    def strict(cls, bound: float = 0.5, network: str = "self") -> WorstOf:
        """Short and long steps, the latter from another start."""
        return WorstOf(
            attacks=(
                cls(bound=bound, network=network, steps=10),
                cls(bound=bound, network=network, steps=40, seed=1),
                cls(bound=bound, network=network, steps=40, step_size=bound / 5 or None, seed=2),
            )
        )

    @property
    def total_steps(self) -> int:
        return self.steps

    @property
    def summary(self) -> str:
        return self._describe(f"{self.steps} steps of {self._step_size:g}, {self.cg_steps} CG")

    @property
    def _step_size(self) -> float:
        return self.step_size if self.step_size is not None else 2 * self.bound / max(self.steps, 1)

    def rule(self, ball: Ball, share: bool) -> NaturalRule:
        return NaturalRule(ball, self._step_size, self.cg_steps, self.projection)
