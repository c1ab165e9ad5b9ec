"""What attacks have in common that look for the smallest change that fools, rather than for the best within a budget."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from gat.attacks.ascent import Slots, ascend
from gat.attacks.frozen import frozen
from gat.attacks.hyperplane import dual_norm
from gat.attacks.image_attack import ImageAttack, positions
from gat.attacks.losses import margin
from gat.attacks.objective import mixed_precision
from gat.attacks.run import Compute, Look, Outcome, choose_targets, look
from gat.attacks.steps import NORMS, Norm
from gat.latents import Images, Latents, PerExample, Rows, Verdicts, per_example
from gat.protocols import Task
from gat.spaces.pixels import PixelSpace


@dataclass
class Case:
    """A batch under attack, and the nearest images found so far.

    Everything is asked in float32: close to the boundary, half precision would decide by its rounding.

    Attributes:
        images, labels, ids: of all examples.
        targets, must_hit: classes to aim at, if any, and whether only they count.
        logits: of the unchanged images.
        nearest, distance: the closest image that fools, and how far it is; infinitely far where there is none yet.
        forwards, backwards: passes through the model so far.
    """

    task: Task
    model: nn.Module
    images: Images
    labels: Tensor
    ids: Rows
    targets: Tensor | None
    must_hit: bool
    logits: Float[Tensor, "b k"]
    nearest: Images
    distance: PerExample
    forwards: Int[Tensor, " b"]
    backwards: Int[Tensor, " b"]

    def ask(self, images: Images, rows: Rows) -> tuple[Float[Tensor, "s k"], Verdicts]:
        """Logits of changed images of examples `rows`, and which of them fool, even if computed again in another batch."""
        self.forwards[rows] += 1
        with mixed_precision(images.device, None):
            logits = self.model(images).float()
        targets = self.targets[rows] if self.must_hit and self.targets is not None else None
        return logits, margin(logits.detach(), self.labels[rows], targets) >= rounding(logits)

    def rivals(self, most: int) -> Int[Tensor, "b r"]:
        """The classes whose boundary may be crossed, likeliest first: the target, or `most` (if there are so many) besides the label."""
        if self.targets is not None:
            return self.targets[:, None]
        others = self.logits.scatter(1, self.labels[:, None], -float("inf"))
        return others.topk(min(most, others.shape[1] - 1), dim=1).indices


def rounding(logits: Float[Tensor, "s k"]) -> PerExample:
    """By how much logits may differ between two batches that hold the same image, and some."""
    return 1e-5 * logits.detach().abs().amax(1)


@runtime_checkable
class Search(Protocol):
    """How one attack looks for near images.

    Attributes:
        attempts: how often an example is begun anew.
        max_steps: of one attempt.
    """

    attempts: int
    max_steps: int

    def begin(self, attempt: int, rows: Rows) -> Images:
        """First iterates of examples `rows`."""
        ...

    def objective(self, latents: Latents, rows: Rows) -> tuple[PerExample, Verdicts]:
        """An `Objective` whose value is minus the distance where it fools (see `valued`), so that the best is the nearest."""
        ...

    def move(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        """A `Move`. It writes `slots.finished` where an attempt is over before its steps are."""
        ...

    def end(self, rows: Rows) -> None:
        """After an attempt on `rows`."""
        ...


class _Valued(torch.autograd.Function):
    """The gradient of one number with the value of another."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def valued(source: PerExample, value: PerExample) -> PerExample:
    """`value`, that differentiates like `source`."""
    result: Tensor = _Valued.apply(source, value)
    return result


