"""What attacks that change an image by smooth fields share: bounded fields, a penalty on their roughness, Adam or sign steps."""

from abc import abstractmethod
from typing import Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from gat.attacks.adam import Adam
from gat.attacks.ascent import Move
from gat.attacks.image_attack import ImageAttack, positions
from gat.attacks.losses import margin_of
from gat.attacks.objective import Penalty
from gat.attacks.run import Compute, Outcome, run_attack
from gat.attacks.steps import Steps
from gat.latents import Images, Latents, PerExample, Rows, Verdicts
from gat.protocols import Space, Task


@runtime_checkable
class FieldSpace(Space, Protocol):
    """A space around images, whose latents are offsets: zero is the image itself."""

    def rest(self) -> Latents:
        """Latents of the unchanged images."""
        ...

    def scattered(self, seed: int, ids: Rows, stream: str) -> Latents:
        """Latents uniform in [-1, 1]; an example's depend on (seed, id, stream) alone."""
        ...

    def roughness(self, moved: Latents, rows: Rows) -> dict[str, PerExample]:
        """How much neighbours differ, for every field that moves."""
        ...


class FieldAttack(ImageAttack):
    """Ascends a loss minus the fields' roughness within bounds.

    Attributes:
        steps: gradient steps. 0 with a random start is the control that does not optimise.
        rule: 'adam', as published, or 'sign' steps, which use the whole bound.
        step_size: as a share of the bound; None is 0.2 for Adam and 2.5 / steps for signs.
        smoothness: weight of the roughness of fields measured in units of their bound. The published weights suit a classifier's
            margin; a segmenter's loss is a mean over pixels, against which they win: set 0 there.
        loss: 'margin' of the logits (Carlini & Wagner's f6, without a ceiling; of a task without margins its loss), or the 'task'
            loss.
        keep: which iterate counts: the 'best' of an example (fooling first, then by loss minus penalty) or the 'last'.
        stop_when_fooled: an example is done once fooled.
        random_start: begin with independent random numbers within the bound, instead of the unchanged image.
        restarts: so many random starts, the worst per example counts.
    """

    steps: int = Field(20, ge=0)
    rule: Literal["adam", "sign"] = "adam"
    step_size: float | None = Field(None, gt=0)
    smoothness: float = Field(0.0025, ge=0)
    loss: Literal["margin", "task"] = "margin"
    keep: Literal["best", "last"] = "best"
    stop_when_fooled: bool = True
    random_start: bool = False
    restarts: int = Field(1, ge=1)

    @property
    def bounds(self) -> dict[str, float]:
        return {f"linf_{site}": limit for site, limit in self.limits.items()}

    @property
    @abstractmethod
    def limits(self) -> dict[str, float]:
        """Site that moves -> largest absolute value."""

    @abstractmethod
    def space(self, images: Images) -> FieldSpace:
        """Around these images."""

    @property
    def share(self) -> float:
        """Step size as a share of the bound."""
        if self.step_size is not None:
            return self.step_size
        return 0.2 if self.rule == "adam" else 2.5 / max(self.steps, 1)

    @property
    def how(self) -> str:
        """The part of the summary that is the same for all fields."""
        start = f"{self.restarts} x random start" if self.random_start else "from the image"
        stop = ", until fooled" if self.stop_when_fooled else ""
        return (
            f"{self.goal} ({self.loss}); {self.steps} {self.rule} steps of {self.share:g} bounds; "
            f"smoothness {self.smoothness:g}; {self.keep} iterate{stop}; {start}"
        )

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
        space, limits = self.space(images), self.limits
        size = {site: self.share * limit for site, limit in limits.items()}
        steps = Steps(size, "linf", limits)
        move: Move = Adam(size, steps.confine) if self.rule == "adam" else steps
        return run_attack(
            task, model, space, space.rest(), labels, move, list(limits), self.steps,
            goal=self.goal, targets=targets, stop_when_fooled=self.stop_when_fooled, keep=self.keep,
            starts=self._starts(space, positions(images, ids)), loss=margin_of(task) if self.loss == "margin" else None,
            penalty=self._penalty(space), compute=compute, record=record,
        )  # fmt: skip

    def _starts(self, space: FieldSpace, ids: Tensor) -> list[Latents] | None:
        if not self.random_start:
            return None
        scattered = (
            space.scattered(self.seed, ids, f"{self.name}/{restart}") for restart in range(self.restarts)
        )
        return [{site: limit * fields[site] for site, limit in self.limits.items()} for fields in scattered]

    def _penalty(self, space: FieldSpace) -> Penalty | None:
        weights = {site: self.smoothness / limit for site, limit in self.limits.items() if limit > 0}
        if self.smoothness == 0 or not weights:
            return None

        def penalty(moved: Latents, images: Images, rows: Rows) -> tuple[PerExample, Verdicts]:
            rough = space.roughness(moved, rows)
            total = sum(
                (weights[site] * rough[site] for site in rough if site in weights),
                images.new_zeros(len(rows)),
            )
            return total, torch.ones_like(rows, dtype=torch.bool)

        return penalty
