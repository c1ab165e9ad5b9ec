"""FashionScenes: real Fashion-MNIST garments in front of walls, floors, sky, grass, fabric and wood; ours.

Every pixel is known: which garment it shows, or which stuff. A scene is a pure function of (seed, split, index).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image
from pydantic import BaseModel, Field, PositiveInt, field_validator, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from tasks.datasets.fashion_mnist import CLASSES as GARMENTS
from tasks.datasets.fashion_mnist import FashionMNISTConfig
from tasks.datasets.protocol import SceneExample, Split

STUFF = ("wall", "floor", "sky", "grass", "fabric", "wood")
SEMANTIC_CLASSES = (*GARMENTS, *STUFF)
WALL, FLOOR, SKY, GRASS, FABRIC, WOOD = range(len(GARMENTS), len(SEMANTIC_CLASSES))

_SPLIT_KEYS = {"train": 0, "val": 1, "test": 2}
_FOREGROUND = 8  # of 255; what is darker around a garment is noise of its photograph
_OPEN_WORK = (GARMENTS.index("Sandal"), GARMENTS.index("Bag"))  # one sees through straps and handles
_SIDES_PX = (
    20,
    44,
)  # longer side of a garment, in an image of 64 px; the more garments, the smaller they are
_MIN_VISIBLE_PX = 24  # in an image of 64 px

Rng = np.random.Generator
Texture = Float32[np.ndarray, "h w 3"]
_ByteImage = UInt8[np.ndarray, "h w"]


class FashionScenesConfig(BaseModel, frozen=True, extra="forbid"):
    """FashionScenes, made on the fly.

    Attributes:
        name: Registered name.
        labels: "masks" serves segmentation (16 classes: ten garments, six kinds of stuff), "boxes" serves
            detection (the ten garments).
        source: Which Fashion-MNIST the garments come from, see `FashionMNISTConfig`.
        root: Folder of the full Fashion-MNIST.
        image_size: Height and width in pixels, a multiple of 32.
        max_garments: Garments per scene: 1 to this many, uniformly; some may then be hidden by others.
        min_visible: A garment of which a smaller share can be seen is left out of the scene, unless it is the only one.
        num_train: Scenes in "train"; there is no end to them, so take as many as you like.
        num_val: Scenes in "val".
        num_test: Scenes in "test".
        cache: Whether to keep scenes in memory once made (21 kB each at 64 px).
        seed: Seed of the scenes. Garments of train, val and test are disjoint for every seed.
    """

    name: Literal["fashion_scenes"] = "fashion_scenes"
    labels: Literal["masks", "boxes"] = "masks"
    source: Literal["subset", "full"] = "subset"
    root: Path | None = None
    image_size: PositiveInt = 64
    max_garments: Annotated[int, Field(ge=1, le=100)] = 5
    min_visible: Annotated[float, Field(ge=0, le=1)] = 0.3
    num_train: PositiveInt = 4000
    num_val: PositiveInt = 500
    num_test: PositiveInt = 500
    cache: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("image_size")
    @classmethod
    def _is_a_multiple_of_32(cls, image_size: int) -> int:
        if image_size % 32:
            raise ValueError(f"must be a multiple of 32 pixels, got {image_size}")
        return image_size

    @model_validator(mode="after")
    def _has_a_use_for_root(self) -> "FashionScenesConfig":
        if self.source == "subset" and self.root is not None:
            raise ValueError("root is for source: full; the subset comes with the project")
        return self

    @property
    def task(self) -> Literal["segmentation", "detection"]:
        """The task that the labels are for."""
        return "segmentation" if self.labels == "masks" else "detection"

    def build(self, split: Split) -> "FashionScenes":
        """Reads the garments of a split.

        Raises:
            ValueError: If the full Fashion-MNIST is wanted and missing or corrupt.
        """
        garments = FashionMNISTConfig(source=self.source, root=self.root, pad=None).build(split)
        num = {"train": self.num_train, "val": self.num_val, "test": self.num_test}[split]
        return FashionScenes(self, split, num, garments.grey, garments.labels.numpy())


@dataclass(frozen=True)
class Scene:
    """One scene. Garment `i` has the number `i + 1` in `instances`, class `classes[i]` and box `boxes[i]`."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    semantic: UInt8[np.ndarray, "h w"]  # index into SEMANTIC_CLASSES
    instances: UInt8[np.ndarray, "h w"]  # 0 for stuff
    boxes: Int64[np.ndarray, "n 4"]  # x0 y0 x1 y1 in px, tight around what is visible; x1, y1 exclusive
    classes: Int64[np.ndarray, " n"]
    occlusion: Float32[np.ndarray, " n"]  # hidden share of the silhouette, by others and the frame


