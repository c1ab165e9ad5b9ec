"""What `gat attack` draws: every picture in its place, and boxes in the colour of what they are."""

import numpy as np
import pytest
from PIL import Image

from gat.report.drawing import palette
from gat.report.sheet import GAP_COLOUR, boxed_picture, label_picture, picture, sheet

BLUE, ORANGE, WHITE = (86, 180, 233), (255, 176, 0), (255, 255, 255)
CLASSES = ("boot", "bag")
GREY = np.full((64, 64, 3), 100, np.uint8)


def colours(drawn: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.asarray(drawn).reshape(-1, 3).tolist()}


def drawn(answers, objects):
    return boxed_picture(
        GREY,
        np.array(answers, np.float32).reshape(-1, 6),
        np.array(objects, np.float32).reshape(-1, 6),
        CLASSES,
        0.3,
        0.5,
    )


def test_small_pictures_are_enlarged_without_mixing_colours():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    assert np.array_equal(np.asarray(picture(image)), image.repeat(3, 0).repeat(3, 1))
    large = np.zeros((97, 97, 3), np.uint8)
    assert picture(large).size == (97, 97)


def test_label_maps_have_the_colours_of_the_page():
    label_map = np.array([[0, 1], [2, 255]], np.uint8)
    got = np.asarray(label_picture(label_map, 3))[::3, ::3]
    assert np.array_equal(got.reshape(-1, 3), [*palette(3), (0, 0, 0)])


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        ([10, 10, 40, 40, 0.9, 1], {BLUE}),
        ([10, 10, 40, 40, 0.9, 0], {ORANGE, WHITE}),  # another class: wrong, and the object is missed
        ([30, 30, 60, 60, 0.9, 1], {ORANGE, WHITE}),  # elsewhere
        ([10, 10, 40, 40, 0.2, 1], {WHITE}),  # too unsure to count
    ],
)
def test_boxes_have_the_colour_of_what_they_are(answer, seen):
    got = drawn([answer], [[10, 10, 40, 40, 1, 0]])
    assert got.size == (192, 192)
    letters = {WHITE} if answer[4] >= 0.3 else set()  # of the name
    assert colours(got) & {BLUE, ORANGE, WHITE} == seen | letters


def test_a_box_lies_where_it_is():
    got = np.asarray(drawn([[10, 20, 40, 50, 0.9, 1]], [[10, 20, 40, 50, 1, 0]]))
    rows, columns = (got == BLUE).all(2).nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((60, 150, 30, 120), abs=1)


def test_crowds_and_nothing_leave_the_picture_alone():
    assert colours(drawn([], [])) == {(100, 100, 100)}
    assert colours(drawn([], [[10, 10, 40, 40, 1, 1]])) == {(100, 100, 100)}


def test_names_do_not_lie_on_each_other():
    once = drawn([[10, 10, 40, 40, 0.9, 1]], [])
    twice = drawn([[10, 10, 40, 40, 0.9, 1], [10, 10, 40, 40, 0.8, 1]], [])
    white = [(np.asarray(some) == WHITE).all(2).sum() for some in (once, twice)]
    assert white[0] == white[1] > 0


def test_every_example_has_a_column_and_every_band_its_rows():
    columns = [[Image.new("RGB", (8, 6), (10 * i, row, 0)) for row in range(2)] for i in range(5)]
    got = np.asarray(sheet(columns, per_band=2))
    assert got.shape == (3 * (2 * 9 + 3), 2 * 11 + 3, 3)
    for i in range(5):
        for row in range(2):
            y, x = 3 + (i // 2) * 21 + row * 9, 3 + (i % 2) * 11
            assert (got[y : y + 6, x : x + 8] == (10 * i, row, 0)).all()
            assert tuple(got[y - 1, x]) == tuple(got[y, x - 1]) == GAP_COLOUR
    assert (got[2 * 21 :, 14:] == GAP_COLOUR).all()  # the last band is not full
