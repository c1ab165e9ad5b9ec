"""Objects in COCO (Lin et al., 2014, arXiv:1405.0312), or in any data set in its files."""

import os
import re
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from tasks.datasets.coco_json import CocoFile, InstanceMasks, read_coco
from tasks.datasets.coco_stuff import CLASSES as COCO_STUFF_CLASSES
from tasks.datasets.images import FolderStore
from tasks.datasets.protocol import SceneExample, Split, TaskName
from tasks.datasets.scenes import (
    Coding,
    SceneFilesConfig,
    Size,
    existing_folder,
    find_counterparts,
    png_beside,
    read_image,
    read_map,
    stack_layout,
)
from tasks.datasets.splits import part_to_read

_FILE = re.compile(r"instances_((train|val|test)\w*)\.json")


class CocoConfig(SceneFilesConfig, frozen=True, extra="forbid"):
    """Detection from annotations/instances_{part}.json and images/{part}/ or {part}/, where a part is train2017, val2017 or
    the like. Where COCO-Stuff's maps lie in annotations/{part}/ (or stuffthingmaps/{part}/) too, there are layouts, with the
    objects' masks as instances.

    Attributes:
        name: Registered name.
        max_objects: Rows of an image's labels; more objects than that are an error.
        empty: What becomes of images without objects. They have nothing that could be missed.
        layout_classes: Names of the maps' values from 0 on. None: the 182 of COCO-Stuff.
    """

    task: ClassVar[TaskName] = "detection"
    name: Literal["coco"] = "coco"
    max_objects: PositiveInt = 100
    empty: Literal["drop", "keep"] = "drop"
    layout_classes: tuple[str, ...] | None = Field(None, min_length=1, max_length=255)

    def build(self, split: Split) -> "CocoDetection":
        """Reads the annotations of a split.

        Raises:
            ValueError: If files are missing, corrupt or contradictory, or an image has too many objects.
        """
        root = self.root.expanduser()
        parts = _find_parts(root)
        part, held = part_to_read(split, parts)
        path, stem = parts[part]
        images = existing_folder(root / "images" / stem, root / stem, root / "images")
        if images is None:
            raise ValueError(f"{root} has no folder images/{stem} or {stem} for the images of {path.name}")
        maps = existing_folder(
            path.parent / stem, root / "stuffthingmaps" / stem, root / "stuffthingmaps_trainval2017" / stem
        )
        file = read_coco(path, masks=maps is not None)
        self._check(file, images)
        counts = np.diff(file.starts)
        usable = np.arange(len(counts)) if self.empty == "keep" else np.flatnonzero(counts)
        if not len(usable):
            raise ValueError(f"{path} has no image with an object; empty: keep reads such images")
        chosen = usable[self.choose(len(usable), split, held)]
        layouts = None
        if maps is not None:
            store = FolderStore(maps.resolve())
            find_counterparts([os.fsencode(file.names[i]) for i in chosen], store, png_beside)
            classes = COCO_STUFF_CLASSES if self.layout_classes is None else self.layout_classes
            layouts = Layouts(store, Coding.plain(classes), InstanceMasks.of(file))
        return CocoDetection(
            self.name, file, FolderStore(images.resolve()), chosen, self.size, self.max_objects, layouts
        )

    def _check(self, file: CocoFile, images: Path) -> None:
        there = set(FolderStore(images).list_keys())
        if missing := [name for name in file.names if os.fsencode(os.path.normpath(name)) not in there]:
            raise ValueError(
                f"{images} lacks {len(missing)} of {len(file.names)} images of {file.path.name}, e.g. {missing[0]}"
            )
        counts = np.diff(file.starts)
        if counts.max() > self.max_objects:
            raise ValueError(
                f"{file.names[int(counts.argmax())]} has {counts.max()} objects; set max_objects to that at least, "
                f"it is {self.max_objects}"
            )


class Layouts:
    """Reads the layouts of images from label maps and masks."""

    def __init__(self, store: FolderStore, coding: Coding, masks: InstanceMasks) -> None:
        self.classes = coding.classes
        self._store = store
        self._coding = coding
        self._masks = masks

    def read(self, name: str, full: Size, size: Size) -> Int64[Tensor, "2 h w"]:
        """The layout of an image of a full size, stretched to another.

        Raises:
            ValueError: See `read_map`, `Coding.decode`.
        """
        key = png_beside(name)
        values = read_map(self._store, key, full)
        semantic = self._coding.decode(values, self._store.where(os.fsencode(key)))
        return stack_layout(semantic, self._masks.instances(name, values), size)


class CocoDetection(Dataset[SceneExample]):
    """Images and the boxes in them, decoded on access.

    Attributes:
        name: Registered name.
        task: "detection".
        classes: Names of the categories, in the order of their ids.
        layout_classes: Names of the layouts' classes; empty if there are no layouts.
        ids: Positions among the file's images, in the order of their ids there.
    """

    def __init__(
        self,
        name: str,
        file: CocoFile,
        images: FolderStore,
        chosen: Int64[np.ndarray, " n"],
        size: Size,
        max_objects: int,
        layouts: Layouts | None,
    ) -> None:
        self.name = name
        self.task: TaskName = "detection"
        self.classes = file.classes
        self.layout_classes: tuple[str, ...] = () if layouts is None else layouts.classes
        self.ids: Int64[Tensor, " n"] = torch.tensor(chosen)
        self._file = file
        self._images = images
        self._size = size
        self._max_objects = max_objects
        self._layouts = layouts

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> SceneExample:
        """Reads and decodes one image.

        Raises:
            ValueError: Naming the file, if it is missing, corrupt or not of the size that the annotations say.
            IndexError: If there is no such index.
        """
        id_ = int(self.ids[index])
        name = self._file.names[id_]
        image, full = read_image(self._images, name, self._size)
        if full != tuple(self._file.sizes[id_].tolist()):
            wanted = "x".join(map(str, self._file.sizes[id_].tolist()))
            raise ValueError(
                f"{self._images.where(os.fsencode(name))}: wanted {wanted} px (height x width) as {self._file.path.name} says, "
                f"got {full[0]}x{full[1]}"
            )
        objects = torch.from_numpy(self._file.objects(id_))
        labels = torch.zeros(self._max_objects, 6)
        labels[:, 4] = -1
        labels[: len(objects)] = objects
        labels[:, :4] *= torch.tensor([self._size[1] / full[1], self._size[0] / full[0]]).repeat(2)
        example: SceneExample = {"images": image, "labels": labels, "ids": id_}
        if self._layouts is not None:
            example["layouts"] = self._layouts.read(name, full, self._size)
        return example


def _find_parts(root: Path) -> dict[str, tuple[Path, str]]:
    """Annotation file and full name (train2017) of each part (train)."""
    parts: dict[str, tuple[Path, str]] = {}
    for path in sorted((root / "annotations").glob("instances_*.json")):
        if match := _FILE.fullmatch(path.name):
            stem, part = match.groups()
            if part in parts:
                raise ValueError(
                    f"{path.parent} has two files for {part}: {parts[part][0].name}, {path.name}; keep one"
                )
            parts[part] = path, stem
    if not parts:
        raise ValueError(
            f"{root} has no annotations/instances_train2017.json, instances_val2017.json or the like"
        )
    return parts
