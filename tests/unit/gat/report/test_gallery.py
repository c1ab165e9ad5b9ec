import io
import json

import numpy as np
import pytest
import torch

from gat.report.gallery import (
    Gallery,
    GalleryItem,
    Panel,
    difference,
    difference_factors,
    read_gallery,
    to_uint8,
    write_gallery,
)


def item(image, attacked, kind="style") -> GalleryItem:
    return GalleryItem("m", "all", 0, 0, image, 0, (Panel(kind, attacked, 1, True, 2),))


def test_a_gallery_reads_back_as_it_was_written(tmp_path, draw_items, classes):
    items = draw_items()
    write_gallery(tmp_path, items, classes, seed=11)
    gallery = read_gallery(tmp_path)
    assert (gallery.classes, gallery.seed, len(gallery.items)) == (classes, 11, len(items))
    for found, wanted in zip(gallery.items, items, strict=True):
        np.testing.assert_array_equal(found.original, to_uint8(wanted.original))
        assert (found.model, found.group, found.id, found.label) == (
            wanted.model,
            wanted.group,
            wanted.id,
            wanted.label,
        )
        for panel, original in zip(found.panels, wanted.panels, strict=True):
            np.testing.assert_array_equal(panel.image, to_uint8(original.image))
            assert (panel.kind, panel.prediction, panel.success) == (
                original.kind,
                original.prediction,
                original.success,
            )
            assert (panel.iterations, panel.oracle) == (original.iterations, original.oracle)


def test_tensors_and_arrays_give_the_same_pixels():
    array = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    pixels = to_uint8(torch.from_numpy(array).requires_grad_())
    np.testing.assert_array_equal(pixels, to_uint8(array))
    assert pixels.shape == (4, 5, 3)


def test_every_uint8_value_survives():
    values = (np.arange(256, dtype=np.float32) / 255).reshape(1, 16, 16).repeat(3, 0)
    np.testing.assert_array_equal(to_uint8(values)[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("value", [-0.5, 1.5, float("nan"), float("inf")])
def test_values_outside_the_unit_interval_are_refused(value):
    with pytest.raises(ValueError, match=r"needs values in \[0, 1\]"):
        to_uint8(np.full((3, 2, 2), value, dtype=np.float32))


def test_pictures_of_different_size_are_refused_and_nothing_is_written(tmp_path, classes):
    small, large = np.zeros((3, 2, 2), np.float32), np.zeros((3, 4, 4), np.float32)
    with pytest.raises(ValueError, match="one size"):
        write_gallery(tmp_path, [item(small, large)], classes, seed=0)
    assert not list(tmp_path.iterdir())


def test_an_empty_gallery_is_refused(tmp_path, classes):
    with pytest.raises(ValueError, match="at least one item"):
        write_gallery(tmp_path, [], classes, seed=0)


def test_a_pickle_in_the_archive_is_not_loaded(tmp_path, draw_items, classes):
    class Payload:
        def __reduce__(self):
            return (pytest.fail, ("was executed",))

    write_gallery(tmp_path, draw_items(), classes, seed=0)
    np.savez(tmp_path / "gallery.npz", images=np.array([Payload()], dtype=object))
    with pytest.raises(ValueError, match=r"gallery\.npz"):
        read_gallery(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"nothing of the kind"])
def test_a_damaged_archive_is_refused_by_name(tmp_path, content, draw_items, classes):
    write_gallery(tmp_path, draw_items(), classes, seed=0)
    (tmp_path / "gallery.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"gallery\.npz"):
        read_gallery(tmp_path)


def test_a_truncated_archive_is_refused_by_name(tmp_path, draw_items, classes):
    write_gallery(tmp_path, draw_items(), classes, seed=0)
    path = tmp_path / "gallery.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"gallery\.npz"):
        read_gallery(tmp_path)


def test_a_bare_array_is_not_an_archive(tmp_path, draw_items, classes):
    write_gallery(tmp_path, draw_items(), classes, seed=0)
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "gallery.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"gallery\.npz"):
        read_gallery(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["items"][0].update(image=10_000),
        lambda content: content["items"][0].update(image=-1),
        lambda content: content["items"][0].update(prediction="<b>"),
        lambda content: content["items"][0].update(surprise=1),
        lambda content: content["items"][0].pop("label"),
        lambda content: content.pop("classes"),
        lambda content: content.update(items=3),
    ],
)
def test_metadata_that_does_not_fit_is_refused_by_name(tmp_path, change, draw_items, classes):
    write_gallery(tmp_path, draw_items(), classes, seed=0)
    content = json.loads((tmp_path / "gallery.json").read_text())
    change(content)
    (tmp_path / "gallery.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"gallery\.json"):
        read_gallery(tmp_path)


def test_a_missing_half_is_named(tmp_path, draw_items, classes):
    write_gallery(tmp_path, draw_items(), classes, seed=0)
    (tmp_path / "gallery.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"gallery\.npz"):
        read_gallery(tmp_path)


def test_difference_is_amplified_symmetric_and_cut_off():
    first, second = np.full((1, 1, 3), 100, np.uint8), np.array([[[100, 90, 250]]], np.uint8)
    np.testing.assert_array_equal(difference(first, second, 4), [[[0, 40, 255]]])
    np.testing.assert_array_equal(difference(second, first, 4), [[[0, 40, 255]]])


@pytest.mark.parametrize("change, factor", [(0.5, 1), (60 / 255, 4), (5 / 255, 32), (0.0, 1)])
def test_each_kind_of_panel_has_the_largest_power_of_two_that_fits(change, factor, classes):
    black = np.zeros((3, 4, 4), np.float32)
    attacked = np.full((3, 4, 4), change, np.float32)
    gallery = Gallery((item(black, attacked, "noise"), item(black, black + 1, "style")), classes, 0)
    assert difference_factors(gallery) == {"noise": factor, "style": 1}
