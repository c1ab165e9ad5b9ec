"""Norm-bounded attacks on pixels: the same ascent in the space where an image is its own latent."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from gat.attacks.ascent import Move
from gat.attacks.image_attack import ImageAttack, positions
from gat.attacks.objective import AnyLoss
from gat.attacks.run import Compute, Outcome, run_attack
from gat.attacks.steps import NORMS, Norm, Steps
from gat.latents import Images, Rows, per_example, seeded_normal, seeded_uniform
from gat.protocols import Task
from gat.spaces.pixels import PixelSpace


class PGD(ImageAttack):
    """Projected gradient descent (Madry et al. 2018), keeping the best iterate of every example.

    Attributes:
        eps: radius of the ball, for images in [0, 1].
        norm: 'linf', 'l2' or 'l1'; how each steps is `Steps.size`.
        steps: gradient steps; each restart takes that many on what is not fooled yet. 0 with a random start is the control that
            does not optimise.
        step_size: None is 2.5 eps / steps, which reaches the border from anywhere inside; twice that for l1, where projection
            takes most of a step back.
        random_start: begin at a random point of the ball. The first restart of several begins there too.
        restarts: the worst of so many attempts per example counts.
        stop_when_fooled: an example is done once fooled. Off, the iterate of largest loss is returned.
    """

    kind: ClassVar[str] = "additive"
    name: Literal["pgd"] = "pgd"
    eps: float = Field(8 / 255, ge=0)
    norm: Norm = "linf"
    steps: int = Field(20, ge=0)
    step_size: float | None = Field(None, gt=0)
    random_start: bool = True
    restarts: int = Field(1, ge=1)
    stop_when_fooled: bool = True

    @property
    def summary(self) -> str:
        start = "random start" if self.random_start else "no random start"
        return f"{ball(self.norm, self.eps)}; {self.goal}; {self.steps} steps; {self.restarts} x {start}"

    @property
    def bounds(self) -> dict[str, float]:
        return {f"{self.norm}_pixels": self.eps}

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
        reach = 5.0 if self.norm == "l1" else 2.5
        size = self.step_size if self.step_size is not None else reach * self.eps / max(self.steps, 1)
        steps = Steps({"pixels": size}, self.norm, {"pixels": self.eps}, {"pixels": (0.0, 1.0)})
        starts = None
        if self.random_start:
            ids = positions(images, ids)
            starts = [
                {"pixels": steps.confine("pixels", images + self._noise(images, ids, restart), images)}
                for restart in range(self.restarts)
            ]
        move, loss = self._guide(steps, labels)
        return run_attack(
            task, model, PixelSpace(tuple(images.shape[1:])), {"pixels": images}, labels, move, ["pixels"], self.steps,
            goal=self.goal, targets=targets, stop_when_fooled=self.stop_when_fooled, starts=starts, loss=loss,
            compute=compute, record=record,
        )  # fmt: skip

    def _guide(self, steps: Steps, labels: Tensor) -> tuple[Move, AnyLoss | None]:
        """The step rule, and what to ascend instead of the task's loss."""
        return steps, None

    def _noise(self, images: Images, ids: Rows, restart: int) -> Images:
        return uniform_in_ball(images, self.eps, self.norm, self.seed, ids, f"pgd/{restart}")


class FGSM(ImageAttack):
    """One step of size eps along the sign of the gradient (Goodfellow et al. 2015): PGD with one step from the image itself."""

    kind: ClassVar[str] = "additive"
    name: Literal["fgsm"] = "fgsm"
    eps: float = Field(8 / 255, ge=0)

    @property
    def summary(self) -> str:
        return f"{ball('linf', self.eps)}; {self.goal}; 1 step"

    @property
    def bounds(self) -> dict[str, float]:
        return {"linf_pixels": self.eps}

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
        pgd = PGD(eps=self.eps, steps=1, step_size=self.eps or None, random_start=False, goal=self.goal)
        return pgd.run(task, model, images, labels, targets=targets, compute=compute, record=record, ids=ids)


class BIM(ImageAttack):
    """The basic iterative method, I-FGSM (Kurakin et al. 2017): PGD from the image itself, by steps of eps / steps unless given.

    Attributes:
        eps, steps, step_size, stop_when_fooled: as of `PGD`; a step_size of None is eps / steps.
    """

    kind: ClassVar[str] = "additive"
    name: Literal["bim"] = "bim"
    eps: float = Field(8 / 255, ge=0)
    steps: int = Field(10, ge=1)
    step_size: float | None = Field(None, gt=0)
    stop_when_fooled: bool = True

    @property
    def summary(self) -> str:
        return f"{ball('linf', self.eps)}; {self.goal}; {self.steps} steps"

    @property
    def bounds(self) -> dict[str, float]:
        return {"linf_pixels": self.eps}

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
        pgd = PGD(
            eps=self.eps, steps=self.steps, step_size=self.step_size or self.eps / self.steps or None,
            random_start=False, goal=self.goal, stop_when_fooled=self.stop_when_fooled,
        )  # fmt: skip
        return pgd.run(task, model, images, labels, targets=targets, compute=compute, record=record, ids=ids)


def ball(norm: Norm, eps: float) -> str:
    """A budget as one reads it: 'linf 8/255', 'l2 0.5'."""
    return f"linf {eps * 255:g}/255" if norm == "linf" else f"{norm} {eps:g}"


def uniform_in_ball(images: Images, eps: float, norm: Norm, seed: int, ids: Rows, stream: str) -> Images:
    """Offsets [b, c, h, w], uniform in the ball of radius eps, that depend on (seed, id, stream) alone."""
    shape = tuple(images.shape[1:])
    if norm == "linf":
        return (seeded_uniform(seed, ids, shape, stream) * 2 - 1) * eps
    if norm == "l2":
        direction = seeded_normal(seed, ids, shape, stream)
    else:  # Laplace numbers lie uniformly on the l1 sphere once normalised.
        sign = seeded_uniform(seed, ids, shape, stream + "/sign") - 0.5
        direction = sign.sign() * -seeded_uniform(seed, ids, shape, stream).log()
    radius = seeded_uniform(seed, ids, (1,), stream + "/radius").squeeze(1) ** (1 / images[0].numel())
    return direction * per_example(eps * radius / NORMS[norm](direction), direction)
