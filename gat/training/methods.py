"""How clean and adversarial images become the images of one training step.

A method is a function of the raw model and one clean batch. It draws no global random number: everything depends on
(seed, step, rank), so a resumed run repeats it exactly. Add one by writing it here and its name in `AnyMethod`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from gat.attacks import FGSM, PGD, Compute, LatentAttack
from gat.config import Config
from gat.latents import Images
from gat.protocols import GenerativeSpace, Task
from gat.spaces.pixels import PixelSpace


@dataclass(frozen=True)
class Tools:
    """What a method may use besides the model.

    Attributes:
        generator: None if the run has none.
        oracle: independent judge of what an image shows; None if the run has none.
        identity: changes whenever data, generator, oracle or precision do; finished records are only used again under the same.
    """

    task: Task
    generator: GenerativeSpace | None = None
    oracle: nn.Module | None = None
    compute: Compute = field(default_factory=Compute)
    identity: str = ""


@dataclass(frozen=True)
class Lesson:
    """The images of one step.

    Attributes:
        images, labels: clean ones first.
        num_clean: how many are clean.
        facts: numbers for the log.
    """

    images: Images
    labels: Tensor
    num_clean: int
    facts: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """A frozen config that is its own implementation."""

    @property
    def needs_generator(self) -> bool: ...

    def trained_on(self) -> tuple[str, ...]:
        """Names of the attacks seen in training: what robustness to *unseen* attacks must leave out."""
        ...

    def lesson(self, tools: Tools, model: nn.Module, images: Images, labels: Tensor, key: int) -> Lesson:
        """The images of one step. `key` identifies (step, rank) and seeds everything random."""
        ...


class Standard(Config):
    """Clean images only."""

    name: Literal["standard"] = "standard"

    @property
    def needs_generator(self) -> bool:
        return False

    def trained_on(self) -> tuple[str, ...]:
        return ()

    def lesson(self, tools: Tools, model: nn.Module, images: Images, labels: Tensor, key: int) -> Lesson:
        return Lesson(images, labels, len(images))


class AdversarialTraining(Config):
    """Real images attacked in pixels (Madry et al. 2018).

    Attributes:
        attack: PGD or FGSM.
        keep_clean: train on the clean images too, half and half.
    """

    name: Literal["adversarial_training"] = "adversarial_training"
    attack: Annotated[PGD | FGSM, Field(discriminator="name")] = PGD(
        steps=7, step_size=2 / 255, stop_when_fooled=False
    )
    keep_clean: bool = False

    @property
    def needs_generator(self) -> bool:
        return False

    def trained_on(self) -> tuple[str, ...]:
        return (self.attack.name,)

    def lesson(self, tools: Tools, model: nn.Module, images: Images, labels: Tensor, key: int) -> Lesson:
        space = PixelSpace(tuple(images.shape[1:]))
        ids = torch.arange(len(images), device=images.device) + key * len(images)
        outcome = self.attack(
            tools.task, model, space, {"pixels": images}, labels, compute=tools.compute, ids=ids
        )
        facts = {"fooled_share": float(outcome.success.float().mean())}
        if self.keep_clean:
            return Lesson(
                torch.cat([images, outcome.images]), torch.cat([labels, labels]), len(images), facts
            )
        return Lesson(outcome.images, labels, 0, facts)


class GAT(Config):
    """Generative adversarial training (the paper, Sec. 4.1).

    Every step draws random latents, moves one group of layers in turn until the model, as it is now, is fooled, and trains on
    as many of those images as there are clean ones. Images that fool without being attacked are not used: most of them are
    the generator's own mistakes, that is wrong labels.

    Attributes:
        attack: the latent attack; its `group` and `move` are replaced in rotation by `rotation`. Its steps on styles are larger
            than an attack on all layers needs, since one group of layers alone must fool within `max_steps`.
        rotation: (group, move) of successive steps, so that coarse, middle and fine changes are all seen.
        oversample: attacked latents per clean image; the surplus makes up for those that do not fool within `max_steps`.
        clean: 'real' images of the data set, or 'generated' ones.
        only_fooling: train only on images that fool (the paper); off, on all attacked images.
        oracle_filter: also leave out images on which the oracle no longer reads the label.
        seed: of the latents.
    """

    name: Literal["gat"] = "gat"
    attack: LatentAttack = LatentAttack(step_size={"style/*": 0.05, "noise/*": 0.4})
    rotation: tuple[tuple[str, str], ...] = (
        ("coarse", "style"),
        ("middle", "style"),
        ("fine", "style"),
        ("fine", "noise"),
        ("middle", "noise"),
        ("all", "both"),
    )
    oversample: float = Field(1.5, gt=0)
    clean: Literal["real", "generated"] = "real"
    only_fooling: bool = True
    oracle_filter: bool = False
    seed: int = 0

    @property
    def needs_generator(self) -> bool:
        return True

    def trained_on(self) -> tuple[str, ...]:
        return (self.attack.name,)

    def turns(self) -> list[LatentAttack]:
        """The attack of every turn of the rotation."""
        settings = self.attack.model_dump()
        return [LatentAttack.model_validate(settings | {"group": g, "move": m}) for g, m in self.rotation]

    def check(self, space: GenerativeSpace) -> None:
        """Raises ValueError if a turn of the rotation has nothing to move in this space, before training finds out."""
        for attack in self.turns():
            attack.moved(space)

    def lesson(self, tools: Tools, model: nn.Module, images: Images, labels: Tensor, key: int) -> Lesson:
        space = tools.generator
        assert space is not None
        attack = self.turns()[key % len(self.rotation)]

        # 1. As many random starts as it takes, of the classes that the clean batch has.
        count = max(round(self.oversample * len(images)), 1)
        start_labels = labels.repeat(count // len(labels) + 1)[:count]
        ids = torch.arange(count) + key * count
        latents = space.sample(start_labels, ids, self.seed)

        # 2. Fool the model as it is now.
        outcome = attack(tools.task, model, space, latents, start_labels, compute=tools.compute)
        usable = outcome.success if self.only_fooling else outcome.attacked
        facts: dict[str, Any] = {
            "fooled_share": float(outcome.success.float().mean()),
            "iterations": float(outcome.iterations[outcome.success].float().mean())
            if outcome.success.any()
            else 0.0,
        }
        if self.oracle_filter:
            if tools.oracle is None:
                raise ValueError("oracle_filter needs an oracle; name one under `oracle`")
            with torch.no_grad():
                reads = ~tools.task.wrong(tools.oracle(outcome.images), start_labels)
            facts["oracle_rejected_share"] = float((usable & ~reads).sum() / usable.sum().clamp(min=1))
            usable = usable & reads

        # 3. As many of them as clean images.
        chosen = usable.nonzero().squeeze(1)[: len(images)]
        facts["adversarial_share"] = len(chosen) / (len(chosen) + len(images))
        clean, clean_labels = images, labels
        if self.clean == "generated":
            clean, clean_labels = outcome.start_images[: len(images)], start_labels[: len(images)]
        return Lesson(
            torch.cat([clean, outcome.images[chosen]]),
            torch.cat([clean_labels, start_labels[chosen]]),
            len(clean),
            facts,
        )


AnyMethod: TypeAlias = Standard | AdversarialTraining | GAT
MethodConfig = Annotated[AnyMethod, Field(discriminator="name")]
METHODS: dict[str, type[Standard] | type[AdversarialTraining] | type[GAT]] = {
    method.model_fields["name"].default: method for method in get_args(AnyMethod)
}
