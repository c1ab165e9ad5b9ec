"""TensorFlow pickles, against what the official converter made of the same variables (tests/golden/stylegan2)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from generators.stylegan2.checkpoints import read_checkpoint
from generators.stylegan2.discriminator import Discriminator
from generators.stylegan2.generator import Generator

Write = Callable[..., Path]
Make = Callable[..., Any]
ARGUMENTS = {
    "latent_size": 6, "label_size": 2, "dlatent_size": 7, "resolution": 16, "num_channels": 3, "fmap_base": 32,
    "fmap_max": 8, "mapping_layers": 2, "truncation_psi": 0.5,
}  # fmt: skip


@pytest.fixture
def networks(golden: Make, make_network: Make, make_easy_dict: Make) -> Make:
    """Makes the tuple (G, D, Gs) from a golden file's variables; Gs carries the weights, G only zeros."""

    def make(architecture: str) -> tuple[Any, Any, Any]:
        parts: dict[str, list[tuple[str, Any]]] = {}
        for key, tensor in golden(f"tensorflow_{architecture}")["weights"].items():
            part, _, name = key.partition("/")
            value = tensor.numpy()
            # A TensorFlow session returns scalar variables as numpy scalars.
            parts.setdefault(part, []).append((name, np.float32(value) if value.ndim == 0 else value))

        def network(
            variables: list[tuple[str, Any]], arguments: dict[str, Any], function: str, **components: Any
        ) -> Any:
            return make_network(
                version=5, name="net", static_kwargs=make_easy_dict(arguments), components=make_easy_dict(components),
                build_module_src="raise SystemExit", build_func_name=function, variables=variables,
            )  # fmt: skip

        arguments = ARGUMENTS | {"architecture": architecture}
        mapping = network(parts["mapping"], arguments, "G_mapping")
        synthesis = network(parts["synthesis"], arguments, "G_synthesis")
        lod = [("lod", np.float32(0))]
        averaged = network(lod + parts["main"], arguments, "G_main", mapping=mapping, synthesis=synthesis)
        zeros = [(name, np.zeros_like(value)) for name, value in parts["main"]]
        raw = network(lod + zeros, arguments, "G_main", mapping=mapping, synthesis=synthesis)
        shared = {
            k: ARGUMENTS[k] for k in ("label_size", "resolution", "num_channels", "fmap_base", "fmap_max")
        }
        critic = network(parts["discriminator"], shared | {"mbstd_group_size": 2}, "D_main")
        return raw, critic, averaged

    return make


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_images_and_logits_agree_with_the_official_conversion(
    networks: Make, write_pickle: Write, golden: Make, architecture: str, protocol: int
) -> None:
    expected = golden(f"tensorflow_{architecture}")
    inputs, outputs = expected["input"], expected["output"]
    checkpoint = read_checkpoint(write_pickle(networks(architecture), protocol))
    generator = Generator(checkpoint.config)
    generator.load_state_dict(checkpoint.generator, strict=True)
    images = generator.eval()(inputs["z"], inputs["c"], psi=0.7, noise="const")
    assert (images - outputs["image_const_psi0.7"]).abs().max().item() <= 1e-5
    assert checkpoint.discriminator is not None
    discriminator = Discriminator(checkpoint.config)
    discriminator.load_state_dict(checkpoint.discriminator, strict=True)
    logits = discriminator(inputs["images"], inputs["c"])
    assert (logits - outputs["logits"]).abs().max().item() <= 1e-5


def test_metadata_and_config_come_from_the_averaged_network(networks: Make, write_pickle: Write) -> None:
    checkpoint = read_checkpoint(write_pickle(networks("skip")))
    assert checkpoint.config.channel_base == 64  # TensorFlow's fmap_base counts half of it
    assert checkpoint.metadata["network"] == "Gs"
    assert "non-commercial" in checkpoint.metadata["license"]
    assert checkpoint.generator["mapping.w_avg"].abs().min().item() > 0


@pytest.mark.parametrize(("function", "size"), [("D_main", None), ("D_stylegan2", 4)])
def test_an_absent_minibatch_std_group_means_what_its_repository_means(
    networks: Make, write_pickle: Write, function: str, size: int | None
) -> None:
    raw, critic, averaged = networks("skip")
    del critic.static_kwargs["mbstd_group_size"]
    critic.build_func_name = function
    assert read_checkpoint(write_pickle((raw, critic, averaged))).config.mbstd_group_size == size


def test_stylegan1_is_refused_by_name(networks: Make, write_pickle: Write) -> None:
    nets = networks("skip")
    nets[2].__dict__ |= {"version": 3, "build_func_name": "G_style"}
    with pytest.raises(ValueError, match="format version 3 built by G_style: a StyleGAN1 or older"):
        read_checkpoint(write_pickle(nets))


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("ToRGB_lod0/weight", "progressively grown StyleGAN2"),
        ("LabelConcat/weight", "first TensorFlow StyleGAN2"),
        ("surprise", "'synthesis/surprise' belongs to no StyleGAN2"),
    ],
)
def test_relatives_of_stylegan2_are_refused_by_name(
    networks: Make, write_pickle: Write, variable: str, message: str
) -> None:
    nets = networks("skip")
    nets[2].components["synthesis"].variables.append((variable, np.zeros(3, dtype=np.float32)))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(write_pickle(nets))


def test_a_variable_of_the_wrong_shape_is_named(networks: Make, write_pickle: Write) -> None:
    nets = networks("skip")
    variables = nets[2].components["synthesis"].variables
    index = next(i for i, (name, _) in enumerate(variables) if name == "8x8/Conv1/weight")
    variables[index] = ("8x8/Conv1/weight", np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"'synthesis/8x8/Conv1/weight' has the shape \[3\]"):
        read_checkpoint(write_pickle(nets))


def test_unknown_arguments_and_activations_are_refused_by_name(networks: Make, write_pickle: Write) -> None:
    nets = networks("skip")
    nets[2].static_kwargs["surprise"] = 1
    with pytest.raises(ValueError, match="'surprise'"):
        read_checkpoint(write_pickle(nets))
    nets = networks("skip")
    nets[2].static_kwargs["nonlinearity"] = "relu"
    with pytest.raises(ValueError, match="nonlinearity='relu'; supported is 'lrelu'"):
        read_checkpoint(write_pickle(nets))


def test_arguments_that_contradict_the_variables_are_an_error_naming_both(
    networks: Make, write_pickle: Write
) -> None:
    nets = networks("skip")
    nets[2].static_kwargs["latent_size"] = 512
    with pytest.raises(ValueError, match="its tensors say z_dim=6, but its stored arguments say z_dim=512"):
        read_checkpoint(write_pickle(nets))


def test_a_discriminator_that_does_not_fit_is_left_out_with_its_reason(
    networks: Make, write_pickle: Write
) -> None:
    raw, critic, averaged = networks("skip")
    critic.variables.append(("surprise", torch.zeros(2).numpy()))
    checkpoint = read_checkpoint(write_pickle((raw, critic, averaged)))
    assert checkpoint.discriminator is None
    assert "'surprise'" in checkpoint.metadata["discriminator"]
