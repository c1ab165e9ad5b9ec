"""What an attack makes large: a task's loss on rendered images."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from gat.latents import Images, Latents, PerExample, Rows, Verdicts
from gat.protocols import Objective, Renderer, Task

Answers = Callable[[Images], Tensor]


class TaskObjective:
    """An `Objective`: render, ask the model, take the task's loss.

    Without targets it ascends the loss of the true labels. With targets it descends the loss of the targets (Eqs. 1-4 of the
    paper); whether that counts as success on any wrong answer (least-likely class, Eq. 1) or only on the target (Eq. 3) is
    `must_hit`.

    Args:
        labels, targets: of all examples; rows index them.
        autocast: dtype of the model's and the renderer's mixed precision; None is float32. Loss and verdict are float32.
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
    ) -> None:
        if must_hit and targets is None:
            raise ValueError("a targeted attack needs targets")
        self.task, self.model, self.renderer = task, model, renderer
        self.labels, self.targets, self.must_hit, self.autocast = labels, targets, must_hit, autocast

    def __call__(self, latents: Latents, rows: Rows) -> tuple[PerExample, Verdicts]:
        with mixed_precision(self.labels.device, self.autocast):
            outputs = self.model(self.renderer(latents, rows))
        labels = self.labels[rows]
        if self.targets is None:
            return self.task.loss(outputs, labels), self.task.wrong(outputs, labels)
        targets = self.targets[rows]
        fooled = ~self.task.wrong(outputs, targets) if self.must_hit else self.task.wrong(outputs, labels)
        return -self.task.loss(outputs, targets), fooled

    def among(self, subset: Rows) -> Objective:
        """The same objective for these examples alone, counted from zero."""
        # One gathered index per set of rows: renderers know by identity whether they are asked about the same rows again.
        last: tuple[Rows | None, Rows] = (None, subset)

        def objective(latents: Latents, rows: Rows) -> tuple[PerExample, Verdicts]:
            nonlocal last
            if last[0] is not rows:
                last = (rows, subset[rows])
            return self(latents, last[1])

        return objective


def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Autocast to `dtype`, or plain float32 even inside somebody else's autocast."""
    if dtype is None:
        return (
            torch.autocast(device.type, enabled=False)
            if torch.is_autocast_enabled(device.type)
            else nullcontext()
        )
    return torch.autocast(device.type, dtype=dtype)
