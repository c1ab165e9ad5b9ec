"""COCO-Stuff (Caesar et al., 2018, arXiv:1612.03716), in its official layout and in that of SPADE's authors."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from tasks.datasets.coco_json import InstanceMasks, read_coco
from tasks.datasets.images import FolderStore
from tasks.datasets.protocol import Split, TaskName
from tasks.datasets.scenes import (
    Coding,
    InstanceFiles,
    InstanceSource,
    Pairs,
    SceneFiles,
    SceneFilesConfig,
    existing_folder,
    listed_names,
    png_beside,
)
from tasks.datasets.splits import part_to_read

# In the order of COCO's ids, of which the maps hold one less; street sign, hat, shoe and eight more never occur.
CLASSES = listed_names("""
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush,
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile,
cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other,
hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other,
towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
water-other, waterdrops, window-blind, window-other, wood
""")
LAYOUTS = """\
  official  images/{train2017,val2017}/*.jpg and annotations/{train2017,val2017}/*.png (stuffthingmaps_trainval2017.zip, whose
            own folder will do too); with annotations/instances_{train2017,val2017}.json, their masks are the instances
  spade     {train,val}_img/*.jpg, {train,val}_label/*.png, and {train,val}_inst/*.png with instances"""

Layout = Literal["official", "spade"]


class CocoStuffConfig(SceneFilesConfig, frozen=True, extra="forbid"):
    """Segmentation of COCO-Stuff, or of any data set in its layout. Maps hold classes from 0 on, and 255 where there is none.

    Attributes:
        name: Registered name.
        layout: The layout of `root`. "official" is images/{train2017,val2017}/*.jpg with
            annotations/{train2017,val2017}/*.png, and instances from annotations/instances_{train2017,val2017}.json; "spade" is
            {train,val}_{img,label,inst}/. Without instances, semantic maps serve as such. None detects the layout.
        classes: Names of the maps' values from 0 on. None: the 182 of COCO-Stuff, of which 171 occur.
        instances: Whether to read the instances where there are any. For all of COCO that takes a while and some memory.
    """

    task: ClassVar[TaskName] = "segmentation"
    name: Literal["coco_stuff"] = "coco_stuff"
    layout: Layout | None = None
    classes: tuple[str, ...] | None = Field(None, min_length=2, max_length=255)
    instances: bool = True

    def build(self, split: Split) -> SceneFiles:
        """Lists a split.

        Raises:
            ValueError: If `root` is in none of the layouts, or files are missing or contradictory.
        """
        root = self.root.expanduser()
        found = {layout: find(root) for layout, find in _PARTS_OF.items() if self.layout in (None, layout)}
        found = {layout: parts for layout, parts in found.items() if parts}
        if len(found) != 1:
            state = (
                f"is in the layouts {' and '.join(found)}: say which" if found else "is in no known layout"
            )
            raise ValueError(f"{root} {state}. COCO-Stuff is read from\n{LAYOUTS}")
        [(layout, parts)] = found.items()
        part, held = part_to_read(split, parts)
        images, maps, instance_place = parts[part]
        pairs = Pairs.find(images, maps, png_beside)
        instances: InstanceSource | None = None
        if self.instances and instance_place is not None:
            if layout == "spade":
                instances = InstanceFiles.find(pairs, FolderStore(instance_place.resolve()), png_beside)
            else:
                instances = InstanceMasks.of(read_coco(instance_place, masks=True))
        coding = Coding.plain(CLASSES if self.classes is None else self.classes)
        chosen = self.choose(len(pairs), split, held)
        return SceneFiles(self.name, pairs, chosen, self.size, coding, instances=instances)


_Part = tuple[Path, Path, Path | None]  # images, label maps, and where instances come from


def _official_parts(root: Path) -> dict[str, _Part]:
    parts: dict[str, _Part] = {}
    for part in ("train", "val", "test"):
        for name in (f"{part}2017", part):
            images = existing_folder(root / "images" / name, root / name)
            folders = ("annotations", "stuffthingmaps_trainval2017", "stuffthingmaps")
            maps = existing_folder(*(root / folder / name for folder in folders))
            if images is not None and maps is not None:
                file = root / "annotations" / f"instances_{name}.json"
                parts[part] = images, maps, file if file.is_file() else None
                break
    return parts


def _spade_parts(root: Path) -> dict[str, _Part]:
    parts: dict[str, _Part] = {}
    for part in ("train", "val", "test"):
        images, maps, instances = (root / f"{part}_{kind}" for kind in ("img", "label", "inst"))
        if images.is_dir() and maps.is_dir():
            parts[part] = images, maps, instances if instances.is_dir() else None
    return parts


_PARTS_OF = {"official": _official_parts, "spade": _spade_parts}
