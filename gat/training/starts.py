"""What adversarial training on renderings attacks, and what becomes of it."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from gat.attacks import LatentAttack, Outcome
from gat.latents import Images, PerExample, Rows, Verdicts


class Starts(NamedTuple):
    """Where the attacks of one or more steps begin, a row each.

    Attributes:
        conditions: what the generator draws it from.
        labels: what it shows.
        ids: with the method's seed, the random latents. On the CPU, like `turns`.
        turns: which of the rotation's attacks it gets.
    """

    conditions: Tensor
    labels: Tensor
    ids: Rows
    turns: Rows

    def first(self, count: int) -> "Starts":
        """As many of them."""
        return Starts(*(part[:count] for part in self))


class Moved(NamedTuple):
    """What has become of starts, a row for each of `images`, which are those to train on. Several may come from one start.

    Attributes:
        rows: which start.
        usable: whether it is to be trained on.
        due: whether its start is, by `start_weight`: once for each start, and not for those that fooled without being attacked.
    """

    images: Images
    rows: Rows
    start_images: Images
    usable: Verdicts
    due: Verdicts


class Fooled(NamedTuple):
    """What finished attacks did, a row for each of `images`, which are those to train on. Several may come from one start.

    Attributes:
        rows: which start.
        score: the model's on the attack's last image.
    """

    images: Images
    rows: Rows
    start_images: Images
    attacked: Verdicts
    success: Verdicts
    iterations: Tensor
    score: PerExample

    def facts(self) -> dict[str, float]:
        """For the log."""
        fooled = self.success.any()
        return {
            "fooled_share": float(self.success.float().sum() / max(len(self.success), 1)),
            "iterations": float(self.iterations[self.success].float().mean()) if fooled else 0.0,
            "score": float(self.score.sum() / max(len(self.score), 1)),
        }


Found = TypeVar("Found", Moved, Fooled)


def in_order(parts: Sequence[Found]) -> Found:
    """All of them, in the order of their starts."""
    kind = type(parts[0])
    everything = [torch.cat(column) for column in zip(*parts, strict=True)]
    order = kind(*everything).rows.argsort(stable=True)
    return kind(*(column[order] for column in everything))


def _steps_taken(outcome: Outcome, attack: LatentAttack) -> Tensor:
    """How far every recorded trajectory goes."""
    assert outcome.trajectory is not None
    last = len(outcome.trajectory) - 1
    return outcome.iterations if attack.stop_when_fooled else last * outcome.attacked


def iterate(outcome: Outcome, attack: LatentAttack, place: PerExample) -> Images:
    """Of every recorded trajectory the image at `place` between the first step (0) and the last (1); the start, if it has no step."""
    assert outcome.trajectory is not None
    taken = _steps_taken(outcome, attack)
    step = (1 + (place * taken).long()).minimum(taken)
    return outcome.trajectory[step, torch.arange(len(step), device=step.device)]


def iterates(outcome: Outcome, attack: LatentAttack) -> tuple[Images, Rows]:
    """All images of the recorded trajectories but their starts, and which start each came from."""
    assert outcome.trajectory is not None
    taken = _steps_taken(outcome, attack)
    step, row = (
        torch.arange(1, len(outcome.trajectory), device=taken.device)[:, None] <= taken[None]
    ).nonzero(as_tuple=True)
    return outcome.trajectory[1 + step, row], row
