"""The control of GAT: its images, without the attack."""

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import nn

from gat.attacks import LatentAttack
from gat.training.method import Batch, Lesson, Method, Tools
from gat.training.methods.gat import GAT


class RandomLatents(Method):
    """Clean images and as many random ones of a generator, those that the model reads as they were meant: GAT that takes no step.

    What GAT is better than this at is due to its adversarial part.

    Attributes:
        oversample: random latents per clean image; the surplus makes up for those that are read otherwise.
        oracle_filter: also leave out images on which the oracle does not read the label.
        seed: of the latents.
    """

    name: Literal["random_latents"] = "random_latents"
    oversample: float = Field(1.5, gt=0)
    oracle_filter: bool = False
    seed: int = 0

    @property
    def needs_generator(self) -> bool:
        return True

    @property
    def idle(self) -> GAT:
        """GAT that takes no step."""
        return GAT(
            attack=LatentAttack(max_steps=0, step_size={"*": 1.0}),  # which is never taken, in any space
            rotation=(("all", "both"),),
            only_fooling=False,
            oversample=self.oversample,
            oracle_filter=self.oracle_filter,
            seed=self.seed,
        )

    def check(self, tools: Tools) -> None:
        self.idle.check(tools)

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        lesson = self.idle.lesson(tools, model, batch, key)
        generated = len(lesson.images) - lesson.num_clean
        return replace(
            lesson, num_clean=len(lesson.images), facts={"generated_share": generated / len(lesson.images)}
        )
