"""Checkpoints of rosinality/stylegan2-pytorch, against numbers that its code computed (tests/golden/stylegan2)."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from generators.stylegan2.checkpoints import read_checkpoint
from generators.stylegan2.checkpoints.rosinality import NUM_W_SAMPLES
from generators.stylegan2.discriminator import Discriminator
from generators.stylegan2.generator import Generator

Make = Callable[..., Any]


@pytest.fixture
def data(golden: Make) -> dict[str, Any]:
    """What train.py saves: state dicts by network, optimiser state, and the parsed command line."""
    found: dict[str, Any] = {"g_ema": {}, "d": {}}
    for key, tensor in golden("rosinality")["weights"].items():
        network, _, name = key.partition("/")
        found[network][name] = tensor
    optimiser = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0.0, 0.99)}]}
    return found | {"args": Namespace(size=16, channel_multiplier=2), "g_optim": optimiser, "ada_aug_p": 0.0}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def save(data: dict[str, Any], zipped: bool = True) -> Path:
        path = tmp_path / "550000.pt"
        torch.save(data, path, _use_new_zipfile_serialization=zipped)
        return path

    return save


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 2020"])
def test_images_and_logits_agree_with_the_original_code(
    data: dict[str, Any], write: Make, golden: Make, zipped: bool
) -> None:
    expected = golden("rosinality")
    inputs, outputs = expected["input"], expected["output"]
    checkpoint = read_checkpoint(write(data | {"latent_avg": inputs["latent_avg"]}, zipped))
    generator = Generator(checkpoint.config)
    generator.load_state_dict(checkpoint.generator, strict=True)
    images = generator.eval()(inputs["z"], psi=0.7, noise="const")
    assert (images - outputs["image_const_psi0.7"]).abs().max().item() <= 1e-5
    assert checkpoint.discriminator is not None
    discriminator = Discriminator(checkpoint.config)
    discriminator.load_state_dict(checkpoint.discriminator, strict=True)
    assert (discriminator(inputs["images"]) - outputs["logits"]).abs().max().item() <= 1e-5


def test_a_mean_of_w_that_was_not_kept_is_estimated_and_said_to_be(data: dict[str, Any], write: Make) -> None:
    checkpoint = read_checkpoint(write(data))
    assert str(NUM_W_SAMPLES) in checkpoint.metadata["w_avg"]
    generator = Generator(checkpoint.config)
    generator.load_state_dict(checkpoint.generator)
    z = torch.randn(20_000, checkpoint.config.z_dim, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        w = generator.eval().mapping(z)[:, 0]
    # Two independent means of 10 000 and 20 000 draws.
    standard_error = w.std(dim=0) * (1 / NUM_W_SAMPLES + 1 / len(z)) ** 0.5
    assert ((checkpoint.generator["mapping.w_avg"] - w.mean(dim=0)).abs() < 5 * standard_error).all()


def test_the_averaged_generator_is_preferred_and_the_raw_one_taken_otherwise(
    data: dict[str, Any], write: Make
) -> None:
    raw = {name: torch.zeros_like(t) if name == "input.input" else t for name, t in data["g_ema"].items()}
    checkpoint = read_checkpoint(write(data | {"g": raw}))
    assert checkpoint.generator["synthesis.b4.const"].abs().min().item() > 0
    checkpoint = read_checkpoint(write({"g": raw}))
    assert checkpoint.metadata["network"] == "g"
    assert checkpoint.discriminator is None


def test_other_blur_kernels_and_unknown_tensors_are_refused_by_name(
    data: dict[str, Any], write: Make
) -> None:
    changed = data["g_ema"] | {"convs.0.conv.blur.kernel": torch.ones(4, 4)}
    with pytest.raises(ValueError, match=r"convs\.0\.conv\.blur\.kernel is not the \[1, 3, 3, 1\]"):
        read_checkpoint(write({"g_ema": changed}))
    with pytest.raises(ValueError, match=r"'decoder\.x' belongs to no generator"):
        read_checkpoint(write({"g_ema": data["g_ema"] | {"decoder.x": torch.ones(1)}}))


def test_a_missing_tensor_is_named(data: dict[str, Any], write: Make) -> None:
    del data["g_ema"]["noises.noise_2"]
    with pytest.raises(ValueError, match=r"missing synthesis\.b8\.conv1\.noise_const"):
        read_checkpoint(write(data))


def test_other_torch_files_are_refused_with_what_they_hold(write: Make) -> None:
    with pytest.raises(ValueError, match="a dict of state_dict, opts"):
        read_checkpoint(write({"state_dict": {}, "opts": 1}))
    with pytest.raises(ValueError, match="a list, not a checkpoint of rosinality"):
        read_checkpoint(write([torch.zeros(1)]))


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_torch_files_are_refused(data: dict[str, Any], write: Make, zipped: bool) -> None:
    path = write(data, zipped)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"550000\.pt"):
        read_checkpoint(path)
