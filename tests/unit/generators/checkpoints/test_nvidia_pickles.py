"""Pickles of stylegan2-ada-pytorch and of stylegan3, written with throw-away modules in their place."""

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from generators.stylegan2.checkpoints import read_checkpoint
from generators.stylegan2.config import StyleGAN2Config
from generators.stylegan2.discriminator import Discriminator
from generators.stylegan2.generator import Generator

Data = Callable[..., dict[str, Any]]
Write = Callable[..., Path]


def assert_same(read: dict[str, torch.Tensor], net: torch.nn.Module) -> None:
    stored = net.state_dict()
    assert list(read) == list(stored)
    assert all(torch.equal(read[name], stored[name]) for name in stored)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("flattened", [False, True], ids=["ada", "stylegan3"])
def test_both_networks_and_their_config_are_read_whatever_the_protocol_and_repository(
    nvidia_data: Data, write_pickle: Write, config: StyleGAN2Config, generator: Generator,
    discriminator: Discriminator, protocol: int, flattened: bool,
) -> None:  # fmt: skip
    checkpoint = read_checkpoint(write_pickle(nvidia_data(flattened), protocol))
    assert checkpoint.config == config
    assert_same(checkpoint.generator, generator)
    assert checkpoint.discriminator is not None
    assert_same(checkpoint.discriminator, discriminator)
    Generator(checkpoint.config).load_state_dict(checkpoint.generator, strict=True)
    Discriminator(checkpoint.config).load_state_dict(checkpoint.discriminator, strict=True)


def test_old_writers_ordered_dicts_read_like_todays_dicts(
    nvidia_data: Data, write_pickle: Write, generator: Generator
) -> None:
    data = nvidia_data()
    state = data["G_ema"].state
    for key in ("_parameters", "_buffers", "_modules"):
        state[key] = OrderedDict(state[key])
    state["_backward_hooks"] = OrderedDict()
    assert_same(read_checkpoint(write_pickle(data, 3)).generator, generator)


def test_nothing_of_the_official_code_is_imported(nvidia_data: Data, write_pickle: Write) -> None:
    read_checkpoint(write_pickle(nvidia_data()))
    assert not any(name.split(".")[0] in ("dnnlib", "torch_utils") for name in sys.modules)


