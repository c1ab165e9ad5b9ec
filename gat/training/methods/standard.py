"""Training on clean images."""

from typing import Literal

from torch import nn

from gat.training.method import Batch, Lesson, Method, Tools


class Standard(Method):
    """Clean images only."""

    name: Literal["standard"] = "standard"

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        return Lesson(batch.images, batch.labels, len(batch.images))
