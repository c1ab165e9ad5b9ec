"""DeepFool: step after step to the nearest linearised boundary."""

from typing import ClassVar, Literal

from pydantic import Field

from gat.attacks.ascent import Slots
from gat.attacks.hyperplane import dual_norm
from gat.attacks.minimum_norm import Boundary, Case, MinimumNorm, Search
from gat.attacks.steps import l2_norm
from gat.latents import Images, Latents, PerExample, Rows, Verdicts, per_example

SLACK = 1e-4
"""Added to the length of every step, as the authors do: near the boundary steps would become ever shorter."""


class DeepFool(MinimumNorm):
    """The shortest step to the nearest of the linearised boundaries, again and again until the model errs.

    Source: Moosavi-Dezfooli et al. 2016, algorithm 2 and its linf form. Ours, with steps clipped to [0, 1].

    Attributes:
        steps: at most.
        overshoot: a step goes so much further than to the boundary.
        candidates: classes looked at: the label and the likeliest besides it (see `Boundary` for which of them when).
    """

    kind: ClassVar[str] = "additive"
    name: Literal["deepfool"] = "deepfool"
    norm: Literal["l2", "linf"] = "l2"
    steps: int = Field(50, ge=0)
    overshoot: float = Field(0.02, ge=0)
    candidates: int = Field(10, ge=2)

    @property
    def summary(self) -> str:
        return f"{self.reach}; {self.goal}; {self.steps} steps; {self.candidates} classes; overshoot {self.overshoot:g}"

    def search(self, case: Case) -> Search:
        return _Steps(self, case)


class _Steps(Boundary):
    attempts = 1

    def __init__(self, settings: DeepFool, case: Case) -> None:
        super().__init__(case, case.rivals(settings.candidates - 1), settings.norm)
        self.max_steps, self.overshoot = settings.steps, settings.overshoot

    def begin(self, attempt: int, rows: Rows) -> Images:
        return self.case.images[rows]

    def objective(self, latents: Latents, rows: Rows) -> tuple[PerExample, Verdicts]:
        x = latents["pixels"]
        slope, fooled = self.linearise(x, rows)
        return self.report(x, rows, slope, fooled)

    def move(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        x, slope = latents["pixels"], gradient["pixels"]
        slots.finished = slots.finished | slots.fooled
        length = self.gap[slots.examples].abs() / dual_norm(slope, self.norm).clamp(min=1e-12) + SLACK
        if self.norm == "linf":
            way = slope.sign()
        else:
            way = slope / per_example(l2_norm(slope).clamp(min=1e-12), slope)
        return {"pixels": (x + way * per_example((1 + self.overshoot) * length, x)).clamp(0, 1)}

    def end(self, rows: Rows) -> None:
        pass
