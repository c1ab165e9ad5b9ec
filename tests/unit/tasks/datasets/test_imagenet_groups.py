"""ImageNet's cars and cats."""

import pytest
from pydantic import ValidationError
from timm.data import ImageNetInfo

from tasks.datasets.imagenet_groups import CARS, CATS, ImageNetGroupsConfig


def test_the_default_groups_are_the_classes_that_timm_calls_so():
    names_of = ImageNetInfo().label_names()
    assert [names_of.index(wnid) for wnid in CATS] == [281, 282, 283, 284, 285]
    assert [names_of.index(wnid) for wnid in CARS] == [407, 436, 468, 511, 609, 627, 656, 661, 717, 751, 817]


def test_every_folder_gets_the_label_of_its_group_and_others_are_left_out(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "val", dict.fromkeys((*CATS, *CARS, "n01440764"), 2))
    dataset = ImageNetGroupsConfig(root=tmp_path, size=8).build("test")
    assert dataset.classes == ("car", "cat")
    assert dataset.labels.bincount().tolist() == [22, 10]
    # the first folder of the cars was written after the five of cats: colour (5, i, 7)
    assert (dataset[0]["images"][:, 0, 0] * 255).round().tolist() == [5, 0, 7] and dataset[0]["labels"] == 0


def test_val_and_train_come_from_the_train_folder_without_overlap(tmp_path, write_class_folders):
    groups = {"cat": ("n02123045",), "car": ("n02701002", "n03777568")}
    write_class_folders(tmp_path / "train", {"n02123045": 10, "n02701002": 5, "n03777568": 5})
    write_class_folders(tmp_path / "val", {"n02123045": 1, "n02701002": 1, "n03777568": 1})
    config = ImageNetGroupsConfig(root=tmp_path, groups=groups)
    train, val = config.build("train"), config.build("val")
    assert train.classes == ("cat", "car")
    assert sorted(train.ids.tolist() + val.ids.tolist()) == list(range(20))


def test_missing_folders_are_named(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "val", dict.fromkeys((*CATS, *CARS[1:]), 1))
    with pytest.raises(ValueError, match=r"lacks 1 of 16 class folders wanted: n02701002"):
        ImageNetGroupsConfig(root=tmp_path).build("test")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": ("n02123045",), "b": ("n02123045",)}, "more than once: n02123045"),
        ({"a": ("tabby",)}, "WordNet ids such as n02123045 are wanted, got tabby"),
        ({"a": ()}, "at least one"),
        ({}, "at least one"),
    ],
)
def test_impossible_groups_are_refused(tmp_path, groups, message):
    with pytest.raises(ValidationError, match=message):
        ImageNetGroupsConfig(root=tmp_path, groups=groups)
