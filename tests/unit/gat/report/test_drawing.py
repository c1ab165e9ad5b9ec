import base64
import io

import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from gat.report.drawing import UNLABELLED, data_uri, match, oklab, paint, palette

VISIONS = ("normal", "protanopia", "deuteranopia", "tritanopia")


def colours(*rows) -> np.ndarray:
    return np.array(rows, np.uint8)


def closest(looks: np.ndarray) -> float:
    distance = np.linalg.norm(looks[:, None] - looks[None], axis=-1)
    return float(distance[np.triu_indices(len(looks), 1)].min())


def test_oklab_has_the_published_values():
    found = oklab(colours((255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)))
    wanted = [[1, 0, 0], [0, 0, 0], [0.628, 0.225, 0.126], [0.452, -0.032, -0.312]]
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("vision", VISIONS)
def test_grey_is_grey_to_everyone(vision):
    found = oklab(colours((128, 128, 128), (30, 30, 30)), vision)
    np.testing.assert_allclose(found[:, 1:], 0, atol=2e-3)


def test_dichromats_confuse_the_colours_they_are_known_to_confuse():
    def gap(first, second, vision):
        return closest(oklab(colours(first, second), vision))

    red, green, blue, teal = (214, 86, 60), (134, 134, 0), (0, 100, 255), (0, 130, 140)
    for vision in ("protanopia", "deuteranopia"):
        assert gap(red, green, vision) < 0.7 * gap(red, green, "normal")
    assert gap(blue, teal, "tritanopia") < 0.7 * gap(blue, teal, "normal")
    assert gap(red, green, "tritanopia") > 0.7 * gap(red, green, "normal")


def test_twenty_classes_are_as_distinct_for_everyone_as_okabe_and_itos_seven_are():
    for vision in VISIONS:
        assert closest(oklab(palette(20), vision)) > 0.075, vision
    # An independent measure: CIEDE2000, of which 1 is about the least difference one sees side by side.
    lab = rgb2lab(palette(20)[None] / 255)[0]
    distance = deltaE_ciede2000(lab[:, None], lab[None])
    assert distance[np.triu_indices(20, 1)].min() > 9


def test_a_class_has_its_colour_whatever_the_number_of_classes():
    np.testing.assert_array_equal(palette(182)[:16], palette(16))
    np.testing.assert_array_equal(palette(16)[:3], palette(3))
    assert len(np.unique(palette(182), axis=0)) == 182
    assert palette(1).tolist() == [[230, 159, 0]]
    assert palette(10).tolist()[4] == [0, 114, 178]


def test_no_class_looks_like_an_unlabelled_pixel():
    black = oklab(colours((0, 0, 0)))
    assert np.linalg.norm(oklab(palette(182)) - black, axis=1).min() > 0.25


def test_a_map_is_painted_pixel_by_pixel_and_black_where_there_is_no_class():
    painted = paint(colours((0, 2), (UNLABELLED, 1)), 3)
    np.testing.assert_array_equal(painted[0], palette(3)[[0, 2]])
    assert painted[1, 0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(painted[1, 1], palette(3)[1])
    assert paint(np.full((2, 2), 254, np.uint8), 255)[0, 0].tolist() != [0, 0, 0]


def boxes(*rows) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 6)


OBJECT = (10, 10, 20, 20, 3, 0)


@pytest.mark.parametrize(
    "answer, right",
    [
        ((10, 10, 20, 20, 0.9, 3), True),
        ((10, 10, 20, 20, 0.9, 4), False),  # another class
        ((10, 10, 20, 20, 0.29, 3), False),  # below the threshold
        ((10, 10, 20, 15, 0.9, 3), True),  # IoU 0.5
        ((10, 10, 20, 14.9, 0.9, 3), False),
        ((0, 10, 10, 20, 0.9, 3), False),  # beside it
    ],
)
def test_an_answer_fits_by_class_score_and_overlap(answer, right):
    hits = match(boxes(answer), boxes(OBJECT), 0.3, 0.5)
    assert hits.right.tolist() == [right]
    assert hits.found.tolist() == [right]


def test_a_second_answer_to_one_object_is_wrong_and_the_better_score_wins():
    answers = boxes((10, 10, 20, 20, 0.5, 3), (10, 10, 20, 19, 0.8, 3))
    assert match(answers, boxes(OBJECT), 0.3, 0.5).right.tolist() == [False, True]


def test_an_answer_takes_the_object_it_overlaps_most_and_leaves_the_other_to_the_next():
    objects = boxes((0, 0, 10, 10, 1, 0), (2, 0, 12, 10, 1, 0))
    answers = boxes((2, 0, 12, 10, 0.9, 1), (1.5, 0, 11.5, 10, 0.8, 1))
    hits = match(answers, objects, 0.3, 0.5)
    assert hits.right.tolist() == [True, True]
    assert hits.found.tolist() == [True, True]


def test_answers_in_a_crowd_are_neither_right_nor_wrong():
    crowd = boxes((0, 0, 100, 100, 3, 1))
    hits = match(boxes((10, 10, 20, 20, 0.9, 3), (10, 10, 20, 20, 0.9, 2)), crowd, 0.3, 0.5)
    assert hits.right.tolist() == [False, False]
    assert hits.ignored.tolist() == [True, False]
    assert hits.found.tolist() == [True]


def test_nothing_to_find_and_nothing_found():
    assert [part.tolist() for part in match(boxes(), boxes(), 0.3, 0.5)] == [[], [], []]
    assert match(boxes(), boxes(OBJECT), 0.3, 0.5).found.tolist() == [False]
    assert match(boxes((0, 0, 1, 1, 0.9, 0)), boxes(), 0.3, 0.5).right.tolist() == [False]


def test_matching_agrees_with_the_tasks_own_score():
    torch = pytest.importorskip("torch")
    from tasks.detection import DetectionTask

    rng = np.random.default_rng(0)
    task = DetectionTask([str(i) for i in range(3)])
    for _ in range(30):
        corner, size = rng.uniform(0, 20, (8, 2)), rng.uniform(5, 15, (8, 2))
        where = np.hstack([corner, corner + size])
        objects = np.hstack([where[:4], rng.integers(0, 3, (4, 1)), rng.random((4, 1)) < 0.2])
        answers = np.hstack(
            [
                where + rng.normal(0, 1, where.shape),
                rng.random((8, 1)),
                np.vstack([objects[:, 4:5], rng.integers(0, 3, (4, 1))]),
            ]
        )
        answers, objects = answers.astype(np.float32), objects.astype(np.float32)
        score = task.score(torch.from_numpy(answers)[None], torch.from_numpy(objects)[None]).item()
        real = objects[:, 5] == 0
        found = match(answers, objects, task.threshold, task.overlap).found
        assert score == pytest.approx(found[real].mean() if real.any() else 1.0)


def test_large_pictures_are_shrunk_and_no_class_is_mixed_from_two():
    maps = np.random.default_rng(0).integers(0, 5, (300, 600)).astype(np.uint8)
    painted = paint(maps, 5)

    def read(uri: str) -> np.ndarray:
        return np.asarray(
            Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        )

    found = read(data_uri(painted, classes=True))
    assert found.shape == (128, 256, 3)
    assert {tuple(c) for c in found.reshape(-1, 3)} == {tuple(c) for c in palette(5)}
    assert len(np.unique(read(data_uri(painted)).reshape(-1, 3), axis=0)) > 5
    np.testing.assert_array_equal(read(data_uri(painted[:64, :64])), painted[:64, :64])
