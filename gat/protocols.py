"""The four shapes everything plugs into. Shapes only: no code to inherit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from gat.latents import Images, Latents, PerExample, Rows, Verdicts

Objective = Callable[[Latents, Rows], tuple[PerExample, Verdicts]]
"""What an attack makes large: moved latents of some rows, and which rows they are -> (loss per row, fooled per row).

The loss is differentiable with respect to the latents and never reduced over examples. Rows may repeat.
"""


@dataclass(frozen=True)
class Site:
    """One latent that can be moved.

    Attributes:
        shape: of one example.
        group: 'coarse', 'middle', 'fine' or '' where there is no such order.
        scale: standard deviation over random examples; relative step sizes are multiples of it.
    """

    shape: tuple[int, ...]
    group: str = ""
    scale: float = 1.0

    @property
    def bytes_per_example(self) -> int:
        """In float32."""
        n = 4
        for side in self.shape:
            n *= side
        return n


@runtime_checkable
class Renderer(Protocol):
    """A frozen space: everything that does not move is already computed."""

    def __call__(self, moved: Latents, rows: Rows) -> Images:
        """Images of examples `rows`, whose moved latents are given. Differentiable with respect to `moved`."""
        ...


@runtime_checkable
class Space(Protocol):
    """Latents, and how they become an image."""

    name: str

    @property
    def sites(self) -> Mapping[str, Site]:
        """All latents by name, in the order in which the image is computed."""
        ...

    def freeze(self, latents: Latents, moved: Sequence[str]) -> Renderer:
        """A renderer that starts at the first of the `moved` sites, with all before it computed once, outside the graph."""
        ...


@runtime_checkable
class GenerativeSpace(Space, Protocol):
    """A space that can also invent examples: a generator."""

    classes: tuple[str, ...]
    conditions: Literal[
        "labels", "layouts"
    ]  # what it draws from: classes [b], or semantic and instance maps [b, 2, h, w]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    def sample(self, conditions: Tensor, ids: Tensor, seed: int) -> Latents:
        """Random latents under the given conditions; an example depends on (seed, id, condition) alone."""
        ...


@runtime_checkable
class MeasuredSpace(Space, Protocol):
    """A space so large that memory decides how many examples can be attacked at once, and that can say so beforehand."""

    def memory_needed(self, moved: Sequence[str], batch: int) -> int:
        """Bytes at the peak of an attack on `batch` examples at once, without the attacked model."""
        ...

    def max_width(self, moved: Sequence[str]) -> int | None:
        """The largest batch that the space's memory budget allows; None without a budget.

        Raises:
            ValueError: if not even one example fits.
        """
        ...


@runtime_checkable
class Task(Protocol):
    """What must not change its answer: a model's loss and verdict, one number per example.

    Labels are one tensor whose first axis is the example. What a model returns may be anything: only the task reads it.
    """

    name: str

    def loss(self, outputs: Any, labels: Tensor) -> PerExample:
        """Per-example training loss, float32."""
        ...

    def predict(self, outputs: Any) -> Tensor:
        """The model's answer per example."""
        ...

    def wrong(self, outputs: Any, labels: Tensor) -> Verdicts:
        """Whether the answer counts as wrong, per example."""
        ...

    def hit(self, outputs: Any, targets: Tensor) -> Verdicts:
        """Whether the answer counts as the target, per example: what a targeted attack is after. Not the same as not `wrong`, where
        an answer can be right in part."""
        ...

    def least_likely(self, outputs: Any, labels: Tensor) -> Tensor:
        """The answer furthest from the model's, but never the label: what the paper's attack aims at (Sec. 3.1)."""
        ...

    def random_targets(self, labels: Tensor, places: PerExample) -> Tensor:
        """A wrong answer to every example: its classes, each the same number of classes further round the circle. `places`, uniform in
        (0, 1), say how far. They tell nothing of the label, which the least likely answer does."""
        ...

    def score(self, predictions: Tensor, labels: Tensor) -> PerExample:
        """How good the answer is, from 0 to 1."""
        ...

    def evidence(self, predictions: Tensor, labels: Tensor) -> list[Any]:
        """Per example what `metrics` needs to know of it, in terms of JSON."""
        ...

    def metrics(self, evidence: Sequence[Any]) -> dict[str, float]:
        """Numbers of a whole data set, the one to quote first."""
        ...

    def resampled_metrics(
        self, evidence: Sequence[Any], draws: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """`metrics` of every draw of as many examples, given by their indices: what a bootstrap asks for."""
        ...


@runtime_checkable
class PartlyReadable(Protocol):
    """A task whose labels have parts, each of which an image may show or not: pixels."""

    def only_read(self, outputs: Any, labels: Tensor) -> Tensor:
        """The labels; parts that these outputs answer otherwise no longer count."""
        ...


@runtime_checkable
class ComparableOutputs(Protocol):
    """What a model returns, where it is not one tensor of logits but can still be compared between images."""

    def divergence(self, anchors: Rows) -> PerExample:
        """How far the answer to every image is from that to image `anchors` of the batch: 0 to its own, differentiable in both."""
        ...


@runtime_checkable
class Examples(Protocol):
    """A map-style data set; items are {"images": [c, h, w] in [0, 1], "labels": int or tensor, "ids": int}, those of scenes with
    "layouts": semantic and instance map, int64 [2, h, w]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


Model = nn.Module
"""Images in [0, 1] to outputs; normalisation happens inside."""
