"""Cityscapes: labels are train ids, layouts are ids, instances have 16 bits."""

import numpy as np
import pytest
from PIL import Image

from tasks.datasets.cityscapes import ALL_CLASSES, CLASSES, CityscapesConfig

FRAME = "aachen_000000_000019"


def write(root, ids, instances=None, part="val"):
    ids = np.array([ids], np.uint8).repeat(2, 0)
    instances = ids.astype(np.uint16) if instances is None else np.array([instances], np.uint16).repeat(2, 0)
    folders = root / "leftImg8bit" / part / "aachen", root / "gtFine" / part / "aachen"
    for folder in folders:
        folder.mkdir(parents=True)
    Image.fromarray(np.zeros((*ids.shape, 3), np.uint8)).save(folders[0] / f"{FRAME}_leftImg8bit.png")
    Image.fromarray(ids).save(folders[1] / f"{FRAME}_gtFine_labelIds.png")
    Image.fromarray(instances).save(folders[1] / f"{FRAME}_gtFine_instanceIds.png")
    return folders[1]


def test_ids_become_train_ids_and_stay_ids_in_layouts(tmp_path):
    write(tmp_path, [7, 11, 26, 26, 33, 0, 4, 29], [7, 11, 26000, 26001, 33004, 0, 4, 29])
    dataset = CityscapesConfig(root=tmp_path, image_size=(2, 8)).build("test")
    item = dataset[0]
    assert item["labels"][0].tolist() == [0, 2, 13, 13, 18, 255, 255, 255]
    assert item["layouts"][0, 1].tolist() == [7, 11, 26, 26, 33, 0, 4, 29]
    assert item["layouts"][1, 0].tolist() == [7, 11, 26000, 26001, 33004, 0, 4, 29]
    assert dataset.classes == CLASSES and dataset.layout_classes == ALL_CLASSES


def test_the_evaluated_classes_are_those_of_the_benchmark():
    evaluated = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # official ids
    assert tuple(ALL_CLASSES[id_] for id_ in evaluated) == CLASSES and len(ALL_CLASSES) == 35


def test_images_are_twice_as_wide_as_high_by_default(tmp_path):
    write(tmp_path, [7, 8])
    assert CityscapesConfig(root=tmp_path).build("test")[0]["images"].shape == (3, 256, 512)


def test_missing_instances_and_missing_folders_are_refused(tmp_path):
    folder = write(tmp_path, [7, 8])
    (folder / f"{FRAME}_gtFine_instanceIds.png").unlink()
    with pytest.raises(
        ValueError, match=f"lacks the maps of 1 of 1 images, e.g. aachen/{FRAME}_gtFine_instanceIds"
    ):
        CityscapesConfig(root=tmp_path).build("test")
    with pytest.raises(ValueError, match="lacks the folders leftImg8bit/train"):
        CityscapesConfig(root=tmp_path / "gtFine").build("test")


def test_coarse_images_do_not_count_as_a_part(tmp_path):
    write(tmp_path, [7, 8], part="train_extra")
    with pytest.raises(ValueError, match="lacks the folders leftImg8bit/train"):
        CityscapesConfig(root=tmp_path).build("train")
