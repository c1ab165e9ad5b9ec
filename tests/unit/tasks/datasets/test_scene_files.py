"""What all readers of scenes share: pairing, decoding, resizing and messages."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.utils.data import DataLoader

from tasks.datasets import SceneDataset
from tasks.datasets.coco_stuff import CocoStuffConfig
from tasks.datasets.images import FolderStore, UnreadableImageError
from tasks.datasets.scenes import Coding, Pairs, png_beside, read_map, resize_map

NAMES = ("sky", "sea", "sand")
RNG = np.random.default_rng(0)


def write_scene(root, name="a", part="train", height=12, width=18, values=None, instances=None):
    """Writes one scene in SPADE's layout and returns its arrays."""
    image = RNG.integers(0, 256, (height, width, 3), np.uint8)
    values = RNG.integers(0, 3, (height, width), np.uint8) if values is None else values
    for kind, array in (("img", image), ("label", values), ("inst", instances)):
        if array is not None:
            (root / f"{part}_{kind}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / f"{part}_{kind}" / f"{name}.png")
    return image, values


def build(root, split="train", size=(12, 18), **settings):
    settings = {"val_fraction": 0.0, "test_fraction": 0.0, "classes": NAMES, **settings}
    return CocoStuffConfig(root=root, image_size=size, **settings).build(split)


def test_at_full_size_an_item_is_what_is_in_the_files(tmp_path):
    values = RNG.integers(0, 3, (12, 18)).astype(np.uint8)
    values[:2] = 255
    instances = RNG.integers(0, 256, (12, 18)).astype(np.uint8)
    image, _ = write_scene(tmp_path, values=values, instances=instances)
    dataset = build(tmp_path)
    item = dataset[0]
    assert np.array_equal(item["images"].numpy(), (image / np.float32(255)).transpose(2, 0, 1))
    assert item["labels"].dtype == item["layouts"].dtype == torch.int64 and item["ids"] == 0
    assert np.array_equal(item["labels"].numpy(), values)
    assert np.array_equal(item["layouts"].numpy(), np.stack([values, instances]))
    assert isinstance(dataset, SceneDataset) and dataset.task == CocoStuffConfig.task == "segmentation"
    assert dataset.classes == dataset.layout_classes == NAMES


def test_images_are_stretched_smoothly_and_maps_by_the_nearest_pixel(tmp_path):
    image, values = write_scene(tmp_path, height=40, width=60)
    item = build(tmp_path, size=(10, 30))[0]
    smooth = Image.fromarray(image).resize((30, 10), Image.Resampling.BILINEAR)
    assert np.array_equal(item["images"].numpy(), (np.asarray(smooth) / np.float32(255)).transpose(2, 0, 1))
    nearest = Image.fromarray(values).resize((30, 10), Image.Resampling.NEAREST)
    assert np.array_equal(item["labels"].numpy(), np.asarray(nearest))
    assert torch.equal(item["layouts"][0], item["labels"])


@pytest.mark.parametrize("size", [(5, 7), (24, 36), (12, 18), (13, 11)])
def test_maps_are_resized_as_pil_does(size):
    values = RNG.integers(0, 200, (12, 18)).astype(np.uint8)
    expected = Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST)
    assert np.array_equal(resize_map(values, size), np.asarray(expected))


def test_without_instance_maps_the_semantic_map_stands_for_them(tmp_path):
    values = np.full((12, 18), 2, np.uint8)
    values[:, 9:] = 255
    write_scene(tmp_path, values=values)
    layout = build(tmp_path)[0]["layouts"]
    assert torch.equal(layout[0], layout[1])


def test_a_map_that_is_ignored_everywhere_is_read_as_such(tmp_path):
    write_scene(tmp_path, values=np.full((12, 18), 255, np.uint8))
    assert (build(tmp_path)[0]["labels"] == 255).all()


