"""Laws of the splits: disjoint, exhaustive, balanced, seeded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.datasets.splits import choose, part_to_read

CLASSES = ("a", "b", "c")
LABELS = np.array([0, 1, 2, 2, 1, 0] * 10)
SHARES = {"test": 0.2, "val": 3}


def split_of(split, **changes):
    arguments = {"held": ("test", "val"), "shares": SHARES, "seed": 0} | changes
    return choose(LABELS, CLASSES, split, **arguments)


def test_the_three_splits_are_disjoint_and_together_everything():
    parts = [split_of(split) for split in ("train", "val", "test")]
    assert sorted(np.concatenate(parts)) == list(range(60))


def test_held_out_splits_have_the_size_asked_for_in_each_class():
    assert np.bincount(LABELS[split_of("test")]).tolist() == [4, 4, 4]
    assert np.bincount(LABELS[split_of("val")]).tolist() == [3, 3, 3]


def test_the_test_split_does_not_depend_on_the_size_of_val():
    np.testing.assert_array_equal(split_of("test"), split_of("test", shares={"test": 0.2, "val": 9}))


def test_another_seed_holds_out_other_examples():
    assert not np.array_equal(split_of("val"), split_of("val", seed=1))
    np.testing.assert_array_equal(split_of("val"), split_of("val"))


def test_a_limit_keeps_the_first_of_each_class_in_listing_order():
    chosen = choose(LABELS, CLASSES, "train", (), {}, seed=0, limit=2)
    assert chosen.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_fraction_holds_out_at_least_one_example():
    assert len(split_of("val", held=("val",), shares={"val": 0.001})) == 3


def test_a_class_left_empty_is_refused_by_name():
    with pytest.raises(ValueError, match=r"train split would have no examples of b.*60 examples.*val: 20"):
        choose(np.array([0] * 40 + [1] * 20), ("a", "b"), "train", ("val",), {"val": 20}, seed=0)
    with pytest.raises(ValueError, match="val split would have no examples of a, b, c"):
        split_of("val", held=("val",), shares={"val": 0.0})


@given(st.sets(st.sampled_from(("train", "val", "test"))))
def test_no_two_splits_ever_share_an_image(parts):
    parts = parts or {"all"}
    held_from = {}
    for split in ("train", "val", "test"):
        try:
            part, held = part_to_read(split, parts)
        except ValueError:
            assert not parts & {"train", "all"}
            continue
        own = split if split in held else "rest"
        assert (part, own) not in held_from
        held_from[part, own] = held
    for (
        part,
        _,
    ), held in held_from.items():  # who reads the same part must draw the same hold-outs in the same order
        assert all(other == held for (other_part, _), other in held_from.items() if other_part == part)


@pytest.mark.parametrize(
    ("parts", "split", "expected"),
    [
        ({"train", "val", "test"}, "val", ("val", ())),
        ({"train", "val"}, "test", ("val", ())),
        ({"train", "val"}, "val", ("train", ("val",))),
        ({"all"}, "val", ("all", ("test", "val"))),
        ({"val"}, "test", ("val", ())),
    ],
)
def test_splits_come_from_the_official_parts_where_there_are_any(parts, split, expected):
    assert part_to_read(split, parts) == expected


def test_a_split_that_needs_train_images_is_refused_without_them():
    with pytest.raises(ValueError, match="'train' needs a train part, but only val was found"):
        part_to_read("train", {"val"})