def test_metadata_names_source_hash_and_licence(nvidia_data: Data, write_pickle: Write) -> None:
    path = write_pickle(nvidia_data(), name="cifar10.pkl")
    metadata = read_checkpoint(path).metadata
    assert metadata["source_file"] == "cifar10.pkl"
    assert metadata["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert metadata["network"] == "G_ema"
    assert "non-commercial" in metadata["license"]


def test_a_raw_generator_is_read_where_no_averaged_one_was_kept(
    nvidia_data: Data, write_pickle: Write
) -> None:
    data = nvidia_data()
    data |= {"G": data["G_ema"], "G_ema": None}
    assert read_checkpoint(write_pickle(data)).metadata["network"] == "G"


def test_config_comes_from_the_tensors_alone_where_no_arguments_are_stored(
    nvidia_data: Data, write_pickle: Write, config: StyleGAN2Config
) -> None:
    def forget(generator_kwargs: dict[str, Any], discriminator_kwargs: dict[str, Any]) -> None:
        generator_kwargs.clear()
        discriminator_kwargs.clear()

    assert read_checkpoint(write_pickle(nvidia_data(change=forget))).config == config


@pytest.mark.parametrize(
    ("name", "claimed", "actual"),
    [("z_dim", 512, 6), ("c_dim", 10, 3), ("w_dim", 8, 7), ("img_resolution", 16, 8)],
)
def test_arguments_that_contradict_the_tensors_are_an_error_naming_both(
    nvidia_data: Data, write_pickle: Write, name: str, claimed: int, actual: int
) -> None:
    data = nvidia_data(change=lambda g, _: g.update({name: claimed}))
    with pytest.raises(
        ValueError, match=f"its tensors say {name}={actual}, but its stored arguments say {name}={claimed}"
    ):
        read_checkpoint(write_pickle(data))


def test_arguments_that_contradict_the_layers_are_an_error_naming_both(
    nvidia_data: Data, write_pickle: Write
) -> None:
    data = nvidia_data(change=lambda g, _: g["synthesis_kwargs"].update(conv_clamp=None))
    with pytest.raises(
        ValueError, match="its layers say conv_clamp=256, but its stored arguments say conv_clamp=None"
    ):
        read_checkpoint(write_pickle(data))


def test_a_clamp_that_only_the_layers_know_is_read(nvidia_data: Data, write_pickle: Write) -> None:
    # stylegan3 defaults to 256 and stylegan2-ada-pytorch to none; absent arguments do not tell which wrote the file.
    data = nvidia_data(change=lambda g, _: g["synthesis_kwargs"].pop("conv_clamp"))
    assert read_checkpoint(write_pickle(data)).config.conv_clamp == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"synthesis_kwargs": {"activation": "swish"}}, "activation='swish'; supported is 'lrelu'"),
        ({"synthesis_kwargs": {"resample_filter": [1, 2, 1]}}, r"resample_filter=\[1, 2, 1\]"),
        ({"mapping_kwargs": {"num_layers": 2, "surprise": 1}}, "no supported StyleGAN2 has: 'surprise'"),
        ({"mapping_kwargs": [1]}, "a list instead of a dict"),
        ({"z_dim": {}}, "z_dim set to a dict"),
    ],
)
def test_features_that_we_lack_are_refused_by_name(
    nvidia_data: Data, write_pickle: Write, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_checkpoint(write_pickle(nvidia_data(change=lambda g, _: g.update(arguments))))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"conv_clamp": None}, "conv_clamp"),
        ({"channel_max": 16}, "channel_max"),
        ({"cmap_dim": 5}, "'cmap_dim'"),
        ({"architecture": "orig"}, "discriminator_architecture"),
    ],
)
def test_a_discriminator_that_does_not_fit_is_left_out_with_its_reason(
    nvidia_data: Data, write_pickle: Write, generator: Generator, arguments: dict[str, Any], reason: str
) -> None:
    checkpoint = read_checkpoint(write_pickle(nvidia_data(change=lambda _, d: d.update(arguments))))
    assert checkpoint.discriminator is None
    assert checkpoint.metadata["discriminator"].startswith("left out: ")
    assert reason in checkpoint.metadata["discriminator"]
    assert_same(checkpoint.generator, generator)


def test_a_tensor_that_is_missing_or_unknown_is_an_error_that_names_it(
    nvidia_data: Data, write_pickle: Write
) -> None:
    data = nvidia_data()
    mapping = data["G_ema"].state["_modules"]["mapping"].state
    mapping["_buffers"]["surprise"] = mapping["_buffers"].pop("w_avg")
    with pytest.raises(ValueError, match=r"missing mapping\.w_avg; unknown mapping\.surprise"):
        read_checkpoint(write_pickle(data))


def test_a_filter_other_than_the_one_we_apply_is_an_error(
    nvidia_data: Data, write_pickle: Write, generator: Generator
) -> None:
    generator.synthesis.b8.conv0.resample_filter.mul_(2)
    with pytest.raises(ValueError, match=r"synthesis\.b8\.conv0\.resample_filter is not the \[1, 3, 3, 1\]"):
        read_checkpoint(write_pickle(nvidia_data()))


def test_stylegan3_is_refused_by_name(
    nvidia_data: Data, write_pickle: Write, make_persistent: Callable[..., Any]
) -> None:
    data = nvidia_data()
    data["G_ema"].state["_modules"]["synthesis"].state["_modules"]["input"] = make_persistent(
        "SynthesisInput"
    )
    with pytest.raises(ValueError, match="this is a StyleGAN3"):
        read_checkpoint(write_pickle(data))


def test_other_persistent_networks_are_refused_by_name(
    write_pickle: Write, make_persistent: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match="found a UNet of nothing"):
        read_checkpoint(write_pickle({"G_ema": make_persistent("UNet")}))


def test_another_version_of_the_persistence_format_is_refused(nvidia_data: Data, write_pickle: Write) -> None:
    path = write_pickle(nvidia_data())
    content = path.read_bytes()
    version = b"\x8c\x07version\x94K\x06"
    assert content.count(version) == 1
    path.write_bytes(content.replace(version, version[:-1] + b"\x07"))
    with pytest.raises(ValueError, match="version 7: wanted 'class', 6"):
        read_checkpoint(path)
