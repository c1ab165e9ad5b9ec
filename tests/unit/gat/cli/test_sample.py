"""`gat sample` and `gat convert` on a tiny random StyleGAN2."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gat.cli import main
from gat.cli.sample import draw, parse_seeds
from generators.stylegan2.checkpoints import Checkpoint, read_checkpoint, write_safetensors
from generators.stylegan2.config import StyleGAN2Config
from generators.stylegan2.generator import Generator

CLASSES = ["coat", "bag", "boot"]


def make_checkpoint(c_dim: int, metadata: dict[str, str] | None = None) -> Checkpoint:
    torch.manual_seed(0)
    config = StyleGAN2Config(
        z_dim=6, c_dim=c_dim, w_dim=5, img_resolution=8, channel_base=32, channel_max=4, mapping_layers=2
    )
    generator = Generator(config)
    with torch.no_grad():
        generator.mapping.w_avg.normal_()
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.5)
    return Checkpoint(config, generator.state_dict(), None, metadata or {})


@pytest.fixture
def conditional(tmp_path: Path) -> Path:
    path = tmp_path / "conditional.safetensors"
    write_safetensors(path, make_checkpoint(3, {"classes": json.dumps(CLASSES)}))
    return path


@pytest.fixture
def unconditional(tmp_path: Path) -> Path:
    path = tmp_path / "unconditional.safetensors"
    write_safetensors(path, make_checkpoint(0))
    return path


def test_an_archive_holds_what_the_official_seed_convention_draws(conditional: Path, tmp_path: Path):
    out = tmp_path / "x.npz"
    words = [
        "sample",
        str(conditional),
        "--seeds",
        "0-1,7",
        "--labels",
        "0,boot",
        "--psi",
        "0.7",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    checkpoint = read_checkpoint(conditional)
    generator = Generator(checkpoint.config).eval()
    generator.load_state_dict(checkpoint.generator)
    raw = []
    for label in (0, 2):
        for seed in (0, 1, 7):
            z = torch.from_numpy(np.random.RandomState(seed).randn(1, 6))
            with torch.no_grad():
                raw.append(generator(z.float(), torch.eye(3)[[label]], psi=0.7, noise="const"))
    wanted = torch.cat(raw)
    with np.load(out) as archive:
        assert archive["images_float"].dtype == np.float32
        np.testing.assert_allclose(archive["images_float"], wanted.numpy(), atol=1e-5)
        as_official = (wanted.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy()
        assert archive["images"].dtype == np.uint8
        assert archive["images"].shape == (6, 8, 8, 3)
        assert np.abs(archive["images"].astype(int) - as_official.astype(int)).max() <= 1
        assert archive["seeds"].tolist() == [0, 1, 7, 0, 1, 7]
        assert archive["labels"].tolist() == [0, 0, 0, 2, 2, 2]
        assert archive["classes"].tolist() == CLASSES
        assert archive["psi"] == 0.7


def test_random_noise_is_a_function_of_the_seed_alone():
    checkpoint = make_checkpoint(0)
    together = draw(checkpoint, [3, 4, 5], [-1], noise="random", batch_size=3).raw
    apart = draw(checkpoint, [5, 4], [-1], noise="random", batch_size=1).raw
    torch.testing.assert_close(together[[2, 1]], apart, atol=1e-5, rtol=0)
    assert not torch.allclose(together, draw(checkpoint, [3, 4, 5], [-1], noise="const").raw, atol=1e-2)


def test_images_are_rounded_as_officially():
    samples = draw(make_checkpoint(0), [0], [-1], noise="none")
    samples = samples._replace(raw=torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0]).reshape(1, 1, 2, 3))
    assert samples.images.ravel().tolist() == [0, 0, 128, 255, 255, 255]


def test_a_sheet_has_a_row_per_label_and_a_column_per_seed(conditional: Path, tmp_path: Path):
    out = tmp_path / "sheet.png"
    words = ["sample", str(conditional), "--seeds", "0-3", "--labels", "all", "--grid", "--out", str(out)]
    assert main(words) == 0
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (3 * 8, 4 * 8, 3)
    images = draw(read_checkpoint(conditional), range(4), range(3)).images
    np.testing.assert_array_equal(sheet[8:16, 16:24], images[1 * 4 + 2])


def test_several_pngs_are_named_by_label_and_seed(
    conditional: Path, unconditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--seeds", "1,12", "--out", str(tmp_path / "x.png"), "--json"]
    assert main(["sample", str(conditional), "--labels", "bag", *words]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [Path(file).name for file in files] == ["x-label01-seed0001.png", "x-label01-seed0012.png"]
    assert main(["sample", str(unconditional), *words]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [Path(file).name for file in files] == ["x-seed0001.png", "x-seed0012.png"]
    assert all(Path(file).is_file() for file in files)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            [],
            "--labels: wanted, because this generator draws by class; on offer: 0 coat, 1 bag, 2 boot, or all",
        ),
        (["--labels", "hat"], "--labels: no class 'hat'; on offer: 0 coat, 1 bag, 2 boot, or all"),
        (["--labels", "3"], "--labels: no class '3'; on offer: 0 coat, 1 bag, 2 boot, or all"),
        (
            ["--labels", "0", "--seeds", "3-1"],
            "--seeds: wanted numbers and ranges below 2^32 such as 0-3,17, got '3-1'",
        ),
        (["--labels", "0", "--seeds", "0-999999999"], "--seeds: '0-999999999' are too many; at most 100000"),
        (["--labels", "0", "--batch-size", "0"], "--batch-size: wanted 1 or more, got 0"),
    ],
)
def test_wrong_words_are_refused_with_what_is_on_offer(
    conditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
):
    assert main(["sample", str(conditional), "--out", str(tmp_path / "x.npz"), *words]) == 2
    assert capsys.readouterr().err == f"gat sample: {says}\n"
    assert not (tmp_path / "x.npz").exists()


def test_labels_for_an_unconditional_generator_are_refused(
    unconditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["sample", str(unconditional), "--labels", "0", "--out", str(tmp_path / "x.png")]) == 2
    assert "unconditional" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "says"), [("x.jpg", ".npz or .png"), ("nowhere/x.png", "there is no folder")]
)
def test_an_impossible_destination_is_refused_before_any_work(
    tmp_path: Path, out: str, says: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["sample", "never-read.pkl", "--out", str(tmp_path / out)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "1-", "-1", "a", "1,,2", "4294967296"])
def test_seeds_that_are_none_are_refused(text: str):
    with pytest.raises(ValueError, match="--seeds"):
        parse_seeds(text)


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("0-3,17, 5") == [0, 1, 2, 3, 17, 5]


def test_convert_reports_what_it_wrote(conditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "copy.safetensors"
    assert main(["convert", str(conditional), str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["img_resolution"] == 8
    assert report["metadata"]["classes"] == json.dumps(CLASSES)
    assert report["bytes"] == out.stat().st_size
    assert main(["convert", str(conditional), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(conditional), str(out), "--overwrite"]) == 0
    assert "8 px, 3 channels" in capsys.readouterr().out
