"""StyleGAN2 pickles of NVIDIA's TensorFlow repositories (stylegan2, stylegan2-ada): a tuple (G, D, Gs) of networks.

Each `dnnlib.tflib.network.Network` is a dict: `version`, `static_kwargs`, `components` (nested networks), `variables` (a list
of name and array), and the source text of its build function, which upstream executes and which is dropped unread here.
Kernels are HWIO and dense matrices [in, out]; up-sampling kernels are stored mirrored relative to the PyTorch code; the bias of
a style is stored without its initial 1. Checked against the official converter (legacy.py of stylegan2-ada-pytorch).

Not read: StyleGAN1 and the progressively grown configs A to D of StyleGAN2, which are other networks, and conditional
networks of the first StyleGAN2 repository, whose label embedding is normalised together with z.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generators.stylegan2.checkpoints.layout import Checkpoint, assemble, claims_of_arguments
from generators.stylegan2.checkpoints.nvidia import LICENSE
from generators.stylegan2.checkpoints.restricted_pickle import LazyArray, Record

_GENERATOR_FIELDS = {
    "latent_size": "z_dim", "label_size": "c_dim", "dlatent_size": "w_dim", "resolution": "img_resolution",
    "num_channels": "img_channels", "mapping_layers": "mapping_layers", "label_fmaps": "embed_features",
    "mapping_fmaps": "mapping_features", "mapping_lrmul": "mapping_lr_multiplier", "w_avg_beta": "w_avg_beta",
    "fmap_base": "channel_base", "fmap_max": "channel_max", "conv_clamp": "conv_clamp",
    "architecture": "architecture", "use_noise": "use_noise",
}  # fmt: skip
_DISCRIMINATOR_FIELDS = {
    "label_size": "c_dim", "resolution": "img_resolution", "num_channels": "img_channels",
    "fmap_base": "channel_base", "fmap_max": "channel_max", "conv_clamp": "conv_clamp",
    "architecture": "discriminator_architecture", "mapping_layers": "discriminator_mapping_layers",
    "mbstd_group_size": "mbstd_group_size", "mbstd_num_features": "mbstd_channels",
}  # fmt: skip
_FIXED: dict[str, tuple[Any, ...]] = {
    "nonlinearity": ("lrelu",), "mapping_nonlinearity": ("lrelu",), "resample_kernel": ([1, 3, 3, 1], (1, 3, 3, 1)),
}  # fmt: skip
_IRRELEVANT = {
    "truncation_psi",
    "truncation_cutoff",
    "style_mixing_prob",
    "structure",
    "num_fp16_res",
    "freeze_layers",
}

Array = np.ndarray
Rule = tuple[str, str, Callable[[Array], Array]]


def _dense(a: Array) -> Array:
    return a.transpose()


def _conv(a: Array) -> Array:
    return a.transpose(3, 2, 0, 1)


def _up_conv(a: Array) -> Array:
    return a[::-1, ::-1].transpose(3, 2, 0, 1)


def _same(a: Array) -> Array:
    return a


def _first(a: Array) -> Array:
    return a[0]


def _first_map(a: Array) -> Array:
    return a[0, 0]


def _plus_one(a: Array) -> Array:
    return a + 1


def _styled(theirs: str, ours: str, kernel: Callable[[Array], Array]) -> list[Rule]:
    return [
        (f"{theirs}/weight", f"{ours}.weight", kernel),
        (f"{theirs}/bias", f"{ours}.bias", _same),
        (f"{theirs}/noise_strength", f"{ours}.noise_strength", _same),
        (f"{theirs}/mod_weight", f"{ours}.affine.weight", _dense),
        (f"{theirs}/mod_bias", f"{ours}.affine.bias", _plus_one),
    ]


_R = r"(\d{1,5})x\1"
_GENERATOR_RULES: list[Rule] = [
    ("dlatent_avg", "mapping.w_avg", _same),
    ("mapping/LabelEmbed/weight", "mapping.embed.weight", _dense),
    ("mapping/LabelEmbed/bias", "mapping.embed.bias", _same),
    (r"mapping/Dense(\d+)/weight", r"mapping.fc\1.weight", _dense),
    (r"mapping/Dense(\d+)/bias", r"mapping.fc\1.bias", _same),
    ("synthesis/4x4/Const/const", "synthesis.b4.const", _first),
    *_styled("synthesis/4x4/Conv", "synthesis.b4.conv1", _conv),
    *_styled(f"synthesis/{_R}/Conv0_up", r"synthesis.b\1.conv0", _up_conv),
    *_styled(f"synthesis/{_R}/Conv1", r"synthesis.b\1.conv1", _conv),
    *_styled(f"synthesis/{_R}/ToRGB", r"synthesis.b\1.torgb", _conv),
    (f"synthesis/{_R}/Skip/weight", r"synthesis.b\1.skip.weight", _up_conv),
    (r"synthesis/noise(\d{1,2})", r"noise \1", _first_map),
]
_DISCRIMINATOR_RULES: list[Rule] = [
    (f"{_R}/FromRGB/weight", r"b\1.fromrgb.weight", _conv),
    (f"{_R}/FromRGB/bias", r"b\1.fromrgb.bias", _same),
    (f"{_R}/Conv0/weight", r"b\1.conv0.weight", _conv),
    (f"{_R}/Conv0/bias", r"b\1.conv0.bias", _same),
    (f"{_R}/Conv1_down/weight", r"b\1.conv1.weight", _conv),
    (f"{_R}/Conv1_down/bias", r"b\1.conv1.bias", _same),
    (f"{_R}/Skip/weight", r"b\1.skip.weight", _conv),
    ("4x4/Conv/weight", "b4.conv.weight", _conv),
    ("4x4/Conv/bias", "b4.conv.bias", _same),
    ("4x4/Dense0/weight", "b4.fc.weight", _dense),
    ("4x4/Dense0/bias", "b4.fc.bias", _same),
    ("Output/weight", "b4.out.weight", _dense),
    ("Output/bias", "b4.out.bias", _same),
    ("LabelEmbed/weight", "mapping.embed.weight", _dense),
    ("LabelEmbed/bias", "mapping.embed.bias", _same),
    (r"Mapping(\d+)/weight", r"mapping.fc\1.weight", _dense),
    (r"Mapping(\d+)/bias", r"mapping.fc\1.bias", _same),
]


def is_tensorflow(data: Any) -> bool:
    """Whether unpickled data looks like a pickle of NVIDIA's TensorFlow code."""
    return (
        isinstance(data, tuple)
        and bool(data)
        and all(isinstance(r, Record) and r.class_name == "Network" for r in data)
    )


