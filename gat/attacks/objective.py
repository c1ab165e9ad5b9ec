"""What an attack makes large: a loss on rendered images."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gat.attacks.losses import Loss
from gat.latents import Images, Latents, PerExample, Rows, Verdicts
from gat.protocols import Renderer, Task


@runtime_checkable
class LossByExample(Protocol):
    """A loss that is not the same for all examples at a time: it depends on how far they have come, for instance."""

    def of(self, rows: Rows) -> Loss:
        """The loss of these examples."""
        ...


AnyLoss = Loss | LossByExample
Answers = Callable[[Images], Any]
Penalty = Callable[[Latents, Images, Rows], tuple[PerExample, Verdicts]]
"""Moved latents, their images, which examples they are -> what to subtract from the loss, and whether the iterate is allowed."""


class TaskObjective:
    """An `Objective`: render, ask the model, take a loss.

    Without targets it ascends the loss of the true labels. With targets it descends the loss of the targets (Eqs. 1-4 of the
    paper); whether that counts as success on any wrong answer (least-likely class, Eq. 1) or only on the target (Eq. 3) is
    `must_hit`.

    Args:
        labels, targets: of all examples; rows index them.
        autocast: dtype of the model's and the renderer's mixed precision; None is float32. Loss and verdict are float32.
        loss: instead of the task's own, see `gat.attacks.losses` and `LossByExample`.
        penalty: subtracted from the loss; only iterates that it allows can fool.
    """

    def __init__(
        self,
        task: Task,
        model: Answers,
        renderer: Renderer,
        labels: Tensor,
        targets: Tensor | None = None,
        must_hit: bool = False,
        autocast: torch.dtype | None = None,
        loss: AnyLoss | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        if must_hit and targets is None:
            raise ValueError("a targeted attack needs targets")
        self.task, self.model, self.renderer = task, model, renderer
        self.labels, self.targets, self.must_hit, self.autocast = labels, targets, must_hit, autocast
        self.loss: AnyLoss = loss or self._task_loss
        self.penalty = penalty
        self.images: Images | None = None

    def __call__(self, latents: Latents, rows: Rows) -> tuple[PerExample, Verdicts]:
        with mixed_precision(self.labels.device, self.autocast):
            images = self.renderer(latents, rows)
            outputs = self.model(images)
        self.images = images.detach()
        labels = self.labels[rows]
        targets = None if self.targets is None else self.targets[rows]
        ascended = self.loss.of(rows) if isinstance(self.loss, LossByExample) else self.loss
        loss = ascended(outputs, labels, targets)
        if self.must_hit and targets is not None:
            fooled = self.task.hit(outputs, targets)
        else:
            fooled = self.task.wrong(outputs, labels)
        if self.penalty is not None:
            cost, allowed = self.penalty(latents, images, rows)
            loss, fooled = loss - cost, fooled & allowed
        return loss, fooled

    def frames(self, latents: Latents, rows: Rows) -> Images:
        """For `ascend` to record: images of the iterates it was just asked about, which it need not render again."""
        assert self.images is not None, "asked for images before the loss"
        return self.images.float()

    def _task_loss(self, outputs: Any, labels: Tensor, targets: Tensor | None) -> PerExample:
        return self.task.loss(outputs, labels) if targets is None else -self.task.loss(outputs, targets)


def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Autocast to `dtype`, or plain float32 even inside somebody else's autocast."""
    if dtype is None:
        return (
            torch.autocast(device.type, enabled=False)
            if torch.is_autocast_enabled(device.type)
            else nullcontext()
        )
    return torch.autocast(device.type, dtype=dtype)
