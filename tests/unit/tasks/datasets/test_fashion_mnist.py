"""Fashion-MNIST: idx files byte by byte, the shipped part, splits and messages."""

import gzip
import hashlib
import pickle
import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch.utils.data import DataLoader, Subset

from tasks.datasets import fashion_mnist
from tasks.datasets.fashion_mnist import SUBSET_FOLDER, FashionMNISTConfig, read_idx

SCRIPT = Path(__file__).parents[4] / "scripts" / "make_fashion_subset.py"
DIGESTS = {
    "train-images-idx3-ubyte.gz": "565c0e0c1c6c3f1d3e5fd551bf2b2193fd18eb3ce7df443490ec9b67efe7a820",
    "train-labels-idx1-ubyte.gz": "a222d47fd7867b08389b134f2825132aee258562949232025bce8d5fe8de9475",
    "t10k-images-idx3-ubyte.gz": "28d24d61551ff41195fc8a6c28d7a7de8911a7fadf31729a59eb90cb0654f58f",
    "t10k-labels-idx1-ubyte.gz": "ea135b81a7e66f1e63b48d6cc897bd2a89f63695abb6bf721093bacec34a591e",
}
ZIPPED = gzip.compress(bytes.fromhex("00000801 00000064") + bytes(range(100)), mtime=0)


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(folder, compress=True, train_per_class=4, test_per_class=2):
    """Writes a small set in the official files; pixel (0, 0) of every image is its position."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, per_class in (("train", train_per_class), ("t10k", test_per_class)):
        labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
        images = np.zeros((len(labels), 28, 28), dtype=np.uint8)
        images[:, 0, 0] = np.arange(len(labels))
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array)
            path = folder / f"{stem}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(data) if compress else data)


@pytest.fixture
def no_debian(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "no-debian-package")


def test_idx_bytes_become_the_array_they_describe(tmp_path):
    data = bytes.fromhex("00000802 00000002 00000003 0a0b0c fdfeff")
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "zipped").write_bytes(gzip.compress(data))
    for name in ("plain", "zipped"):
        assert read_idx(tmp_path / name).tolist() == [[10, 11, 12], [253, 254, 255]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes.fromhex("00000d01 00000001 00000000"), "magic 00 00 08 nn, got 00 00 0d 01"),
        (b"<html>", "got 3c 68 74 6d"),
        (b"", "no idx file"),
        (bytes.fromhex("00000803 0000"), "ends inside its header"),
        (bytes.fromhex("00000801 00000003 0102"), r"announces \(3,\), 3 bytes, but 2 follow"),
        (bytes.fromhex("00000801 00000001 0102"), r"announces \(1,\), 1 bytes, but 2 follow"),
        (ZIPPED[:-20], "cannot be read, fetch it again"),
        (ZIPPED[:10] + b"\xff" * 20, "cannot be read, fetch it again"),
    ],
)
def test_what_is_no_whole_idx_file_is_refused(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "file")


def test_the_shipped_files_are_those_that_were_chosen_and_small():
    for name, digest in DIGESTS.items():
        assert hashlib.sha256(gzip.decompress((SUBSET_FOLDER / name).read_bytes())).hexdigest() == digest
    assert sum(path.stat().st_size for path in SUBSET_FOLDER.iterdir()) <= 4.8e6
    assert "Copyright (c) 2017 Zalando SE" in (SUBSET_FOLDER / "LICENSE").read_text()


def test_the_subset_is_balanced_in_every_split_and_train_and_val_are_disjoint():
    config = FashionMNISTConfig()
    train, val, test = (config.build(split) for split in ("train", "val", "test"))
    counts = [torch.bincount(dataset.labels).unique().tolist() for dataset in (train, val, test)]
    assert counts == [[750], [50], [200]]
    assert sorted(train.ids.tolist() + val.ids.tolist()) == list(range(8000))
    assert test.ids.tolist() == list(range(2000))


def test_an_item_is_a_padded_grey_image_in_three_channels():
    raw = read_idx(SUBSET_FOLDER / "t10k-images-idx3-ubyte.gz")
    dataset = FashionMNISTConfig().build("test")
    item = dataset[7]
    assert set(item) == {"images", "labels", "ids"} and type(item["labels"]) is int and item["ids"] == 7
    assert item["images"].shape == (3, 32, 32) and item["images"].dtype == torch.float32
    assert item["images"].is_contiguous()
    expected = torch.tensor(np.pad(raw[7], 2)) / 255
    assert all(torch.equal(channel, expected) for channel in item["images"])
    unpadded = FashionMNISTConfig(pad=None).build("test")[7]["images"]
    assert torch.equal(unpadded, item["images"][:, 2:-2, 2:-2])


def test_many_items_at_once_equal_the_items_one_by_one():
    dataset = FashionMNISTConfig(limit=3).build("train")
    indices = [5, 0, 29, 5]
    for at_once, alone in zip(dataset.__getitems__(indices), map(dataset.__getitem__, indices), strict=True):
        assert torch.equal(at_once["images"], alone["images"])
        assert (at_once["labels"], at_once["ids"]) == (alone["labels"], alone["ids"])
        assert type(at_once["labels"]) is int


def test_a_data_loader_makes_batches_with_the_same_keys_even_of_a_subset():
    dataset = Subset(FashionMNISTConfig().build("test"), [3, 1999])
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert batch["images"].shape == (2, 3, 32, 32)
    assert batch["ids"].tolist() == [3, 1999] and batch["labels"].dtype == torch.int64


def test_a_limit_takes_the_first_of_each_class_and_keeps_ids():
    everything, limited = (FashionMNISTConfig(limit=limit).build("train") for limit in (None, 2))
    assert torch.bincount(limited.labels).tolist() == [2] * 10
    for label in range(10):
        first = everything.ids[everything.labels == label][:2]
        assert torch.equal(limited.ids[limited.labels == label], first)


def test_an_index_past_the_end_is_an_index_error_and_pickling_keeps_items():
    dataset = FashionMNISTConfig(limit=1).build("test")
    with pytest.raises(IndexError):
        dataset[10]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["images"], dataset[3]["images"])


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
def test_the_full_set_is_found_in_a_root(tmp_path, no_debian, compress, inside):
    write_set(tmp_path / inside, compress)
    config = FashionMNISTConfig(source="full", root=tmp_path, val_size=10)
    train, val = config.build("train"), config.build("val")
    assert len(train) == 30 and len(val) == 10 and torch.bincount(val.labels).tolist() == [1] * 10
    assert all(round(float(item["images"][0, 2, 2]) * 255) == item["ids"] for item in train)


def test_torchvision_reads_the_same_images(tmp_path, no_debian):
    write_set(tmp_path / "FashionMNIST" / "raw", compress=False)
    theirs = torchvision.datasets.FashionMNIST(str(tmp_path), train=False)
    ours = FashionMNISTConfig(source="full", root=tmp_path, pad=None).build("test")
    assert torch.equal(torch.stack([item["images"][0] for item in ours]), theirs.data / 255)
    assert torch.equal(ours.labels, theirs.targets) and list(ours.classes) == theirs.classes


def test_the_debian_package_is_used_when_there_is_no_root(tmp_path, monkeypatch):
    write_set(tmp_path)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    assert len(FashionMNISTConfig(source="full").build("test")) == 20


def test_a_missing_full_set_is_an_error_with_all_places_and_ways_out(tmp_path, no_debian):
    with pytest.raises(ValueError, match="was not found in") as caught:
        FashionMNISTConfig(source="full", root=tmp_path / "here").build("train")
    for part in (
        "here/FashionMNIST/raw",
        "no-debian-package",
        "download: true",
        "dataset-fashion-mnist",
        "subset",
    ):
        assert part in str(caught.value)


def test_download_falls_to_torchvision(tmp_path, no_debian, monkeypatch):
    def download(root, download):
        assert download
        write_set(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    config = FashionMNISTConfig(source="full", root=tmp_path, download=True)
    assert len(config.build("test")) == 20

    def fail(root, download):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", fail)
    with pytest.raises(ValueError, match=r"could not be downloaded into .*elsewhere: Error downloading"):
        FashionMNISTConfig(source="full", root=tmp_path / "elsewhere", download=True).build("test")


def test_files_that_do_not_fit_together_are_refused(tmp_path, no_debian):
    config = FashionMNISTConfig(source="full", root=tmp_path)
    write_set(tmp_path, compress=False)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(19, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"wanted 20 labels .* got \(19,\)"):
        config.build("test")
    labels.write_bytes(idx(np.full(20, 10, dtype=np.uint8)))
    with pytest.raises(ValueError, match="wanted labels 0 to 9, got 10"):
        config.build("test")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((20, 32, 32), dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"wanted images of shape \(n, 28, 28\), got \(20, 32, 32\)"):
        config.build("test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_size": 15}, "multiple of the 10 classes, got 15"),
        ({"pad": 31}, "even number of at least 28 pixels, got 31"),
        ({"pad": 20}, "even number of at least 28 pixels, got 20"),
        ({"root": "data"}, "root and download are for source: full"),
        ({"source": "full", "download": True}, "download needs a root"),
        ({"sauce": "full"}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        FashionMNISTConfig(**settings)


def test_a_val_split_as_large_as_train_is_refused():
    with pytest.raises(ValueError, match="train split would have no examples of T-shirt/top"):
        FashionMNISTConfig(val_size=8000).build("train")


def test_the_script_chooses_the_same_balanced_subset_twice(tmp_path, monkeypatch, capsys):
    write_set(tmp_path / "full", train_per_class=9, test_per_class=5)
    sizes = ["--train-per-class", "3", "--test-per-class", "2"]
    for out in ("one", "two"):
        arguments = [str(SCRIPT), "--full", str(tmp_path / "full"), "--out", str(tmp_path / out), *sizes]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert done.value.code == 0
    for name in DIGESTS:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    images, labels = (
        read_idx(tmp_path / "one" / f"train-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
    )
    positions = images[:, 0, 0]
    assert np.bincount(labels).tolist() == [3] * 10
    assert (np.diff(positions.astype(int)) > 0).all() and (positions % 10 == labels).all()
