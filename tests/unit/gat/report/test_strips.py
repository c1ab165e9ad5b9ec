import json
from dataclasses import replace

import numpy as np
import pytest

from gat.report.gallery import to_uint8
from gat.report.strips import Frame, Strip, read_strips, write_strips


def boxes(*rows) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 6)


def segmented(model: str = "original", side: int = 6) -> Strip:
    rng = np.random.default_rng(1)
    maps = rng.integers(0, 3, (3, side, side)).astype(np.uint8)
    maps[0, 0, 0] = 255
    frames = tuple(
        Frame(t, rng.random((3, side, side), dtype=np.float32), maps[i + 1], 0.5 - 0.2 * i)
        for i, t in enumerate((0, 5))
    )
    return Strip(model, "gat", "ten steps", 17, maps[0], frames, "fooled", 4)


def detected() -> Strip:
    rng = np.random.default_rng(2)
    frames = (
        Frame(0, rng.random((3, 6, 6), dtype=np.float32), boxes((0, 1, 4.25, 5, 0.9312, 2)), 1.0),
        Frame(5, rng.random((3, 6, 6), dtype=np.float32), boxes(), 0.0),
    )
    return Strip("original", "gat", "ten steps", 3, boxes((0, 1, 4, 5, 2, 0)), frames, "held", 10, 0.3, 0.5)


CASES = [("segmentation", segmented), ("detection", detected)]


@pytest.mark.parametrize("task, make", CASES)
def test_strips_read_back_as_they_were_written(tmp_path, task, make):
    wanted = make()
    write_strips(tmp_path, [wanted], task, ["a", "b", "c"], seed=9)
    strips = read_strips(tmp_path)
    assert (strips.task, strips.classes, strips.seed) == (task, ("a", "b", "c"), 9)
    (found,) = strips.items
    np.testing.assert_array_equal(found.truth, wanted.truth)
    assert len(found.frames) == len(wanted.frames)
    for one, other in zip(found.frames, wanted.frames, strict=True):
        np.testing.assert_array_equal(one.image, to_uint8(other.image))
        np.testing.assert_allclose(one.answer, other.answer, atol=1e-4)
        assert one.answer.dtype == other.answer.dtype
        assert (one.iteration, one.score) == (other.iteration, pytest.approx(other.score))
    hidden = {"truth", "frames"}
    assert {k: v for k, v in vars(found).items() if k not in hidden} == {
        k: v for k, v in vars(wanted).items() if k not in hidden
    }


def test_strips_without_frames_or_of_two_sizes_are_refused_and_nothing_is_written(tmp_path):
    for strips, message in (
        ([], "at least one scene"),
        ([replace(segmented(), frames=())], "at least one frame"),
        ([segmented(), segmented(side=8)], "one size"),
    ):
        with pytest.raises(ValueError, match=message):
            write_strips(tmp_path, strips, "segmentation", ["a"], seed=0)
    assert not list(tmp_path.iterdir())


def test_a_pickle_in_the_archive_is_not_loaded(tmp_path):
    class Payload:
        def __reduce__(self):
            return (pytest.fail, ("was executed",))

    write_strips(tmp_path, [segmented()], "segmentation", ["a"], seed=0)
    np.savez(
        tmp_path / "strips.npz",
        images=np.array([Payload()], dtype=object),
        maps=np.zeros((0, 6, 6), np.uint8),
    )
    with pytest.raises(ValueError, match=r"strips\.npz"):
        read_strips(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"nothing of the kind"])
def test_a_damaged_archive_is_refused_by_name(tmp_path, content):
    write_strips(tmp_path, [segmented()], "segmentation", ["a"], seed=0)
    (tmp_path / "strips.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"strips\.npz"):
        read_strips(tmp_path)


@pytest.mark.parametrize("name", ["strips.npz", "strips.json"])
def test_a_missing_half_is_named(tmp_path, name):
    write_strips(tmp_path, [segmented()], "segmentation", ["a"], seed=0)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_strips(tmp_path)


@pytest.mark.parametrize("task, make", CASES)
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(task="captioning"),
        lambda content: content.update(strips=3),
        lambda content: content.pop("seed"),
        lambda content: content["strips"][0].update(surprise=1),
        lambda content: content["strips"][0].update(state="<b>"),
        lambda content: content["strips"][0].update(id="7"),
        lambda content: content["strips"][0].update(frames=[]),
        lambda content: content["strips"][0]["frames"][0].update(image=10_000),
        lambda content: content["strips"][0]["frames"][0].update(image=-1),
        lambda content: content["strips"][0]["frames"][0].update(answer="x"),
        lambda content: content["strips"][0]["frames"][0].update(answer=[[1, 2]]),
        lambda content: content["strips"][0]["frames"][0].update(answer=900),
        lambda content: content["strips"][0]["frames"][0].pop("score"),
    ],
)
def test_metadata_that_does_not_fit_is_refused_by_name(tmp_path, task, make, change):
    write_strips(tmp_path, [make()], task, ["a", "b", "c"], seed=0)
    content = json.loads((tmp_path / "strips.json").read_text())
    change(content)
    (tmp_path / "strips.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"strips\.json"):
        read_strips(tmp_path)


def test_detections_without_a_threshold_are_refused(tmp_path):
    write_strips(tmp_path, [replace(detected(), threshold=None)], "detection", ["a", "b", "c"], seed=0)
    with pytest.raises(ValueError, match=r"strips\.json"):
        read_strips(tmp_path)