def test_splits_are_disjoint_limited_and_picklable(tmp_path):
    for i in range(10):
        write_scene(tmp_path, name=f"{i}")
    write_scene(tmp_path, part="val")
    train, val = (build(tmp_path, split, val_fraction=0.3, seed=4) for split in ("train", "val"))
    assert len(train) == 7 and sorted([*train.ids.tolist(), *val.ids.tolist()]) == list(range(10))
    assert len(build(tmp_path, "test")) == 1
    limited = build(tmp_path, limit=3)
    assert limited.ids.tolist() == [0, 1, 2]
    batch = next(iter(DataLoader(pickle.loads(pickle.dumps(limited)), batch_size=3)))
    assert batch["layouts"].shape == (3, 2, 12, 18) and batch["labels"].shape == (3, 12, 18)
    with pytest.raises(IndexError):
        limited[3]


def test_palette_maps_are_read_as_indices_and_16_bits_are_kept(tmp_path):
    values = RNG.integers(0, 3, (4, 5)).astype(np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(values.astype(np.uint16) + 33000).save(tmp_path / "wide.png")
    store = FolderStore(tmp_path)
    assert np.array_equal(read_map(store, "palette.png", (4, 5)), values)
    assert np.array_equal(read_map(store, "wide.png", (4, 5)), values.astype(int) + 33000)


def test_a_map_of_another_size_than_its_image_is_refused(tmp_path):
    write_scene(tmp_path, values=np.zeros((18, 12), np.uint8))
    with pytest.raises(ValueError, match=r"train_label/a.png: wanted 12x18 px .* got 18x12"):
        build(tmp_path)[0]


def test_an_instance_map_of_another_size_is_refused(tmp_path):
    write_scene(tmp_path, instances=np.zeros((12, 17), np.uint8))
    with pytest.raises(ValueError, match=r"train_inst/a.png: wanted 12x18 px .* got 12x17"):
        build(tmp_path)[0]


def test_values_that_are_no_class_are_refused_and_counted(tmp_path):
    values = np.zeros((12, 18), np.uint8)
    values[0, :3] = (3, 3, 200)
    write_scene(tmp_path, values=values)
    with pytest.raises(
        ValueError, match=r"a.png: wanted values 0 to 2 and 255 for 3 classes, got 3, 200 in 3 of 216"
    ):
        build(tmp_path)[0]


def test_wide_and_negative_values_do_not_wrap():
    coding = Coding.plain(NAMES)
    for value in (256, 65535, -1):
        with pytest.raises(ValueError, match=f"got {value} in 1 of 2"):
            coding.decode(np.array([[0, value]], np.int32), "map")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_map_in_colour_is_refused(tmp_path, mode):
    write_scene(tmp_path)
    Image.new(mode, (18, 12)).save(tmp_path / "train_label" / "a.png")
    with pytest.raises(ValueError, match=f"wanted one channel of whole numbers, got mode {mode}"):
        build(tmp_path)[0]


def test_a_map_that_is_a_jpeg_is_refused_whatever_its_name(tmp_path):
    write_scene(tmp_path)
    path = tmp_path / "train_label" / "a.png"
    buffer = io.BytesIO()
    Image.new("L", (18, 12)).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"a.png is a JPEG, and JPEG changes the values"):
        build(tmp_path)[0]
    path.rename(path.with_suffix(".jpg"))
    with pytest.raises(ValueError, match=r"a.jpg is a JPEG, and JPEG changes the values"):
        build(tmp_path)


def test_images_without_a_map_and_folders_without_images_are_refused(tmp_path):
    for name in "abc":
        write_scene(tmp_path, name)
    (tmp_path / "train_label" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"lacks the maps of 1 of 3 images, e.g. b.png of b.png"):
        build(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images"):
        Pairs.find(tmp_path / "empty", tmp_path, png_beside)


@pytest.mark.parametrize("folder", ["train_img", "train_label"])
def test_a_truncated_file_is_named(tmp_path, folder):
    write_scene(tmp_path)
    path = tmp_path / folder / "a.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UnreadableImageError, match=f"{folder}/a.png: not a complete image"):
        build(tmp_path)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "greater than 0"),
        ({"image_size": (32, 32, 32)}, "at most 2 items"),
        ({"classes": ("sky",)}, "at least 2 items"),
        ({"val_fraction": 1}, "less than 1"),
        ({"size": 3}, "Extra inputs"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        CocoStuffConfig(root="x", **settings)
