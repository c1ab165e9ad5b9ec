"""Generative adversarial examples: gradient steps on a generator's latents (GAT, Sec. 3.1, Eqs. 1-4)."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gat.attacks.ascent import Move
from gat.attacks.losses import contrast_of
from gat.attacks.objective import AnyLoss
from gat.attacks.run import Compute, DrawnGoal, Outcome, run_attack
from gat.attacks.segpgd import weigh_pixels
from gat.attacks.steps import Norm, Steps
from gat.config import Config
from gat.latents import Latents, Rows, lookup, seeded_uniform, select
from gat.protocols import MeasuredSpace, Space, Task

Part = Literal["style", "noise", "gamma", "beta", "both"]
Group = Literal["coarse", "middle", "fine", "all"]


class LatentAttack(Config):
    """Sign steps on style and noise, or on gamma and beta, until the model is fooled.

    Source: the paper's Eqs. 1-4. Differences that the defaults make: step sizes are relative, and the true label's loss is
    ascended, which fools more on small images than aiming at the least likely class (set `goal: least_likely` for the paper's
    update; `PAPER_STEP_SIZE` holds its absolute step sizes).

    Attributes:
        move: which kinds of latents; 'both' is style and noise, or gamma and beta, whichever the generator has.
        group: which resolutions; what is coarse, middle or fine is the space's to say.
        sites: globs that replace `move` and `group`, for any other choice of layers.
        step_size: by glob; the last one that matches a site counts.
        unit: 'relative' multiplies step sizes (and eps) by the site's standard deviation over random examples: StyleGAN2's
            demodulated layers ignore the scale of a style, so an absolute step means something else in every layer.
        eps: budget by glob, largest distance from the start; sites that none matches are free, as in the paper.
        norm: of steps and budgets.
        goal: 'loss' ascends the label's loss; 'least_likely' (the paper's) and 'random' descend that of a wrong answer, the least
            likely one or one drawn for every example; all three fool with any wrong answer, 'targeted' with the given one. Where
            'random' aims does not depend on the label, which a model under training can otherwise learn to read off the attack
            ("label leaking", Kurakin et al. 2017).
        contrast: with a wrong answer to aim at, ascend the label's loss too, so that what the two have in common counts for nothing:
            the boxes of a detector, which get better where only the loss of wrong classes in the same boxes is descended.
        pixels: for segmenters, how the pixels of an image share in its loss: all alike, as in the paper, or weighted as `SegPGD` and
            `CosPGD` do, which is about those that are still right. Then the best iterate is the one with the most wrong pixels.
        max_steps: iterations after which an example counts as robust; the paper trains on what 10 fool.
        stop_when_fooled: off for a fixed number of steps.
    """

    name: Literal["latent"] = "latent"
    move: Part = "both"
    group: Group = "all"
    sites: tuple[str, ...] = ()
    step_size: dict[str, float] = Field(default_factory=lambda: {"style/*": 0.01, "noise/*": 0.4})
    unit: Literal["relative", "absolute"] = "relative"
    eps: dict[str, float] = Field(default_factory=dict)
    norm: Norm = "linf"
    goal: DrawnGoal = "loss"
    contrast: bool = False
    pixels: Literal["alike", "segpgd", "cospgd"] = "alike"
    max_steps: int = Field(10, ge=0)
    stop_when_fooled: bool = True

    @model_validator(mode="after")
    def _contrasts_two_answers(self) -> "LatentAttack":
        if self.contrast and (self.goal == "loss" or self.pixels != "alike"):
            raise ValueError(
                f"contrast needs an answer to aim at and pixels alike: goal 'least_likely', 'random' or 'targeted'; "
                f"got goal {self.goal!r} and pixels {self.pixels!r}"
            )
        return self

    @property
    def needs(self) -> Literal["generator"]:
        """What the attack starts from."""
        return "generator"

    @property
    def family(self) -> str:
        """What counts as the same threat: a model trained on one of a family has seen all of it."""
        return self.name

    @property
    def bounds(self) -> dict[str, float]:
        """None: distances in latents have units of their own."""
        return {}

    @property
    def summary(self) -> str:
        """The settings that a number depends on, in one line."""
        what = ",".join(self.sites) if self.sites else f"{self.move} {self.group}"
        sizes = " ".join(f"{glob}={size:g}" for glob, size in self.step_size.items())
        budget = " ".join(f"{glob}<={size:g}" for glob, size in self.eps.items()) or "no budget"
        goal = f"{self.goal} against the label" if self.contrast else self.goal
        goal = goal if self.pixels == "alike" else f"{goal}, pixels as in {self.pixels}"
        return f"{what}; {goal}; {self.norm} steps {sizes} ({self.unit}); {budget}; {self.max_steps} steps"

    def moved(self, space: Space) -> list[str]:
        """The sites of `space` that this attack moves.

        Raises:
            ValueError: if there are none; it lists what there is.
        """
        if self.sites:
            return select(space.sites, self.sites)
        kinds = ("style", "noise", "gamma", "beta") if self.move == "both" else (self.move,)
        chosen = [
            name
            for name, site in space.sites.items()
            if name.split("/")[0] in kinds and self.group in ("all", site.group)
        ]
        if not chosen:
            raise ValueError(
                f"{space.name} has no {self.group} {self.move} site; on offer: {', '.join(space.sites)}"
            )
        return chosen

    def steps(self, space: Space, moved: list[str]) -> Steps:
        """The step rule for these sites.

        Raises:
            ValueError: if a site has no step size.
        """
        size, eps = {}, {}
        for name in moved:
            unit = space.sites[name].scale if self.unit == "relative" else 1.0
            step, radius = lookup(self.step_size, name), lookup(self.eps, name)
            if step is None:
                raise ValueError(
                    f"no step size for {name}: add a glob to step_size, which has {sorted(self.step_size)}"
                )
            size[name] = step * unit
            if radius is not None:
                eps[name] = radius * unit
        return Steps(size, self.norm, eps)

    def guide(self, task: Task, steps: Steps, labels: Tensor) -> tuple[Move, AnyLoss | None]:
        """The step rule and what is ascended instead of the task's loss.

        Raises:
            ValueError: if pixels are to be weighted that the task does not label.
        """
        if self.pixels == "alike":
            return steps, contrast_of(task) if self.contrast else None
        if task.name != "segmentation":
            raise ValueError(
                f"pixels: {self.pixels} is for segmentation, not for {task.name}; on offer: alike"
            )
        return weigh_pixels(self.pixels, steps, self.max_steps, labels)

    def max_width(self, space: Space) -> int | None:
        """How many examples the space's memory budget lets this attack hold at once; None if it sets no limit.

        Raises:
            ValueError: if there is a budget and not even one example fits.
        """
        return space.max_width(self.moved(space)) if isinstance(space, MeasuredSpace) else None

    def compute(self, space: Space, wanted: Compute | None = None) -> Compute:
        """What is wanted, but no wider than `max_width`.

        Raises:
            ValueError: see `max_width`.
        """
        wanted, limit = wanted or Compute(), self.max_width(space)
        return wanted if limit is None else replace(wanted, width=min(wanted.width, limit))

    def drawn_targets(self, task: Task, labels: Tensor, ids: Rows | None = None) -> Tensor | None:
        """What goal 'random' aims at, by `ids`, or else by the position in the batch; None for other goals."""
        if self.goal != "random":
            return None
        ids = torch.arange(len(labels)) if ids is None else ids
        return task.random_targets(labels, seeded_uniform(0, ids, (), "target").to(labels.device))

    def run(
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
        ids: Rows | None = None,
    ) -> Outcome:
        """Attack the images these latents render to. See `run_attack`; passes are no wider than the space's memory budget allows.

        Args:
            ids: of the examples, for goal 'random': what they draw depends on them. None: the positions in the batch.
        """
        moved, compute = self.moved(space), self.compute(space, compute)
        targets = self.drawn_targets(task, labels, ids) if self.goal == "random" else targets
        move, loss = self.guide(task, self.steps(space, moved), labels)
        return run_attack(
            task, model, space, latents, labels, move, moved, self.max_steps,
            goal=self.goal, targets=targets, stop_when_fooled=self.stop_when_fooled, loss=loss, compute=compute, record=record,
        )  # fmt: skip


PAPER_STEP_SIZE = {"style/*": 0.004, "noise/*": 0.2}
"""Absolute step sizes on LSUN (Sec. 3.1); CelebA-HQ: 0.004 and 0.1; targeted LSUN: 0.005 and 0.2."""