class FashionScenes(Dataset[SceneExample]):
    """FashionScenes of one split.

    Attributes:
        name: Registered name.
        task: "segmentation" or "detection".
        classes: Names of the label's classes.
        layout_classes: Names of the semantic map's classes.
        ids: Indices of the scenes.
    """

    def __init__(
        self,
        config: FashionScenesConfig,
        split: Split,
        num: int,
        garments: UInt8[np.ndarray, "m 28 28"],
        garment_classes: Int64[np.ndarray, " m"],
    ) -> None:
        self.name = config.name
        self.task = config.task
        self.classes = SEMANTIC_CLASSES if config.labels == "masks" else GARMENTS
        self.layout_classes = SEMANTIC_CLASSES
        self.ids: Int64[Tensor, " n"] = torch.arange(num)
        self._config = config
        self._split: Split = split
        self._garments = garments
        self._silhouettes = find_silhouettes(garments, garment_classes)
        self._garment_classes = garment_classes
        self._cache: dict[int, Scene] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_cache": {},
        }  # workers make what they need faster than they could be sent it

    def __getitem__(self, index: int) -> SceneExample:
        scene = self.scene(index)
        if self.task == "segmentation":
            labels = torch.from_numpy(scene.semantic).long()
        else:
            labels = torch.zeros(self._config.max_garments, 6)
            labels[:, 4] = -1
            labels[: len(scene.boxes), :4] = torch.from_numpy(scene.boxes).float()
            labels[: len(scene.boxes), 4] = torch.from_numpy(scene.classes).float()
        return {
            "images": torch.from_numpy(scene.image).permute(2, 0, 1).contiguous() / 255,
            "labels": labels,
            "layouts": torch.from_numpy(np.stack([scene.semantic, scene.instances])).long(),
            "ids": int(self.ids[index]),
        }

    def scene(self, index: int) -> Scene:
        """Makes one scene, or remembers it.

        Raises:
            IndexError: If there is no such scene.
        """
        index = int(self.ids[index])
        scene = self._cache.get(index)
        if scene is None:
            scene = self._compose(index)
            if self._config.cache:
                self._cache[index] = scene
        return scene

    def to_coco(self, folder: Path) -> None:
        """Writes all scenes in COCO's official files, which the readers `coco` and `coco_stuff` read.

        images/{split}/{id}.png, annotations/{split}/{id}.png (semantic maps) and
        annotations/instances_{split}.json (boxes, and masks as uncompressed run lengths).
        """
        places = folder / "images" / self._split, folder / "annotations" / self._split
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for id_ in self.ids.tolist():
            scene, name = self.scene(id_), f"{id_:06d}.png"
            Image.fromarray(scene.image).save(places[0] / name)
            Image.fromarray(scene.semantic).save(places[1] / name)
            height, width = scene.semantic.shape
            images.append({"id": id_, "file_name": name, "height": height, "width": width})
            for number, (box, label) in enumerate(zip(scene.boxes, scene.classes, strict=True), start=1):
                mask, (x0, y0, x1, y1) = scene.instances == number, box.tolist()
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": id_,
                    "category_id": int(label) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
                    "iscrowd": 0,
                }
                annotations.append(annotation)
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": id_, "name": name} for id_, name in enumerate(GARMENTS, start=1)],
        }
        (folder / "annotations" / f"instances_{self._split}.json").write_text(json.dumps(content))

    def _compose(self, index: int) -> Scene:
        rng = np.random.default_rng((self._config.seed, _SPLIT_KEYS[self._split], index))
        size = self._config.image_size
        semantic = _lay_out_stuff(rng, size)
        instances = np.zeros((size, size), np.uint8)
        image = np.zeros((size, size, 3), np.uint8)
        boxes: list[tuple[int, ...]] = []
        classes: list[int] = []
        occlusion: list[float] = []
        num = int(rng.integers(1, self._config.max_garments + 1))
        # from front to back, so that leaving a hidden garment out changes nothing else
        for _ in range(num):
            garment, grey, mask, (y0, x0) = self._place_garment(rng, num, instances)
            inside = np.s_[max(y0, 0) : y0 + mask.shape[0], max(x0, 0) : x0 + mask.shape[1]]
            cut = np.s_[max(-y0, 0) : size - y0, max(-x0, 0) : size - x0]
            visible = mask[cut] & (instances[inside] == 0)
            num_visible, num_all = int(visible.sum()), int(mask.sum())
            wanted_px = max(self._config.min_visible * num_all, _MIN_VISIBLE_PX * (size / 64) ** 2)
            tint = _rgb(rng.random(), 0.1 + 0.75 * rng.random(), 0.6 + 0.4 * rng.random())
            if num_visible < (wanted_px if boxes else 1):  # the one in front is there in any case
                continue
            shade = 0.2 + grey[cut][visible].astype(np.float32) * np.float32(0.8 / 255)
            image[inside][visible] = (shade[:, None] * tint * 255 + 0.5).astype(np.uint8)
            label = int(self._garment_classes[garment])
            semantic[inside][visible] = label
            instances[inside][visible] = len(boxes) + 1
            rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
            top, left = max(y0, 0), max(x0, 0)
            ends = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            boxes.append(
                tuple(int(end) + start for end, start in zip(ends, (left, top, left, top), strict=True))
            )
            classes.append(label)
            occlusion.append(1 - num_visible / num_all)
        for stuff, texture_of in _TEXTURES.items():
            area = semantic == stuff
            if area.any():
                texture = texture_of(rng, size)[area]
                image[area] = (texture.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return Scene(
            image,
            semantic,
            instances,
            np.array(boxes, np.int64).reshape(-1, 4),
            np.array(classes, np.int64),
            np.array(occlusion, np.float32),
        )

    def _place_garment(
        self, rng: Rng, num: int, instances: _ByteImage
    ) -> tuple[int, UInt8[np.ndarray, "gh gw"], Bool[np.ndarray, "gh gw"], tuple[int, int]]:
        """Draws a garment, its size and flip, and of two places the one that overlaps less."""
        size = len(instances)
        garment = int(rng.integers(len(self._garments)))
        silhouette = self._silhouettes[garment]
        rows, columns = np.flatnonzero(silhouette.any(1)), np.flatnonzero(silhouette.any(0))
        crop = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
        least, most = _SIDES_PX
        most -= min(3 * (num - 1), 12)
        scale = (least + (most - least) * rng.random()) * size / 64 / max(height, width)
        shape = max(round(width * scale), 2), max(round(height * scale), 2)  # PIL's order
        flip = rng.random() < 0.5
        resized = [
            np.asarray(Image.fromarray(part[crop]).resize(shape, Image.Resampling.BILINEAR))
            for part in (self._garments[garment], silhouette.view(np.uint8) * np.uint8(255))
        ]
        grey, mask = (part[:, ::-1] if flip else part for part in resized)
        # up to a tenth may stick out of the frame on either side
        room = np.array([size - 0.8 * shape[1], size - 0.8 * shape[0]])
        places = (rng.random((2, 2)) * room - 0.1 * np.array([shape[1], shape[0]])).astype(np.int64)
        overlaps = [
            np.count_nonzero(instances[max(y, 0) : y + shape[1], max(x, 0) : x + shape[0]]) for y, x in places
        ]
        y0, x0 = places[int(np.argmin(overlaps))].tolist()
        return garment, grey, mask >= 128, (y0, x0)


def find_silhouettes(
    images: UInt8[np.ndarray, "n h w"], classes: Int64[np.ndarray, " n"]
) -> Bool[np.ndarray, "n h w"]:
    """Says which pixels show the garment: what is not black, and the black that it encloses.

    One or two black rows between others are dark stripes and soles. Sandals and bags keep such gaps, and the
    holes that have room for 3x3 pixels, because one sees through straps and handles; smaller holes are dark
    fabric. Single pixels apart from everything are noise.

    Args:
        images: Grey garments on black.
        classes: Fashion-MNIST classes.
    """
    shown = images > _FOREGROUND
    shown &= _beside(shown)
    solid = ~np.isin(classes, _OPEN_WORK)
    grown = shown.copy()
    grown[:, 1:] |= shown[:, :-1]
    grown[:, :-1] |= shown[:, 1:]
    shown[:, 1:-1] |= grown[:, :-2] & grown[:, 1:-1] & grown[:, 2:] & solid[:, None, None]
    filled = ~_flood_from_border(~shown)
    holes = (filled & ~shown)[~solid]
    rows = holes[:, :-2] & holes[:, 1:-1] & holes[:, 2:]
    blocks = rows[:, :, :-2] & rows[:, :, 1:-1] & rows[:, :, 2:]  # 3x3, by their top left corner
    openings = np.zeros_like(holes)
    for y in range(3):
        for x in range(3):
            openings[:, y : y + blocks.shape[1], x : x + blocks.shape[2]] |= blocks
    filled[~solid] &= ~openings
    return filled


def _flood_from_border(empty: Bool[np.ndarray, "n h w"]) -> Bool[np.ndarray, "n h w"]:
    """The empty pixels from which one gets to the border through empty pixels, up, down, left and right."""
    free = np.pad(empty, ((0, 0), (1, 1), (1, 1)), constant_values=True).transpose(1, 2, 0).copy()
    reached = np.zeros_like(free)
    reached[0] = True
    num_before = 0
    while (num_reached := int(np.count_nonzero(reached))) > num_before:
        num_before = num_reached
        for lines, open_lines in ((reached, free), (reached.swapaxes(0, 1), free.swapaxes(0, 1))):
            for i in range(1, len(lines)):
                lines[i] |= lines[i - 1] & open_lines[i]
            for i in reversed(range(len(lines) - 1)):
                lines[i] |= lines[i + 1] & open_lines[i]
    return reached.transpose(2, 0, 1)[:, 1:-1, 1:-1]


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat)) + 1
    ends = np.concatenate([[0], starts, [flat.size]])
    lengths = [int(length) for length in np.diff(ends)]
    return [0, *lengths] if flat[0] else lengths


