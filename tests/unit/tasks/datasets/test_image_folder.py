"""Class folders with and without official splits."""

import logging
import pickle

import pytest
import torch
from pydantic import ValidationError

from tasks.datasets.image_folder import ImageFolderConfig


def test_images_labels_and_ids_follow_the_sorted_folders(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "train", {"b": 3, "a": 2})
    write_class_folders(tmp_path / "test", {"b": 1, "a": 1})
    dataset = ImageFolderConfig(root=tmp_path, size=8, val_fraction=0.5).build("test")
    assert dataset.name == "image_folder" and dataset.classes == ("a", "b")
    assert dataset.labels.tolist() == [0, 1] and dataset.labels.dtype == torch.int64
    # "b" was written first, as colour (0, i, 7)
    assert [(item["images"][:, 0, 0] * 255).tolist() for item in dataset] == [[1, 0, 7], [0, 0, 7]]
    assert [(item["labels"], item["ids"]) for item in dataset] == [(0, 0), (1, 1)]
    assert dataset[0]["images"].shape == (3, 8, 8) and dataset[0]["images"].dtype == torch.float32


def test_flat_folders_are_split_without_overlap(tmp_path, write_class_folders):
    write_class_folders(tmp_path, {"a": 10, "b": 20})
    splits = {split: ImageFolderConfig(root=tmp_path).build(split) for split in ("train", "val", "test")}
    assert sorted(torch.cat([dataset.ids for dataset in splits.values()]).tolist()) == list(range(30))
    assert [torch.bincount(dataset.labels).tolist() for dataset in splits.values()] == [
        [8, 16],
        [1, 2],
        [1, 2],
    ]


def test_ids_do_not_change_with_a_limit(tmp_path, write_class_folders):
    write_class_folders(tmp_path, {"a": 10, "b": 10})
    everything = ImageFolderConfig(root=tmp_path, size=8).build("train")
    limited = ImageFolderConfig(root=tmp_path, size=8, limit=2).build("train")
    images = {item["ids"]: item["images"] for item in everything}
    assert len(limited) == 4
    assert all(torch.equal(item["images"], images[item["ids"]]) for item in limited)


def test_validation_is_another_name_of_val_and_classes_may_be_ordered(tmp_path, write_class_folders):
    for part in ("train", "validation", "test"):
        write_class_folders(tmp_path / part, {"a": 2, "b": 3, "c": 1})
    dataset = ImageFolderConfig(root=tmp_path, classes=("b", "a")).build("val")
    assert dataset.classes == ("b", "a") and dataset.labels.tolist() == [0, 0, 0, 1, 1]


def test_a_class_called_train_is_not_mistaken_for_a_split(tmp_path, write_class_folders):
    write_class_folders(tmp_path, {"plane": 3, "train": 3})
    assert ImageFolderConfig(root=tmp_path).build("val").classes == ("plane", "train")


def test_nested_files_are_found_and_other_files_ignored(tmp_path, encode):
    (tmp_path / "a" / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "deeper" / "x.JPEG").write_bytes(encode((1, 2, 3), "JPEG"))
    (tmp_path / "a" / "y.webp").write_bytes(encode((1, 2, 3), "WEBP"))
    (tmp_path / "a" / "._y.webp").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    config = ImageFolderConfig(root=tmp_path, val_fraction=0, test_fraction=0)
    assert len(config.build("train")) == 2


def test_a_corrupt_image_is_named_when_it_is_read(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "test", {"a": 3})
    broken = tmp_path / "test" / "a" / "001.png"
    broken.write_bytes(broken.read_bytes()[:50])
    dataset = ImageFolderConfig(root=tmp_path).build("test")
    dataset[0]
    with pytest.raises(ValueError, match=r"001\.png: not a complete image.*on_corrupt: skip"):
        dataset[1]


def test_corrupt_images_are_left_out_and_counted_on_request(tmp_path, write_class_folders, caplog):
    write_class_folders(tmp_path / "test", {"a": 3, "b": 1})
    (tmp_path / "test" / "a" / "001.png").write_bytes(b"")
    config = ImageFolderConfig(root=tmp_path, size=8, on_corrupt="skip")
    with caplog.at_level(logging.WARNING):
        dataset = config.build("test")
    assert "left out 1 unreadable of 4 images" in caplog.text
    assert dataset.ids.tolist() == [0, 2, 3] and dataset.labels.tolist() == [0, 0, 1]
    (tmp_path / "test" / "b" / "000.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the images of b"):
        config.build("test")


def test_an_image_that_vanished_is_named(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "test", {"a": 1})
    dataset = ImageFolderConfig(root=tmp_path).build("test")
    (tmp_path / "test" / "a" / "000.png").unlink()
    with pytest.raises(ValueError, match=r"000\.png cannot be read \(No such file"):
        dataset[0]


def test_pickled_datasets_give_the_same_items(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "test", {"a": 2})
    dataset = ImageFolderConfig(root=tmp_path, size=8).build("test")
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[1]["images"], dataset[1]["images"]) and copy.classes == dataset.classes


def test_missing_empty_and_contradictory_folders_are_refused(tmp_path, write_class_folders):
    with pytest.raises(ValueError, match="does not exist"):
        ImageFolderConfig(root=tmp_path / "nowhere").build("train")
    with pytest.raises(ValueError, match="has no class folders"):
        ImageFolderConfig(root=tmp_path).build("train")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"a has no images \(\.jpg"):
        ImageFolderConfig(root=tmp_path / "empty").build("train")
    write_class_folders(tmp_path / "differ" / "train", {"a": 2, "b": 2})
    write_class_folders(tmp_path / "differ" / "val", {"a": 2})
    with pytest.raises(ValueError, match="different class folders: b"):
        ImageFolderConfig(root=tmp_path / "differ").build("train")
    with pytest.raises(ValueError, match=r"lacks 1 of 2 class folders wanted: z\. Folders there: a, b"):
        ImageFolderConfig(root=tmp_path / "differ", classes=("a", "z")).build("train")
    write_class_folders(tmp_path / "twice" / "val", {"a": 2})
    write_class_folders(tmp_path / "twice" / "validation", {"a": 2})
    with pytest.raises(ValueError, match="both val and validation"):
        ImageFolderConfig(root=tmp_path / "twice").build("val")


def test_the_config_refuses_unknown_keys_and_repeated_classes(tmp_path):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ImageFolderConfig(root=tmp_path, sizes=3)
    with pytest.raises(ValidationError, match="must be different folders"):
        ImageFolderConfig(root=tmp_path, classes=("a", "a"))
