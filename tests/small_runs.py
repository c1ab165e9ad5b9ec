"""A tiny training run, and a method that is killed in the middle of it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from gat.training.loop import TrainSettings, train
from gat.training.methods import Batch, Lesson, Method, Standard, Tools
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, Blobs, conv_classifier

TASK = ClassificationTask(CLASSES)
QUICK = {"batch_size": 8, "warmup_steps": 2, "log_every": 2, "save_every": 3}


def run(
    folder: Path,
    accelerator: Accelerator,
    settings: TrainSettings,
    method: Any = None,
    seed: int = 0,
    **options: Any,
):
    """Train a new model; `start` seeds its weights."""
    data, tools = options.get("data") or Blobs(), options.get("tools") or Tools(TASK)
    model = conv_classifier(seed=options.get("start", 0))
    drawn = options.get("drawn")
    return train(model, data, method or Standard(), tools, settings, accelerator, folder, seed, drawn=drawn)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"not bit-equal: {different}"


class Killed(Exception):
    """The machine went away."""


class Until(Method):
    """A method that is killed in the middle of a step, or teaches damaged images from there on."""

    name: str = "until"
    method: Method
    step: int
    damage: Any = None

    @property
    def kept_branch(self) -> Any:
        return self.method.kept_branch

    @property
    def steps_at_once(self) -> int:
        return self.method.steps_at_once

    def num_drawn(self, num_clean: int) -> int:
        return self.method.num_drawn(num_clean)

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        raise AssertionError("not asked for")

    def lessons(
        self, tools: Tools, model: nn.Module, batches: Sequence[Batch], keys: Sequence[int]
    ) -> Iterator[Lesson]:
        for key, lesson in zip(keys, self.method.lessons(tools, model, batches, keys), strict=True):
            if key == self.step and self.damage is None:
                raise Killed
            yield replace(lesson, images=self.damage(lesson.images)) if key >= self.step else lesson


def until(method: Method, step: int, damage: Any = None) -> Until:
    return Until(method=method, step=step, damage=damage)
