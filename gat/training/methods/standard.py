"""Training on clean images."""

from typing import Literal

from torch import Tensor, nn

from gat.latents import Images
from gat.training.method import Lesson, Method, Tools


class Standard(Method):
    """Clean images only."""

    name: Literal["standard"] = "standard"

    def lesson(self, tools: Tools, model: nn.Module, images: Images, labels: Tensor, key: int) -> Lesson:
        return Lesson(images, labels, len(images))
