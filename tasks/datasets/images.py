"""Labelled images in files, databases and archives: listing, decoding, and the dataset over them."""

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image, ImageOps
from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from tasks.datasets.protocol import Example, Split, TaskName
from tasks.datasets.splits import choose

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "area": Image.Resampling.BOX}

Resize = Literal["bicubic", "area"]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class ImageFilesConfig(BaseModel, frozen=True, extra="forbid"):
    """Settings that all readers of encoded images share.

    Attributes:
        root: Where the dataset lies.
        size: Height and width in pixels: the largest centred square, resized.
        resize: Antialiased "bicubic", or "area" (mean over the pixels covered).
        limit: At most this many images per class, the first ones. None keeps all.
        val_fraction: Share of each class held out as "val" where there is no official part for it.
        test_fraction: The same for "test".
        seed: Seed of the hold-outs.
        on_corrupt: What to do about images that cannot be decoded: "error" stops at the first one when it is
            read; "skip" decodes every image once at the start, leaves the bad ones out and logs how many.
    """

    task: ClassVar[TaskName] = "classification"
    root: Path
    size: PositiveInt = 256
    resize: Resize = "bicubic"
    limit: PositiveInt | None = None
    val_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    on_corrupt: Literal["error", "skip"] = "error"

    def choose(
        self, labels: Int64[np.ndarray, " n"], classes: Sequence[str], split: Split, held: Sequence[Split]
    ) -> Int64[np.ndarray, " m"]:
        """Chooses the examples of a split with these settings; see `splits.choose`."""
        shares = {"val": float(self.val_fraction), "test": float(self.test_fraction)}
        return choose(labels, classes, split, held, shares, self.seed, self.limit)


class UnreadableImageError(ValueError):
    """An image that is missing, truncated, or not an image."""


@runtime_checkable
class Store(Protocol):
    """Something that holds encoded images under keys; picklable, as open files live in `process_handle`."""

    def read(self, key: bytes) -> bytes:
        """Returns the encoded image; raises UnreadableImageError."""
        ...

    def where(self, key: bytes) -> str:
        """Says in words where the image lies, for messages."""
        ...


@dataclass(frozen=True)
class FolderStore:
    """Image files below a folder; keys are their relative paths."""

    folder: Path

    def read(self, key: bytes) -> bytes:
        try:
            return (self.folder / os.fsdecode(key)).read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"{self.where(key)} cannot be read ({error.strerror})") from error

    def where(self, key: bytes) -> str:
        return str(self.folder / os.fsdecode(key))

    def list_keys(self, below: str = "") -> list[bytes]:
        """Relative paths of all image files below a subfolder (the folder itself for ""), sorted."""
        found = []
        for directory, _, names in os.walk(self.folder / below, followlinks=True):
            relative = os.path.relpath(directory, self.folder)
            found += [
                os.fsencode(os.path.normpath(os.path.join(relative, name)))
                for name in names
                if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
            ]
        return sorted(found)


@dataclass(frozen=True)
class Listing:
    """All labelled images of one part of a dataset, in a fixed order.

    Arrays instead of lists of objects, so that millions of entries stay shared between forked workers.
    """

    stores: tuple[Store, ...]
    store_indices: Int64[np.ndarray, " n"]
    keys: np.ndarray  # bytes, in `stores[store_indices[i]]`
    labels: Int64[np.ndarray, " n"]

    @classmethod
    def join(cls, pieces: Sequence[tuple[Store, Sequence[bytes], Sequence[int]]]) -> "Listing":
        """Lists the images of several (store, keys, labels), one piece after the other."""
        return cls(
            tuple(store for store, _, _ in pieces),
            np.repeat(np.arange(len(pieces)), [len(keys) for _, keys, _ in pieces]),
            np.concatenate([np.asarray(keys, dtype="S") for _, keys, _ in pieces]),
            np.concatenate([np.asarray(labels, dtype=np.int64) for _, _, labels in pieces]),
        )

    def __len__(self) -> int:
        return len(self.labels)


