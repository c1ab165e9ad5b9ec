"""Attacks on the pixels of an image that a segmenter labels: PGD that looks at every labelled pixel by itself.

The mean loss of an image is a poor guide: pixels that are wrong already go on adding to it. SegPGD and CosPGD weigh pixels, so that the
gradient is about those that are still right. What they weigh differs from step to step, so it cannot tell which iterate was best;
that is judged by the share of pixels that are wrong.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from gat.attacks.ascent import Move, Slots
from gat.attacks.losses import Loss
from gat.attacks.objective import AnyLoss
from gat.attacks.pgd import PGD
from gat.attacks.steps import Steps
from gat.latents import Latents, PerExample, Rows, per_example
from gat.logits import IGNORE

Logits = Float[Tensor, "b k h w"]
LabelMaps = Int64[Tensor, "b h w"]
PixelWeights = Float[Tensor, "b h w"]


class SegPGD(PGD):
    """SegPGD (Gu et al. 2022, Algorithm 1): pixels that are still right weigh 1 - t / 2T in step t = 0, 1, ... of T, those that are wrong
    t / 2T, which is nothing at first and as much as the others in the end. With targets, those that are not the target yet have the
    larger weight.

    Attributes:
        eps, norm, steps, step_size, random_start, restarts, stop_when_fooled: as of `PGD`. The best iterate has the most wrong pixels.
    """

    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)
    name: Literal["segpgd"] = "segpgd"  # type: ignore[assignment]

    def _guide(self, steps: Steps, labels: Tensor) -> tuple[Move, AnyLoss | None]:
        return weigh_pixels("segpgd", steps, self.steps, labels)


class CosPGD(PGD):
    """CosPGD (Agnihotri et al. 2024): a pixel weighs as much as the predicted probabilities point in the direction of its
    label, the cosine of the angle between them and the one-hot label; with targets, one minus that of the target.

    Attributes:
        eps, norm, steps, step_size, random_start, restarts, stop_when_fooled: as of `PGD`. The best iterate has the most wrong pixels.
    """

    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)
    name: Literal["cospgd"] = "cospgd"  # type: ignore[assignment]

    def _guide(self, steps: Steps, labels: Tensor) -> tuple[Move, AnyLoss | None]:
        return weigh_pixels("cospgd", steps, self.steps, labels)


def weigh_pixels(
    like: Literal["segpgd", "cospgd"], steps: Steps, num_steps: int, labels: LabelMaps
) -> tuple[Move, AnyLoss]:
    """The step rule and the loss of an attack on the latents of these label maps, by `num_steps` steps."""
    if like == "cospgd":
        return steps, cospgd_loss
    pace = Pace(steps, len(labels), num_steps, labels.device)
    return pace, SegPGDLoss(pace)


class Pace:
    """A step rule that also remembers how many steps each example has taken, and forgets it with the last one.

    Args:
        move: the step rule.
        num_examples: in the batch.
        num_steps: of an attempt.
    """

    def __init__(self, move: Move, num_examples: int, num_steps: int, device: torch.device) -> None:
        self.move, self.num_steps = move, num_steps
        self.taken: Int[Tensor, " n"] = torch.zeros(num_examples, dtype=torch.long, device=device)

    def __call__(self, latents: Latents, gradient: Latents, slots: Slots) -> Latents:
        after = torch.where(slots.age + 1 < self.num_steps, slots.age + 1, 0)
        self.taken[slots.examples] = torch.where(slots.finished, 0, after)
        return self.move(latents, gradient, slots)

    def progress(self, rows: Rows) -> PerExample:
        """Share of the steps that is behind these examples, below 1."""
        return self.taken[rows].float() / max(self.num_steps, 1)


class SegPGDLoss:
    """Of every example at its own step; see `SegPGD`."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def of(self, rows: Rows) -> Loss:
        late = self.pace.progress(rows) / 2

        def loss(outputs: Logits, labels: Tensor, targets: Tensor | None) -> PerExample:
            aim = labels if targets is None else targets
            is_aim, weight = outputs.argmax(1) == aim, per_example(late, outputs[:, 0])
            done = ~is_aim if targets is None else is_aim
            return weighted(outputs, labels, targets, torch.where(done, weight, 1 - weight))

        return loss


def cospgd_loss(outputs: Logits, labels: Tensor, targets: Tensor | None) -> PerExample:
    """See `CosPGD`."""
    aim = labels if targets is None else targets
    probabilities = outputs.detach().float().softmax(1)
    own = torch.where(aim == IGNORE, 0, aim)[:, None]
    cosine = probabilities.gather(1, own).squeeze(1) / probabilities.norm(dim=1)
    return weighted(outputs, labels, targets, cosine if targets is None else 1 - cosine)


def weighted(
    outputs: Logits, labels: LabelMaps, targets: LabelMaps | None, weights: PixelWeights
) -> PerExample:
    """What has the gradient of the weighted mean cross entropy over the pixels that count, but the value of the share of them that
    are wrong (with targets, that are the target). The weights are constants."""
    aim = labels if targets is None else targets
    counts: Bool[Tensor, "b h w"] = aim != IGNORE
    num = counts.sum((1, 2)).clamp(min=1)
    pixels = F.cross_entropy(outputs.float(), aim, reduction="none", ignore_index=IGNORE)
    guide = (weights.detach() * pixels).sum((1, 2)) / num
    is_aim = outputs.argmax(1) == aim
    if targets is not None:
        guide, reached = -guide, is_aim
    else:
        reached = ~is_aim
    share = (reached & counts).sum((1, 2)) / num
    return share + (guide - guide.detach())
