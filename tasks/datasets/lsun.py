"""LSUN scenes and objects (Yu et al., 2015, arXiv:1506.03365), as lmdb databases or exported image files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import field_validator

from tasks.datasets.handles import process_handle
from tasks.datasets.images import (
    FolderStore,
    ImageDataset,
    ImageFilesConfig,
    Listing,
    Store,
    UnreadableImageError,
    build_dataset,
)
from tasks.datasets.protocol import Split
from tasks.datasets.splits import part_to_read

if TYPE_CHECKING:
    import lmdb

SCENES = (
    "bedroom",
    "bridge",
    "church_outdoor",
    "classroom",
    "conference_room",
    "dining_room",
    "kitchen",
    "living_room",
    "restaurant",
    "tower",
)


class LsunConfig(ImageFilesConfig, frozen=True, extra="forbid"):
    """LSUN, one class per category.

    Each category lies in its own folder of `root`, either an lmdb database as LSUN distributes them or a tree
    of exported image files. Scenes have `{category}_train_lmdb` and `{category}_val_lmdb` (exported: without
    `_lmdb`); "test" is their val part, as LSUN's own test images have no labels. Objects have `{category}` or
    `{category}_lmdb` and no parts, so both val and test are held out. Databases and parts are preferred where
    a category lies there in several ways.

    Attributes:
        name: Registered name.
        categories: Categories in the order of their labels: the ten scenes, or objects such as car and cat.
    """

    name: Literal["lsun"] = "lsun"
    categories: tuple[str, ...] = SCENES

    @field_validator("categories")
    @classmethod
    def _are_different(cls, categories: tuple[str, ...]) -> tuple[str, ...]:
        if not categories or len(set(categories)) < len(categories):
            raise ValueError(f"must be different categories, at least one, got {categories}")
        return categories

    def build(self, split: Split) -> ImageDataset:
        """Lists a split.

        Raises:
            ValueError: If a category is missing, empty or unreadable.
            ImportError: If there is a database and lmdb is not installed.
        """
        pieces: list[tuple[Store, list[bytes], list[int]]] = []
        chosen: list[np.ndarray] = []
        start = 0
        for label, category in enumerate(self.categories):
            parts = _find_category(self.root.expanduser(), category)
            part, held = part_to_read(split, parts)
            store = _store(parts[part])
            keys = store.list_keys()
            if not keys:
                raise ValueError(f"{parts[part]} has no images")
            # one category at a time, because objects have no official parts and scenes have
            alone = np.zeros(len(keys), dtype=np.int64)
            chosen.append(start + self.choose(alone, (category,), split, held))
            pieces.append((store, keys, [label] * len(keys)))
            start += len(keys)
        listing = Listing.join(pieces)
        return build_dataset(self, self.name, self.categories, listing, np.concatenate(chosen))


@dataclass(frozen=True)
class LmdbStore:
    """The encoded images of an lmdb database, under its own keys."""

    path: str  # resolved

    def read(self, key: bytes) -> bytes:
        with _transaction(self.path) as transaction:
            data = transaction.get(key)
        if data is None:
            raise UnreadableImageError(f"{self.where(key)} is not in the database any more")
        return bytes(data)

    def where(self, key: bytes) -> str:
        return f"{self.path}, key {key.decode(errors='replace')}"

    def list_keys(self) -> list[bytes]:
        """All keys, sorted as the database sorts them."""
        with _transaction(self.path) as transaction:
            return [bytes(key) for key in transaction.cursor().iternext(keys=True, values=False)]


@contextmanager
def _transaction(path: str) -> "Iterator[lmdb.Transaction]":
    environment = process_handle(path, _open_lmdb)
    import lmdb  # there, or opening would have failed

    try:
        with environment.begin() as transaction:
            yield transaction
    except lmdb.Error as error:
        raise UnreadableImageError(f"{path} is corrupt, fetch it again ({error})") from error


def _open_lmdb(path: str) -> "lmdb.Environment":
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(f"{path} is an lmdb database: pip install 'gat-robust[lsun]' to read it") from error
    try:
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        if "already open" in str(error):
            reason = "it is open elsewhere in this process, which lmdb forbids; close it there"
        else:
            reason = f"it is no complete lmdb database, fetch it again ({error})"
        raise ValueError(f"{path} cannot be opened: {reason}") from error
    wanted_bytes = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if (have_bytes := os.path.getsize(os.path.join(path, "data.mdb"))) < wanted_bytes:
        environment.close()  # reading on would end the process with a bus error
        raise ValueError(f"{path} is truncated: {have_bytes} of {wanted_bytes} bytes, fetch it again")
    return environment


def _store(folder: Path) -> LmdbStore | FolderStore:
    resolved = folder.resolve()
    return LmdbStore(str(resolved)) if (folder / "data.mdb").is_file() else FolderStore(resolved)


def _find_category(root: Path, category: str) -> dict[str, Path]:
    places = {part: [f"{category}_{part}_lmdb", f"{category}_{part}"] for part in ("train", "val")}
    places["all"] = [f"{category}_lmdb", category]
    parts: dict[str, Path] = {}
    for part, names in places.items():
        if found := [root / name for name in names if (root / name).is_dir()]:
            parts[part] = found[0]
    if len(parts) > 1:
        parts.pop("all", None)
    if not parts:
        wanted = ", ".join(name for names in places.values() for name in names)
        there = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        hint = " Unzip the .zip files first." if any(name.endswith(".zip") for name in there) else ""
        raise ValueError(
            f"LSUN category {category!r} was not found in {root}: wanted a folder {wanted}. "
            f"There: {', '.join(there[:10]) or 'nothing'}.{hint}"
        )
    return parts
