"""Gradient ascent on latents: the one loop behind every attack of this project.

Examples are independent. Each occupies a slot until it is finished (fooled, or out of steps); then its slot goes to the next
example in the queue. So the batch that runs through the model stays full and equally wide until the queue is empty, and no
pass is spent on an example that is already done.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gat.latents import Latents, PerExample, Rows, Verdicts, num_examples, per_example, take
from gat.protocols import Objective


@dataclass
class Ascent:
    """What came of every example, in the order of the start.

    Attributes:
        latents: the best iterate: one that fools if there is one, then the one of largest loss (`keep='last'`: the last).
        loss, fooled: of that iterate.
        iterations: steps from the start to it if it fools, else all that were taken.
        forwards, backwards: passes through the objective.
        zero_gradients: steps whose gradient was zero or not a number everywhere. Many of them mean that the attack could not
            see, not that the model is robust.
        trajectory: what `record` gave of every iterate, [max_steps + 1, b, ...]; after an example is finished its last one repeats.
    """

    latents: Latents
    loss: PerExample
    fooled: Verdicts
    iterations: Int[Tensor, " b"]
    forwards: Int[Tensor, " b"]
    backwards: Int[Tensor, " b"]
    zero_gradients: Int[Tensor, " b"]
    trajectory: Float[Tensor, "t b ..."] | None = None


def gradient(
    objective: Objective, latents: Latents, rows: Tensor, scale: float
) -> tuple[Latents, PerExample, Verdicts]:
    """Gradient of every example's own loss with respect to its own latents; nothing else is written anywhere. What is not a number
    in it is zero, and infinity the largest number. Latents that already ask for gradients are taken as they are, so that the objective
    may have rendered them before."""
    leaves = {
        name: value if value.requires_grad else value.detach().requires_grad_()
        for name, value in latents.items()
    }
    with torch.enable_grad():
        loss, fooled = objective(leaves, rows)
        total = (loss.float() * scale).sum()
    # The sum keeps examples apart: each latent only reaches its own term. A site the image does not depend on has no gradient.
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    found = {
        name: torch.zeros_like(leaf) if g is None else torch.nan_to_num(g.float())
        for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
    }
    return found, loss.detach().float(), fooled


def _blind(gradients: Latents) -> Bool[Tensor, " b"]:
    """Examples whose gradient is zero everywhere. Few passes over each site: on SPADE's maps the loop's own cost is memory traffic."""
    peaks = [g.flatten(1).abs().amax(1) for g in gradients.values()]
    return torch.stack(peaks).amax(0) == 0


def _choose(new: Latents, old: Latents, where: Bool[Tensor, " b"]) -> Latents:
    """The new ones of these examples, the old ones of the others. Only a CPU is asked whether that is all of them, the common case:
    a device would have to be waited for."""
    if where.device.type == "cpu" and bool(where.all()):
        return dict(new)
    return {name: torch.where(per_example(where, value), value, old[name]) for name, value in new.items()}


Keep = Literal["best", "last", "nearest"]


@dataclass
class Slots:
    """The examples that are running, one per slot, and the best iterate of each so far.

    A step rule may read all of it. One with a memory (momentum, schedules) keeps tables with a row per example of the batch,
    reads and writes rows `examples`, and starts anew where `age` is 0: slots change hands, examples do not.

    Attributes:
        rows: position in the start.
        examples: index of the example in the batch, what the objective is asked about.
        latents: the current iterate.
        home: what distances are measured from.
        loss, fooled: of the current iterate.
        best, best_loss, best_fooled: of the best iterate so far, the current one included.
        best_distance: of the best iterate from home; only followed with keep='nearest'.
        iterations: steps until the first iterate that fooled.
        age: steps taken.
        finished: waits for its slot to be handed on.
    """

    rows: Int[Tensor, " s"]
    examples: Int[Tensor, " s"]
    latents: Latents
    home: Latents
    loss: PerExample
    fooled: Verdicts
    best: Latents
    best_loss: PerExample
    best_fooled: Verdicts
    best_distance: PerExample
    iterations: Int[Tensor, " s"]
    age: Int[Tensor, " s"]
    finished: Bool[Tensor, " s"]

    @classmethod
    def open(cls, rows: Tensor, examples: Tensor, start: Latents, center: Latents) -> "Slots":
        """Fresh slots for rows `rows` of the start."""
        zeros = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        lowest = torch.full([len(rows)], -torch.inf, device=rows.device)
        return cls(
            rows=rows,
            examples=examples[rows],
            latents=take(start, rows),
            home=take(center, rows),
            loss=lowest,
            fooled=zeros.bool(),
            best=take(start, rows),
            best_loss=lowest,
            best_fooled=zeros.bool(),
            best_distance=-lowest,
            iterations=zeros,
            age=zeros,
            finished=zeros.bool(),
        )

    def keep(self, loss: PerExample, fooled: Verdicts, keep: Keep) -> None:
        """Let the current iterate be the best where it is: fooling beats not fooling, then a larger loss wins, or, of two that
        fool with keep='nearest', the one closer to home."""
        self.loss, self.fooled = loss, fooled
        greater = loss > self.best_loss
        if keep == "nearest":
            squares = [
                (value - self.home[name]).flatten(1).square().sum(1) for name, value in self.latents.items()
            ]
            distance = torch.stack(squares).sum(0).sqrt()
            greater = torch.where(fooled, distance < self.best_distance, greater)
        better = (fooled & ~self.best_fooled) | ((fooled == self.best_fooled) & greater) | (self.age == 0)
        better = (better | (keep == "last")) & ~self.finished
        self.iterations = torch.where(~self.finished & ~self.best_fooled, self.age, self.iterations)
        if keep == "nearest":
            self.best_distance = torch.where(better, distance, self.best_distance)
        self.best = _choose(self.latents, self.best, better)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best_fooled = torch.where(better, fooled, self.best_fooled)

    def step(self, uphill: Latents, move: "Move", running: Bool[Tensor, " s"], stay: bool) -> None:
        """Move the running ones. The others need not `stay` where they are if their slots are about to be handed on: what is left
        of them is in `best`."""
        stepped = move(self.latents, uphill, self)
        self.latents = _choose(stepped, self.latents, running) if stay else stepped
        self.age = self.age + running.long()

    def write(self, slots: Tensor, result: Ascent) -> None:
        """The outcome of these slots. Each example owns one row of the result."""
        rows = self.rows[slots]
        for name, value in self.best.items():
            result.latents[name][rows] = value[slots]
        result.loss[rows], result.fooled[rows] = self.best_loss[slots], self.best_fooled[slots]
        result.iterations[rows] = self.iterations[slots]

    def refill(self, free: Tensor, newcomers: "Slots") -> "Slots":
        """`newcomers` take the first of the free slots; those that are left over close."""
        order = torch.arange(len(self.rows), device=free.device)
        order[free[: len(newcomers.rows)]] = len(order) + torch.arange(
            len(newcomers.rows), device=free.device
        )
        left = torch.ones_like(order, dtype=torch.bool)
        left[free[len(newcomers.rows) :]] = False
        order = order[left]
        theirs = vars(newcomers)
        merged: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, dict):
                merged[name] = {k: torch.cat([v, theirs[name][k]])[order] for k, v in value.items()}
            else:
                merged[name] = torch.cat([value, theirs[name]])[order]
        return Slots(**merged)


Record = Callable[[Latents, Rows], Tensor]
"""Current iterates, which examples they are -> what to keep of each, [b, ...]."""

Move = Callable[[Latents, Latents, Slots], Latents]
"""Latents, their gradient, the slots they are in -> latents one step uphill, as new tensors: the given ones may be the best so far.
What it says of `Slots.finished` ones is not looked at."""


@torch.no_grad()
def ascend(
    objective: Objective,
    start: Latents,
    move: Move,
    max_steps: int,
    *,
    stop_when_fooled: bool = True,
    keep: Keep = "best",
    width: int = 128,
    examples: Tensor | None = None,
    center: Latents | None = None,
    sync_every: int | None = None,
    gradient_scale: float = 1.0,
    use_gradient: bool = True,
    record: Record | None = None,
) -> Ascent:
    """Move every example uphill on its loss.

    Args:
        objective: see `gat.protocols.Objective`.
        start: the latents that move, float32, [b, ...].
        move: the step rule, for example `gat.attacks.steps.Steps`.
        max_steps: gradient steps at most; 0 only evaluates the start.
        stop_when_fooled: an example is finished with its first iterate that fools (Sec. 4.1 of the paper); otherwise it
            always takes all steps.
        keep: of examples that are not stopped early the 'best' iterate (fooling, then largest loss), the 'last', or the 'nearest'
            to home among those that fool.
        width: slots, that is the batch size of every pass; the last examples run in a narrower one.
        examples: which examples of the objective the start holds; None is all of them, in order.
        center: what `move` measures distances from, where that is not the start (random starts).
        sync_every: steps between two looks at which slots are free; each look waits for the device. None: every step on a
            CPU, every 4th elsewhere. Finished examples stand still in between, so results do not depend on it.
        gradient_scale: multiplies losses before differentiation, against underflow in float16; directions do not change.
        use_gradient: False is for search without gradients: `move` gets none, and no backward pass is made.
        record: what to keep of every iterate, such as its image; asked right after the objective. None keeps nothing.

    Raises:
        ValueError: for a start without examples or a bad option.
    """
    n = num_examples(start)
    if keep not in get_args(Keep):
        raise ValueError(f"keep must be one of {', '.join(get_args(Keep))}, got {keep!r}")
    if n == 0 or max_steps < 0 or width < 1:
        raise ValueError(
            f"need at least one example, one slot and no negative steps; got {n}, {width}, {max_steps}"
        )
    device = next(iter(start.values())).device
    sync_every = sync_every or (1 if device.type == "cpu" else 4)
    center = start if center is None else center
    examples = torch.arange(n, device=device) if examples is None else examples

    zeros = torch.zeros(n, dtype=torch.long, device=device)
    result = Ascent(
        latents={name: value.clone() for name, value in start.items()},
        loss=torch.full([n], -torch.inf, device=device),
        fooled=zeros.bool(),
        iterations=zeros.clone(),
        forwards=zeros.clone(),
        backwards=zeros.clone(),
        zero_gradients=zeros.clone(),
    )
    taken = zeros.clone()

    queued = min(width, n)
    slots = Slots.open(torch.arange(queued, device=device), examples, start, center)
    turn = lockstep_age = 0
    while len(slots.rows):
        # 1. Look: loss and verdict of the current iterate, and the way up from it. Examples that all take all steps are of
        #    one age, so the host knows without asking when the last look needs no gradient.
        rows, running = slots.rows, ~slots.finished
        uphill: Latents | None
        last = max_steps == 0 or (not stop_when_fooled and lockstep_age == max_steps)
        if last or not use_gradient:
            loss, fooled = objective(slots.latents, slots.examples)
            loss, uphill = loss.float(), None if last else {}
        else:
            uphill, loss, fooled = gradient(objective, slots.latents, slots.examples, gradient_scale)
            result.backwards[rows] += running.long()
        result.forwards[rows] += running.long()
        if record is not None:
            frame = record(slots.latents, slots.examples)
            if result.trajectory is None:
                result.trajectory = frame.new_empty(max_steps + 1, n, *frame.shape[1:])
            result.trajectory[slots.age, rows], taken[rows] = frame, slots.age

        # 2. Keep it if it is the best so far.
        slots.keep(loss, fooled, keep)

        # 3. Step, unless this was an example's last look.
        turn += 1
        last_look = not stop_when_fooled and lockstep_age >= max_steps
        hand_on = turn % sync_every == 0 or last_look
        slots.finished = slots.finished | (slots.age >= max_steps)
        if stop_when_fooled:
            slots.finished = slots.finished | fooled
        if uphill is not None:
            running = ~slots.finished
            if uphill:
                result.zero_gradients[rows] += (running & _blind(uphill)).long()
            slots.step(uphill, move, running, stay=not hand_on)
        lockstep_age += 1

        # 4. Hand the slots of finished examples on.
        if hand_on:
            free = slots.finished.nonzero().squeeze(1)
            if len(free):
                slots.write(free, result)
                newcomers = torch.arange(queued, min(queued + len(free), n), device=device)
                queued += len(newcomers)
                slots = slots.refill(free, Slots.open(newcomers, examples, start, center))
                lockstep_age = 0
    if result.trajectory is not None:
        step = torch.arange(max_steps + 1, device=device)[:, None].minimum(taken[None, :])
        result.trajectory = result.trajectory[step, torch.arange(n, device=device)]
    return result
