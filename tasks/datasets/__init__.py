"""Readers of datasets: one file each, registered by its name."""

from typing import TYPE_CHECKING, Annotated, TypeAlias, Union

from pydantic import BaseModel, Field

from gat.config import Config, load
from tasks.datasets.ade20k import ADE20KConfig
from tasks.datasets.celeba_hq import CelebAHQConfig
from tasks.datasets.cityscapes import CityscapesConfig
from tasks.datasets.coco import CocoConfig
from tasks.datasets.coco_stuff import CocoStuffConfig
from tasks.datasets.fashion_mnist import FashionMNISTConfig
from tasks.datasets.fashion_scenes import FashionScenesConfig
from tasks.datasets.image_folder import ImageFolderConfig
from tasks.datasets.imagenet_groups import ImageNetGroupsConfig
from tasks.datasets.lsun import LsunConfig
from tasks.datasets.protocol import (
    ClassificationDataset,
    DatasetSettings,
    Example,
    SceneDataset,
    SceneExample,
    Split,
    TaskName,
)

DATASETS: dict[str, type[BaseModel]] = {
    "ade20k": ADE20KConfig,
    "celeba_hq": CelebAHQConfig,
    "cityscapes": CityscapesConfig,
    "coco": CocoConfig,
    "coco_stuff": CocoStuffConfig,
    "fashion_mnist": FashionMNISTConfig,
    "fashion_scenes": FashionScenesConfig,
    "image_folder": ImageFolderConfig,
    "imagenet_groups": ImageNetGroupsConfig,
    "lsun": LsunConfig,
}

if TYPE_CHECKING:
    DatasetConfig: TypeAlias = DatasetSettings
else:
    DatasetConfig = Annotated[Union[tuple(DATASETS.values())], Field(discriminator="name")]  # noqa: UP007

Dataset: TypeAlias = ClassificationDataset | SceneDataset


class _Choice(Config):
    data: DatasetConfig


def open_dataset(name: str, options: str, split: Split) -> Dataset:
    """A data set for programs without a configuration of their own.

    Args:
        options: its other settings, as YAML or JSON: `{source: full}`.

    Raises:
        ConfigError: for a name or settings that do not exist.
    """
    return load(_Choice, overrides=[f"data.name={name}", f"data={options}"]).data.build(split)


__all__ = [
    "DATASETS",
    "ClassificationDataset",
    "Dataset",
    "DatasetConfig",
    "DatasetSettings",
    "Example",
    "SceneDataset",
    "SceneExample",
    "Split",
    "TaskName",
    "open_dataset",
]
