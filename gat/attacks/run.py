"""One attack on one batch, from start to verdict: the part that all attacks share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gat.attacks.ascent import Keep, Move, ascend
from gat.attacks.frozen import frozen
from gat.attacks.objective import AnyLoss, Penalty, TaskObjective, mixed_precision
from gat.attacks.steps import l2_norm, linf_norm
from gat.latents import Images, Latents, PerExample, Verdicts, split, take
from gat.protocols import Renderer, Space, Task

Goal = Literal["loss", "least_likely", "targeted"]
# Of attacks that can also draw what they aim at.
DrawnGoal = Literal["loss", "least_likely", "random", "targeted"]


@dataclass
class Outcome:
    """What an attack did to every example, in order. Everything was measured in float32 outside the attack's loop.

    Attributes:
        start_images, images: before and after.
        latents: the moved latents after the attack.
        clean_predictions, predictions: the model's answers to those.
        attacked: right at the start; the others are left alone.
        success: attacked, and fooled after (targeted: answering the target).
        iterations: gradient steps until fooled, or all that were taken; 0 if the start was wrong already.
        loss: the task's loss on the true label, after.
        distances: 'linf_pixels', 'l2_pixels', 'l1_pixels' between the images; 'linf_<kind>', 'l2_<kind>' for every kind of latent moved.
        forwards, backwards: passes through the attacked model, the two outside the loop included.
        zero_gradients: steps at which the attack saw no gradient.
        targets: classes aimed at, if any.
        trajectory: with `record`, images of every iterate, [t, b, c, h, w].
    """

    start_images: Images
    images: Images
    latents: Latents
    clean_predictions: Tensor
    predictions: Tensor
    attacked: Verdicts
    success: Verdicts
    iterations: Int[Tensor, " b"]
    loss: PerExample
    distances: dict[str, PerExample]
    forwards: Int[Tensor, " b"]
    backwards: Int[Tensor, " b"]
    zero_gradients: Int[Tensor, " b"]
    targets: Tensor | None = None
    trajectory: Float[Tensor, "t b c h w"] | None = None


@dataclass(frozen=True)
class Compute:
    """How to compute, never what.

    Attributes:
        width: batch size of every pass.
        autocast: mixed precision inside the loop; None is float32.
        gradient_scale: of losses, against float16 underflow.
        sync_every: see `ascend`.
    """

    width: int = 128
    autocast: torch.dtype | None = None
    gradient_scale: float = 1.0
    sync_every: int | None = None

    @classmethod
    def of(cls, mixed_precision: str, width: int = 128) -> "Compute":
        """From Accelerate's 'no', 'bf16' or 'fp16'."""
        dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
        return cls(width, dtype, 2.0**12 if dtype == torch.float16 else 1.0)


@dataclass
class Look:
    """The model's float32 view of some images.

    Attributes:
        hit: whether the answer is the target; None without targets.
        least_likely: what the answer is furthest from; None if it was not asked for.
        outputs: of the model; None if they were not asked for.
    """

    images: Images
    loss: PerExample
    wrong: Verdicts
    predictions: Tensor
    hit: Verdicts | None = None
    least_likely: Tensor | None = None
    outputs: Tensor | None = None

    def fooled(self, must_hit: bool) -> Verdicts:
        """Wrong, or with `must_hit` the target."""
        return self.hit if must_hit and self.hit is not None else self.wrong


@torch.no_grad()
def look(
    task: Task,
    model: nn.Module,
    renderer: Renderer,
    moved: Latents,
    labels: Tensor,
    width: int,
    *,
    targets: Tensor | None = None,
    least_likely: bool = False,
    outputs: bool = False,
) -> Look:
    """Render and judge all examples in batches of `width`, in float32, whatever precision the attack uses.

    What a model returns is the task's to read: it may be anything, and is only kept, as one tensor, if `outputs` asks for it.
    """
    seen: dict[str, list[Tensor]] = {}
    with mixed_precision(labels.device, None):
        for rows in torch.arange(len(labels), device=labels.device).split(width):
            images = renderer(take(moved, rows), rows).float()
            answer, own = model(images), labels[rows]
            part = {
                "images": images,
                "loss": task.loss(answer, own),
                "wrong": task.wrong(answer, own),
                "predictions": task.predict(answer),
            }
            if targets is not None:
                part["hit"] = task.hit(answer, targets[rows])
            if least_likely:
                part["least_likely"] = task.least_likely(answer, own)
            if outputs:
                part["outputs"] = answer.float()
            for name, value in part.items():
                seen.setdefault(name, []).append(value)
    return Look(**{name: torch.cat(values) for name, values in seen.items()})


def choose_targets(before: Look, labels: Tensor, goal: DrawnGoal, targets: Tensor | None) -> Tensor | None:
    """What to aim at: nothing, the least likely answer of each example (but never its label), or the given ones.

    Raises:
        ValueError: for a targeted attack without targets or with one that is the label.
    """
    if goal == "loss":
        return None
    if goal == "least_likely":
        return before.least_likely
    if targets is None:
        raise ValueError(f"an attack with goal '{goal}' needs targets, one per example")
    if goal == "random":  # an image without anything to aim at draws its own label
        return targets
    same = (targets == labels).flatten(1).all(1) if labels.ndim > 1 else targets == labels
    if bool(same.any()):
        raise ValueError(f"{int(same.sum())} targets equal the label; aim at something else")
    return targets