def decode_image(data: bytes, size: int, resize: Resize = "bicubic") -> Float[Tensor, "3 {size} {size}"]:
    """Decodes an image by its content, whatever its name says; crops the centred square and resizes it.

    Transparency is dropped, grey is repeated over the channels.

    Args:
        data: An encoded image (JPEG, PNG, WebP, ...).
        size: Height and width of the result in pixels.
        resize: "bicubic" (antialiased) or "area".

    Returns:
        RGB in [0, 1].

    Raises:
        UnreadableImageError: If the data is not a complete image with 8 bits per channel.
    """
    square = ImageOps.fit(decode_rgb(data), (size, size), _RESAMPLING[resize])
    return torch.tensor(np.asarray(square)).permute(2, 0, 1).contiguous() / 255


def decode_rgb(data: bytes) -> Image.Image:
    """Decodes an image by its content into RGB; transparency is dropped, grey is repeated over the channels.

    Raises:
        UnreadableImageError: If the data is not a complete image with 8 bits per channel.
    """
    image = open_image(data)
    if image.mode.startswith(("I", "F")):
        raise UnreadableImageError(f"images of 8 bits per channel are wanted, this has mode {image.mode}")
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def open_image(data: bytes) -> Image.Image:
    """Decodes an image by its content, in its own mode.

    Raises:
        UnreadableImageError: If the data is not a complete image.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # decoders answer broken data with many exception types
        raise UnreadableImageError(f"not a complete image: {error}") from error
    return image


class ImageDataset(Dataset[Example]):
    """Labelled images decoded on access.

    Attributes:
        name: Registered name of the reader.
        task: "classification".
        classes: Class names; labels index them.
        labels: All labels.
        ids: Positions in the listing.
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        listing: Listing,
        chosen: Int64[np.ndarray, " n"],
        size: int,
        resize: Resize = "bicubic",
    ) -> None:
        self.name = name
        self.task: TaskName = "classification"
        self.classes = classes
        self.labels: Int64[Tensor, " n"] = torch.from_numpy(listing.labels[chosen])
        self.ids: Int64[Tensor, " n"] = torch.tensor(chosen)
        self._stores = listing.stores
        self._store_indices = listing.store_indices[chosen]
        self._keys = listing.keys[chosen]
        self._size = size
        self._resize: Resize = resize

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes one image.

        Raises:
            UnreadableImageError: Naming the image, if it is missing or corrupt.
            IndexError: If there is no such index.
        """
        store, key = self._stores[self._store_indices[index]], bytes(self._keys[index])
        data = store.read(key)
        try:
            image = decode_image(data, self._size, self._resize)
        except UnreadableImageError as error:
            raise UnreadableImageError(
                f"{store.where(key)}: {error}. Fetch or export it again, or set on_corrupt: skip to leave "
                "such images out."
            ) from error
        return {"images": image, "labels": int(self.labels[index]), "ids": int(self.ids[index])}


def build_dataset(
    config: ImageFilesConfig,
    name: str,
    classes: tuple[str, ...],
    listing: Listing,
    chosen: Int64[np.ndarray, " n"],
) -> ImageDataset:
    """Makes the dataset of the chosen images; leaves out those that cannot be decoded if the config says so.

    Args:
        config: Size of the images and the way to treat corrupt ones.
        name: Registered name of the reader.
        classes: Class names.
        listing: The images of the part read.
        chosen: Positions in the listing.

    Raises:
        ValueError: If leaving out corrupt images leaves a class without any.
    """
    dataset = ImageDataset(name, classes, listing, chosen, config.size, config.resize)
    if config.on_corrupt == "error":
        return dataset
    readable = np.ones(len(chosen), dtype=bool)
    for index in range(len(dataset)):
        try:
            dataset[index]
        except UnreadableImageError as error:
            readable[index] = False
            logger.info("left out: %s", error)
    if readable.all():
        return dataset
    num_bad = int((~readable).sum())
    logger.warning("%s: left out %d unreadable of %d images in %s", name, num_bad, len(chosen), config.root)
    counts = np.bincount(listing.labels[chosen[readable]], minlength=len(classes))
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise ValueError(f"none of the images of {', '.join(empty)} chosen from {config.root} is readable")
    return ImageDataset(name, classes, listing, chosen[readable], config.size, config.resize)
