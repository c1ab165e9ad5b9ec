"""ADE20K: values are one more than classes, and 0 is no class."""

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.datasets.ade20k import CLASSES, ADE20KConfig


def write(root, part="training", values=(0, 1, 150)):
    maps = np.repeat(np.array(values, np.uint8), 4)[None].repeat(4, 0)
    for folder, array, suffix in (
        ("images", np.zeros((*maps.shape, 3), np.uint8), "jpg"),
        ("annotations", maps, "png"),
    ):
        (root / folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / folder / part / f"ADE_00000001.{suffix}")


@pytest.mark.parametrize("inside", ["", "ADEChallengeData2016"])
def test_0_is_ignored_and_classes_count_from_1(tmp_path, inside):
    write(tmp_path / inside, "validation")
    item = ADE20KConfig(root=tmp_path, image_size=(4, 12)).build("test")[0]
    assert item["labels"][0].tolist() == [255] * 4 + [0] * 4 + [149] * 4
    assert torch.equal(item["layouts"][0], item["labels"])
    assert len(set(CLASSES)) == 150
    assert (CLASSES[0], CLASSES[12], CLASSES[80], CLASSES[149]) == ("wall", "person", "bus", "flag")


@pytest.mark.parametrize("value", [151, 255])
def test_values_above_150_are_refused(tmp_path, value):
    write(tmp_path, "validation", (1, value))
    with pytest.raises(ValueError, match=f"wanted values 0 to 150 for 150 classes, got {value}"):
        ADE20KConfig(root=tmp_path, image_size=4).build("test")[0]


def test_the_official_validation_part_is_the_test_split(tmp_path):
    write(tmp_path, values=(1, 1))
    write(tmp_path, "validation", (2, 2))
    config = ADE20KConfig(root=tmp_path, image_size=4, val_fraction=0.0)
    assert [int(config.build(split)[0]["labels"][0, 0]) for split in ("train", "test")] == [0, 1]


def test_a_folder_without_the_parts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks the folders images/training"):
        ADE20KConfig(root=tmp_path).build("train")