def run_attack(
    task: Task,
    model: nn.Module,
    space: Space,
    latents: Latents,
    labels: Tensor,
    move: Move,
    moved: Sequence[str],
    max_steps: int,
    *,
    goal: DrawnGoal = "loss",
    targets: Tensor | None = None,
    stop_when_fooled: bool = True,
    keep: Keep = "best",
    starts: Sequence[Latents] | None = None,
    loss: AnyLoss | None = None,
    penalty: Penalty | None = None,
    must_hit: bool | None = None,
    use_gradient: bool = True,
    compute: Compute | None = None,
    record: bool = False,
) -> Outcome:
    """Attack every example the model gets right at its start; the others are left alone.

    The model is used in eval mode and left exactly as found: mode, parameters, `.grad`, batch-norm statistics, global random
    state.

    Args:
        latents: of all sites, where the attack begins.
        moved: names of the sites that move.
        goal: 'loss' ascends the true label's loss; 'least_likely' descends that of the class least likely at the start (the
            paper's choice); 'random' descends that of `targets`, which the caller has drawn; 'targeted' does too, and only counts
            hits.
        starts: alternative first iterates of the moved sites (random restarts), tried in turn on what is not fooled yet;
            distances are measured from `latents` all the same.
        loss: what to ascend instead of the task's loss, see `gat.attacks.losses` and `gat.attacks.objective`.
        penalty: see `gat.attacks.objective`. An image that it does not allow is no success; asked once more in the end.
        use_gradient: see `ascend`.
        must_hit: whether only a target counts as success; None: for goal 'targeted'.

    Returns:
        Distances, iterations and passes are summed over restarts, everything else is of the best iterate.
    """
    compute = compute or Compute()
    device = labels.device
    home, _ = split(latents, moved)
    with frozen(model):
        renderer = space.freeze(latents, moved)
        before = look(task, model, renderer, home, labels, compute.width, least_likely=goal == "least_likely")
        targets = choose_targets(before, labels, goal, targets)
        must_hit = goal == "targeted" if must_hit is None else must_hit
        objective = TaskObjective(
            task, model, renderer, labels, targets, must_hit, compute.autocast, loss, penalty
        )

        best = {name: value.clone() for name, value in home.items()}
        n = len(labels)
        fooled = torch.zeros(n, dtype=torch.bool, device=device)
        highest = torch.full([n], -torch.inf, device=device)
        iterations, zero_gradients = (
            torch.zeros(n, dtype=torch.long, device=device),
            torch.zeros(n, dtype=torch.long, device=device),
        )
        forwards, backwards = (
            torch.full([n], 2, device=device),
            torch.zeros(n, dtype=torch.long, device=device),
        )
        trajectory = None
        for attempt in starts or [home]:
            todo = (~before.wrong & ~fooled).nonzero().squeeze(1)
            if len(todo) == 0:
                break
            ascent = ascend(
                objective,
                take(attempt, todo),
                move,
                max_steps,
                stop_when_fooled=stop_when_fooled,
                keep=keep,
                width=compute.width,
                examples=todo,
                center=take(home, todo),
                sync_every=compute.sync_every,
                gradient_scale=compute.gradient_scale,
                use_gradient=use_gradient,
                record=objective.frames if record else None,
            )
            better = (ascent.fooled & ~fooled[todo]) | (ascent.loss > highest[todo])
            won = todo[better]
            for name, value in ascent.latents.items():
                best[name][won] = value[better]
            highest[won], fooled[won] = ascent.loss[better], ascent.fooled[better]
            iterations[todo] += ascent.iterations
            forwards[todo] += ascent.forwards
            backwards[todo] += ascent.backwards
            zero_gradients[todo] += ascent.zero_gradients
            if ascent.trajectory is not None:
                trajectory = before.images.expand(max_steps + 1, *before.images.shape).clone()
                trajectory[:, todo] = ascent.trajectory
        if record and trajectory is None:  # nobody was attacked: everyone stands still
            trajectory = before.images.expand(max_steps + 1, *before.images.shape)
        after = look(task, model, renderer, best, labels, compute.width, targets=targets)
        hit = after.fooled(must_hit)
        if penalty is not None:
            hit = hit & _allowed(penalty, best, after.images, compute.width)
    return Outcome(
        start_images=before.images,
        images=after.images,
        latents=best,
        clean_predictions=before.predictions,
        predictions=after.predictions,
        attacked=~before.wrong,
        success=hit & ~before.wrong,
        iterations=iterations,
        loss=after.loss,
        distances=_distances(home, best, before.images, after.images),
        forwards=forwards,
        backwards=backwards,
        zero_gradients=zero_gradients,
        targets=targets,
        trajectory=trajectory,
    )


@torch.no_grad()
def _allowed(penalty: Penalty, latents: Latents, images: Images, width: int) -> Verdicts:
    """What `penalty` says of the final images, in float32."""
    everyone = torch.arange(len(images), device=images.device)
    with mixed_precision(images.device, None):
        return torch.cat(
            [penalty(take(latents, rows), images[rows], rows)[1] for rows in everyone.split(width)]
        )


def _distances(home: Latents, best: Latents, start_images: Tensor, images: Tensor) -> dict[str, PerExample]:
    change = images - start_images
    distances = {
        "linf_pixels": linf_norm(change),
        "l2_pixels": l2_norm(change),
        "l1_pixels": change.flatten(1).abs().sum(1),
    }
    kinds: dict[str, list[Tensor]] = {}
    for name, value in best.items():
        kinds.setdefault(name.split("/")[0], []).append((value - home[name]).flatten(1))
    for kind, offsets in kinds.items():
        offset = torch.cat(offsets, dim=1)
        distances[f"linf_{kind}"], distances[f"l2_{kind}"] = linf_norm(offset), l2_norm(offset)
    return distances
