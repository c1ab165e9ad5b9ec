"""Auto-PGD: gradient ascent that sets its own step size, from how the loss of each example has gone so far."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from gat.attacks.ascent import Slots
from gat.attacks.frozen import frozen
from gat.attacks.image_attack import ImageAttack, positions
from gat.attacks.losses import Loss, dlr, margin
from gat.attacks.pgd import ball, uniform_in_ball
from gat.attacks.run import Compute, Outcome, look, run_attack
from gat.attacks.steps import Norm, l2_norm, linf_norm, project
from gat.attacks.worst import merge
from gat.latents import Images, Latents, PerExample, Rows, per_example, take
from gat.protocols import Task
from gat.spaces.pixels import PixelSpace

MAX_SHARE = 0.2  # of all entries that an l1 step moves
WIDE = (3.0, 2.0)  # radii of an l1 attack's first two phases, in eps, each of 30 % of the steps


class APGD(ImageAttack):
    """Auto-PGD (Croce & Hein 2020, algorithm 1; for l1 Croce & Hein 2021), keeping the best iterate of every example.

    An example's step size, momentum and restarts depend on its own losses alone, so it may start, stop and be fooled at any
    time. Against the authors' package: an example leaves once fooled; restarts and targets are tried on what is left; random
    starts are uniform in the ball. The same start gives the same iterates.

    Adapted to few classes: with fewer than 3 classes (4 with targets) the difference of logits ratio is not defined and the
    margin takes its place; there are at most as many targets as other classes.

    Attributes:
        eps: radius of the ball, for images in [0, 1].
        norm: 'linf', 'l2' or 'l1'.
        steps: gradient steps of one attempt.
        loss: 'ce' is the task's own loss, 'dlr' the difference of logits ratio, 'margin' the logits' margin. 'targeted_dlr' aims
            at the likeliest other classes in turn, an attempt each; any wrong answer counts (APGD-T). With a `goal` that
            aims at one class itself it is the same as 'dlr'.
        n_targets: of 'targeted_dlr'.
        restarts: attempts per target, the worst of which counts.
        random_start: begin at a random point of the ball.
        rho: the step size is halved if the loss grew in a smaller share of the last steps (linf and l2).
        wide_start: an l1 attack searches larger balls first.
        eot: passes through the model whose logits are averaged, for models that answer at random (expectation over
            transformation, Athalye et al. 2018). The verdict is that of the average too.
        stop_when_fooled: an example is done once fooled. Off, the iterate of largest loss is returned.
    """

    kind: ClassVar[str] = "additive"
    name: Literal["apgd"] = "apgd"
    eps: float = Field(8 / 255, ge=0)
    norm: Norm = "linf"
    steps: int = Field(100, ge=0)
    loss: Literal["ce", "dlr", "targeted_dlr", "margin"] = "ce"
    n_targets: int = Field(9, ge=1)
    restarts: int = Field(1, ge=1)
    random_start: bool = True
    rho: float = Field(0.75, gt=0, lt=1)
    wide_start: bool = True
    eot: int = Field(1, ge=1)
    stop_when_fooled: bool = True

    def check_task(self, task: str) -> None:
        super().check_task(task)
        if self.loss != "ce" and task != "classification":
            raise ValueError(
                f"loss {self.loss!r} is for classification, not {task}; with loss: ce {self.name} ascends the task's own"
            )

    @property
    def summary(self) -> str:
        parts = [ball(self.norm, self.eps), self.loss, self.goal, f"{self.steps} steps"]
        if self._sweeps:
            parts.append(f"{self.n_targets} targets")
        parts.append(f"{self.restarts} x {'random start' if self.random_start else 'no random start'}")
        if "dlr" in self.loss:
            parts.append("adapted: margin with too few classes")
        if self.norm == "l1" and self.wide_start:
            parts.append("wide start")
        if self.eot > 1:
            parts.append(f"mean of {self.eot} passes")
        return "; ".join(parts)

    @property
    def bounds(self) -> dict[str, float]:
        return {f"{self.norm}_pixels": self.eps}

    @property
    def _sweeps(self) -> bool:
        return self.loss == "targeted_dlr" and self.goal == "loss"

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
        ids = positions(images, ids)
        if self.eot > 1:
            model = MeanOf(model, self.eot)
        rivals = self._rivals(task, model, images, labels, compute) if self._sweeps else None
        attempts = [
            (restart, rank)
            for rank in range(1 if rivals is None else rivals.shape[1])
            for restart in range(self.restarts if self.random_start else 1)
        ]
        total: Outcome | None = None
        todo = torch.arange(len(labels), device=labels.device)
        for restart, rank in attempts:
            if total is not None:
                todo = (total.attacked & ~total.success).nonzero().squeeze(1)
                if len(todo) == 0:
                    break
            aims = targets if rivals is None else rivals[:, rank]
            outcome = self._attempt(
                task, model, images[todo], labels[todo], None if aims is None else aims[todo], ids[todo],
                f"apgd/{rank}/{restart}", compute, record and total is None,
            )  # fmt: skip
            total = outcome if total is None else merge(total, outcome, todo)
        assert total is not None
        if rivals is None:
            return total
        return replace(total, targets=None, forwards=total.forwards + 1)

    def _rivals(
        self, task: Task, model: nn.Module, images: Images, labels: Tensor, compute: Compute
    ) -> Tensor:
        """The likeliest classes besides the label, likeliest first, [b, n]."""
        with frozen(model):
            renderer = PixelSpace(tuple(images.shape[1:])).freeze({"pixels": images}, ["pixels"])
            seen = look(task, model, renderer, {"pixels": images}, labels, compute.width, outputs=True)
        outputs = seen.outputs
        assert outputs is not None
        others = outputs.scatter(1, labels[:, None], -torch.inf)
        return others.topk(min(self.n_targets, outputs.shape[1] - 1), dim=1).indices

    def _attempt(
        self,
        task: Task,
        model: nn.Module,
        images: Images,
        labels: Tensor,
        targets: Tensor | None,
        ids: Rows,
        stream: str,
        compute: Compute,
        record: bool,
    ) -> Outcome:
        """One start, one target; for l1 in balls that shrink to eps."""
        early = round(0.3 * self.steps) if self.norm == "l1" and self.wide_start else 0
        radii = [(factor * self.eps, early) for factor in WIDE if early > 0]
        radii.append((self.eps, self.steps - len(radii) * early))
        start = images
        if self.random_start:
            start = start + uniform_in_ball(images, radii[0][0], self.norm, self.seed, ids, stream)
        passes: list[Outcome] = []
        for phase, (radius, steps) in enumerate(radii, start=1):
            last = phase == len(radii)
            rule = AutoSteps(images, radius, self.norm, steps, self.rho)
            start = project(start, images, radius, self.norm, (0.0, 1.0))
            outcome = run_attack(
                task, model, PixelSpace(tuple(images.shape[1:])), {"pixels": images}, labels, rule, ["pixels"], steps,
                goal="targeted" if self._sweeps else self.goal, targets=targets, must_hit=self.goal == "targeted",
                loss=LOSSES[self.loss], stop_when_fooled=self.stop_when_fooled and last,
                starts=[{"pixels": start}], compute=compute, record=record and last,
            )  # fmt: skip
            start = outcome.latents["pixels"]
            passes.append(outcome)
        for earlier in passes[:-1]:
            outcome.forwards += earlier.forwards
            outcome.backwards += earlier.backwards
            outcome.iterations += earlier.iterations
            outcome.zero_gradients += earlier.zero_gradients
        return outcome


def _dlr_or_margin(
    outputs: Float[Tensor, "b k"], labels: Tensor, targets: Tensor | None = None
) -> PerExample:
    """`dlr` where there are classes enough for it."""
    enough = outputs.shape[1] >= (3 if targets is None else 4)
    return (dlr if enough else margin)(outputs, labels, targets)


LOSSES: dict[str, Loss | None] = {
    "ce": None,
    "dlr": _dlr_or_margin,
    "targeted_dlr": _dlr_or_margin,
    "margin": margin,
}


class MeanOf(nn.Module):
    """A model that answers at random, asked several times: the mean of its logits."""

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.passes = model, passes

    def forward(self, images: Images) -> Tensor:
        return torch.stack([self.model(images) for _ in range(self.passes)]).mean(0)


def checkpoints(steps: int) -> list[int]:
    """Ages at which step sizes are looked at: periods of 22 % of the steps, then 3 % less each, but 6 % at least (
    Croce & Hein 2020)."""
    period, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    ages, age = [], period
    while age < steps:
        ages.append(age)
        period = max(period - shorter, shortest)
        age += period
    return ages


class AutoSteps:
    """The step rule of Auto-PGD: a table of what each example has seen, and steps that follow from it.

    Args:
        images: of all examples, what distances are measured from.
        eps, norm: of the ball.
        steps: that one attempt takes, which its checkpoints are shares of.
        rho: see `APGD`.
    """

    def __init__(self, images: Images, eps: float, norm: Norm, steps: int, rho: float) -> None:
        self.eps, self.norm, self.rho = eps, norm, rho
        n, device = len(images), images.device
        ages = (
            checkpoints(steps) if norm != "l1" else [*range(every := max(int(0.04 * steps), 1), steps, every)]
        )
        self.is_check = torch.zeros(steps + 1, dtype=torch.bool)
        self.period = torch.zeros(steps + 1)
        self.is_check[ages] = True
        self.period[ages] = torch.tensor(ages, dtype=torch.float32).diff(prepend=torch.zeros(1))
        self.is_check, self.period = self.is_check.to(device), self.period.to(device)
        zeros = torch.zeros(n, device=device)
        self.table: Latents = {name: torch.zeros_like(images) for name in ("previous", "best", "slope")}
        # size: of a step. rises: steps since the last check that raised the loss. top, checked_top: largest loss, now and at
        # the last check. kept: 1 if the step size stayed as it was then. share, support: of entries, for l1.
        for name in ("loss", "top", "checked_top", "rises", "size", "kept", "share", "support"):
            self.table[name] = zeros.clone()

    def __call__(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        x, slope, home = latents["pixels"], gradient["pixels"], slots.home["pixels"]
        seen = take(self.table, slots.examples)
        new = slots.age == 0
        rose = slots.loss > seen["loss"]
        better = new | (slots.loss > seen["top"])
        image = per_example(better, x)
        seen["best"] = torch.where(image, x, seen["best"])
        seen["slope"] = torch.where(image, slope, seen["slope"])
        seen["top"] = torch.where(better, slots.loss, seen["top"])
        seen["loss"] = slots.loss
        check = self.is_check[slots.age]
        if self.norm == "l1":
            x, slope = self._resparsify(x, slope, home, seen, new, check)
            step = per_example(seen["size"], x) * sparse_direction(slope, seen["share"])
            moved = self._inside(x + step, home)
        else:
            seen["rises"] = torch.where(new, 0.0, seen["rises"] + rose)
            x, slope = self._reconsider(x, slope, seen, new, check, self.period[slots.age])
            reached = self._inside(x + per_example(seen["size"], x) * self._direction(slope), home)
            drift = torch.where(
                per_example(new, x), 0.0, 0.25 * (x - seen["previous"]) + 0.25 * (x - reached)
            )
            moved = self._inside(reached + drift, home)
        seen["previous"] = x
        for name, value in seen.items():
            self.table[name][slots.examples] = value
        return {"pixels": moved}

    def _reconsider(
        self, x: Images, slope: Images, seen: Latents, new: Tensor, check: Tensor, period: PerExample
    ) -> tuple[Images, Images]:
        """At a check: halve the step and go back to the best image if the loss rose too seldom, or if neither the step size nor the
        largest loss have changed since the last check (their conditions 1 and 2)."""
        seen["size"] = torch.where(new, 2 * self.eps, seen["size"])
        stuck = seen["rises"] <= self.rho * period
        stuck = stuck | ((seen["kept"] > 0) & (seen["checked_top"] >= seen["top"]) & ~new)
        back = check & stuck
        seen["size"] = torch.where(back, seen["size"] / 2, seen["size"])
        seen["kept"] = torch.where(check, (~back).float(), torch.where(new, 0.0, seen["kept"]))
        seen["checked_top"] = torch.where(check | new, seen["top"], seen["checked_top"])
        seen["rises"] = torch.where(check, 0.0, seen["rises"])
        image = per_example(back, x)
        return torch.where(image, seen["best"], x), torch.where(image, seen["slope"], slope)

    def _resparsify(
        self, x: Images, slope: Images, home: Images, seen: Latents, new: Tensor, check: Tensor
    ) -> tuple[Images, Images]:
        """At a check: move fewer entries, as few as the best offset has (over 1.5). If it has become sparser, start from it again
        with long steps, otherwise shorten them (Croce & Hein 2021)."""
        n = x[0].numel()
        support = (seen["best"] != home).flatten(1).sum(1).float()
        sparser = check & (support < 0.95 * seen["support"])
        size = (seen["size"] / 1.5).clamp(min=self.eps / 10)
        seen["size"] = torch.where(check, torch.where(sparser, self.eps, size), seen["size"])
        seen["size"] = torch.where(new, self.eps, seen["size"])
        moves_all = new & (support == 0)
        share = torch.where(moves_all, MAX_SHARE, support / n / 1.5)
        seen["share"] = torch.where(check | new, share, seen["share"])
        seen["support"] = torch.where(check | new, torch.where(moves_all, n, support), seen["support"])
        image = per_example(sparser, x)
        return torch.where(image, seen["best"], x), torch.where(image, seen["slope"], slope)

    def _direction(self, slope: Images) -> Images:
        if self.norm == "linf":
            return slope.sign()
        slope = slope / per_example(linf_norm(slope).clamp(min=1e-30), slope)  # or tiny squares vanish
        return slope / per_example(l2_norm(slope).clamp(min=1e-12), slope)

    def _inside(self, x: Images, home: Images) -> Images:
        return project(x, home, self.eps, self.norm, (0.0, 1.0))


def sparse_direction(gradient: Images, share: PerExample) -> Images:
    """Signs of the largest entries of each gradient, scaled to length 1 in l1; zero where the gradient is zero.

    Args:
        share: of all entries, MAX_SHARE at most; at least one entry is taken.
    """
    flat = gradient.flatten(1)
    size = flat.abs()
    n = size.shape[1]
    most = max(1, round(MAX_SHARE * n))
    count = (share * n).round().long().clamp(1, most)
    smallest = size.topk(most, dim=1).values.gather(1, count[:, None] - 1)
    signs = torch.where(size >= smallest, flat.sign(), 0.0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1.0)).reshape(gradient.shape)
