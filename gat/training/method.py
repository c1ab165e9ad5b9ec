"""What a training method is: a function from the model as it is now and one clean batch to the images of one step."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gat.attacks import PGD, Combined, Compute, ImageAttack, LatentAttack, Recolor, Spatial, WorstOf
from gat.attacks.objective import mixed_precision
from gat.config import Config
from gat.latents import Images, PerExample, Rows, Verdicts
from gat.protocols import ComparableOutputs, GenerativeSpace, PartlyReadable, Task
from gat.training.batch_norm import Branch


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


class Batch(NamedTuple):
    """Clean examples of one step.

    Attributes:
        images: [b, 3, h, w] in [0, 1].
        labels: whose first axis is the example.
        layouts: what a generator of scenes draws from, int64 [b, 2, h, w]; None where the data has none.
        drawn: examples a generator draws like, instead of these; their own images are not used.
    """

    images: Images
    labels: Tensor
    layouts: Tensor | None = None
    drawn: "Batch | None" = None

    def every(self, stride: int, start: int) -> "Batch":
        """Each `stride`-th example from `start` on."""
        layouts = None if self.layouts is None else self.layouts[start::stride]
        drawn = None if self.drawn is None else self.drawn.every(stride, start)
        return Batch(self.images[start::stride], self.labels[start::stride], layouts, drawn)

    def draws(self, space: GenerativeSpace, count: int, key: int) -> tuple[Tensor, Tensor, Rows]:
        """What `count` random examples like these, or like `drawn`, are drawn from, what they will show, and their ids (on the CPU),
        which no other step has.

        Raises:
            ValueError: see `conditions`.
        """
        if self.drawn is not None:
            return self.drawn.draws(space, count, key)
        like = torch.arange(count, device=self.labels.device) % len(self.labels)
        return self.conditions(space)[like], self.labels[like], torch.arange(count) + key * count

    def conditions(self, space: GenerativeSpace) -> Tensor:
        """What `space` draws images like these from.

        Raises:
            ValueError: if it draws scenes and the data has no layouts.
        """
        if space.conditions == "labels":
            return self.labels
        if self.layouts is None:
            raise ValueError(
                f"{space.name} draws from layouts (semantic and instance maps), and these examples have none"
            )
        return self.layouts


@dataclass(frozen=True)
class Lesson:
    """The images of one step, and what is asked of the model's answers to them.

    Every image has a label loss; some have an anchor too, another image of the lesson whose answer they should share. The loss
    of a step is the sum of all terms over the sum of the weights.

    Attributes:
        images, labels: clean ones first.
        num_clean: how many are clean.
        facts: numbers for the log.
        weights: of the label losses; None is 1 each.
        anchors: row of each image's anchor; its own where it has none. None: nobody has one.
        pulls: weight of the divergence between the answers to the anchor and to the image; None without anchors.
    """

    images: Images
    labels: Tensor
    num_clean: int
    facts: Mapping[str, float] = field(default_factory=dict)
    weights: PerExample | None = None
    anchors: Rows | None = None
    pulls: PerExample | None = None

    @property
    def total_weight(self) -> Tensor | int:
        """What the sum of all losses is divided by."""
        return len(self.images) if self.weights is None else self.weights.sum()

    def loss(self, task: Task, outputs: Any) -> PerExample:
        """Loss of every image, from the answers of the model in training mode.

        Raises:
            ValueError: for anchors, where the answers are neither one tensor of logits nor `ComparableOutputs`.
        """
        label_loss = getattr(task, "training_loss", task.loss)  # which may smooth labels
        losses: Tensor = label_loss(outputs, self.labels)
        if self.weights is not None:
            losses = losses * self.weights
        if self.anchors is not None and self.pulls is not None:
            losses = losses + self.pulls * self._apart(outputs, self.anchors)
        return losses

    @staticmethod
    def _apart(outputs: Any, anchors: Rows) -> PerExample:
        if isinstance(outputs, Tensor):
            return divergence(outputs[anchors], outputs)
        if isinstance(outputs, ComparableOutputs):
            return outputs.divergence(anchors)
        raise ValueError(
            f"consistency needs answers that can be compared: logits as one tensor, or with a method divergence(anchors); "
            f"{type(outputs).__name__} is neither"
        )

    def take(self, rows: Rows) -> "Lesson":
        """These rows, ascending and with all their anchors, as a lesson."""
        return Lesson(
            self.images[rows],
            self.labels[rows],
            int((rows < self.num_clean).sum()),
            self.facts,
            None if self.weights is None else self.weights[rows],
            None if self.anchors is None else torch.searchsorted(rows, self.anchors[rows]),
            None if self.pulls is None else self.pulls[rows],
        )

    def micro_batches(self, count: int) -> list[Rows]:
        """The rows of `count` parts of about equal size (fewer, if there are not so many images). Images stay with their anchors."""
        rows = torch.arange(len(self.images), device=self.images.device)
        if self.anchors is None:
            return list(rows.split(-(-len(rows) // count)))
        heads = self.anchors == rows
        part = ((heads.cumsum(0) - 1) * count // heads.sum())[self.anchors]
        parts = [rows[part == i] for i in range(count)]
        return [part for part in parts if len(part)]


def join(lessons: Sequence[Lesson], facts: Mapping[str, float]) -> Lesson:
    """Several lessons as one, clean images first."""
    offsets = [sum(len(lesson.images) for lesson in lessons[:i]) for i in range(len(lessons))]
    device = lessons[0].images.device
    ones = [torch.ones(len(lesson.images), device=device) for lesson in lessons]
    own = [torch.arange(len(lesson.images), device=device) for lesson in lessons]
    clean = torch.cat([rows < lesson.num_clean for rows, lesson in zip(own, lessons, strict=True)])
    order = torch.cat([clean.nonzero(), (~clean).nonzero()]).squeeze(1)
    weights = [
        one if lesson.weights is None else lesson.weights for one, lesson in zip(ones, lessons, strict=True)
    ]
    pulls = [
        0 * one if lesson.pulls is None else lesson.pulls for one, lesson in zip(ones, lessons, strict=True)
    ]
    anchors = [
        offset + (rows if lesson.anchors is None else lesson.anchors)
        for offset, rows, lesson in zip(offsets, own, lessons, strict=True)
    ]
    plain = all(lesson.anchors is None for lesson in lessons)
    return Lesson(
        torch.cat([lesson.images for lesson in lessons])[order],
        torch.cat([lesson.labels for lesson in lessons])[order],
        int(clean.sum()),
        facts,
        None if all(lesson.weights is None for lesson in lessons) else torch.cat(weights)[order],
        None if plain else order.argsort()[torch.cat(anchors)[order]],
        None if plain else torch.cat(pulls)[order],
    )


def divergence(wanted: Tensor, outputs: Tensor) -> PerExample:
    """KL(softmax(wanted) || softmax(outputs)) of every example, in float32; differentiable in both. Logits [b, k, ...]; the mean over
    further axes."""
    kl = F.kl_div(
        outputs.float().log_softmax(1), wanted.float().log_softmax(1), reduction="none", log_target=True
    )
    return kl.sum(1).flatten(1).mean(1) if kl.ndim > 2 else kl.sum(1)


class Method(Config):
    """Frozen settings that are their own implementation. It draws no global random number: everything depends on (seed, step,
    rank), so a resumed run repeats it exactly."""

    name: str

    @property
    def needs_generator(self) -> bool:
        """Whether it wants `Tools.generator`."""
        return False

    @property
    def kept_branch(self) -> Branch | None:
        """None: all images share the model's batch norms. Otherwise adversarial ones go through auxiliary norms in training, and
        the finished model is the plain architecture with the norms of this branch."""
        return None

    @property
    def steps_at_once(self) -> int:
        """How many steps' images belong together: a run can be resumed only behind the last of them."""
        return 1

    def num_drawn(self, num_clean: int) -> int:
        """How many examples a generator draws per step, beside so many clean ones."""
        return 0

    def trained_on(self) -> tuple[str, ...]:
        """Families and names of the attacks seen in training: what robustness to *unseen* attacks must leave out."""
        return ()

    def check(self, tools: Tools) -> None:
        """Raises ValueError if these tools will not do, before training finds out."""

    @abstractmethod
    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        """The images of one step. `key` identifies (step, rank) and seeds everything random. The model is left as found."""

    def lessons(
        self, tools: Tools, model: nn.Module, batches: Sequence[Batch], keys: Sequence[int]
    ) -> Iterable[Lesson]:
        """The images of the next steps, as many as there are batches: `steps_at_once`, or fewer at the end of training. Between two of
        them the model learns, so an iterator meets it as it is by then."""
        return (self.lesson(tools, model, batch, key) for batch, key in zip(batches, keys, strict=True))


