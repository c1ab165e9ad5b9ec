"""Checkpoints of rosinality/stylegan2-pytorch (`torch.save`): {g_ema, g, d, latent_avg}.

Names and shapes: model.py and convert_weight.py of that repository at commit bef283a; agreement of the images is held by
tests/golden. Its networks compute what NVIDIA's do up to the 1e-8 inside the demodulation. It stores no mean of w unless the file
was converted from TensorFlow (`latent_avg`), so truncation otherwise rests on an estimate.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generators.stylegan2.checkpoints.layout import Checkpoint, assemble
from generators.stylegan2.layers import LabelAndLatentMLP

LICENSE = (
    "Inherited from the source file. The code of rosinality/stylegan2-pytorch is MIT; weights that it converted from NVIDIA's "
    "networks stay under the NVIDIA Source Code License: non-commercial use, research or evaluation, only."
)
NUM_W_SAMPLES = 10_000

_G_RULES = [
    (r"style\.([1-9]\d?)\.(weight|bias)", lambda m: f"mapping.fc{int(m[1]) - 1}.{m[2]}"),
    (r"input\.input", lambda m: "synthesis.b4.const"),
    (r"to_rgb1\.(.+)", lambda m: f"synthesis.b4.torgb.{m[1]}"),
    (r"to_rgbs\.(\d)\.(.+)", lambda m: f"synthesis.b{8 << int(m[1])}.torgb.{m[2]}"),
    (r"conv1\.(.+)", lambda m: f"synthesis.b4.conv1.{m[1]}"),
    (r"convs\.(\d\d?)\.(.+)", lambda m: f"synthesis.b{8 << int(m[1]) // 2}.conv{int(m[1]) % 2}.{m[2]}"),
    (
        r"noises\.noise_(\d\d?)",
        lambda m: f"synthesis.b{4 << (int(m[1]) + 1) // 2}.conv{(int(m[1]) + 1) % 2}.noise_const",
    ),
]
_G_SUFFIXES = {
    "conv.weight": "weight", "conv.modulation.weight": "affine.weight", "conv.modulation.bias": "affine.bias",
    "noise.weight": "noise_strength", "activate.bias": "bias",
}  # fmt: skip


def is_rosinality(data: Any) -> bool:
    """Whether data of a torch file looks like a checkpoint of that repository."""
    return isinstance(data, dict) and any(
        isinstance(data.get(key), dict) and "style.1.weight" in data[key] for key in ("g_ema", "g")
    )


def _is_filter(name: str, tensor: Tensor, gain: int) -> bool:
    """Whether this is a stored resampling filter.

    Raises:
        ValueError: it is one, but not [1, 3, 3, 1].
    """
    if not name.endswith("kernel"):
        return False
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    if tensor.shape != (4, 4) or not torch.allclose(tensor.float(), torch.outer(taps, taps) / 64 * gain):
        raise ValueError(
            f"{name} is not the [1, 3, 3, 1] low-pass filter; other blur kernels are not supported"
        )
    return True


def _generator(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    converted = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or _is_filter(name, tensor, 4):
            continue
        for pattern, rename in _G_RULES:
            if match := re.fullmatch(pattern, name):
                ours = rename(match)
                break
        else:
            raise ValueError(f"{name!r} belongs to no generator of rosinality/stylegan2-pytorch")
        for theirs, suffix in _G_SUFFIXES.items():
            if ours.endswith(f".{theirs}") and ours.startswith("synthesis."):
                ours = ours.removesuffix(theirs) + suffix
                break
        if name.endswith(("input.input", "conv.weight")) and tensor.ndim > 3:
            tensor = tensor[0]  # a leading batch axis of one
        elif name.startswith("noises."):
            tensor = tensor.reshape(tensor.shape[-2:])
        elif name.endswith("noise.weight"):
            tensor = tensor.reshape(())
        elif name.startswith("to_rgb") and name.endswith(".bias") and tensor.ndim == 4:
            tensor = tensor.flatten()
        converted[ours] = tensor
    return converted


def _discriminator(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    blocks = [int(m[1]) for name in tensors if (m := re.fullmatch(r"convs\.(\d)\.conv1\.0\.weight", name))]
    top = 4 << max(blocks, default=0)
    converted = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or _is_filter(name, tensor, 1):
            continue
        if match := re.fullmatch(r"convs\.0\.(?:0\.(weight)|1\.(bias))", name):
            ours = f"b{top}.fromrgb.{match[1] or match[2]}"
        elif match := re.fullmatch(r"convs\.([1-9])\.(conv1|conv2|skip)\.\d\.(weight|bias)", name):
            layer = {"conv1": "conv0", "conv2": "conv1", "skip": "skip"}[match[2]]
            ours = f"b{top >> int(match[1]) - 1}.{layer}.{match[3]}"
        elif match := re.fullmatch(r"final_conv\.\d\.(weight|bias)", name):
            ours = f"b4.conv.{match[1]}"
        elif match := re.fullmatch(r"final_linear\.([01])\.(weight|bias)", name):
            ours = f"b4.{('fc', 'out')[int(match[1])]}.{match[2]}"
        else:
            raise ValueError(f"{name!r} belongs to no discriminator of rosinality/stylegan2-pytorch")
        converted[ours] = tensor
    return converted


def estimate_w_avg(tensors: Mapping[str, Tensor], lr_multiplier: float = 0.01) -> Tensor:
    """The mean of w over `NUM_W_SAMPLES` draws of z (seed 0), for networks that kept no running mean."""
    layers = [tensors[f"mapping.fc{i}.weight"] for i in range(100) if f"mapping.fc{i}.weight" in tensors]
    z_dim = layers[0].shape[1]
    mlp = LabelAndLatentMLP(z_dim, 0, 0, [len(weight) for weight in layers], lr_multiplier)
    mlp.load_state_dict(
        {k.removeprefix("mapping."): v for k, v in tensors.items() if k.startswith("mapping.fc")}
    )
    z = np.random.RandomState(0).randn(NUM_W_SAMPLES, z_dim)
    with torch.no_grad():
        return mlp(torch.from_numpy(z).float(), None).mean(dim=0)


def from_data(data: Mapping[str, Any], metadata: Mapping[str, str]) -> Checkpoint:
    """The checkpoint in what `torch.save` had stored.

    Raises:
        ValueError: it holds no generator of that repository, or one with other names or shapes.
    """
    which = "g_ema" if isinstance(data.get("g_ema"), dict) else "g"
    generator = _generator(data[which])
    notes = dict(metadata) | {"source_format": "rosinality checkpoint", "network": which, "license": LICENSE}
    if isinstance(data.get("latent_avg"), Tensor):
        generator["mapping.w_avg"] = data["latent_avg"].reshape(-1)
    else:
        generator["mapping.w_avg"] = estimate_w_avg(generator)
        notes["w_avg"] = f"estimated from {NUM_W_SAMPLES} samples; the file stores none"
    discriminator = None
    if isinstance(data.get("d"), dict):
        try:
            discriminator = _discriminator(data["d"])
        except ValueError as error:
            notes["discriminator"] = f"left out: {error}"
    return assemble(generator, {}, discriminator, {}, notes)