def _beside(masks: Bool[np.ndarray, "n h w"]) -> Bool[np.ndarray, "n h w"]:
    """Pixels with one of the four neighbours in the mask."""
    found = np.zeros_like(masks)
    found[:, 1:] |= masks[:, :-1]
    found[:, :-1] |= masks[:, 1:]
    found[:, :, 1:] |= masks[:, :, :-1]
    found[:, :, :-1] |= masks[:, :, 1:]
    return found


# --- where the stuff is -----------------------------------------------------------------------------------


def _lay_out_stuff(rng: Rng, size: int) -> _ByteImage:
    return _PLACES[int(rng.integers(len(_PLACES)))](rng, size)


def _split_at_horizon(rng: Rng, size: int, above: int, below: int) -> _ByteImage:
    semantic = np.full((size, size), above, np.uint8)
    semantic[round((0.4 + 0.35 * rng.random()) * size) :] = below
    return semantic


def _room(rng: Rng, size: int) -> _ByteImage:
    """A wall and a floor, often with a rug."""
    semantic = _split_at_horizon(rng, size, WALL, FLOOR)
    if rng.random() < 0.4:
        left, right = np.array([0.4 * rng.random(), 1 - 0.4 * rng.random()]) * size
        top = round((0.75 + 0.1 * rng.random()) * size)
        semantic[top : top + size // 6, int(left) : int(right)] = FABRIC
    return semantic


def _outdoors(rng: Rng, size: int) -> _ByteImage:
    """Sky above grass, sometimes with a fence."""
    semantic = _split_at_horizon(rng, size, SKY, GRASS)
    if rng.random() < 0.3:
        top = round((0.3 + 0.3 * rng.random()) * size)
        semantic[top : top + size // 5] = WOOD
    return semantic


def _table(rng: Rng, size: int) -> _ByteImage:
    """A wooden table, with a cloth over a part that ends in a slanted edge."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - np.float32(0.5)
    slope, shift = rng.random(2) * 2 - 1
    over, under = (x, y) if rng.random() < 0.5 else (y, x)
    cloth = over + np.float32(0.6 * slope) * under > np.float32(0.25 * shift)
    return np.where(cloth, FABRIC, WOOD).astype(np.uint8)


def _shelf(rng: Rng, size: int) -> _ByteImage:
    """A wall with one or two boards."""
    semantic = np.full((size, size), WALL, np.uint8)
    for middle in (0.4, 0.85) if rng.random() < 0.6 else (0.75,):
        top = round((middle + 0.1 * rng.random()) * size)
        semantic[top : top + round((0.08 + 0.08 * rng.random()) * size)] = WOOD
    return semantic


_PLACES: Sequence[Callable[[Rng, int], _ByteImage]] = (_room, _outdoors, _table, _shelf)


# --- what the stuff looks like ------------------------------------------------------------------------------
# Only sums, products and comparisons, which are the same on every machine.


def _wall(rng: Rng, size: int) -> Texture:
    """Pale wallpaper with vertical stripes."""
    color = _rgb(rng.random(), 0.1 + 0.25 * rng.random(), 0.78 + 0.2 * rng.random())
    stripes = _bands(rng, size, 6, 12) < 0.5
    shade = 1 - np.float32(0.06 + 0.1 * rng.random()) * stripes + _noise(rng, (size, size), 0.03)
    return shade[..., None] * color


def _floor(rng: Rng, size: int) -> Texture:
    """Greyish tiles of differing brightness with dark joints."""
    color = _rgb(rng.random(), 0.15 * rng.random(), 0.4 + 0.25 * rng.random())
    y, x = _bands(rng, size, 8, 14, whole=True)[:, None], _bands(rng, size, 8, 14, whole=True)
    tiles = 1 + _noise(rng, (32, 32), 0.12)
    shade = tiles[y.astype(int) % 32, x.astype(int) % 32]
    joints = np.zeros((size, size), bool)
    width = max(size // 64, 1)
    for axis, cells in enumerate((y.ravel(), x)):
        starts = np.flatnonzero(np.diff(np.floor(cells))) + 1
        lines = (starts[:, None] + np.arange(width)).ravel()
        lines = lines[lines < size]
        joints[(lines,) if axis == 0 else (slice(None), lines)] = True
    return np.where(joints, np.float32(0.6), shade)[..., None] * color


def _sky(rng: Rng, size: int) -> Texture:
    """Blue, paler towards the horizon, with clouds."""
    hue, value = 0.53 + 0.09 * rng.random(), 0.75 + 0.2 * rng.random()
    top, bottom = _rgb(hue, 0.5 + 0.25 * rng.random(), value), _rgb(hue, 0.2, 0.95)
    depth = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    blue = top + (bottom - top) * depth
    clouds = ((_smooth(rng, size, 6, 4) - np.float32(0.55)) * 4).clip(0, 1)[..., None] * np.float32(0.8)
    return np.asarray(blue + (1 - blue) * clouds, np.float32)


def _grass(rng: Rng, size: int) -> Texture:
    """Green blades: noise, longer than wide."""
    color = _rgb(0.23 + 0.14 * rng.random(), 0.5 + 0.3 * rng.random(), 0.45 + 0.25 * rng.random())
    unit = max(size // 64, 1)
    blades = _noise(rng, (size // (3 * unit) + 1, size // unit), 0.55).repeat(3 * unit, 0).repeat(unit, 1)
    return (1 + blades[:size] * np.float32(0.7) + _noise(rng, (size, size), 0.3))[..., None] * color


def _fabric(rng: Rng, size: int) -> Texture:
    """Gingham: two crossing sets of stripes in a strong colour on white."""
    color = _rgb(rng.random(), 0.6 + 0.35 * rng.random(), 0.5 + 0.4 * rng.random())
    period = 4 + 5 * rng.random()
    crossing = [(_bands(rng, size, period, period) < 0.5).astype(np.float32) for _ in range(2)]
    weave = np.float32(0.25) + np.float32(0.375) * (crossing[0][:, None] + crossing[1])
    return np.asarray(1 + weave[..., None] * (color - 1), np.float32)


def _wood(rng: Rng, size: int) -> Texture:
    """Brown planks, dark seams, grain along them."""
    color = _rgb(0.05 + 0.05 * rng.random(), 0.5 + 0.25 * rng.random(), 0.45 + 0.25 * rng.random())
    planks = _bands(rng, size, 7, 13, whole=True)
    shade = (1 + _noise(rng, (32,), 0.2))[planks.astype(int) % 32]
    unit = max(size // 64, 1)
    shade = shade * np.where(np.diff(np.floor(planks), prepend=np.floor(planks[0])) > 0, 0.55, 1)
    grain = _noise(rng, (size // unit, 5), 0.28).repeat(unit, 0)
    columns = np.linspace(0, 3.999, size, dtype=np.float32)
    left, share = columns.astype(int), columns % 1
    grain = grain[:, left] * (1 - share) + grain[:, left + 1] * share
    return np.asarray((shade[:, None] + grain)[..., None] * color, np.float32)


_TEXTURES: dict[int, Callable[[Rng, int], Texture]] = {
    WALL: _wall,
    FLOOR: _floor,
    SKY: _sky,
    GRASS: _grass,
    FABRIC: _fabric,
    WOOD: _wood,
}


def _rgb(hue: float, saturation: float, value: float) -> Float32[np.ndarray, " 3"]:
    """RGB in [0, 1] of a colour whose hue goes round once in [0, 1]."""
    distances = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return (value * (1 + saturation * (distances.clip(0, 1) - 1))).astype(np.float32)


def _noise(rng: Rng, shape: tuple[int, ...], width: float) -> Float32[np.ndarray, "..."]:
    """Uniform in [-width / 2, width / 2]."""
    return (rng.random(shape, np.float32) - np.float32(0.5)) * np.float32(width)


def _bands(
    rng: Rng, size: int, shortest_px: float, longest_px: float, whole: bool = False
) -> Float32[np.ndarray, " size"]:
    """Position within periods of random length and start, in [0, 1); with `whole`, plus the period's number."""
    period = (shortest_px + (longest_px - shortest_px) * rng.random()) * size / 64
    position = (np.arange(size) / period + rng.random()).astype(np.float32)
    return position if whole else position % 1


def _smooth(rng: Rng, size: int, rows: int, columns: int) -> Float32[np.ndarray, "size size"]:
    """Smooth noise in [0, 1]: a few random values, interpolated by PIL in whole numbers."""
    coarse = Image.fromarray(rng.integers(0, 256, (rows, columns), np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32) / np.float32(255)
