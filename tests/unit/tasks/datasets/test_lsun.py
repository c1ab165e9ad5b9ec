"""LSUN databases and exported trees."""

import hashlib
import logging
import pickle
import sys
import warnings

import lmdb
import pytest
import torch
from pydantic import ValidationError
from torch.utils.data import DataLoader

from tasks.datasets.lsun import LsunConfig


def lsun_key(category, i):
    return hashlib.sha1(f"{category}{i}".encode()).hexdigest()


@pytest.fixture
def write_database(encode):
    """Writes webp images under sha1 keys, as LSUN has them; image i has the colour (shade, i, 7)."""

    def write(folder, shade, count):
        with (
            lmdb.open(str(folder), map_size=1 << 22) as environment,
            environment.begin(write=True) as transaction,
        ):
            for i in range(count):
                transaction.put(lsun_key(shade, i).encode(), encode((shade, i, 7), "WEBP"))

    return write


@pytest.fixture
def scenes(tmp_path, write_database):
    for shade, category in ((10, "bedroom"), (20, "tower")):
        write_database(tmp_path / f"{category}_train_lmdb", shade, 10)
        write_database(tmp_path / f"{category}_val_lmdb", shade + 1, 3)
    return LsunConfig(root=tmp_path, categories=("bedroom", "tower"), size=8)


def colors_of(dataset):
    return [(item["images"][:, 0, 0] * 255).round().int().tolist() for item in dataset]


def test_images_come_in_the_order_of_the_keys_with_the_label_of_their_category(scenes):
    dataset = scenes.build("test")
    order = [sorted(range(3), key=lambda i, shade=shade: lsun_key(shade, i)) for shade in (11, 21)]
    assert colors_of(dataset) == [[11, i, 7] for i in order[0]] + [[21, i, 7] for i in order[1]]
    assert dataset.name == "lsun" and dataset.classes == ("bedroom", "tower")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1] and dataset.ids.tolist() == list(range(6))


def test_val_is_held_out_from_train_in_every_category(scenes):
    train, val = scenes.build("train"), scenes.build("val")
    assert sorted(train.ids.tolist() + val.ids.tolist()) == list(range(20))
    assert torch.bincount(val.labels).tolist() == [1, 1]


def test_an_exported_tree_gives_the_images_of_the_database(scenes, tmp_path, encode):
    exported = tmp_path / "exported"
    for shade, category in ((11, "bedroom"), (21, "tower")):
        for i in range(3):
            key = lsun_key(shade, i)
            path = exported / f"{category}_val" / "/".join(key[:6]) / f"{key}.webp"
            path.parent.mkdir(parents=True)
            path.write_bytes(encode((shade, i, 7), "WEBP"))
    from_tree = LsunConfig(root=exported, categories=("bedroom", "tower"), size=8).build("test")
    assert colors_of(from_tree) == colors_of(scenes.build("test"))


def test_objects_have_no_parts_and_go_together_with_scenes(scenes, tmp_path, write_database):
    write_database(tmp_path / "car", 30, 20)
    write_database(tmp_path / "cat_lmdb", 40, 20)
    config = LsunConfig(root=tmp_path, categories=("car", "bedroom", "cat"), size=8)
    splits = {split: config.build(split) for split in ("train", "val", "test")}
    counts = {split: torch.bincount(dataset.labels).tolist() for split, dataset in splits.items()}
    assert counts == {"train": [16, 9, 16], "val": [2, 1, 2], "test": [2, 3, 2]}
    cars = [color for dataset in splits.values() for color in colors_of(dataset) if color[0] == 30]
    assert sorted(cars) == [[30, i, 7] for i in range(20)]


def test_two_datasets_read_the_same_database_in_one_process(scenes):
    first, second = scenes.build("test"), scenes.build("test")
    assert colors_of(first) == colors_of(second)
    copy = pickle.loads(pickle.dumps(first))
    assert colors_of(copy) == colors_of(second)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_read_a_database_that_their_parent_has_open(scenes, start_method):
    dataset = scenes.build("test")
    expected = colors_of(dataset)  # the parent has read: a forked worker inherits the open database
    loader = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context=start_method)
    with warnings.catch_warnings():
        # Python 3.12 warns of any fork while the parent has threads, as torch always does
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        images = torch.cat([batch["images"] for batch in loader])
    assert (images[:, :, 0, 0] * 255).round().int().tolist() == expected
    assert colors_of(dataset) == expected  # and the parent reads on


def test_a_truncated_database_is_refused_instead_of_crashing(tmp_path, write_database):
    write_database(tmp_path / "car", 30, 200)
    data = tmp_path / "car" / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"car is truncated: \d+ of \d+ bytes"):
        LsunConfig(root=tmp_path, categories=("car",)).build("train")


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "car").mkdir()
    (tmp_path / "car" / "data.mdb").write_bytes(b"<html>404</html>" * 1000)
    with pytest.raises(ValueError, match="car cannot be opened: it is no complete lmdb database"):
        LsunConfig(root=tmp_path, categories=("car",)).build("train")


def test_a_database_that_other_code_has_open_is_refused_with_the_reason(tmp_path, write_database):
    write_database(tmp_path / "car", 30, 5)
    config = LsunConfig(root=tmp_path, categories=("car",))
    with (
        lmdb.open(str(tmp_path / "car"), readonly=True, lock=False),
        pytest.raises(ValueError, match="open elsewhere in this process"),
    ):
        config.build("train")


def test_a_corrupt_image_is_named_by_its_key_or_skipped(scenes, tmp_path, caplog):
    key = lsun_key(11, 0).encode()
    path = str(tmp_path / "bedroom_val_lmdb")
    with lmdb.open(path, map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        transaction.put(key, transaction.get(key)[:20])
    with pytest.raises(ValueError, match=rf"bedroom_val_lmdb, key {key.decode()}: not a complete image"):
        list(scenes.build("test"))
    skipping = scenes.model_copy(update={"on_corrupt": "skip"})
    with caplog.at_level(logging.WARNING):
        dataset = skipping.build("test")
    assert "left out 1 unreadable of 6 images" in caplog.text and len(colors_of(dataset)) == 5


def test_a_missing_category_is_named_with_what_is_there(scenes, tmp_path):
    with pytest.raises(
        ValueError, match=r"'kitchen' was not found .*kitchen_train_lmdb.*There: bedroom_train"
    ):
        LsunConfig(root=tmp_path, categories=("kitchen",)).build("train")
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "kitchen_train_lmdb.zip").touch()
    with pytest.raises(ValueError, match=r"Unzip the \.zip files first"):
        LsunConfig(root=tmp_path / "zipped", categories=("kitchen",)).build("train")


def test_an_empty_database_and_an_empty_folder_are_refused(tmp_path, write_database):
    write_database(tmp_path / "car", 0, 0)
    (tmp_path / "cat").mkdir()
    for category in ("car", "cat"):
        with pytest.raises(ValueError, match=f"{category} has no images"):
            LsunConfig(root=tmp_path, categories=(category,)).build("train")


def test_a_missing_lmdb_package_is_named_with_the_extra(tmp_path, write_database, monkeypatch):
    write_database(tmp_path / "car", 30, 5)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ImportError, match=r"pip install 'gat-robust\[lsun\]'"):
        LsunConfig(root=tmp_path, categories=("car",)).build("train")


def test_repeated_categories_are_refused(tmp_path):
    with pytest.raises(ValidationError, match="must be different categories"):
        LsunConfig(root=tmp_path, categories=("car", "car"))
