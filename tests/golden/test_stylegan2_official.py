"""Our StyleGAN2 against numbers that the official PyTorch code computed (see stylegan2/README.md)."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from generators.stylegan2.checkpoints.layout import settle
from generators.stylegan2.checkpoints.nvidia import discriminator_claims_of_kwargs, generator_claims_of_kwargs
from generators.stylegan2.discriminator import Discriminator
from generators.stylegan2.generator import Generator

FIXTURES = Path(__file__).parent / "stylegan2"
GENERATORS = sorted(path.stem for path in FIXTURES.glob("generator_*.safetensors"))
DISCRIMINATORS = sorted(path.stem for path in FIXTURES.glob("discriminator_*.safetensors"))
ATOL = 1e-5


class Golden(NamedTuple):
    net: torch.nn.Module
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def golden(name: str) -> Golden:
    """Our network, built from the official constructor arguments and loaded strictly with the official state dict."""
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "input": {}, "output": {}}
    with safe_open(FIXTURES / f"{name}.safetensors", framework="pt") as file:
        kwargs, network = json.loads(file.metadata()["kwargs"]), file.metadata()["network"]
        for key in file.keys():  # noqa: SIM118 - not a dict
            part, _, rest = key.partition("/")
            parts[part][rest] = file.get_tensor(key)
    claims = (
        generator_claims_of_kwargs(kwargs)
        if network == "Generator"
        else discriminator_claims_of_kwargs(kwargs)
    )
    net = {"Generator": Generator, "Discriminator": Discriminator}[network](settle({"the arguments": claims}))
    net.load_state_dict(parts["weights"], strict=True)
    return Golden(net.eval().requires_grad_(False), parts["input"], parts["output"])


def worst(ours: Tensor, official: Tensor) -> float:
    assert ours.shape == official.shape
    return (ours - official).abs().max().item()


@pytest.fixture(params=GENERATORS)
def generator(request: pytest.FixtureRequest) -> Golden:
    return golden(request.param)


@pytest.fixture(params=DISCRIMINATORS)
def discriminator(request: pytest.FixtureRequest) -> Golden:
    return golden(request.param)


def test_all_architectures_have_a_fixture() -> None:
    assert len(GENERATORS) == 4
    assert len(DISCRIMINATORS) == 4


def test_mapping_and_truncation_agree_with_the_official_code(generator: Golden) -> None:
    net, inputs, outputs = generator
    z, c = inputs["z"], inputs["c"]
    assert worst(net.mapping(z, c), outputs["ws"]) <= ATOL
    assert worst(net.mapping(z, c, psi=0.7), outputs["ws_psi0.7"]) <= ATOL
    assert worst(net.mapping(z, c, psi=0.5, cutoff=2), outputs["ws_psi0.5_cutoff2"]) <= ATOL


def test_images_agree_with_the_official_code_for_every_kind_of_noise(generator: Golden) -> None:
    net, inputs, outputs = generator
    z, c = inputs["z"], inputs["c"]
    assert worst(net(z, c, psi=0.7, noise="const"), outputs["image_const_psi0.7"]) <= ATOL
    assert worst(net(z, c, noise="none"), outputs["image_none"]) <= ATOL
    drawn = {name: tensor for name, tensor in inputs.items() if name.startswith("noise/")}
    assert drawn.keys() == net.synthesis.noise_shapes().keys()
    styles = net.synthesis.styles(net.mapping(z, c))
    assert worst(net.synthesis.render(styles, drawn), outputs["image_random"]) <= ATOL


def test_precomputed_kernels_do_not_change_the_image(generator: Golden) -> None:
    net, inputs, outputs = generator
    styles = net.synthesis.styles(net.mapping(inputs["z"], inputs["c"], psi=0.7))
    images = net.synthesis.render(styles, net.noise(3, "const"), kernels=net.synthesis.kernels())
    assert worst(images, outputs["image_const_psi0.7"]) <= ATOL


def test_gradients_with_respect_to_ws_agree_with_the_official_code(generator: Golden) -> None:
    net, inputs, outputs = generator
    ws = outputs["ws"].clone().requires_grad_()
    images = net.synthesis.render(net.synthesis.styles(ws), net.noise(3, "const"))
    (ours,) = torch.autograd.grad((images * inputs["cotangent"]).sum(), ws)
    assert worst(ours, outputs["grad_ws_const"]) <= ATOL * outputs["grad_ws_const"].abs().max().item()


@pytest.mark.parametrize("seed", range(4))
def test_seeds_draw_what_the_official_generate_script_draws(generator: Golden, seed: int) -> None:
    net, _, outputs = generator
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, net.config.z_dim))
    c = torch.eye(net.config.c_dim)[[0]] if net.config.c_dim else None
    image = net(z, c, psi=0.7, noise="const")
    assert worst(image, outputs[f"seed{seed}"]) <= ATOL
    bytes_ = (image * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    difference = (bytes_.int() - outputs[f"seed{seed}_uint8"].int()).abs()
    assert difference.max().item() <= 1  # a value on the edge of two bytes may round either way
    assert (difference > 0).float().mean().item() < 0.01


def test_clamped_activations_matter_in_the_clamped_fixture() -> None:
    net, inputs, outputs = golden("generator_skip_clamped")
    free = Generator(net.config.model_copy(update={"conv_clamp": None}))
    free.load_state_dict(net.state_dict())
    assert worst(free(inputs["z"], psi=0.7, noise="const"), outputs["image_const_psi0.7"]) > 0.1


def test_logits_agree_with_the_official_code(discriminator: Golden) -> None:
    net, inputs, outputs = discriminator
    images, c = inputs["images"], inputs["c"]
    assert worst(net(images, c), outputs["logits"]) <= ATOL
    assert worst(net(images[:1], c[:1]), outputs["logits_of_first"]) <= ATOL


def test_r1_and_its_gradient_agree_with_the_official_code(discriminator: Golden) -> None:
    net, inputs, outputs = discriminator
    top = getattr(net, f"b{net.config.img_resolution}")
    first, last = top.fromrgb.weight.requires_grad_(), net.b4.out.weight.requires_grad_()
    images = inputs["images"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(images, inputs["c"]).sum(), images, create_graph=True)
    penalty = gradient.square().sum(dim=(1, 2, 3))
    of_first, of_last = torch.autograd.grad(penalty.sum(), [first, last])
    assert worst(gradient, outputs["grad_images"]) <= ATOL
    assert worst(penalty, outputs["r1"]) <= ATOL
    assert worst(of_first, outputs["r1_grad_fromrgb"]) <= ATOL
    assert worst(of_last, outputs["r1_grad_out"]) <= ATOL
