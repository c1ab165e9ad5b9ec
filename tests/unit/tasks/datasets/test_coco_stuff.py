"""COCO-Stuff in the official layout, in SPADE's, and on real samples where they are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.datasets.coco_stuff import CLASSES, CocoStuffConfig

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # in pycocotools

SAMPLES = os.environ.get("GAT_COCO_STUFF_SAMPLE", "")
SIZE = {"image_size": (8, 10)}


def write_official(root, part="train2017", maps="annotations", name="000000000009"):
    values = np.full((8, 10), 255, np.uint8)
    values[:6] = 156  # sky-other
    values[2:5, 1:4] = values[2:5, 4:7] = 17  # two dogs side by side
    for folder, array, suffix in (("images", np.zeros((8, 10, 3), np.uint8), "jpg"), (maps, values, "png")):
        (root / folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / folder / part / f"{name}.{suffix}")
    return values


def write_instances(root, part="train2017", **changes):
    dog = {"category_id": 18, "image_id": 9, "iscrowd": 0, "area": 9}
    crowd = {"size": [8, 10], "counts": [0, 80]}
    content = {
        "images": [{"id": 9, "file_name": "000000000009.jpg", "height": 8, "width": 10, **changes}],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [
            {**dog, "id": 1, "bbox": [1, 2, 3, 3], "segmentation": [[1, 2, 4, 2, 4, 5, 1, 5]]},
            {**dog, "id": 2, "bbox": [4, 2, 3, 3], "segmentation": [[4, 2, 7, 2, 7, 5, 4, 5]]},
            {**dog, "id": 3, "bbox": [0, 0, 10, 8], "segmentation": crowd, "iscrowd": 1},
        ],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def test_the_names_are_those_of_the_official_ids():
    assert len(CLASSES) == len(set(CLASSES)) == 182
    official = {
        1: "person",
        18: "dog",
        90: "toothbrush",
        92: "banner",
        157: "sky-other",
        177: "wall-wood",
        182: "wood",
    }
    assert all(CLASSES[id_ - 1] == name for id_, name in official.items())


@pytest.mark.parametrize("maps", ["annotations", "stuffthingmaps_trainval2017"])
def test_the_official_layout_is_read(tmp_path, maps):
    values = write_official(tmp_path, maps=maps)
    write_official(tmp_path, "val2017", maps)
    dataset = CocoStuffConfig(root=tmp_path, **SIZE).build("test")
    item = dataset[0]
    assert np.array_equal(item["labels"].numpy(), values)
    assert [CLASSES[value] for value in item["labels"].unique() if value < 255] == ["dog", "sky-other"]
    assert torch.equal(item["layouts"][0], item["layouts"][1])  # no instances there


def test_masks_of_the_objects_are_the_instances_and_crowds_are_left_out(tmp_path):
    values = write_official(tmp_path, "val2017")
    write_instances(tmp_path, "val2017")
    instances = CocoStuffConfig(root=tmp_path, **SIZE).build("test")[0]["layouts"][1].numpy()
    expected = values.astype(int)
    expected[2:5, 1:4], expected[2:5, 4:7] = 1000, 1001
    assert np.array_equal(instances, expected)
    without = CocoStuffConfig(root=tmp_path, instances=False, **SIZE).build("test")[0]["layouts"]
    assert torch.equal(without[1], without[0])


def test_an_instance_file_of_other_images_is_refused(tmp_path):
    write_official(tmp_path, "val2017")
    write_instances(tmp_path, "val2017", width=9)
    with pytest.raises(ValueError, match=r"says that 000000000009.jpg has 8x9 px .* its map has 8x10"):
        CocoStuffConfig(root=tmp_path, **SIZE).build("test")[0]


def test_a_layout_is_detected_unless_there_are_two(tmp_path):
    write_official(tmp_path, "val2017")
    for kind, suffix in (("img", "jpg"), ("label", "png")):
        (tmp_path / f"val_{kind}").mkdir()
        Image.new("L", (10, 8)).save(tmp_path / f"val_{kind}" / f"x.{suffix}")
    with pytest.raises(ValueError, match="is in the layouts official and spade: say which"):
        CocoStuffConfig(root=tmp_path, **SIZE).build("test")
    assert 156 in CocoStuffConfig(root=tmp_path, layout="official", **SIZE).build("test")[0]["labels"]
    assert not CocoStuffConfig(root=tmp_path, layout="spade", **SIZE).build("test")[0]["labels"].any()


def test_a_folder_in_no_layout_is_refused_with_the_layouts(tmp_path):
    with pytest.raises(ValueError, match=r"is in no known layout(?s:.*)stuffthingmaps_trainval2017.zip"):
        CocoStuffConfig(root=tmp_path).build("train")


@pytest.mark.skipif(
    not SAMPLES, reason="GAT_COCO_STUFF_SAMPLE names no folder with COCO-Stuff in SPADE's layout"
)
def test_real_samples_are_read():
    config = CocoStuffConfig(root=SAMPLES, val_fraction=0.0)
    train, test = config.build("train"), config.build("test")
    assert len(train) == len(list((Path(SAMPLES) / "train_img").iterdir()))
    for item in (*train, *test):
        assert item["images"].std() > 0.05 and (item["labels"] < 255).any()
        edges = [(layer.diff() != 0).sum() for layer in item["layouts"]]
        assert edges[1] > 0 and not torch.equal(item["layouts"][0], item["layouts"][1])
