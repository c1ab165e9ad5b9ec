"""What every classification dataset of the project looks like."""

from typing import Literal, Protocol, TypedDict, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

Split = Literal["train", "val", "test"]


class Example(TypedDict):
    """One labelled image; the default collate turns a list of these into a batch with the same keys."""

    images: Float[Tensor, "3 h w"]  # RGB in [0, 1]
    labels: int
    ids: int  # position in the listing the split is read from; shuffling, limits and skips never change it


@runtime_checkable
class ClassificationDataset(Protocol):
    """A map-style dataset of labelled RGB images that may be pickled (spawn) and forked."""

    name: str
    classes: tuple[str, ...]
    labels: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@runtime_checkable
class DatasetSettings(Protocol):
    """What every config model of `DATASETS` offers, for type checkers."""

    @property
    def name(self) -> str: ...

    def build(self, split: Split) -> ClassificationDataset: ...
