"""`gat sample --semantics` and `gat convert` on a tiny random SPADE."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gat.cli import main
from generators.spade.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from generators.spade.networks import encode_layouts
from tests.toys import CLASSES, tiny_layouts, tiny_spade_generator

LAYOUTS = tiny_layouts(2)


def write(path: Path, **settings: object) -> Path:
    generator = tiny_spade_generator(**settings)
    write_safetensors(path, Checkpoint(generator.config, generator.state_dict(), {}))
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write(tmp_path / "plain.safetensors")


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    return write(tmp_path / "vae.safetensors", use_vae=True, z_dim=8)


def drawn(layouts: Tensor, z: Tensor | None = None, **settings: object) -> Tensor:
    generator = tiny_spade_generator(**settings)
    return generator(encode_layouts(layouts, generator.config), z).detach()


def save_maps(folder: Path, maps: Tensor) -> Path:
    folder.mkdir()
    for i, values in enumerate(maps):
        Image.fromarray(values.numpy().astype(np.uint8)).save(folder / f"scene{i}.png")
    return folder


def test_an_archive_of_encoded_maps_becomes_an_archive_of_images(plain, tmp_path):
    seg = encode_layouts(LAYOUTS, tiny_spade_generator().config)
    np.savez(tmp_path / "seg.npz", seg=seg.numpy().astype(np.uint8))
    out = tmp_path / "y.npz"
    words = ["sample", str(plain), "--semantics", str(tmp_path / "seg.npz"), "--batch-size", "1"]
    assert main([*words, "--out", str(out)]) == 0
    wanted = drawn(LAYOUTS)
    with np.load(out) as archive:
        np.testing.assert_allclose(archive["images_float"], wanted.numpy(), atol=1e-5)
        assert archive["images"].shape == (2, 32, 32, 3)
        as_official = ((wanted + 1) / 2 * 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)
        assert np.abs(archive["images"].astype(int) - as_official).max() <= 1
        assert archive["z"].shape == (2, 0)


def test_z_comes_from_the_archive_or_from_the_seed(vae, tmp_path):
    seg = encode_layouts(LAYOUTS, tiny_spade_generator().config).numpy()
    z = np.random.RandomState(5).randn(2, 8)
    np.savez(tmp_path / "with.npz", seg=seg, z=z)
    np.savez(tmp_path / "without.npz", seg=seg)
    wanted = drawn(LAYOUTS, torch.from_numpy(z).float(), use_vae=True, z_dim=8).numpy()
    for name, seed in (("with", "0"), ("without", "5")):
        out = tmp_path / f"{name}_y.npz"
        words = ["sample", str(vae), "--semantics", str(tmp_path / f"{name}.npz"), "--seeds", seed]
        assert main([*words, "--out", str(out)]) == 0
        with np.load(out) as archive:
            np.testing.assert_allclose(archive["images_float"], wanted, atol=1e-5)
            np.testing.assert_allclose(archive["z"], z, atol=1e-6)


def test_label_maps_in_a_folder_become_one_image_each(plain, tmp_path, capsys):
    labels = save_maps(tmp_path / "labels", LAYOUTS[:, 0])
    instances = save_maps(tmp_path / "instances", LAYOUTS[:, 1])
    words = ["sample", str(plain), "--semantics", str(labels), "--json", "--out", str(tmp_path / "x.png")]
    assert main([*words, "--instances", str(instances)]) == 0
    files = [Path(file) for file in json.loads(capsys.readouterr().out)["files"]]
    assert [file.name for file in files] == ["x-scene0.png", "x-scene1.png"]
    for file, wanted in zip(files, drawn(LAYOUTS), strict=True):
        image = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert (image / 127.5 - 1 - wanted).abs().max() <= 2 / 255
    assert main(words) == 0  # without instances the regions of a class are the instances
    image = torch.from_numpy(np.array(Image.open(files[1]))).permute(2, 0, 1)
    assert (image / 127.5 - 1 - drawn(LAYOUTS[:, [0, 0]])[1]).abs().max() <= 2 / 255
    assert (drawn(LAYOUTS[:, [0, 0]]) - drawn(LAYOUTS)).abs().max() > 0.1


def test_a_map_of_another_size_is_refused_or_resized(plain, tmp_path, capsys):
    big = LAYOUTS[:1, 0].repeat_interleave(2, 1).repeat_interleave(3, 2)
    folder = save_maps(tmp_path / "labels", big)
    words = [
        "sample",
        str(plain),
        "--semantics",
        str(folder / "scene0.png"),
        "--out",
        str(tmp_path / "x.png"),
    ]
    assert main(words) == 2
    assert (
        "is 64x96 px, the generator draws 32x32 (height x width); --resize makes it fit"
        in capsys.readouterr().err
    )
    assert main([*words, "--resize"]) == 0
    image = torch.from_numpy(np.array(Image.open(tmp_path / "x.png"))).permute(2, 0, 1)
    assert (image / 127.5 - 1 - drawn(LAYOUTS[:1, [0, 0]])[0]).abs().max() <= 2 / 255


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros(2)}, "has no array `seg`, only x"),
        ({"seg": np.zeros((1, 4, 32, 32))}, "`seg` must be [n, 5, 32, 32] (channels, height, width), got float64[1, 4, 32, 32]"),
        ({"seg": np.zeros((1, 5, 64, 64))}, "got float64[1, 5, 64, 64]"),
        ({"seg": np.full((1, 5, 32, 32), np.nan)}, "`seg` holds NaN or infinity"),
        ({"seg": np.zeros((1, 5, 32, 32)), "z": np.zeros((1, 8))}, "this generator starts from the layout"),
        ({"seg": np.array([[print]], dtype=object)}, "is no .npz of plain arrays"),
    ],
)  # fmt: skip
def test_archives_that_do_not_fit_are_refused(plain, tmp_path, capsys, arrays, says):
    np.savez(tmp_path / "seg.npz", **arrays)
    words = ["sample", str(plain), "--semantics", str(tmp_path / "seg.npz"), "--out", str(tmp_path / "y.npz")]
    assert main(words) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "y.npz").exists()


def test_images_that_are_no_maps_are_refused(plain, tmp_path, capsys):
    pictures = np.zeros((32, 32, 3), np.uint8)
    Image.fromarray(pictures).save(tmp_path / "rgb.png")
    Image.fromarray(pictures[..., 0]).save(tmp_path / "lossy.jpg")
    (tmp_path / "lossy.jpg").rename(tmp_path / "lossy.png")
    Image.fromarray(pictures[..., 0] + 7).save(tmp_path / "seven.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    for name, says in (
        ("rgb.png", "is a PNG of mode RGB; a map is a PNG with one whole number per pixel"),
        ("lossy.png", "is a JPEG of mode L"),
        ("seven.png", "values of semantic maps are 0..2 or 255 (unknown), got 7"),
        ("text.png", "is no readable image"),
        ("empty", "there is no .png in"),
        ("nowhere.png", "there is no"),
    ):
        words = ["sample", str(plain), "--semantics", str(tmp_path / name), "--out", str(tmp_path / "y.png")]
        assert main(words) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--semantics: wanted, because plain.safetensors draws from label maps"),
        (["--semantics", "x.npz", "--labels", "0"], "--labels, --psi, --noise and --grid mean nothing"),
        (["--semantics", "x.npz", "--seeds", "0-3"], "--seeds: wanted one, for z of all maps, got 4"),
    ],
)
def test_options_that_a_spade_has_no_use_for_are_refused(plain, tmp_path, capsys, words, says):
    assert main(["sample", str(plain), "--out", str(tmp_path / "y.npz"), *words]) == 2
    assert says in capsys.readouterr().err


def test_label_maps_for_a_stylegan2_are_refused(tmp_path, capsys):
    words = [
        "sample",
        "fashion_mnist_32.safetensors",
        "--semantics",
        "x.npz",
        "--out",
        str(tmp_path / "y.npz"),
    ]
    assert main(words) == 2
    assert "is not a SPADE generator and draws from no label maps" in capsys.readouterr().err


def test_convert_reads_an_official_file_with_the_settings_that_are_said(tmp_path, capsys):
    generator = tiny_spade_generator()
    source, target = tmp_path / "latest_net_G.pth", tmp_path / "x.safetensors"
    torch.save(generator.state_dict(), source, _use_new_zipfile_serialization=False)
    assert main(["convert", str(source), str(target)]) == 2
    assert "have to be said: label_nc" in capsys.readouterr().err
    said = ["label_nc=3", "crop_size=32", "num_upsampling_layers=normal", f"classes=[{', '.join(CLASSES)}]"]
    assert main(["convert", str(source), str(target), *said, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["classes"] == list(CLASSES)
    assert read_checkpoint(target).config == generator.config
    assert main(["convert", str(source), str(target), *said, "--overwrite"]) == 0
    assert "32 x 32 px" in capsys.readouterr().out
    assert main(["convert", str(source), str(target), "label_nc", "--overwrite"]) == 2
    assert "wanted key=value, got 'label_nc'" in capsys.readouterr().err


def test_settings_for_a_stylegan2_are_refused(tmp_path, capsys):
    source = Path(__file__).parents[4] / "generators" / "weights" / "fashion_mnist_32.safetensors"
    assert main(["convert", str(source), str(tmp_path / "x.safetensors"), "crop_size=32"]) == 2
    assert "settings such as crop_size=32 are for SPADE generators" in capsys.readouterr().err
