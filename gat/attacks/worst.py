"""Several attacks as one: the worst of them, per example."""

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, SerializeAsAny, field_validator
from torch import Tensor, nn

from gat.attacks.image_attack import ImageAttack, positions
from gat.attacks.run import Compute, Outcome
from gat.latents import Images
from gat.protocols import Task


class WorstOf(ImageAttack):
    """Tries attacks in turn, each on what those before did not fool. An example that none fools keeps the image of largest loss.

    Its own `goal` and `seed` are not used: every attack has its own.

    Attributes:
        attacks: settings of attacks on images, cheapest first.
    """

    name: Literal["worst_of"] = "worst_of"
    attacks: tuple[SerializeAsAny[ImageAttack], ...] = Field(min_length=1)

    @field_validator("attacks", mode="before")
    @classmethod
    def _by_name(cls, attacks: Any) -> Any:
        """Plain settings become the attack they name, as everywhere in the configuration."""
        from gat.attacks import ATTACKS  # here, since the registry holds this class too

        found = []
        for attack in attacks:
            if isinstance(attack, dict):
                kind = ATTACKS.get(str(attack.get("name")))
                if kind is None or not issubclass(kind, ImageAttack):
                    on_offer = [name for name, kind in ATTACKS.items() if issubclass(kind, ImageAttack)]
                    raise ValueError(f"attack {attack.get('name')!r} is not one of {', '.join(on_offer)}")
                attack = kind.model_validate(attack)
            found.append(attack)
        return tuple(found)

    @property
    def family(self) -> str:
        families = list(dict.fromkeys(attack.family for attack in self.attacks))
        return families[0] if len(families) == 1 else self.name

    def check_task(self, task: str) -> None:
        for attack in self.attacks:
            attack.check_task(task)

    @property
    def summary(self) -> str:
        return "worst of: " + " | ".join(f"{attack.name} {attack.summary}" for attack in self.attacks)

    @property
    def bounds(self) -> dict[str, float]:
        """What holds for all: a distance that every attack bounds, by the loosest of them."""
        shared = set.intersection(*(set(attack.bounds) for attack in self.attacks))
        return {name: max(attack.bounds[name] for attack in self.attacks) for name in sorted(shared)}

    def run(
        self,
        task: Task,
        model: nn.Module,
        images: Images,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        compute: Compute | None = None,
        record: bool = False,
        ids: Tensor | None = None,
    ) -> Outcome:
        ids = positions(images, ids)
        total: Outcome | None = None
        for attack in self.attacks:
            if total is None:
                todo = torch.arange(len(labels), device=labels.device)
            else:
                todo = (total.attacked & ~total.success).nonzero().squeeze(1)
                if len(todo) == 0:
                    break
            outcome = attack.run(
                task, model, images[todo], labels[todo],
                targets=None if targets is None or attack.goal != "targeted" else targets[todo],
                compute=compute, record=record and total is None, ids=ids[todo],
            )  # fmt: skip
            outcome.latents = {"pixels": outcome.images}
            total = outcome if total is None else merge(total, outcome, todo)
        assert total is not None
        return total


def merge(total: Outcome, outcome: Outcome, todo: Tensor) -> Outcome:
    """`outcome` of examples `todo` into what came before: costs add up, and the better image of each example stays."""
    better = (outcome.success & ~total.success[todo]) | (
        (outcome.success == total.success[todo]) & (outcome.loss > total.loss[todo])
    )
    won = todo[better]

    def put(before: Tensor, after: Tensor) -> Tensor:
        return before.index_copy(0, won, after[better].to(before.dtype))

    def add(before: Tensor, after: Tensor) -> Tensor:
        return before.index_add(0, todo, after)

    # A distance that only some attacks measure says nothing about the others' images: it is 0 only where it truly is.
    shared = total.distances.keys() & outcome.distances.keys()
    return replace(
        total,
        images=put(total.images, outcome.images),
        latents={"pixels": put(total.latents["pixels"], outcome.images)},
        predictions=put(total.predictions, outcome.predictions),
        success=put(total.success, outcome.success),
        loss=put(total.loss, outcome.loss),
        distances={
            name: put(value, outcome.distances[name])
            for name, value in total.distances.items()
            if name in shared
        },
        iterations=add(total.iterations, outcome.iterations),
        forwards=add(total.forwards, outcome.forwards),
        backwards=add(total.backwards, outcome.backwards),
        zero_gradients=add(total.zero_gradients, outcome.zero_gradients),
    )
