"""ADE20K's scene parsing benchmark with 150 classes (Zhou et al., 2017, arXiv:1608.05442)."""

from typing import ClassVar, Literal

from gat.logits import IGNORE
from tasks.datasets.protocol import Split, TaskName
from tasks.datasets.scenes import Coding, Pairs, SceneFiles, SceneFilesConfig, listed_names, png_beside
from tasks.datasets.splits import part_to_read

# In the order of their values from 1 on, each by the first of its official names.
CLASSES = listed_names("""
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank,
trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock,
flag
""")
_PARTS = {"train": "training", "val": "validation"}


class ADE20KConfig(SceneFilesConfig, frozen=True, extra="forbid"):
    """Segmentation of ADE20K as unpacked from ADEChallengeData2016.zip: images/{training,validation}/*.jpg and
    annotations/{training,validation}/*.png with 1 to 150 for the classes and 0 for everything else, which is ignored. `root` is
    that folder or the one around it. "test" is the validation part, as the labels of the official test part are not public.

    Attributes:
        name: Registered name.
    """

    task: ClassVar[TaskName] = "segmentation"
    name: Literal["ade20k"] = "ade20k"

    def build(self, split: Split) -> SceneFiles:
        """Lists a split.

        Raises:
            ValueError: If folders or counterparts are missing.
        """
        root = self.root.expanduser()
        if (root / "ADEChallengeData2016").is_dir():
            root = root / "ADEChallengeData2016"
        parts = [part for part, name in _PARTS.items() if (root / "images" / name).is_dir()]
        if not parts:
            raise ValueError(f"{root} lacks the folders images/training and images/validation")
        part, held = part_to_read(split, parts)
        pairs = Pairs.find(root / "images" / _PARTS[part], root / "annotations" / _PARTS[part], png_beside)
        return SceneFiles(self.name, pairs, self.choose(len(pairs), split, held), self.size, _CODING)


_CODING = Coding.of(CLASSES, {0: IGNORE, **{label + 1: label for label in range(len(CLASSES))}})
