"""FashionScenes: the same everywhere, and every label true of every pixel."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pydantic import ValidationError
from torch.utils.data import DataLoader
from torchvision.ops import masks_to_boxes

from tasks.datasets import SceneDataset
from tasks.datasets.coco import CocoConfig
from tasks.datasets.coco_stuff import CocoStuffConfig
from tasks.datasets.fashion_mnist import CLASSES as GARMENTS
from tasks.datasets.fashion_mnist import FashionMNISTConfig
from tasks.datasets.fashion_scenes import (
    SEMANTIC_CLASSES,
    FashionScenes,
    FashionScenesConfig,
    find_silhouettes,
    run_lengths,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # in pycocotools

DIGEST = "1a2fdcfdc1d9a1ad94526e83ba9316f3ee60cbf04c1977a53621a6185a58b462"
BAG, SANDAL, SHIRT = (GARMENTS.index(name) for name in ("Bag", "Sandal", "Shirt"))


@pytest.fixture(scope="module")
def scenes():
    return FashionScenesConfig(num_train=200, num_test=5).build("train")


@pytest.fixture(scope="module")
def of_split(scenes):
    return {"train": scenes, **{split: FashionScenesConfig().build(split) for split in ("val", "test")}}


@pytest.fixture(scope="module")
def blocks():
    """Scenes of white rectangles instead of garments: each garment has one colour of its own."""
    garments = np.zeros((2, 28, 28), np.uint8)
    garments[0, 4:24, 9:19] = garments[1, 9:19, 2:26] = 255
    config = FashionScenesConfig(min_visible=0.3)
    return FashionScenes(config, "train", 60, garments, np.array([3, 7]))


def test_scenes_are_the_same_on_every_machine(of_split):
    digest = hashlib.sha256()
    for scene in map(of_split["test"].scene, range(12)):
        for part in (scene.image, scene.semantic, scene.instances, scene.boxes, scene.classes):
            digest.update(part.tobytes())
    assert digest.hexdigest() == DIGEST


def test_another_process_another_instance_and_more_scenes_change_nothing(scenes):
    other = FashionScenesConfig(num_train=30, cache=False).build("train")  # scenes are made in the worker
    in_worker = list(DataLoader(other, batch_size=None, num_workers=1, multiprocessing_context="fork"))
    for index in reversed(range(30)):
        for key in ("images", "labels", "layouts", "ids"):
            here, there = scenes[index][key], in_worker[index][key]
            assert torch.equal(torch.as_tensor(here), torch.as_tensor(there))


def test_seeds_and_splits_make_other_scenes(of_split):
    datasets = [*of_split.values(), FashionScenesConfig(seed=1).build("test")]
    assert len({dataset.scene(0).image.tobytes() for dataset in datasets}) == 4
    # not only other garments: other places, too
    places = [
        tuple(map(int, map(np.max, (dataset.scene(i).semantic for i in range(5))))) for dataset in datasets
    ]
    assert len(set(places)) == 4


def test_a_garment_of_one_split_is_in_no_other(of_split):
    sets = [{garment.tobytes() for garment in dataset._garments} for dataset in of_split.values()]
    assert [len(garments) for garments in sets] == [7500, 500, 2000]
    assert len(set.union(*sets)) == 10000


def test_the_garments_of_a_split_are_those_of_fashion_mnist_in_that_split(of_split):
    for split, dataset in of_split.items():
        source = FashionMNISTConfig(pad=None).build(split)
        assert np.array_equal(dataset._garments, source.grey)
        assert np.array_equal(dataset._garment_classes, source.labels.numpy())


def test_masks_are_exactly_the_pixels_that_have_the_garments_colour(blocks):
    occluded = 0
    for index in range(len(blocks)):
        scene = blocks.scene(index)
        for number in range(1, len(scene.classes) + 1):
            mask = scene.instances == number
            colors = np.unique(scene.image[mask], axis=0)
            assert len(colors) == 1
            assert np.array_equal((scene.image == colors[0]).all(-1), mask)
            x0, y0, x1, y1 = scene.boxes[number - 1]
            occluded += mask.sum() < (x1 - x0) * (y1 - y0)
    assert occluded > 10


def test_occlusion_is_the_hidden_share_of_a_silhouette(blocks):
    whole = 0
    for index in range(len(blocks)):
        scene = blocks.scene(index)
        for number, (box, hidden) in enumerate(zip(scene.boxes, scene.occlusion, strict=True), start=1):
            mask = scene.instances == number
            x0, y0, x1, y1 = box
            assert 0 <= hidden <= 0.7
            if hidden == 0:  # all of the rectangle, whose sides are as 1 to 2 or as 12 to 5
                long, short = max(x1 - x0, y1 - y0), min(x1 - x0, y1 - y0)
                ratio = 2 if y1 - y0 == long else 2.4
                assert mask.sum() == long * short and abs(long / ratio - short) <= 1
                whole += 1
            if min(x0, y0) > 0 and max(x1, y1) < 64 and mask.sum() < (x1 - x0) * (y1 - y0):
                assert hidden > 0
    assert whole > 60


def test_what_is_hidden_more_than_allowed_is_not_in_the_picture(blocks):
    strict = FashionScenes(
        FashionScenesConfig(min_visible=1.0), "train", 60, blocks._garments, blocks._garment_classes
    )
    num_strict = num_all = 0
    for index in range(60):
        scene = strict.scene(index)
        assert (scene.occlusion[1:] == 0).all()  # the frame may cut the first
        num_strict, num_all = num_strict + len(scene.boxes), num_all + len(blocks.scene(index).boxes)
    assert 60 <= num_strict < num_all


def test_boxes_are_tight_and_masks_agree_with_the_semantic_map(scenes):
    for index in range(100):
        scene = scenes.scene(index)
        num = len(scene.boxes)
        assert num == len(scene.classes) == len(scene.occlusion) == scene.instances.max() <= 5
        masks = torch.from_numpy(scene.instances) == torch.arange(1, num + 1)[:, None, None]
        if num:
            tight = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
            assert torch.equal(torch.from_numpy(scene.boxes).float(), tight)
        class_of = np.concatenate([[255], scene.classes])[scene.instances]
        assert np.array_equal(np.where(scene.instances > 0, class_of, 255) < 10, scene.semantic < 10)
        assert (scene.semantic[scene.instances > 0] == class_of[scene.instances > 0]).all()
        assert (scene.semantic[scene.instances == 0] >= 10).all()


def test_pixels_of_a_garment_differ_in_brightness_only(scenes):
    for index in range(20):
        scene = scenes.scene(index)
        for number in range(1, len(scene.classes) + 1):
            pixels = scene.image[scene.instances == number].astype(float)
            brightest = pixels[pixels.sum(1).argmax()]
            expected = np.outer(pixels @ brightest / (brightest @ brightest), brightest)
            assert np.abs(pixels - expected).max() < 2


def test_every_class_appears_often_and_scenes_have_one_to_five_garments(scenes):
    seen = np.zeros(len(SEMANTIC_CLASSES), int)
    numbers = set()
    for index in range(len(scenes)):
        scene = scenes.scene(index)
        seen[np.unique(scene.semantic)] += 1
        numbers.add(len(scene.boxes))
    assert seen.min() > 25 and numbers >= {1, 2, 3, 4, 5}


def test_an_item_for_segmentation_and_one_for_detection_are_of_one_scene(scenes):
    boxes = FashionScenesConfig(labels="boxes").build("train")
    index = next(index for index in range(50) if len(scenes.scene(index).boxes) == 3)
    for_masks, for_boxes = scenes[index], boxes[index]
    assert (
        scenes.task == "segmentation"
        and boxes.task == FashionScenesConfig(labels="boxes").task == "detection"
    )
    assert scenes.classes == scenes.layout_classes == boxes.layout_classes == SEMANTIC_CLASSES
    assert boxes.classes == GARMENTS
    for key in ("images", "layouts", "ids"):
        assert torch.equal(torch.as_tensor(for_masks[key]), torch.as_tensor(for_boxes[key]))
    scene = scenes.scene(index)
    assert np.array_equal(for_masks["images"].numpy(), (scene.image / np.float32(255)).transpose(2, 0, 1))
    assert for_masks["labels"].dtype == torch.int64 and torch.equal(
        for_masks["labels"], for_masks["layouts"][0]
    )
    assert np.array_equal(for_masks["layouts"][1].numpy(), scene.instances)
    labels, num = for_boxes["labels"], len(scene.boxes)
    assert labels.shape == (5, 6) and labels.dtype == torch.float32
    assert np.array_equal(labels[:num, :4].numpy(), scene.boxes)
    assert labels[:num, 4].tolist() == scene.classes.tolist() and not labels[:num, 5].any()
    assert (labels[num:] == torch.tensor([0.0, 0, 0, 0, -1, 0])).all()


def test_the_contract_holds_and_pickles_leave_the_memory_behind(scenes):
    assert isinstance(scenes, SceneDataset)
    scenes.scene(0)
    copy = pickle.loads(pickle.dumps(scenes))
    assert not copy._cache and np.array_equal(copy.scene(3).image, scenes.scene(3).image)
    with pytest.raises(IndexError):
        scenes[200]


@pytest.mark.parametrize("size", [32, 96, 256])
def test_larger_and_smaller_scenes_have_labels_too(size):
    dataset = FashionScenesConfig(image_size=size, max_garments=3).build("test")
    for index in range(12):
        scene = dataset.scene(index)
        assert scene.image.shape == (size, size, 3) and len(scene.boxes) <= 3
        assert (scene.image.reshape(-1, 3).std(0) > 3).any()


def test_no_pixel_is_forgotten_and_stuff_has_texture(scenes):
    for index in range(40):
        scene = scenes.scene(index)
        assert (scene.image.max(-1) > 0).all()
        for stuff in range(10, 16):
            area = scene.image[scene.semantic == stuff].astype(float)
            assert len(area) < 100 or area.std(0).max() > 2


def square(side, hole=0):
    image = np.zeros((28, 28), np.uint8)
    image[2 : 2 + side, 2 : 2 + side] = 200
    start = 2 + (side - hole) // 2
    image[start : start + hole, start : start + hole] = 0
    return image


@pytest.mark.parametrize(
    ("hole", "label", "is_open"),
    [
        (6, SHIRT, False),
        (6, BAG, True),
        (6, SANDAL, True),
        (3, BAG, True),
        (2, BAG, False),
        (2, SHIRT, False),
    ],
)
def test_holes_are_fabric_but_bags_and_sandals_have_openings(hole, label, is_open):
    [found] = find_silhouettes(square(16, hole)[None], np.array([label]))
    expected = square(16, hole if is_open else 0) > 0
    assert np.array_equal(found, expected)


def test_dark_stripes_are_fabric_specks_are_noise_and_gaps_between_legs_are_open():
    image = square(16)
    image[6:8] = 0  # a stripe of two rows, open on both sides
    image[12:18, 8:10] = 0  # legs
    image[25, 25] = 255
    expected = square(16) > 0
    expected[12:18, 8:10] = False
    found = find_silhouettes(np.stack([image, image]), np.array([SHIRT, BAG]))
    assert np.array_equal(found[0], expected)
    expected[6:8] = False
    assert np.array_equal(found[1], expected)


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for mask in [rng.random((7, 5)) < 0.5, np.ones((3, 4), bool), np.zeros((3, 4), bool)]:
        lengths = {"size": list(mask.shape), "counts": run_lengths(mask)}
        assert np.array_equal(rle.decode(rle.frPyObjects(lengths, *mask.shape)), mask)


def test_coco_files_are_read_back_by_the_readers_of_coco(tmp_path):
    masks, boxes = (FashionScenesConfig(labels=labels, num_test=3) for labels in ("masks", "boxes"))
    masks.build("test").to_coco(tmp_path)
    size = {"root": tmp_path, "image_size": 64}
    read_masks = CocoStuffConfig(**size, classes=SEMANTIC_CLASSES).build("test")
    read_boxes = CocoConfig(**size, max_objects=5, layout_classes=SEMANTIC_CLASSES).build("test")
    assert read_boxes.classes == GARMENTS and len(read_masks) == len(read_boxes) == 3
    for original, read in ((masks.build("test"), read_masks), (boxes.build("test"), read_boxes)):
        for index in range(3):
            mine, theirs = original[index], read[index]
            for key in ("images", "labels"):
                assert torch.equal(mine[key], theirs[key])
            assert torch.equal(mine["layouts"][0], theirs["layouts"][0])
            is_garment = mine["layouts"][1] > 0
            assert torch.equal(mine["layouts"][1][is_garment] + 999, theirs["layouts"][1][is_garment])
            assert (theirs["layouts"][1][~is_garment] < 1000).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 72}, "multiple of 32 pixels, got 72"),
        ({"root": "data"}, "root is for source: full"),
        ({"max_garments": 0}, "greater than or equal to 1"),
        ({"labels": "polygons"}, "'masks' or 'boxes'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        FashionScenesConfig(**settings)
