"""Writers of foreign checkpoint files, without any foreign code.

Pickle stores classes and functions by name only, so throw-away modules with the official names, present while writing and
gone while reading, yield the same bytes as the official code does, up to the embedded source text.
"""

import pickle
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from generators.stylegan2.config import StyleGAN2Config
from generators.stylegan2.discriminator import Discriminator
from generators.stylegan2.generator import Generator

GOLDEN = Path(__file__).parents[3] / "golden" / "stylegan2"
# Upstream would execute this text. Here, reading it would be the bug.
MODULE_SOURCE = "raise SystemExit('the embedded source was executed')\n"

Golden = dict[str, dict[str, torch.Tensor]]


class EasyDict(dict[str, Any]):
    """Stands for dnnlib.util.EasyDict: a dict subclass."""


class Network:
    """Stands for dnnlib.tflib.network.Network: pickles as its state."""

    def __init__(self, **state: Any) -> None:
        self.__dict__ |= state


def _reconstruct_persistent_obj(meta: Any) -> None:
    """Stands for the function of torch_utils.persistence; only its name is written."""
    raise AssertionError("called")


class Persistent:
    """Stands for an instance of a persistent class."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": MODULE_SOURCE, "class_name": self.class_name}
        return _reconstruct_persistent_obj, (meta | {"state": self.state},), None


@contextmanager
def official_names() -> Iterator[None]:
    homes = {
        "torch_utils.persistence": _reconstruct_persistent_obj,
        "dnnlib.util": EasyDict,
        "dnnlib.tflib.network": Network,
    }
    before = {thing: (thing.__module__, thing.__qualname__) for thing in homes.values()}
    added = set()
    try:
        for home, thing in homes.items():
            parts = home.split(".")
            for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
                sys.modules[name] = types.ModuleType(name)
                added.add(name)
            setattr(sys.modules[home], thing.__name__, thing)
            thing.__module__, thing.__qualname__ = home, thing.__name__
        yield
    finally:
        for thing, (module, qualname) in before.items():
            thing.__module__, thing.__qualname__ = module, qualname
        for name in added:
            del sys.modules[name]


def persistent(module: torch.nn.Module, **attributes: dict[str, Any]) -> Persistent:
    """A module of ours as the official code would store it.

    Args:
        attributes: extra state by module path, with "_" for "." ("mapping_fc0"; "root" is the module itself).
    """

    def build(part: torch.nn.Module, path: str) -> Persistent:
        children = {name: build(child, f"{path}_{name}".lstrip("_")) for name, child in part.named_children()}
        extra = dict(attributes.get(path or "root", {}))
        children |= extra.pop("_modules", {})
        return Persistent(
            type(part).__name__,
            training=False,
            _parameters=dict(part._parameters),
            _buffers=dict(part._buffers),
            _non_persistent_buffers_set=set(),
            _modules=children,
            act_gain=np.float64(2**0.5),
            size=np.array([16, 16]),
            **extra,
        )

    return build(module, "")


@pytest.fixture
def config() -> StyleGAN2Config:
    return StyleGAN2Config(
        z_dim=6,
        c_dim=3,
        w_dim=7,
        img_resolution=8,
        channel_base=64,
        channel_max=8,
        mapping_layers=2,
        conv_clamp=256,
    )


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "resample_filter" not in name:
                tensor.copy_(torch.randn(tensor.shape, generator=rng))
    return net.requires_grad_(False)


@pytest.fixture
def generator(config: StyleGAN2Config) -> Generator:
    return randomised(Generator(config))


@pytest.fixture
def discriminator(config: StyleGAN2Config) -> Discriminator:
    return randomised(Discriminator(config))


@pytest.fixture
def nvidia_data(
    config: StyleGAN2Config, generator: Generator, discriminator: Discriminator
) -> Callable[..., dict[str, Any]]:
    """Makes the dict of an official pickle; `change(generator_kwargs, discriminator_kwargs)` may alter its claims."""

    def make(
        flattened: bool = False, change: Callable[[dict[str, Any], dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        c = config
        synthesis = EasyDict(
            channel_base=c.channel_base, channel_max=c.channel_max, num_fp16_res=4, conv_clamp=256
        )
        g = EasyDict(
            z_dim=c.z_dim, c_dim=c.c_dim, w_dim=c.w_dim, img_resolution=c.img_resolution, img_channels=3
        )
        g |= EasyDict(mapping_kwargs=EasyDict(num_layers=c.mapping_layers))
        g |= synthesis if flattened else EasyDict(synthesis_kwargs=synthesis)
        d = EasyDict(
            c_dim=c.c_dim, img_resolution=c.img_resolution, img_channels=3, channel_base=c.channel_base
        )
        d |= EasyDict(
            channel_max=c.channel_max, num_fp16_res=4, conv_clamp=256, block_kwargs=EasyDict(freeze_layers=0)
        )
        d |= EasyDict(mapping_kwargs=EasyDict(), epilogue_kwargs=EasyDict(mbstd_group_size=4))
        if change:
            change(g, d)
        ema = persistent(
            generator,
            root={"_init_args": (), "_init_kwargs": g},
            mapping={"w_avg_beta": 0.995},
            mapping_fc0={"bias_gain": 0.01, "activation": "lrelu"},
            synthesis_b4_conv1={"conv_clamp": 256, "activation": "lrelu"},
        )
        std = Persistent(
            "MinibatchStdLayer", group_size=4, num_channels=1, _parameters={}, _buffers={}, _modules={}
        )
        critic = persistent(
            discriminator,
            root={"_init_args": (), "_init_kwargs": d},
            b4={"_modules": {"mbstd": std}},
            b4_conv={"conv_clamp": 256, "activation": "lrelu"},
        )
        # The raw generator must lose against the averaged one, so it is a different network.
        raw = persistent(Generator(config).requires_grad_(False), root={"_init_args": (), "_init_kwargs": g})
        return {
            "G": raw,
            "D": critic,
            "G_ema": ema,
            "augment_pipe": None,
            "training_set_kwargs": EasyDict(path="x"),
        }

    return make


@pytest.fixture
def write_pickle(tmp_path: Path) -> Callable[..., Path]:
    def write(data: Any, protocol: int = 4, name: str = "network.pkl") -> Path:
        path = tmp_path / name
        with official_names():
            path.write_bytes(pickle.dumps(data, protocol=protocol))
        return path

    return write


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    def load(name: str) -> Golden:
        parts: Golden = {"weights": {}, "input": {}, "output": {}}
        with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                part, _, rest = key.partition("/")
                parts[part][rest] = file.get_tensor(key)
        return parts

    return load


@pytest.fixture
def make_easy_dict() -> type[EasyDict]:
    return EasyDict


@pytest.fixture
def make_network() -> type[Network]:
    return Network


@pytest.fixture
def make_persistent() -> type[Persistent]:
    return Persistent
