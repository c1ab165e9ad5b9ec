"""Cityscapes, fine annotations (Cordts et al., 2016, arXiv:1604.01685)."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from gat.logits import IGNORE
from tasks.datasets.images import FolderStore
from tasks.datasets.protocol import Split, TaskName
from tasks.datasets.scenes import Coding, InstanceFiles, Pairs, SceneFiles, SceneFilesConfig, listed_names
from tasks.datasets.splits import part_to_read

# In the order of their ids in the files; the last is never drawn there, but generators know it.
ALL_CLASSES = listed_names("""
unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road, sidewalk, parking,
rail track, building, wall, fence, guard rail, bridge, tunnel, pole, polegroup, traffic light, traffic sign,
vegetation, terrain, sky, person, rider, car, truck, bus, caravan, trailer, train, motorcycle, bicycle,
license plate
""")
# Those that are evaluated, in the order of the official train ids.
CLASSES = listed_names("""
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, rider,
car, truck, bus, train, motorcycle, bicycle
""")
_IMAGE, _LABELS, _INSTANCES = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_instanceIds.png"


class CityscapesConfig(SceneFilesConfig, frozen=True, extra="forbid"):
    """Segmentation of Cityscapes as unpacked: leftImg8bit/{train,val}/{city}/*_leftImg8bit.png and, in gtFine/{train,val}/{city}/,
    *_gtFine_labelIds.png and *_gtFine_instanceIds.png. "test" is the val part, as the labels of the official test part are not
    public. Labels have the 19 classes that are evaluated, layouts all 35.

    Attributes:
        name: Registered name.
        image_size: Height and width in pixels.
    """

    task: ClassVar[TaskName] = "segmentation"
    name: Literal["cityscapes"] = "cityscapes"
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = (256, 512)

    def build(self, split: Split) -> SceneFiles:
        """Lists a split.

        Raises:
            ValueError: If folders or counterparts are missing.
        """
        root = self.root.expanduser()
        parts = [part for part in ("train", "val") if (root / "leftImg8bit" / part).is_dir()]
        if not parts or not (root / "gtFine").is_dir():
            raise ValueError(f"{root} lacks the folders leftImg8bit/train, leftImg8bit/val or gtFine")
        part, held = part_to_read(split, parts)
        folder = root / "gtFine" / part
        pairs = Pairs.find(
            root / "leftImg8bit" / part, folder, lambda key: key.removesuffix(_IMAGE) + _LABELS
        )
        chosen = self.choose(len(pairs), split, held)
        store = FolderStore(folder.resolve())
        instances = InstanceFiles.find(pairs, store, lambda key: key.removesuffix(_IMAGE) + _INSTANCES)
        return SceneFiles(self.name, pairs, chosen, self.size, _LABEL_CODING, _LAYOUT_CODING, instances)


_LABEL_CODING = Coding.of(
    CLASSES,
    {
        IGNORE: IGNORE,
        **{id_: CLASSES.index(name) if name in CLASSES else IGNORE for id_, name in enumerate(ALL_CLASSES)},
    },
)
_LAYOUT_CODING = Coding.plain(ALL_CLASSES)