class MinimumNorm(ImageAttack):
    """Settings of an attack that looks for the smallest change that fools.

    Attributes:
        norm: in which changes are small.
        eps: None takes any distance. Otherwise only changes up to `eps` are a success, an example is finished with the first
            of them, and one without keeps its image.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    norm: Norm = "l2"
    eps: float | None = Field(None, ge=0)

    @property
    def bounds(self) -> dict[str, float]:
        return {} if self.eps is None else {f"{self.norm}_pixels": self.eps}

    @property
    def reach(self) -> str:
        """Norm and budget, for `summary`."""
        return f"{self.norm}, " + ("any distance" if self.eps is None else f"up to {self.eps:g}")

    @abstractmethod
    def search(self, case: Case) -> Search:
        """How this attack looks for near images."""

    @torch.no_grad()
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
        everyone = torch.arange(len(labels), device=labels.device)
        iterations, zero_gradients = torch.zeros_like(everyone), torch.zeros_like(everyone)
        trajectory = None
        with frozen(model):
            before = self._look(
                task, model, images, labels, compute, least_likely=self.goal == "least_likely", outputs=True
            )
            assert before.outputs is not None
            if before.outputs.ndim != 2:
                raise ValueError(
                    f"{self.name} needs a classifier, logits [b, k]; got outputs {list(before.outputs.shape)}"
                )
            targets = choose_targets(before, labels, self.goal, targets)
            case = Case(
                task, model, before.images, labels, positions(images, ids), targets, self.goal == "targeted",
                before.outputs,
                nearest=before.images.clone(),
                distance=torch.full_like(before.loss, torch.inf),
                forwards=torch.full_like(everyone, 2),
                backwards=torch.zeros_like(everyone),
            )  # fmt: skip
            search = self.search(case)
            for attempt in range(search.attempts):
                todo = (~before.wrong & ~(case.distance <= (self.eps or 0.0))).nonzero().squeeze(1)
                if len(todo) == 0:
                    break
                ascent = ascend(
                    search.objective,
                    {"pixels": search.begin(attempt, todo)},
                    search.move,
                    search.max_steps,
                    stop_when_fooled=False,
                    examples=todo,
                    width=compute.width,
                    center={"pixels": before.images[todo]},
                    sync_every=compute.sync_every,
                    record=(lambda moved, _: moved["pixels"]) if record and search.attempts == 1 else None,
                )
                search.end(todo)
                iterations[todo] += torch.where(case.distance[todo].isinf(), ascent.iterations, 0)
                zero_gradients[todo] += ascent.zero_gradients
                nearer = ascent.fooled & (-ascent.loss < case.distance[todo])
                case.nearest[todo[nearer]] = ascent.latents["pixels"][nearer]
                case.distance[todo[nearer]] = -ascent.loss[nearer]
                if ascent.trajectory is not None:
                    trajectory = before.images.expand(search.max_steps + 1, *before.images.shape).clone()
                    trajectory[:, todo] = ascent.trajectory
            inside = case.distance <= (torch.inf if self.eps is None else self.eps)
            inside &= ~case.distance.isinf()
            found = torch.where(per_example(inside, images), case.nearest, before.images)
            after = self._look(task, model, found, labels, compute, targets=targets)
        hit = after.fooled(case.must_hit)
        change = found - before.images
        return Outcome(
            start_images=before.images,
            images=found,
            latents={"pixels": found},
            clean_predictions=before.predictions,
            predictions=after.predictions,
            attacked=~before.wrong,
            success=hit & inside,
            iterations=iterations,
            loss=after.loss,
            distances={f"{name}_pixels": measure(change) for name, measure in NORMS.items()},
            forwards=case.forwards,
            backwards=case.backwards,
            zero_gradients=zero_gradients,
            targets=targets,
            trajectory=trajectory,
        )

    @staticmethod
    def _look(
        task: Task, model: nn.Module, images: Images, labels: Tensor, compute: Compute, **asked: Any
    ) -> Look:
        space = PixelSpace(tuple(images.shape[1:]))
        renderer = space.freeze({"pixels": images}, ["pixels"])
        return look(task, model, renderer, {"pixels": images}, labels, compute.width, **asked)


NEAREST = 2
"""Rivals that `Boundary` never loses sight of."""


class Boundary:
    """The nearest boundary of some rival classes, each linearised where an example stands.

    Attributes:
        classes: the rivals of every example.
        gap: of every example, where it was last linearised: the nearest rival's logit minus the one that it must exceed, and
            minus a little, so that zero is across for certain and nobody gets stuck on the boundary itself.
    """

    def __init__(self, case: Case, classes: Int[Tensor, "b r"], norm: Norm) -> None:
        self.case, self.norm = case, norm
        self.gap = torch.zeros_like(case.distance)
        self.aim_at(classes)

    def aim_at(self, classes: Int[Tensor, "b r"]) -> None:
        """Other rivals from now on."""
        self.classes = classes
        self._lengths = torch.zeros(
            classes.shape, device=classes.device
        )  # way to each rival when it was last looked at
        self._looks = torch.zeros_like(classes[:, 0])

    def linearise(self, images: Images, rows: Rows) -> tuple[Images, Verdicts]:
        """Of examples `rows`, which stand at `images`: the gradient of the gap to the nearest boundary, and who is across.

        An example looks at all its rivals the first time, and later at those that were nearest when last looked at and, in turn, at
        one of the others. With ten classes that is a third of the backward passes, for the same distances.
        """
        first = self._looks[rows] == 0
        if self.classes.shape[1] <= NEAREST + 1 or bool((first == first[0]).all()):
            return self._linearise(images, rows)
        slope, across = torch.empty_like(images), torch.empty_like(first)
        for part in (first.nonzero().squeeze(1), (~first).nonzero().squeeze(1)):
            slope[part], across[part] = self._linearise(images[part], rows[part])
        return slope, across

    def _linearise(self, images: Images, rows: Rows) -> tuple[Images, Verdicts]:
        """`linearise` for rows that look at equally many rivals.

        One backward pass per rival on one graph: on a CPU that takes 0.7 of the time of a batched backward pass and 0.4 of that
        of repeated images.
        """
        case = self.case
        wanted = torch.is_grad_enabled()  # the last look at an example needs no gradient
        x = images.detach().requires_grad_(wanted)
        logits, fooled = case.ask(x, rows)
        seen = self._seen(rows)
        classes, beaten = self.classes[rows].gather(1, seen), case.labels[rows, None]
        if case.must_hit:  # the target must exceed all others, not just the label
            beaten = logits.detach().scatter(1, classes, -float("inf")).argmax(1, keepdim=True)
        gaps = logits.gather(1, classes) - logits.gather(1, beaten)
        columns = gaps.sum(0).unbind() if wanted else ()
        gaps = gaps.detach() - 2 * rounding(logits)[:, None]
        shortest, gap, slope = torch.full_like(gaps[:, 0], torch.inf), gaps[:, 0], torch.zeros_like(images)
        for j, column in enumerate(columns):
            (g,) = torch.autograd.grad(column, x, retain_graph=j + 1 < len(columns))
            length = gaps[:, j].abs() / dual_norm(g, self.norm).clamp(min=1e-12)
            self._lengths[rows, seen[:, j]] = length
            nearer = length < shortest
            shortest = torch.where(nearer, length, shortest)
            gap = torch.where(nearer, gaps[:, j], gap)
            slope = torch.where(per_example(nearer, g), g, slope)
        case.backwards[rows] += len(columns)
        self._looks[rows] += 1
        self.gap[rows] = gap
        return slope, fooled

    def _seen(self, rows: Rows) -> Int[Tensor, "s c"]:
        """Which of its rivals each example looks at."""
        looks, others = self._looks[rows], self.classes.shape[1] - NEAREST
        ranking = self._lengths[rows].argsort(dim=1)
        if others <= 1 or bool((looks == 0).all()):
            return ranking
        far = ranking[:, NEAREST:].sort(dim=1).values  # by their number, so that the turn passes over all
        return torch.cat([ranking[:, :NEAREST], far.gather(1, (looks % others)[:, None])], dim=1)

    def report(self, x: Images, rows: Rows, slope: Images, fooled: Verdicts) -> tuple[PerExample, Verdicts]:
        """What an `Objective` returns whose gradient is `slope`."""
        distance = NORMS[self.norm]((x - self.case.images[rows]).detach())
        zero = ((x - x.detach()) * slope).flatten(1).sum(1)
        return valued(zero, torch.where(fooled, -distance, self.gap[rows])), fooled
