"""Readers of classification datasets: one file each, registered by its name."""

from typing import TYPE_CHECKING, Annotated, TypeAlias, Union

from pydantic import BaseModel, Field

from tasks.datasets.celeba_hq import CelebAHQConfig
from tasks.datasets.fashion_mnist import FashionMNISTConfig
from tasks.datasets.image_folder import ImageFolderConfig
from tasks.datasets.imagenet_groups import ImageNetGroupsConfig
from tasks.datasets.lsun import LsunConfig
from tasks.datasets.protocol import ClassificationDataset, DatasetSettings, Example, Split

DATASETS: dict[str, type[BaseModel]] = {
    "celeba_hq": CelebAHQConfig,
    "fashion_mnist": FashionMNISTConfig,
    "image_folder": ImageFolderConfig,
    "imagenet_groups": ImageNetGroupsConfig,
    "lsun": LsunConfig,
}

if TYPE_CHECKING:
    DatasetConfig: TypeAlias = DatasetSettings
else:
    DatasetConfig = Annotated[Union[tuple(DATASETS.values())], Field(discriminator="name")]  # noqa: UP007

__all__ = ["DATASETS", "ClassificationDataset", "DatasetConfig", "DatasetSettings", "Example", "Split"]
