"""Images with label maps in files: pairing, decoding, resizing, and the data set over them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int16, Int64, Integer
from PIL import Image
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from gat.logits import IGNORE
from tasks.datasets.images import (
    FolderStore,
    Fraction,
    Store,
    UnreadableImageError,
    decode_rgb,
    open_image,
)
from tasks.datasets.protocol import SceneExample, Split, TaskName
from tasks.datasets.splits import choose

LabelMap = Integer[np.ndarray, "h w"]
Size = tuple[int, int]  # height, width in px

_INVALID = -1


class SceneFilesConfig(BaseModel, frozen=True, extra="forbid"):
    """Settings that all readers of scenes in files share.

    Attributes:
        root: Where the data set lies.
        image_size: Height and width in pixels, one number or two. Images, maps and boxes are stretched to it:
            images bilinearly (antialiased), maps to the nearest pixel.
        limit: At most this many images, the first ones. None keeps all.
        val_fraction: Share held out as "val" where there is no official part for it.
        test_fraction: The same for "test".
        seed: Seed of the hold-outs.
    """

    root: Path
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 256
    limit: PositiveInt | None = None
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    def choose(self, num: int, split: Split, held: Sequence[Split]) -> Int64[np.ndarray, " m"]:
        """Chooses the images of a split among `num`; see `splits.choose`."""
        shares = {"val": float(self.val_fraction), "test": float(self.test_fraction)}
        alike = np.zeros(num, np.int64)
        return choose(alike, ("any kind",), split, held, shares, self.seed, self.limit)


@dataclass(frozen=True)
class Coding:
    """What the values in label maps mean: class `table[value]`, 255 for pixels that count nowhere."""

    classes: tuple[str, ...]
    table: Int16[np.ndarray, "256"]  # _INVALID: no such value

    @classmethod
    def of(cls, classes: Sequence[str], meanings: dict[int, int]) -> "Coding":
        """Values and their classes, 255 for those to ignore; every other value is an error."""
        table = np.full(256, _INVALID, np.int16)
        table[list(meanings)] = list(meanings.values())
        return cls(tuple(classes), table)

    @classmethod
    def plain(cls, classes: Sequence[str]) -> "Coding":
        """Values are classes, and 255 is ignored.

        Raises:
            ValueError: If there are more than 255 classes or none.
        """
        if not 1 <= len(classes) <= IGNORE:
            raise ValueError(f"label maps have 1 to {IGNORE} classes, got {len(classes)}")
        return cls.of(classes, {**{value: value for value in range(len(classes))}, IGNORE: IGNORE})

    def decode(self, values: LabelMap, where: str) -> LabelMap:
        """Classes of a map.

        Args:
            values: As in the file.
            where: The file, for messages.

        Raises:
            ValueError: If a value means nothing.
        """
        classes = self.table[values.clip(0, IGNORE)]
        wrong = (classes == _INVALID) | (values > IGNORE) | (values < 0)
        if wrong.any():
            known = np.flatnonzero(self.table != _INVALID)
            known = known[known != IGNORE]
            also = " and 255" if self.table[IGNORE] != _INVALID else ""
            strange = ", ".join(map(str, np.unique(values[wrong])[:5].tolist()))
            raise ValueError(
                f"{where}: wanted values {known[0]} to {known[-1]}{also} for {len(self.classes)} classes, got {strange} in "
                f"{int(wrong.sum())} of {values.size} pixels"
            )
        return classes


@runtime_checkable
class InstanceSource(Protocol):
    """Where instance maps come from; picklable."""

    def instances(self, key: str, values: LabelMap) -> LabelMap:
        """The instance map of an image, given its relative path and the values of its label map; only edges matter."""
        ...


@dataclass(frozen=True)
class InstanceFiles:
    """Instance maps in files of their own."""

    store: FolderStore
    counterpart: dict[str, str]  # of an image's path

    @classmethod
    def find(cls, pairs: "Pairs", store: FolderStore, counterpart: Callable[[str], str]) -> "InstanceFiles":
        """Finds the instance maps of all images; see `find_counterparts`."""
        found = find_counterparts(pairs.keys.tolist(), store, counterpart)
        return cls(
            store,
            {os.fsdecode(key): os.fsdecode(map_key) for key, map_key in zip(pairs.keys, found, strict=True)},
        )

    def instances(self, key: str, values: LabelMap) -> LabelMap:
        return read_map(self.store, self.counterpart[key], values.shape)


class SceneFiles(Dataset[SceneExample]):
    """Images and their label maps, decoded on access. Maps that are 255 everywhere are allowed: such an image counts
    nowhere as a label.

    Attributes:
        name: Registered name of the reader.
        task: "segmentation".
        classes: Names of the labels' classes.
        layout_classes: Names of the layouts' classes.
        ids: Positions in the listing.
    """

    def __init__(
        self,
        name: str,
        pairs: "Pairs",
        chosen: Int64[np.ndarray, " n"],
        size: Size,
        labels: Coding,
        layouts: Coding | None = None,
        instances: InstanceSource | None = None,
    ) -> None:
        """Makes the data set of the chosen pairs.

        Args:
            name: Registered name of the reader.
            pairs: Images and label maps of the part read.
            chosen: Positions among the pairs.
            size: Height and width in pixels.
            labels: What the maps mean as labels.
            layouts: What they mean as layouts, if not the same.
            instances: Where instance maps come from. None: semantic maps serve as such.
        """
        self.name = name
        self.task: TaskName = "segmentation"
        self.classes = labels.classes
        self.ids: Int64[Tensor, " n"] = torch.tensor(chosen)
        self._pairs = pairs
        self._size = size
        self._labels = labels
        self._layouts = labels if layouts is None else layouts
        self._instances = instances
        self.layout_classes = self._layouts.classes

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> SceneExample:
        """Reads and decodes one image with its maps.

        Raises:
            ValueError: Naming the file, if one is missing, corrupt, of another size or has values without a meaning.
            IndexError: If there is no such index.
        """
        id_ = int(self.ids[index])
        key, map_key = (os.fsdecode(keys[id_]) for keys in (self._pairs.keys, self._pairs.map_keys))
        image, full = read_image(self._pairs.images, key, self._size)
        values = read_map(self._pairs.maps, map_key, full)
        where = self._pairs.maps.where(os.fsencode(map_key))
        labels = self._labels.decode(values, where)
        semantic = labels if self._layouts is self._labels else self._layouts.decode(values, where)
        instances = values if self._instances is None else self._instances.instances(key, values)
        return {
            "images": image,
            "labels": torch.from_numpy(resize_map(labels, self._size)).long(),
            "layouts": stack_layout(semantic, instances, self._size),
            "ids": id_,
        }


@dataclass(frozen=True)
class Pairs:
    """Images and their label maps, in a fixed order. Arrays, so that many entries stay shared between forked workers."""

    images: FolderStore
    maps: FolderStore
    keys: np.ndarray  # bytes, relative paths in `images`
    map_keys: np.ndarray  # bytes, relative paths in `maps`

    @classmethod
    def find(cls, images: Path, maps: Path, counterpart: Callable[[str], str]) -> "Pairs":
        """Lists all images below a folder and their maps.

        Args:
            images: Folder of the images.
            maps: Folder of the label maps.
            counterpart: Relative path of the map of an image, given the image's relative path.

        Raises:
            ValueError: If there are no images, or some have no map, or maps are JPEGs.
        """
        stores = FolderStore(images.resolve()), FolderStore(maps.resolve())
        keys = stores[0].list_keys()
        if not keys:
            raise ValueError(f"{images} has no images")
        map_keys = find_counterparts(keys, stores[1], counterpart)
        return cls(*stores, np.array(keys, "S"), np.array(map_keys, "S"))

    def __len__(self) -> int:
        return len(self.keys)


def find_counterparts(
    keys: Sequence[bytes], store: FolderStore, counterpart: Callable[[str], str]
) -> list[bytes]:
    """Relative paths of the maps of images.

    Raises:
        ValueError: If some are missing or are JPEGs.
    """
    there = set(store.list_keys())
    wanted = [os.fsencode(counterpart(os.fsdecode(key))) for key in keys]
    if missing := [(key, map_key) for key, map_key in zip(keys, wanted, strict=True) if map_key not in there]:
        key, map_key = (os.fsdecode(part) for part in missing[0])
        lossy = [str(Path(map_key).with_suffix(suffix)) for suffix in (".jpg", ".jpeg")]
        if found := next((name for name in lossy if os.fsencode(name) in there), None):
            raise ValueError(
                f"{store.folder / found} is a JPEG, and JPEG changes the values of maps: wanted the original PNGs"
            )
        raise ValueError(
            f"{store.folder} lacks the maps of {len(missing)} of {len(keys)} images, e.g. {map_key} of {key}"
        )
    return wanted


def png_beside(key: str) -> str:
    """The same relative path, as PNG: how most data sets name the map of an image."""
    return str(Path(key).with_suffix(".png"))


def read_image(store: Store, key: str, size: Size) -> tuple[Tensor, Size]:
    """Reads an image, stretched to a size.

    Returns:
        RGB in [0, 1], [3, h, w], and the size that it had.

    Raises:
        UnreadableImageError: Naming the file, if it is missing or corrupt.
    """
    data = store.read(os.fsencode(key))
    try:
        image = decode_rgb(data)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{store.where(os.fsencode(key))}: {error}") from error
    full = image.height, image.width
    if full != size:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.tensor(np.asarray(image)).permute(2, 0, 1).contiguous() / 255, full


def read_map(store: Store, key: str, full: Size) -> LabelMap:
    """Reads a map of whole numbers.

    Args:
        store: Where it lies.
        key: Its relative path.
        full: Height and width that it must have, those of its image.

    Raises:
        ValueError: Naming the file, if it is missing, corrupt, of another size, a JPEG, or not of one channel.
    """
    data, where = store.read(os.fsencode(key)), store.where(os.fsencode(key))
    try:
        image = open_image(data)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{where}: {error}") from error
    if image.format == "JPEG":
        raise ValueError(f"{where} is a JPEG, and JPEG changes the values of maps: wanted the original PNG")
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise ValueError(f"{where}: wanted one channel of whole numbers, got mode {image.mode}")
    if (image.height, image.width) != tuple(full):
        raise ValueError(
            f"{where}: wanted {full[0]}x{full[1]} px (height x width) as its image has, got {image.height}x{image.width}"
        )
    return np.asarray(image).astype(np.int32)


def resize_map(values: LabelMap, size: Size) -> Integer[np.ndarray, "new_h new_w"]:
    """Stretches a map to a size, each pixel taking the value under its middle."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def stack_layout(semantic: LabelMap, instances: LabelMap, size: Size) -> Int64[Tensor, "2 new_h new_w"]:
    """Puts a semantic and an instance map of one size over each other, stretched to another."""
    layers = [resize_map(layer, size).astype(np.int64) for layer in (semantic, instances)]
    return torch.from_numpy(np.stack(layers))


def existing_folder(*places: Path) -> Path | None:
    """The first of some places that is a folder."""
    return next((place for place in places if place.is_dir()), None)


def listed_names(text: str) -> tuple[str, ...]:
    """The names in a text that separates them by commas."""
    return tuple(" ".join(text.split()).split(", "))
