"""What an attack on a classifier may ascend: functions (logits, labels, targets) -> loss per example, large where it succeeds.

Without targets the loss grows as the label loses; with them it grows as the target wins. All are computed in float32.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from gat.latents import PerExample
from gat.protocols import Task

Logits = Float[Tensor, "b k"]
Loss = Callable[[Any, Tensor, Tensor | None], PerExample]


@runtime_checkable
class HasMargin(Protocol):
    """A task that can say by how much an answer is right."""

    def margin(self, outputs: Any, labels: Tensor) -> PerExample:
        """By how much the label leads: positive where the answer is right."""
        ...


def margin_of(task: Task) -> Loss | None:
    """How much the label has lost its lead, or the target won it: for classifiers the `margin` below, for other tasks what they call
    so. None, the task's loss, for a task without."""
    if not isinstance(task, HasMargin):
        return None

    def loss(outputs: Any, labels: Tensor, targets: Tensor | None) -> PerExample:
        return -task.margin(outputs, labels) if targets is None else task.margin(outputs, targets)

    return loss


def contrast_of(task: Task) -> Loss:
    """How much more the model's answer is like the target than like the label: the difference of their losses. What label and target
    share cancels. Of logits [b, k] it is the target's minus the label's.

    Descending a target's loss alone also improves whatever the target has in common with the label, such as the boxes of objects.
    """

    def loss(outputs: Any, labels: Tensor, targets: Tensor | None) -> PerExample:
        if targets is None:
            raise ValueError(
                "contrast needs an answer to aim at; take goal 'least_likely', 'random' or 'targeted'"
            )
        return task.loss(outputs, labels) - task.loss(outputs, targets)

    return loss


def _own(logits: Logits, classes: Tensor) -> PerExample:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _best_other(logits: Logits, classes: Tensor) -> PerExample:
    return logits.scatter(1, classes[:, None], -float("inf")).amax(1)


def margin(outputs: Logits, labels: Tensor, targets: Tensor | None = None) -> PerExample:
    """Largest logit besides the label's, minus the label's; or the target's minus the largest besides it. Positive means fooled
    (Carlini & Wagner 2017, f6)."""
    logits = outputs.float()
    if targets is None:
        return _best_other(logits, labels) - _own(logits, labels)
    return _own(logits, targets) - _best_other(logits, targets)


def dlr(outputs: Logits, labels: Tensor, targets: Tensor | None = None) -> PerExample:
    """Difference of logits ratio (Croce & Hein 2020, eqs. 6 and 7): a margin that no rescaling of the logits changes.

    Raises:
        ValueError: with fewer than 3 classes (4 with targets).
    """
    logits = outputs.float()
    wanted = 3 if targets is None else 4
    if logits.shape[1] < wanted:
        raise ValueError(f"dlr needs at least {wanted} classes, got {logits.shape[1]}; use the margin")
    ordered = logits.sort(dim=1, descending=True).values
    if targets is None:
        return margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)
    scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    return (_own(logits, targets) - _own(logits, labels)) / (scale + 1e-12)
