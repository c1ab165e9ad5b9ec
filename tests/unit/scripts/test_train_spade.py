"""The real command on tiny scenes: what it writes, that it goes on after a kill as if nothing had been, and that it stops on NaN."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gat.config import ConfigError
from gat.training.loop import DivergedError
from generators.spade.checkpoint import read_checkpoint
from generators.spade.config import SPADEConfig
from generators.spade.encoder import Posterior, StyleEncoder
from generators.spade.networks import Generator
from generators.spade.settings import SPADESpaceConfig
from tasks.datasets.fashion_scenes import SEMANTIC_CLASSES
from tests.training_states import assert_same_state, killed_while_saving, state_of, tensors

DATA = '{"source": "subset", "image_size": 32, "num_train": 12}'
BATCH = 4


def words(out: Path, steps: int, **others: object) -> list[str]:
    tiny: dict[str, object] = {
        "out": out, "kimg": steps * BATCH / 1000, "batch-size": BATCH, "dataset-options": DATA, "width": 2, "hidden": 4,
        "z-dim": 4, "discriminator-width": 4, "encoder-width": 4, "statistics-images": 8, "samples": 2,
        "tick-kimg": BATCH / 1000, "snapshot-kimg": BATCH / 1000,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in (tiny | others).items()]


def size_of_last_grid(out: Path) -> tuple[int, int]:
    with Image.open(sorted((out / "samples").iterdir())[-1]) as grid:
        return grid.size


@pytest.fixture(scope="module")
def finished(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps that nobody disturbed."""
    out = tmp_path_factory.mktemp("finished")
    script.main(words(out, 3))
    return out


def test_a_run_writes_what_it_promises(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"loss_D", "loss_G", "matching", "likeness", "divergence", "loss_R", "loss_read"} <= rows[0].keys()
    assert state_of(finished)["step"] == 3
    # Per row: layout, real, its own style, three random ones.
    assert size_of_last_grid(finished) == (6 * 33 + 1, 2 * 33 + 1)
    assert not list(finished.rglob("*.tmp"))


def test_the_file_is_the_averaged_generator_and_makes_a_space(finished: Path) -> None:
    space = SPADESpaceConfig(checkpoint=finished / "generator.safetensors").build(
        SEMANTIC_CLASSES, image_size=(32, 32)
    )
    average = state_of(finished)["ema"]
    assert all(torch.equal(value, average[name]) for name, value in space.generator.state_dict().items())
    assert space.classes == SEMANTIC_CLASSES
    metadata = read_checkpoint(finished / "generator.safetensors").metadata
    assert metadata["license"] == "Apache-2.0" and metadata["data"] == "fashion_scenes"
    assert json.loads(metadata["recipe"])["width"] == 2 and "--width=2" in metadata["command"]
    assert json.loads(metadata["metrics"])["kimg"] == 3 * BATCH / 1000
    assert json.loads(metadata["site_scales"]).keys() == space.sites.keys()


def test_every_network_learns(finished: Path, script: ModuleType, tmp_path: Path) -> None:
    script.main(words(tmp_path, 0))
    before, after = state_of(tmp_path), state_of(finished)
    for part, names in {
        "painter": ["generator.fc.weight", "generator.conv_img.weight", "encoder.head.weight"],
        "D": ["scales.0.layers.0.0.weight", "scales.1.layers.3.weight"],
        "reader": ["network.head.weight"],
        "ema": ["fc.weight", "conv_img.weight"],
    }.items():
        for name in names:
            assert not torch.equal(before[part][name], after[part][name]), f"{part} {name}"


