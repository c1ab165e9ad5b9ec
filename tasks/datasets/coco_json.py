"""COCO's instances_*.json (Lin et al., 2014, arXiv:1405.0312): images, boxes, masks."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64
from pycocotools import mask as rle

from tasks.datasets.scenes import LabelMap

logger = logging.getLogger(__name__)

_FIRST_INSTANCE = 1000  # above all values of label maps, so that no instance melts into its surroundings
_SHORTEST_SIDE_PX = 1e-2


@dataclass(frozen=True)
class CocoFile:
    """The contents of one file.

    Attributes:
        path: The file.
        classes: Names of the categories, in the order of their ids.
        names: File names of the images, in the order of their ids.
        sizes: Heights and widths in px.
        rows: x0 y0 x1 y1 in px, class, crowd (0 or 1) of all objects with an area, those of one image together.
        starts: Objects of image i are `starts[i]` to `starts[i + 1]`.
        masks: Polygons or run lengths of each object, if asked for.
    """

    path: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    sizes: Int64[np.ndarray, "n 2"]
    rows: Float32[np.ndarray, "m 6"]
    starts: Int64[np.ndarray, " n+1"]
    masks: tuple[Any, ...] | None

    def objects(self, index: int) -> Float32[np.ndarray, "k 6"]:
        """Rows of one image."""
        return self.rows[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True)
class InstanceMasks:
    """Instance maps drawn from a file's masks over label maps; crowds are left out, as SPADE's data has it."""

    file: CocoFile
    index_of: dict[str, int]  # position of an image, by its name

    @classmethod
    def of(cls, file: CocoFile) -> "InstanceMasks":
        return cls(file, {name: index for index, name in enumerate(file.names)})

    def instances(self, key: str, values: LabelMap) -> LabelMap:
        """Draws the instances of an image; without an entry in the file the label map is all there is.

        Raises:
            ValueError: If the image has another size in the file.
        """
        index = self.index_of.get(key)
        drawn = values.copy()
        if index is None or self.file.masks is None:
            return drawn
        height, width = self.file.sizes[index].tolist()
        if values.shape != (height, width):
            raise ValueError(
                f"{self.file.path} says that {key} has {height}x{width} px (height x width), its map has "
                f"{values.shape[0]}x{values.shape[1]}"
            )
        for place in range(int(self.file.starts[index]), int(self.file.starts[index + 1])):
            if not self.file.rows[place, 5]:
                outline = self.file.masks[place]
                drawn[_fill(outline, height, width)] = _FIRST_INSTANCE + place - int(self.file.starts[index])
        return drawn


def read_coco(path: Path, masks: bool = False) -> CocoFile:
    """Reads a file; objects without an area inside their image are dropped and counted in the log.

    Args:
        path: instances_*.json.
        masks: Whether to keep the masks too, which are most of the file.

    Raises:
        ValueError: If it is missing, not such a file, or contradicts itself.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from error
    wanted = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in wanted):
        got = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: wanted the lists {', '.join(wanted)}, got {got[:200]}")
    try:
        return _arrange(path, content, masks)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no COCO file of instances: something in it lacks or has a wrong {error}"
        ) from error


def _arrange(path: Path, content: dict[str, list[dict[str, Any]]], masks: bool) -> CocoFile:
    images = sorted(content["images"], key=lambda image: image["id"])
    categories = sorted(content["categories"], key=lambda category: category["id"])
    place_of = {image["id"]: place for place, image in enumerate(images)}
    class_of = {category["id"]: label for label, category in enumerate(categories)}
    if len(place_of) < len(images) or len(class_of) < len(categories):
        raise ValueError(f"{path}: two images or two categories have the same id")
    if not images or not categories:
        raise ValueError(f"{path} has {len(images)} images and {len(categories)} categories")
    sizes = np.array([(image["height"], image["width"]) for image in images], np.int64)
    annotations = content["annotations"]
    for annotation in annotations:
        for key, known in (("image_id", place_of), ("category_id", class_of)):
            if annotation[key] not in known:
                raise ValueError(
                    f"{path}: annotation {annotation.get('id')} has an unknown {key} {annotation[key]}"
                )
        box = annotation["bbox"]
        if len(box) != 4 or not all(isinstance(end, int | float) and abs(end) < 1e6 for end in box):
            raise ValueError(
                f"{path}: annotation {annotation.get('id')}: wanted a bbox of four numbers x y width height in px, got {box}"
            )
    places = np.array([place_of[annotation["image_id"]] for annotation in annotations], np.int64)
    order = np.argsort(places, kind="stable")
    places = places[order]
    boxes = np.array([annotations[i]["bbox"] for i in order], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clip(0, np.tile(sizes[places, ::-1], 2))
    kept: Bool[np.ndarray, " a"] = (boxes[:, 2:] - boxes[:, :2]).min(1) >= _SHORTEST_SIDE_PX
    if not kept.all():
        logger.warning("%s: left out %d of %d boxes without an area", path, int((~kept).sum()), len(kept))
    labels = [class_of[annotations[i]["category_id"]] for i in order]
    crowd = [int(bool(annotations[i].get("iscrowd", 0))) for i in order]
    rows = np.column_stack([boxes, np.array(labels, np.float64), np.array(crowd, np.float64)])
    return CocoFile(
        path,
        tuple(category["name"] for category in categories),
        tuple(image["file_name"] for image in images),
        sizes,
        rows[kept].astype(np.float32),
        np.searchsorted(places[kept], np.arange(len(images) + 1)),
        tuple(annotations[i].get("segmentation") for i in order[kept]) if masks else None,
    )


def _fill(outline: Any, height: int, width: int) -> np.ndarray:
    """The pixels inside polygons or run lengths; none for an object without an outline."""
    if not outline:
        return np.zeros((height, width), bool)
    coded = rle.frPyObjects(outline, height, width) if not _is_coded(outline) else outline
    merged = rle.merge(coded) if isinstance(coded, list) else coded
    return np.asarray(rle.decode(merged), bool)


def _is_coded(outline: Any) -> bool:
    return isinstance(outline, dict) and isinstance(outline.get("counts"), str | bytes)
