"""Several methods in one: in turn, or each on its share of every batch."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator
from torch import nn

from gat.training.batch_norm import Branch
from gat.training.method import Batch, Lesson, Method, Tools, join
from gat.training.methods.adversarial import AdversarialTraining
from gat.training.methods.advprop import AdvProp
from gat.training.methods.gat import GAT
from gat.training.methods.pat import PAT
from gat.training.methods.random_latents import RandomLatents
from gat.training.methods.standard import Standard
from gat.training.methods.trades import TRADES

Single: TypeAlias = Standard | AdversarialTraining | TRADES | PAT | AdvProp | GAT | RandomLatents


class Mixed(Method):
    """GAT and PGD, or any other methods, together.

    Attributes:
        methods: what is mixed.
        how: 'in_turn' gives every step to the next method, 'split' gives each an equal share of every batch.
    """

    name: Literal["mixed"] = "mixed"
    methods: tuple[Annotated[Single, Field(discriminator="name")], ...] = Field(
        (GAT(), AdversarialTraining()), min_length=1
    )
    how: Literal["in_turn", "split"] = "split"

    @model_validator(mode="after")
    def _fit_together(self) -> "Mixed":
        kept = {method.kept_branch for method in self.methods} - {None}
        if len(kept) > 1:
            raise ValueError(
                "the methods keep different batch norms in the finished model; choose one of main, auxiliary"
            )
        if any(method.steps_at_once > 1 for method in self.methods):
            raise ValueError("mixed methods make the images of one step at a time; switch `in_step` off")
        return self

    @property
    def needs_generator(self) -> bool:
        return any(method.needs_generator for method in self.methods)

    @property
    def kept_branch(self) -> Branch | None:
        return next((method.kept_branch for method in self.methods if method.kept_branch), None)

    def num_drawn(self, num_clean: int) -> int:
        if self.how == "in_turn":
            return max(method.num_drawn(num_clean) for method in self.methods)
        count = len(self.methods)
        return count * max(method.num_drawn(math.ceil(num_clean / count)) for method in self.methods)

    def trained_on(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for method in self.methods for name in method.trained_on()))

    def check(self, tools: Tools) -> None:
        for method in self.methods:
            method.check(tools)

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        count = len(self.methods)
        if self.how == "in_turn":
            method = self.methods[key % count]
            return _named([method], [method.lesson(tools, model, batch, key // count)])
        shares = min(count, len(batch.images))  # a tiny batch may not reach everybody
        methods = self.methods[:shares]
        lessons = [
            method.lesson(tools, model, batch.every(shares, i), key) for i, method in enumerate(methods)
        ]
        return _named(methods, lessons)


def _named(methods: Sequence[Method], lessons: Sequence[Lesson]) -> Lesson:
    """Joined; facts say whose they are."""
    facts = {
        f"{method.name}/{fact}": value
        for method, lesson in zip(methods, lessons, strict=True)
        for fact, value in lesson.facts.items()
    }
    return join(lessons, facts)