def check_oracle(tools: Tools) -> None:
    """Raises ValueError where `read_by_oracle` cannot say what an image shows."""
    if tools.oracle is None:
        raise ValueError("oracle_filter needs an oracle; name one under `oracle`")
    space = tools.generator
    if space is not None and space.conditions == "layouts" and not isinstance(tools.task, PartlyReadable):
        raise ValueError(
            f"oracle_filter: the oracle of scenes reads pixels, and the labels of {tools.task.name} are none; switch it off"
        )


@torch.no_grad()
def read_by_oracle(tools: Tools, images: Images, labels: Tensor) -> tuple[Verdicts, Tensor]:
    """Which images the oracle reads as labelled; and their labels without the parts, if they have any, that it reads otherwise. It
    looks in the attack's precision: what it is asked here is what to learn from, not how robust anything is.

    Raises:
        ValueError: without an oracle.
    """
    check_oracle(tools)
    assert tools.oracle is not None
    with mixed_precision(images.device, tools.compute.autocast):
        answers = tools.oracle(images)
    reads = ~tools.task.wrong(answers, labels)
    return reads, tools.task.only_read(answers, labels) if isinstance(tools.task, PartlyReadable) else labels


def seen(attack: ImageAttack | LatentAttack) -> tuple[str, ...]:
    """What a model trained on this attack has seen: its family, itself, and all that it is made of."""
    parts: Sequence[ImageAttack] = ()
    if isinstance(attack, WorstOf):
        parts = attack.attacks
    elif isinstance(attack, Combined):
        alone: dict[str, ImageAttack] = {"recolor": Recolor(), "spatial": Spatial(), "additive": PGD()}
        parts = [alone[part] for part in attack.parts]
    own = () if isinstance(attack, WorstOf) else (attack.family, attack.name)
    return tuple(dict.fromkeys((*own, *(name for part in parts for name in seen(part)))))
