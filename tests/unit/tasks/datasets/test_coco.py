"""COCO's detection files: boxes, crowds, oddities, layouts."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from tasks.datasets import SceneDataset
from tasks.datasets.coco import CocoConfig
from tasks.datasets.coco_json import read_coco

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # in pycocotools

CAT, CAR = 17, 3
FULL = {"image_size": (20, 40), "max_objects": 4}


def annotation(box, image_id=7, category_id=CAT, **more):
    x, y, w, h = box
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {
        "bbox": box,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "area": w * h,
        "segmentation": outline,
        **more,
    }


def write(root, annotations, part="val2017", ids=(7, 5), images="images/val2017", **content):
    """Writes images of 20 x 40 px named 0000{id}.jpg; the one with the id i has the brightness 10 i."""
    (root / images).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for id_ in ids:
        Image.new("RGB", (40, 20), (10 * id_,) * 3).save(root / images / f"0000{id_}.png")
    whole = {
        "images": [{"id": id_, "file_name": f"0000{id_}.png", "height": 20, "width": 40} for id_ in ids],
        "annotations": [{"id": i, **one} for i, one in enumerate(annotations, start=1)],
        "categories": [{"id": CAT, "name": "cat"}, {"id": CAR, "name": "car"}],
        **content,
    }
    path = root / "annotations" / f"instances_{part}.json"
    path.write_text(json.dumps(whole))
    return path


@pytest.mark.parametrize("images", ["images/val2017", "val2017", "images"])
def test_boxes_have_corners_contiguous_classes_and_crowd_flags(tmp_path, images):
    boxes = [
        annotation([1, 2, 10, 5]),
        annotation([0, 0, 4, 4], image_id=5, category_id=CAR),
        annotation([20, 10, 20, 10], iscrowd=1),
    ]
    write(tmp_path, boxes, images=images)
    dataset = CocoConfig(root=tmp_path, **FULL).build("test")
    assert dataset.classes == ("car", "cat") and dataset.layout_classes == () and dataset.task == "detection"
    first, second = dataset
    assert isinstance(dataset, SceneDataset) and "layouts" not in first
    assert first["labels"].dtype == torch.float32 and first["images"].shape == (3, 20, 40)
    assert first["images"].mean() * 255 == pytest.approx(50) and first["ids"] == 0
    padding = [0, 0, 0, 0, -1, 0]
    assert first["labels"].tolist() == [[0, 0, 4, 4, 0, 0], padding, padding, padding]
    assert second["labels"].tolist() == [[1, 2, 11, 7, 1, 0], [20, 10, 40, 20, 1, 1], padding, padding]


def test_boxes_grow_with_their_images(tmp_path):
    write(tmp_path, [annotation([4, 2, 8, 6])])
    item = CocoConfig(root=tmp_path, image_size=(40, 20), max_objects=1).build("test")[0]
    assert item["images"].shape == (3, 40, 20) and item["labels"].tolist() == [[2, 4, 6, 16, 1, 0]]


def test_boxes_are_those_of_pycocotools(tmp_path):
    rng = np.random.default_rng(0)
    ids = (3, 9, 4, 6)
    boxes = [
        annotation(
            np.round(rng.uniform(1, 9, 4), 2).tolist(), int(rng.choice(ids)), int(rng.choice([CAT, CAR]))
        )
        for _ in range(30)
    ]
    path = write(tmp_path, boxes, ids=ids)
    theirs, ours = COCO(str(path)), read_coco(path)
    assert len(ours.names) == 4
    for index, id_ in enumerate(sorted(theirs.getImgIds())):
        assert ours.names[index] == theirs.imgs[id_]["file_name"]
        wanted = theirs.loadAnns(theirs.getAnnIds(imgIds=id_))
        rows = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in wanted)]
        assert np.allclose(ours.objects(index)[:, :4], np.array(rows).reshape(-1, 4))
        names = [theirs.cats[one["category_id"]]["name"] for one in wanted]
        assert [ours.classes[int(label)] for label in ours.objects(index)[:, 4]] == names


def test_boxes_without_an_area_are_dropped_and_others_cut_to_the_image(tmp_path, caplog):
    empty = [[5, 5, 0, 3], [5, 5, 3, 0], [5, 5, -3, 4], [40, 3, 6, 6], [-9, 3, 9, 6], [5, 5, 0.001, 3]]
    write(tmp_path, [*map(annotation, empty), annotation([30, -5, 100, 12])])
    dataset = CocoConfig(root=tmp_path, **FULL).build("test")
    assert dataset[0]["labels"][:2].tolist() == [[30, 0, 40, 7, 1, 0], [0, 0, 0, 0, -1, 0]]
    assert "left out 6 of 7 boxes without an area" in caplog.text


def test_images_without_objects_are_dropped_or_kept(tmp_path):
    write(tmp_path, [annotation([1, 1, 5, 5])])
    dropped, kept = (CocoConfig(root=tmp_path, empty=what, **FULL).build("test") for what in ("drop", "keep"))
    assert dropped.ids.tolist() == [1] and kept.ids.tolist() == [0, 1]
    assert (kept[0]["labels"][:, 4] == -1).all() and torch.equal(kept[1]["labels"], dropped[0]["labels"])


def test_a_file_without_any_object_is_refused_unless_empty_images_are_kept(tmp_path):
    write(tmp_path, [annotation([1, 1, 0, 5])])
    with pytest.raises(ValueError, match="has no image with an object; empty: keep"):
        CocoConfig(root=tmp_path, **FULL).build("test")
    assert len(CocoConfig(root=tmp_path, empty="keep", **FULL).build("test")) == 2


def test_label_maps_and_masks_make_layouts(tmp_path):
    write(
        tmp_path,
        [annotation([1, 2, 10, 5]), annotation([11, 2, 10, 5]), annotation([0, 0, 40, 20], iscrowd=1)],
    )
    values = np.full((20, 40), 156, np.uint8)
    values[2:7, 1:21] = 16
    (tmp_path / "annotations" / "val2017").mkdir()
    Image.fromarray(values).save(tmp_path / "annotations" / "val2017" / "00007.png")
    dataset = pickle.loads(pickle.dumps(CocoConfig(root=tmp_path, **FULL).build("test")))
    expected = values.astype(int)
    expected[2:7, 1:11], expected[2:7, 11:21] = 1000, 1001
    assert np.array_equal(dataset[0]["layouts"].numpy(), np.stack([values, expected]))
    assert len(dataset.layout_classes) == 182 and dataset.layout_classes[16] == "cat"
    with pytest.raises(ValueError, match=r"lacks the maps of 1 of 2 images, e.g. 00005.png"):
        CocoConfig(root=tmp_path, empty="keep", **FULL).build("test")


def test_train_holds_val_out_and_ids_are_positions_in_the_file(tmp_path):
    ids = tuple(range(1, 10))
    write(tmp_path, [annotation([1, 1, 5, 5], id_) for id_ in ids[1:]], "train2017", ids, "train2017")
    write(tmp_path, [annotation([1, 1, 5, 5])])
    train, val = (
        CocoConfig(root=tmp_path, val_fraction=0.25, **FULL).build(split) for split in ("train", "val")
    )
    assert len(val) == 2 and sorted([*train.ids.tolist(), *val.ids.tolist()]) == list(range(1, 9))
    for item in (*train, *val):
        assert round(float(item["images"].mean()) * 255) == 10 * (item["ids"] + 1)


def test_too_many_objects_missing_images_and_images_of_another_size_are_refused(tmp_path):
    write(tmp_path, [annotation([1, 1, 5, 5])] * 5)
    with pytest.raises(ValueError, match=r"00007.png has 5 objects; set max_objects"):
        CocoConfig(root=tmp_path, **FULL).build("test")
    config = CocoConfig(root=tmp_path, max_objects=5)
    image = tmp_path / "images" / "val2017" / "00007.png"
    Image.new("RGB", (20, 40)).save(image)
    with pytest.raises(ValueError, match=r"00007.png: wanted 20x40 px .* got 40x20"):
        config.build("test")[0]
    image.unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 2 images of instances_val2017.json, e.g. 00007.png"):
        config.build("test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "wanted the lists images, annotations, categories, got list"),
        ('{"info": 1, "images": []}', "got info, images"),
        ('{"images": [], "annotations": [], "categories": []}', "has 0 images and 0 categories"),
        ('{"images": [{}], "annotations": [], "categories": []}', "is no COCO file of instances: .*'id'"),
    ],
)
def test_what_is_no_coco_file_is_refused(tmp_path, text, message):
    path = tmp_path / "instances_val2017.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_coco(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 8}, "annotation 1 has an unknown image_id 8"),
        ({"category_id": 99}, "annotation 1 has an unknown category_id 99"),
        ({"bbox": [1, 2, 3]}, "wanted a bbox of four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "wanted a bbox of four numbers"),
        ({"bbox": [1, 2, float("inf"), 4]}, "wanted a bbox of four numbers"),
        ({"bbox": [1, 2, "3", 4]}, "wanted a bbox of four numbers"),
    ],
)
def test_annotations_that_make_no_sense_are_refused(tmp_path, change, message):
    path = write(tmp_path, [{**annotation([1, 1, 2, 2]), **change}])
    with pytest.raises(ValueError, match=message):
        read_coco(path)


def test_two_images_with_one_id_are_refused(tmp_path):
    path = write(tmp_path, [], ids=(7, 7))
    with pytest.raises(ValueError, match="two images or two categories have the same id"):
        read_coco(path)


def test_no_file_and_two_files_for_a_part_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no annotations/instances_train2017.json"):
        CocoConfig(root=tmp_path).build("train")
    for part in ("val2014", "val2017"):
        write(tmp_path, [], part)
    with pytest.raises(
        ValueError, match=r"two files for val: instances_val2014.json, instances_val2017.json"
    ):
        CocoConfig(root=tmp_path).build("test")
