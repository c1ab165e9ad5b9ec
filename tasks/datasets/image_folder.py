"""A folder of class folders, with or without train, val and test above them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from tasks.datasets.images import (
    IMAGE_SUFFIXES,
    FolderStore,
    ImageDataset,
    ImageFilesConfig,
    Listing,
    build_dataset,
)
from tasks.datasets.protocol import Split
from tasks.datasets.splits import part_to_read

PART_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class ImageFolderConfig(ImageFilesConfig, frozen=True, extra="forbid"):
    """Images in one folder per class, as torchvision's ImageFolder has them.

    `root` holds either the class folders, or folders train, val (valid, validation) and test, as many as
    there are, each with the class folders. Splits without a folder are held out (see `part_to_read`).

    Attributes:
        name: Registered name.
        classes: Class folders in the order of their labels. None takes all, sorted by name.
    """

    name: Literal["image_folder"] = "image_folder"
    classes: tuple[str, ...] | None = None

    @field_validator("classes")
    @classmethod
    def _are_different(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and (not classes or len(set(classes)) < len(classes)):
            raise ValueError(f"must be different folders, at least one, got {classes}")
        return classes

    def build(self, split: Split) -> ImageDataset:
        """Lists a split.

        Raises:
            ValueError: If folders are missing, differ between the splits, or have no images.
        """
        parts = find_parts(self.root)
        part, held = part_to_read(split, parts)
        classes = self.classes or class_folders(parts[part])
        for other in parts.values():
            if self.classes is None and class_folders(other) != classes:
                different = sorted(set(class_folders(other)) ^ set(classes))
                raise ValueError(
                    f"{parts[part]} and {other} have different class folders: {', '.join(different[:5])}; "
                    "make them equal or name the wanted ones in `classes`"
                )
        listing = list_class_folders(parts[part], {name: label for label, name in enumerate(classes)})
        chosen = self.choose(listing.labels, classes, split, held)
        return build_dataset(self, self.name, classes, listing, chosen)


def find_parts(root: Path) -> dict[str, Path]:
    """Finds the official parts below a root: some of "train", "val", "test", or "all" for the root itself.

    A folder called train counts as a part only if it holds folders: a class may have that name too.

    Raises:
        ValueError: If there is no such folder, or two are the same part (val and validation).
    """
    root = root.expanduser()
    if not root.is_dir():
        raise ValueError(
            f"root must be a folder, but {root} {'is a file' if root.exists() else 'does not exist'}"
        )
    parts: dict[str, Path] = {}
    for part, names in PART_NAMES.items():
        found = [root / name for name in names if (root / name).is_dir() and class_folders(root / name)]
        if len(found) > 1:
            raise ValueError(f"{root} has both {found[0].name} and {found[1].name}: keep one of them")
        if found:
            parts[part] = found[0]
    return parts or {"all": root}


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the visible subfolders, sorted."""
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."))


def list_class_folders(folder: Path, labels: Mapping[str, int]) -> Listing:
    """Lists the images in some class folders.

    Args:
        folder: Where the class folders lie.
        labels: The label of each class folder wanted, by its name.

    Raises:
        ValueError: If a class folder is missing or has no images, or none is wanted.
    """
    offered = class_folders(folder)
    if missing := [name for name in labels if name not in offered]:
        names = f"{', '.join(offered[:10])}{', ...' if len(offered) > 10 else ''}" or "none"
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(labels)} class folders wanted: "
            f"{', '.join(missing[:10])}. Folders there: {names}"
        )
    if not labels:
        raise ValueError(f"{folder} has no class folders: wanted one folder per class with the images in it")
    store = FolderStore(folder.resolve())
    keys: list[bytes] = []
    key_labels: list[int] = []
    for name, label in labels.items():
        found = store.list_keys(name)
        if not found:
            raise ValueError(f"{folder / name} has no images ({', '.join(IMAGE_SUFFIXES)})")
        keys += found
        key_labels += [label] * len(found)
    return Listing.join([(store, keys, key_labels)])
