"""Perceptual adversarial training."""

from typing import Literal

from torch import nn

from gat.attacks import FastLPA
from gat.training.method import Batch, Lesson, Method, Tools, seen
from gat.training.methods.adversarial import attacked, check_untargeted


class PAT(Method):
    """Real images moved within a perceptual distance by FastLPA, and nothing else (Laidlaw et al. 2021, Sec. 5; ours).

    Attributes:
        attack: its `network` is 'self' for PAT-self, where the model that is being taught measures the distance too, or another one.
            Images that the model gets wrong already are taught as they are.
    """

    name: Literal["pat"] = "pat"
    attack: FastLPA = FastLPA()

    def trained_on(self) -> tuple[str, ...]:
        return seen(self.attack)

    def check(self, tools: Tools) -> None:
        check_untargeted(self.attack)

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        return attacked(self.attack, False, tools, model, batch, key)
