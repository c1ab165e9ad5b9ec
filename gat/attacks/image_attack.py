"""What all attacks on images have in common: how they are called."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gat.attacks.frozen import frozen
from gat.attacks.run import Compute, Goal, Outcome
from gat.config import Config
from gat.images import check_images
from gat.latents import Images
from gat.logits import LogitsTask
from gat.outputs import check_classifier_outputs
from gat.protocols import Task


class ImageAttack(Config):
    """Settings that are called like a function: `attack(model, images, labels)` returns the attacked images.

    The rest of the project calls `run`, which returns everything that is known of every example and checks nothing twice.

    Attributes:
        goal: 'loss' fools with any wrong class; 'least_likely' aims at the class least likely at the start; 'targeted' at given ones.
        seed: of everything random, together with the example's id.
    """

    kind: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]] = (
        "classification",
        "segmentation",
        "detection",
    )  # that it makes sense for
    name: str
    goal: Goal = "loss"
    seed: int = 0

    @property
    def needs(self) -> Literal["images"]:
        """What the attack starts from."""
        return "images"

    @property
    def family(self) -> str:
        """What counts as the same threat: a model trained on one of a family has seen all of it. `kind`, or the attack's own name."""
        return self.kind or self.name

    @property
    def summary(self) -> str:
        """The settings that a number depends on, in one line."""
        return ", ".join(f"{name}={value}" for name, value in self)

    @property
    def bounds(self) -> dict[str, float]:
        """Name in `Outcome.distances` -> the largest value that the attack allows itself."""
        return {}

    @abstractmethod
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
        """Attack what the model gets right.

        Args:
            model: images in [0, 1] to outputs; left exactly as found.
            images: [b, c, h, w] in [0, 1].
            targets: classes to aim at with goal 'targeted'.
            compute: batch width and precision.
            record: keep the images of every iterate, where the attack has one sequence of them.
            ids: of the examples; what is random depends on them, not on the batch. None: the positions in the batch.
        """

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        targets: Tensor | None = None,
        *,
        task: Task | None = None,
        compute: Compute | None = None,
    ) -> Tensor:
        """The attacked images, computed in float32, in the dtype of `images`, on their device.

        Images that the model gets wrong already come back as they are, and so does an empty batch. The model's mode, statistics,
        parameters and gradients and the global random state are left exactly as found.

        Args:
            model: images in [0, 1] to logits, or what `task` reads; normalisation happens inside (`tasks.models.Normalized` wraps one
                that wants normalised images).
            images: [b, c, h, w] in [0, 1].
            labels: int64 [b], or what `task` wants.
            targets: to aim at, with goal 'targeted': like labels.
            task: None is classification by logits.

        Raises:
            ValueError: for images outside [0, 1] or not finite, labels out of range, targets that equal the label, a model that does
                not return what the task reads, or an attack that makes no sense for the task; it says what arrived.
        """
        if isinstance(images, Tensor) and images.ndim == 4 and len(images) == 0 and len(labels) == 0:
            return images
        check_images(images)
        if targets is not None and self.goal != "targeted":
            raise ValueError(
                f"targets are only aimed at with goal 'targeted'; this attack has goal {self.goal!r}: "
                f"{type(self).__name__}(goal='targeted', ...)"
            )
        self.check_task("classification" if task is None else task.name)
        outputs = _first_outputs(model, images.float())
        if task is None:
            task = _logits_task(outputs)
        check_answers(task, outputs, labels, targets, len(images))
        outcome = self.run(task, model, images.float(), labels, targets=targets, compute=compute)
        return outcome.images.to(images.dtype)

    def check_task(self, task: str) -> None:
        """Raises ValueError if the attack makes no sense for the task of this name."""
        if task not in self.tasks:
            raise ValueError(f"{self.name} attacks {' and '.join(self.tasks)}, not {task}")


@torch.no_grad()
def _first_outputs(model: nn.Module, images: Images) -> Any:
    """What the model makes of the first images."""
    with frozen(model):
        return model(images[:8])


def _logits_task(outputs: Any) -> LogitsTask:
    """The task of a classifier that answers so."""
    num_classes = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else 2
    check_classifier_outputs(outputs, max(num_classes, 2))
    return LogitsTask(num_classes)


def check_answers(task: Task, outputs: Any, labels: Tensor, targets: Tensor | None, num_images: int) -> None:
    """The task's own checks of what a model returned and of labels, where it has any.

    Raises:
        ValueError: saying what arrived.
    """
    if isinstance(task, ChecksOutputs):
        task.check_outputs(outputs)
    if isinstance(task, ChecksLabels):
        for given in (labels, targets):
            if given is not None:
                task.check_labels(given, num_images)


@runtime_checkable
class ChecksOutputs(Protocol):
    """A task that knows what a model must return."""

    def check_outputs(self, outputs: Any) -> None: ...


@runtime_checkable
class ChecksLabels(Protocol):
    """A task that knows what labels must be."""

    def check_labels(self, labels: Tensor, num_examples: int | None = None) -> None: ...


def positions(images: Images, ids: Tensor | None) -> Tensor:
    """`ids` on the device of the images; without ids the positions in the batch."""
    if ids is None:
        return torch.arange(len(images), device=images.device)
    return ids.to(images.device)