def _variables(network: Record, prefix: str = "", depth: int = 0) -> dict[str, Array]:
    """All variables of a network and its components by their full names."""
    listed, components = network.state.get("variables"), network.state.get("components", {})
    if depth > 3 or not (isinstance(listed, list) and isinstance(components, dict)):
        raise ValueError("a TensorFlow network without a list of variables")
    found = {}
    for pair in listed:
        match pair:
            case (str(name), LazyArray(np.ndarray() as array)):
                found[prefix + name] = array
            case (str(name), int() | float() as number):
                found[prefix + name] = np.array(number, dtype=np.float32)
            case _:
                raise ValueError("a TensorFlow variable that is not a name and an array")
    for name, component in components.items():
        if not (isinstance(component, Record) and component.class_name == "Network"):
            raise ValueError(f"the component {name!r} of a TensorFlow network is not a network")
        found |= _variables(component, f"{prefix}{name}/", depth + 1)
    return found


def _noise_name(index: int) -> str:
    """noise0 belongs to the 4x4 convolution, then two follow per resolution."""
    return f"synthesis.b{2 ** ((index + 5) // 2)}.conv{(index + 1) % 2}.noise_const"


def _convert(variables: Mapping[str, Array], rules: list[Rule]) -> dict[str, Tensor]:
    """Variables under their official PyTorch names.

    Raises:
        ValueError: a variable that no rule knows, or whose array has the wrong number of axes.
    """
    tensors = {}
    for name, array in variables.items():
        if name.split("/")[-1] == "lod":
            continue  # progressive growing's level of detail, unused
        matches = ((re.fullmatch(pattern, name), target, change) for pattern, target, change in rules)
        match, target, change = next((found for found in matches if found[0]), (None, "", _same))
        if match is None:
            raise ValueError(
                f"the TensorFlow variable {name!r} belongs to no StyleGAN2 that can be read here"
            )
        ours = match.expand(target)
        if ours.startswith("noise "):
            ours = _noise_name(int(ours.removeprefix("noise ")))
        try:
            changed = np.array(change(array), dtype=np.float32)
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"the TensorFlow variable {name!r} has the shape {list(array.shape)}: {error}"
            ) from None
        tensors[ours] = torch.from_numpy(changed)
    return tensors


