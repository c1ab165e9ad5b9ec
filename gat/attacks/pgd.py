"""Norm-bounded attacks on pixels: the same ascent in the space where an image is its own latent."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gat.attacks.run import Compute, Goal, Outcome, run_attack
from gat.attacks.steps import Norm, Steps, l2_norm
from gat.config import Config
from gat.images import check_images
from gat.latents import Latents, per_example, seeded_normal, seeded_uniform
from gat.protocols import Space, Task
from gat.spaces.pixels import PixelSpace


class PGD(Config):
    """Projected gradient descent (Madry et al. 2018), keeping the best iterate of every example.

    Attributes:
        eps: radius of the ball, for images in [0, 1].
        norm: 'linf' or 'l2'.
        steps: gradient steps; each restart takes that many on what is not fooled yet.
        step_size: None is 2.5 eps / steps, which reaches the border from anywhere inside.
        random_start: begin at a random point of the ball. The first restart of several begins there too.
        restarts: the worst of so many attempts per example counts.
        stop_when_fooled: an example is done once fooled. Off, the iterate of largest loss is returned.
        seed: of the random starts, together with the example's position in the batch.
    """

    name: Literal["pgd"] = "pgd"
    eps: float = Field(8 / 255, ge=0)
    norm: Norm = "linf"
    steps: int = Field(20, ge=0)
    step_size: float | None = Field(None, gt=0)
    random_start: bool = True
    restarts: int = Field(1, ge=1)
    goal: Goal = "loss"
    stop_when_fooled: bool = True
    seed: int = 0

    @property
    def needs(self) -> Literal["images"]:
        """What the attack starts from."""
        return "images"

    @property
    def summary(self) -> str:
        """The settings that a number depends on, in one line."""
        start = "random start" if self.random_start else "no random start"
        return (
            f"{self.norm} {self.eps * 255:g}/255; {self.goal}; {self.steps} steps; {self.restarts} x {start}"
        )

    def __call__(
        self,
        task: Task,
        model: nn.Module,
        space: Space,
        latents: Latents,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        compute: Compute | None = None,
        record: bool = False,
        ids: Tensor | None = None,
    ) -> Outcome:
        """Attack `latents['pixels']`. See `run_attack`.

        Args:
            ids: of the examples, so that a random start does not depend on the batch an example is in.
        """
        images = latents["pixels"]
        check_images(images)
        size = self.step_size if self.step_size is not None else 2.5 * self.eps / max(self.steps, 1)
        steps = Steps({"pixels": size}, self.norm, {"pixels": self.eps}, {"pixels": (0.0, 1.0)})
        ids = torch.arange(len(images), device=images.device) if ids is None else ids.to(images.device)
        starts = None
        if self.random_start:
            starts = [
                {"pixels": steps.confine("pixels", images + self._noise(images, ids, restart), images)}
                for restart in range(self.restarts)
            ]
        return run_attack(
            task, model, space, latents, labels, steps, ["pixels"], self.steps,
            goal=self.goal, targets=targets, stop_when_fooled=self.stop_when_fooled, starts=starts, compute=compute,
            record=record,
        )  # fmt: skip

    def _noise(self, images: Tensor, ids: Tensor, restart: int) -> Tensor:
        """Uniform in the ball."""
        shape, stream = tuple(images.shape[1:]), f"pgd/{restart}"
        if self.norm == "linf":
            return (seeded_uniform(self.seed, ids, shape, stream) * 2 - 1) * self.eps
        direction = seeded_normal(self.seed, ids, shape, stream)
        radius = seeded_uniform(self.seed, ids, (1,), stream + "/radius").squeeze(1) ** (
            1 / images[0].numel()
        )
        return direction * per_example(self.eps * radius / l2_norm(direction), direction)

    def attack_images(
        self, task: Task, model: nn.Module, images: Tensor, labels: Tensor, compute: Compute | None = None
    ) -> Outcome:
        """The same from images [b, c, h, w] in [0, 1]."""
        return self(
            task, model, PixelSpace(tuple(images.shape[1:])), {"pixels": images}, labels, compute=compute
        )


class FGSM(Config):
    """One step of size eps along the sign of the gradient (Goodfellow et al. 2015): PGD with one step from the image itself."""

    name: Literal["fgsm"] = "fgsm"
    eps: float = Field(8 / 255, ge=0)
    goal: Goal = "loss"

    @property
    def needs(self) -> Literal["images"]:
        """What the attack starts from."""
        return "images"

    @property
    def summary(self) -> str:
        """The settings that a number depends on, in one line."""
        return f"linf {self.eps * 255:g}/255; {self.goal}; 1 step"

    def __call__(
        self,
        task: Task,
        model: nn.Module,
        space: Space,
        latents: Latents,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        compute: Compute | None = None,
        record: bool = False,
        ids: Tensor | None = None,
    ) -> Outcome:
        """Attack `latents['pixels']`. See `run_attack`."""
        pgd = PGD(eps=self.eps, steps=1, step_size=self.eps or None, random_start=False, goal=self.goal)
        return pgd(
            task, model, space, latents, labels, targets=targets, compute=compute, record=record, ids=ids
        )
