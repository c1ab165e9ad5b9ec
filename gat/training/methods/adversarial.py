"""Adversarial training on real images: what the model is taught was attacked a moment before."""

from typing import Literal

import torch
from torch import nn

from gat.attacks import PGD, ImageAttack, ImageAttackConfig
from gat.training.batch_norm import routed
from gat.training.method import Batch, Lesson, Method, Tools, seen


class AdversarialTraining(Method):
    """Real images under any attack on images (Madry et al. 2018): PGD, spatial, recolor, ...

    Attributes:
        attack: what the images go through. Those that the model gets wrong already are taught as they are.
        keep_clean: train on the clean images too, half and half.
    """

    name: Literal["adversarial_training"] = "adversarial_training"
    attack: ImageAttackConfig = PGD(steps=7, step_size=2 / 255, stop_when_fooled=False)
    keep_clean: bool = False

    def trained_on(self) -> tuple[str, ...]:
        return seen(self.attack)

    def check(self, tools: Tools) -> None:
        check_untargeted(self.attack)

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        return attacked(self.attack, self.keep_clean, tools, model, batch, key)


def attacked(
    attack: ImageAttack,
    keep_clean: bool,
    tools: Tools,
    model: nn.Module,
    batch: Batch,
    key: int,
) -> Lesson:
    """The batch under attack, through the auxiliary batch norms where the model has them; after the clean one if that is kept."""
    images, labels = batch.images, batch.labels
    ids = torch.arange(len(images), device=images.device) + key * len(images)
    with routed(model, 0):
        outcome = attack.run(tools.task, model, images, labels, compute=tools.compute, ids=ids)
    facts = {"fooled_share": float(outcome.success.float().mean())}
    if keep_clean:
        return Lesson(torch.cat([images, outcome.images]), torch.cat([labels, labels]), len(images), facts)
    return Lesson(outcome.images, labels, 0, facts)


def check_untargeted(attack: ImageAttack) -> None:
    """Raises ValueError for an attack that aims at classes: training names none."""
    if attack.goal == "targeted":
        raise ValueError(
            f"training has no targets to aim {attack.name} at; take goal 'loss' or 'least_likely'"
        )