def _claims(network: Record, fields: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = network.state.get("static_kwargs")
    if not isinstance(kwargs, dict):
        raise ValueError("a TensorFlow network without its arguments")
    claims = claims_of_arguments(dict(defaults) | kwargs, fields, _FIXED, _IRRELEVANT, "the network")
    base = claims.get("channel_base")
    if isinstance(base, int):
        claims["channel_base"] = base * 2  # TensorFlow counts resolutions from 8x8, PyTorch from 4x4
    if "w_avg_beta" in claims and claims["w_avg_beta"] is None:
        claims["w_avg_beta"] = 1.0
    return claims


def from_data(data: tuple[Record, ...], metadata: Mapping[str, str]) -> Checkpoint:
    """The checkpoint in the unpickled tuple (G, D, Gs); Gs is the averaged generator.

    Raises:
        ValueError: another generation of StyleGAN (named), unknown features, or contradictions.
    """
    if len(data) != 3:
        raise ValueError(f"wanted a tuple (G, D, Gs) of TensorFlow networks, found {len(data)}")
    _, discriminator, generator = data
    version, function = generator.state.get("version"), generator.state.get("build_func_name")
    if not isinstance(version, int) or version < 4:
        raise ValueError(
            f"this is a TensorFlow network of format version {version if isinstance(version, int) else 'unknown'} built by "
            f"{function if isinstance(function, str) else 'an unknown function'}: a StyleGAN1 or older. "
            "Readable are StyleGAN2 networks (version 4 and up, configs E and F)"
        )
    variables = _variables(generator)
    if any("ToRGB_lod" in name for name in variables):
        raise ValueError(
            "this is a progressively grown StyleGAN2 (config A to D); readable are configs E and F"
        )
    if any("LabelConcat" in name for name in variables):
        raise ValueError(
            "this is a conditional network of the first TensorFlow StyleGAN2; readable are those of stylegan2-ada"
        )
    sources = {"its stored arguments": _claims(generator, _GENERATOR_FIELDS, {})}
    notes = dict(metadata) | {
        "source_format": "NVIDIA TensorFlow pickle",
        "network": "Gs",
        "license": LICENSE,
    }
    d_tensors: dict[str, Tensor] | None = None
    d_sources: dict[str, dict[str, Any]] = {}
    try:
        # The two repositories differ in what an absent group size means; build function names tell them apart.
        absent = {"mbstd_group_size": None if discriminator.state.get("build_func_name") == "D_main" else 4}
        d_sources = {
            "the discriminator's stored arguments": _claims(discriminator, _DISCRIMINATOR_FIELDS, absent)
        }
        d_tensors = _convert(_variables(discriminator), _DISCRIMINATOR_RULES)
    except ValueError as error:
        notes["discriminator"] = f"left out: {error}"
    return assemble(_convert(variables, _GENERATOR_RULES), sources, d_tensors, d_sources, notes)
