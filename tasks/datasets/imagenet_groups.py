"""ImageNet with its classes grouped, by default into cars and cats (paper, Table 3)."""

import re
from typing import Literal

from pydantic import field_validator

from tasks.datasets.image_folder import find_parts, list_class_folders
from tasks.datasets.images import ImageDataset, ImageFilesConfig, build_dataset
from tasks.datasets.protocol import Split
from tasks.datasets.splits import part_to_read

CARS = (
    "n02701002",  # 407 ambulance
    "n02814533",  # 436 beach wagon, station wagon
    "n02930766",  # 468 cab, taxi
    "n03100240",  # 511 convertible
    "n03594945",  # 609 jeep, landrover
    "n03670208",  # 627 limousine
    "n03770679",  # 656 minivan
    "n03777568",  # 661 Model T
    "n03930630",  # 717 pickup
    "n04037443",  # 751 racer, race car
    "n04285008",  # 817 sports car
)
CATS = (
    "n02123045",  # 281 tabby
    "n02123159",  # 282 tiger cat
    "n02123394",  # 283 Persian cat
    "n02123597",  # 284 Siamese cat
    "n02124075",  # 285 Egyptian cat
)


class ImageNetGroupsConfig(ImageFilesConfig, frozen=True, extra="forbid"):
    """ImageNet classes grouped into a few; all other classes are left out.

    `root` holds folders train and val with one folder per WordNet id in each (ILSVRC2012), or those folders
    themselves. Only the folders of the groups need to be there. "test" is the val folder.

    Attributes:
        name: Registered name.
        groups: WordNet ids of each group, in the order of the labels. The default has the names of LSUN's
            object categories car and cat, so that a model trained on those can be evaluated here.
    """

    name: Literal["imagenet_groups"] = "imagenet_groups"
    groups: dict[str, tuple[str, ...]] = {"car": CARS, "cat": CATS}

    @field_validator("groups")
    @classmethod
    def _are_disjoint(cls, groups: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        wnids = [wnid for group in groups.values() for wnid in group]
        if not groups or not all(groups.values()):
            raise ValueError("must name at least one group, and at least one WordNet id in each")
        if wrong := [wnid for wnid in wnids if not re.fullmatch(r"n\d{8}", wnid)]:
            raise ValueError(f"WordNet ids such as n02123045 are wanted, got {', '.join(wrong)}")
        if twice := sorted({wnid for wnid in wnids if wnids.count(wnid) > 1}):
            raise ValueError(f"named more than once: {', '.join(twice)}")
        return groups

    def build(self, split: Split) -> ImageDataset:
        """Lists a split.

        Raises:
            ValueError: If folders are missing or have no images.
        """
        parts = find_parts(self.root)
        part, held = part_to_read(split, parts)
        labels = {wnid: label for label, group in enumerate(self.groups.values()) for wnid in group}
        listing = list_class_folders(parts[part], labels)
        classes = tuple(self.groups)
        chosen = self.choose(listing.labels, classes, split, held)
        return build_dataset(self, self.name, classes, listing, chosen)
