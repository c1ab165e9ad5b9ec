"""AdvProp: adversarial images have batch norms of their own."""

from typing import Literal

from torch import nn

from gat.attacks import PGD, ImageAttackConfig
from gat.training.batch_norm import Branch
from gat.training.method import Batch, Lesson, Method, Tools, seen
from gat.training.methods.adversarial import attacked, check_untargeted


class AdvProp(Method):
    """Clean images through the main batch norms, attacked ones through auxiliary ones (Xie et al. 2020, Algorithm 1; ours).

    The attack goes through the auxiliary norms too. The finished model has the main ones. The two losses are averaged where the
    paper adds them, which is the learning rate's to make up for.

    Attributes:
        attack: the paper's PGD has eps 1 to 4 /255, steps of 1/255, and one more of them than that.
    """

    name: Literal["advprop"] = "advprop"
    attack: ImageAttackConfig = PGD(eps=4 / 255, steps=5, step_size=1 / 255, stop_when_fooled=False)

    @property
    def kept_branch(self) -> Branch:
        return "main"

    def trained_on(self) -> tuple[str, ...]:
        return seen(self.attack)

    def check(self, tools: Tools) -> None:
        check_untargeted(self.attack)

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        return attacked(self.attack, True, tools, model, batch, key)
