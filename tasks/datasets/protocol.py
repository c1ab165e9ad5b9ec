"""What every dataset of the project looks like."""

from typing import Literal, NotRequired, Protocol, TypedDict, runtime_checkable

from jaxtyping import Float, Float32, Int64
from torch import Tensor

Split = Literal["train", "val", "test"]
TaskName = Literal["classification", "segmentation", "detection"]


class Example(TypedDict):
    """One labelled image; the default collate turns a list of these into a batch with the same keys."""

    images: Float[Tensor, "3 h w"]  # RGB in [0, 1]
    labels: int
    ids: int  # position in the listing the split is read from; shuffling, limits and skips never change it


class SceneExample(TypedDict):
    """One image of several things; the default collate turns a list of these into a batch with the same keys.

    Labels of segmentation are a semantic map, 0 to k - 1 or 255 (ignored). Those of detection are rows of boxes: x0 y0
    x1 y1 in px of the image, class (-1: padding), crowd (0 or 1). Layouts are the semantic map and an instance map, of
    which only the edges mean something.
    """

    images: Float[Tensor, "3 h w"]  # RGB in [0, 1]
    labels: Int64[Tensor, "h w"] | Float32[Tensor, "m 6"]
    layouts: NotRequired[
        Int64[Tensor, "2 h w"]
    ]  # in all examples of a data set with `layout_classes`, else in none
    ids: int


@runtime_checkable
class ClassificationDataset(Protocol):
    """A map-style dataset of labelled RGB images that may be pickled (spawn) and forked."""

    name: str
    task: TaskName
    classes: tuple[str, ...]
    labels: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class SceneDataset(Protocol):
    """A map-style dataset for segmentation or detection that may be pickled (spawn) and forked."""

    name: str
    task: TaskName
    classes: tuple[str, ...]  # of its labels
    layout_classes: tuple[str, ...]  # of the semantic map; empty if there are no layouts
    ids: Int64[Tensor, " n"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SceneExample: ...


@runtime_checkable
class DatasetSettings(Protocol):
    """What every config model of `DATASETS` offers, for type checkers."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> TaskName: ...

    def build(self, split: Split) -> ClassificationDataset | SceneDataset: ...