@pytest.mark.parametrize("moment", [1, 3])
def test_a_killed_run_goes_on_to_the_same_end(
    script: ModuleType, finished: Path, tmp_path: Path, moment: int
) -> None:
    with killed_while_saving(tmp_path, moment):
        script.main(words(tmp_path, 3))
    assert state_of(tmp_path)["step"] == moment - 1
    script.main(words(tmp_path, 3))
    assert_same_state(tmp_path, finished)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_every_step_draws_its_own_noise(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, drawn = script.Painter.forward, []

    def spy(self: nn.Module, semantics: Tensor, images: Tensor, noise: Tensor, num_random: int) -> Any:
        drawn.append(noise)
        return forward(self, semantics, images, noise, num_random)

    monkeypatch.setattr(script.Painter, "forward", spy)
    script.main(words(tmp_path, 2))
    assert len(drawn) == 2 and len(torch.cat(drawn).unique()) == 2 * BATCH * 4


def test_a_loss_that_is_not_a_number_stops_the_run_and_leaves_the_last_good_state(
    script: ModuleType, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hinge, calls = script.hinge_loss_G, 0

    def breaks_at_the_third(fake: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return hinge(fake) * (float("nan") if calls == 3 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(script, "hinge_loss_G", breaks_at_the_third)
        with pytest.raises(DivergedError, match=r"step 3.*state\.pt"):
            script.main(words(tmp_path, 3))
    assert state_of(tmp_path)["step"] == 2
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(state_of(tmp_path)))
    script.main(words(tmp_path, 3))
    assert_same_state(tmp_path, finished)


def test_weights_that_are_not_numbers_are_not_saved_even_between_two_looks_at_the_loss(
    script: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match="not finite at step 1"):
        script.main(words(tmp_path, 2, **{"lr-generator": "inf", "tick-kimg": 1}))
    assert state_of(tmp_path)["step"] == 0


def test_a_state_of_another_run_is_refused(script: ModuleType, finished: Path) -> None:
    with pytest.raises(ValueError, match="another run"):
        script.main(words(finished, 3, width=4))


def test_plain_spade_without_reader_and_likeness(script: ModuleType, tmp_path: Path) -> None:
    script.main(words(tmp_path, 1, style="none", likeness="none", **{"reader-weight": 0}))
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row.keys().isdisjoint({"likeness", "divergence", "loss_R", "loss_read"})
    assert isinstance(state_of(tmp_path)["ema"]["fc.weight"], Tensor)
    assert state_of(tmp_path)["ema"]["fc.weight"].ndim == 4  # starts from the layout
    assert size_of_last_grid(tmp_path)[0] == 3 * 33 + 1


def test_the_average_follows_the_folded_generator(script: ModuleType, tmp_path: Path) -> None:
    """With a half-life of nothing, the average is the generator itself, its spectral norms folded."""
    script.main(words(tmp_path, 2, **{"ema-kimg": 1e-9}))
    state = state_of(tmp_path)
    config = SPADEConfig.model_validate_json(state["shape"]["config"])
    painter = script.Painter(Generator(config, spectral=True), StyleEncoder(config, 4))
    painter.load_state_dict(state["painter"])
    folded = painter.generator.folded_state_dict()
    for name, value in state["ema"].items():
        if "param_free_norm" not in name:
            torch.testing.assert_close(value, folded[name], atol=1e-6, rtol=1e-5)


def test_the_last_of_a_batch_have_random_styles(script: ModuleType) -> None:
    config = SPADEConfig(label_nc=3, crop_size=32, ngf=2, nhidden=2, use_vae=True, z_dim=4)
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, semantics: Tensor, z: Tensor) -> Tensor:
            seen.append(z)
            return semantics

    painter = script.Painter(Spy(), StyleEncoder(config, 4))
    semantics, noise = torch.randn(5, config.semantic_nc, 32, 32), torch.randn(5, 4)
    images = torch.randn(5, 3, 32, 32)
    _, posterior = painter(semantics, images, noise, num_random=2)
    assert isinstance(posterior, Posterior) and len(posterior.mean) == 3
    assert torch.equal(seen[0][3:], noise[3:])
    torch.testing.assert_close(seen[0][:3], posterior.sample(noise[:3]))


def test_statistics_are_plain_means_over_all_batches(script: ModuleType) -> None:
    config = SPADEConfig(label_nc=3, crop_size=32, ngf=2, nhidden=2)
    generator = Generator(config).eval()
    semantics = torch.randn(8, config.semantic_nc, 32, 32)
    script.take_statistics(generator, semantics, None, width=4)
    start = generator.start(semantics)
    first = generator.head_0.norm_0.param_free_norm
    torch.testing.assert_close(first.running_mean, start.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert not generator.training and first.momentum == 0.1


def test_multiscale_l1_by_hand(script: ModuleType) -> None:
    """A checkerboard against its negative differs by 2 at full size, and not at all once halved."""
    board = torch.ones(1, 1, 8, 8)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = -1
    assert float(script.multiscale_l1(board, -board)) == pytest.approx(2 / 3)
    assert float(script.multiscale_l1(torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8))) == pytest.approx(1)


def test_maps_are_painted_in_different_colours_and_the_unknown_black(script: ModuleType) -> None:
    layouts = torch.tensor([0, 1, 2, 255]).reshape(1, 1, 1, 4).expand(1, 2, 1, 4)
    painted = script.paint_layouts(layouts, 3)
    assert painted.shape == (1, 3, 1, 4)
    assert len(painted[0, :, 0].T.unique(dim=0)) == 4 and (painted[..., 3] == 0).all()


def test_pictures_without_layouts_are_refused_by_name(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fashion_mnist has no label maps; take fashion_scenes"):
        script.main(words(tmp_path, 1, dataset="fashion_mnist", **{"dataset-options": "{source: subset}"}))
