"""Tiny models, generators and data whose answers are known, for tests."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from generators.spade.config import SPADEConfig
from generators.spade.networks import Generator as SPADEGenerator
from generators.spade.space import SPADESpace
from generators.stylegan2.checkpoints import Checkpoint, write_safetensors
from generators.stylegan2.config import StyleGAN2Config
from generators.stylegan2.generator import Generator
from generators.stylegan2.space import StyleGAN2Space
from tasks.datasets.fashion_mnist import CLASSES as GARMENTS
from tasks.datasets.fashion_scenes import FashionScenes, FashionScenesConfig
from tasks.models.small_segnet import SmallSegNetConfig

CLASSES = ("circle", "square", "triangle")


def linear_classifier(weights: Tensor, bias: Tensor | None = None) -> nn.Sequential:
    """Flattened image to logits `weights @ x + bias`; weights [k, c * h * w]."""
    layer = nn.Linear(weights.shape[1], weights.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weights)
        layer.bias.copy_(torch.zeros(len(weights)) if bias is None else bias)
    return nn.Sequential(nn.Flatten(), layer)


def conv_classifier(num_classes: int = 3, seed: int = 0) -> nn.Sequential:
    """Random, with everything that a careless caller would disturb: batch norm and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, num_classes),
        )
        with torch.no_grad():
            model[-1].weight.mul_(10)
    return model


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def sine_classifier(num_features: int, num_classes: int, seed: int = 0) -> nn.Sequential:
    """Random, tiny and crooked: gradients turn within a small ball, so that better attacks get further."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(num_features, 32), _Sine(), nn.Linear(32, num_classes))
        with torch.no_grad():
            model[1].weight.mul_(3)
    return model


@torch.no_grad()
def balanced(model: nn.Sequential, images: Tensor) -> nn.Sequential:
    """`model` in eval mode, its last bias and scale set so that it answers every class with some confidence on `images`."""
    logits = (
        model.eval()(images).transpose(0, 1).flatten(1).T
    )  # a row per answer, be it of an image or of a pixel
    scale = 2 / (logits - logits.mean(0)).std()
    model[-1].bias.sub_(logits.mean(0)).mul_(scale)
    model[-1].weight.mul_(scale)
    return model


def tiny_generator(seed: int = 0, **settings: Any) -> Generator:
    """A random StyleGAN2 whose noise is visible and whose images mostly lie inside [-1, 1]."""
    shape = {"z_dim": 8, "c_dim": len(CLASSES), "w_dim": 8, "img_resolution": 16, "channel_base": 64}
    config = StyleGAN2Config(**(shape | {"channel_max": 8, "mapping_layers": 2} | settings))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = Generator(config)
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.data.uniform_(0.1, 0.5)
            if "torgb.weight" in name:
                parameter.data.mul_(0.2)
    return generator


def tiny_garments(folder: Path) -> Path:
    """A file with a random StyleGAN2 of Fashion-MNIST's classes, for runs."""
    generator, path = tiny_generator(c_dim=len(GARMENTS), img_resolution=32), folder / "tiny.safetensors"
    metadata = {"classes": json.dumps(GARMENTS)}
    write_safetensors(path, Checkpoint(generator.config, dict(generator.state_dict()), None, metadata))
    return path


def tiny_space(architecture: str = "skip", **options: Any) -> StyleGAN2Space:
    return StyleGAN2Space(tiny_generator(architecture=architecture), CLASSES, **options)


def tiny_spade_generator(**settings: Any) -> SPADEGenerator:
    """A random SPADE of three semantic classes, whose statistics and modulation matter."""
    shape = {"label_nc": len(CLASSES), "ngf": 2, "nhidden": 4, "crop_size": 32, "classes": tuple(CLASSES)}
    generator = SPADEGenerator(SPADEConfig.model_validate(shape | settings))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=source) + 0.5)
            elif tensor.is_floating_point():
                size = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
                tensor.copy_(torch.randn(tensor.shape, generator=source) * size)
    return generator.eval()


def tiny_layouts(num: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    """Semantic and instance maps of 4 x 4 rectangles: classes of `tiny_spade_generator`, some unknown; every rectangle an instance."""
    blocks = torch.randint(4, (num, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    blocks[blocks == 3] = 255
    instances = torch.arange(16).reshape(1, 1, 4, 4).expand(num, -1, -1, -1)
    layouts = torch.cat([blocks, instances], dim=1)
    return torch.nn.functional.interpolate(layouts.double(), size, mode="nearest").long()


class Blobs(Dataset[Mapping[str, Any]]):
    """Three classes of noisy images, told apart by which colour is bright."""

    classes = CLASSES

    def __init__(self, n: int = 48, side: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(n) % 3
        self.images = torch.rand(n, 3, side, side, generator=generator) * 0.6
        self.images[torch.arange(n), self.labels] += 0.3

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"images": self.images[index], "labels": int(self.labels[index]), "ids": 100 + int(index)}


SCENES_ORACLE = (
    "{name: small_segnet, widths: [48, 64, 96, 128], blocks: [1, 1, 1, 2], patch_px: 4, activation: silu, "
    "weights: tasks/models/shipped/fashion_scenes_oracle.safetensors}"
)
"""The oracle of scenes that ships, as a configuration names it."""


@cache
def tiny_scenes(labels: str = "masks", num: int = 12) -> FashionScenes:
    """The first few scenes of the smallest size."""
    return FashionScenesConfig(labels=labels, image_size=32, num_test=num, num_train=num).build("test")


def tiny_spade(seed: int = 0, use_vae: bool = False, **options: Any) -> SPADESpace:
    """A random SPADE for `tiny_scenes`."""
    classes = tiny_scenes(num=1).layout_classes
    config = SPADEConfig(label_nc=len(classes), ngf=4, nhidden=8, crop_size=32, use_vae=use_vae)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = SPADEGenerator(config)
    return SPADESpace(generator, classes, **options)


def scene_segmenter(seed: int = 0) -> nn.Module:
    """One that is right about some pixels of every one of `tiny_scenes`: it knows no pixels, but which classes are common."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SmallSegNetConfig(widths=(8, 8), blocks=(1, 1)).build(16, 32).eval()
    data = tiny_scenes()
    pixels = torch.stack([data[i]["labels"] for i in range(len(data))])
    shares = torch.bincount(pixels.flatten(), minlength=16) / pixels.numel()
    with torch.no_grad():
        head = model.network.head
        head.bias.copy_(20 * shares.repeat_interleave(head.out_channels // 16))
    return model


def conv_segmenter(num_classes: int = 3, seed: int = 0) -> nn.Sequential:
    """Random, with everything that a careless caller would disturb: batch norm and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Conv2d(8, num_classes, 3, padding=1),
        )
