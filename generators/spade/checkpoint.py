"""Reading the released SPADE checkpoints without running anything in them, and writing our own.

    checkpoint = read_checkpoint("latest_net_G.pth", {"crop_size": 512})
    generator = Generator(checkpoint.config)
    generator.load_state_dict(checkpoint.generator)

An official file is a bare state dict. Its names and shapes say how wide the network is; what they cannot say (whether there is
one upsampling more, the size of the image, what the extra channels are) is known of the three released models, and has to be
said of others.
"""

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from generators.checkpoint_file import check_destination, format_of, is_safetensors, read_file, write_file
from generators.spade.config import UPSAMPLINGS, SPADEConfig
from generators.spade.networks import Generator

FORMAT = "spade/1"
LICENSE = "Inherited from the source file. Weights released by NVIDIA for SPADE are under CC BY-NC-SA 4.0: non-commercial use only."
TORCH_FILES = (
    b"PK\x03\x04",
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
)  # zip, and what torch.save once wrote
TELLTALE = "head_0.norm_0.mlp_shared.0.weight"

# Of the released models, by the number of input channels: their settings as published with the code.
RELEASED: dict[int, dict[str, Any]] = {
    184: {"label_nc": 182, "crop_size": 256, "num_upsampling_layers": "normal"},  # COCO-Stuff
    151: {
        "label_nc": 150, "use_instance": False, "crop_size": 256, "num_upsampling_layers": "normal", "dontcare_first": True,
    },  # ADE20K: its label maps keep 0 for the unknown
    36: {
        "label_nc": 35, "contain_dontcare": False, "crop_size": 512, "aspect_ratio": 2.0, "num_upsampling_layers": "more",
    },  # Cityscapes
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A SPADE generator as read from a file; names, shapes and config are known to fit each other.

    Attributes:
        config: builds `Generator(config)`.
        generator: state dict with plain weights; loads with `strict=True`.
        metadata: where it came from: `source_format`, `source_file`, `source_sha256`, `license`; `site_scales`, a JSON table of
            `measure_scales`, if they were measured in training; notes.
    """

    config: SPADEConfig
    generator: dict[str, Tensor]
    metadata: dict[str, str]


def is_spade(path: Path | str) -> bool:
    """Whether a file holds a SPADE generator, ours or an official one. Whatever cannot be read safely is none."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(64)
    if is_safetensors(head):
        return (format_of(path) or "").startswith("spade/")
    try:
        return head.startswith(TORCH_FILES) and TELLTALE in _state_dict(path)
    except ValueError:
        return False


def read_checkpoint(path: Path | str, settings: Mapping[str, Any] | None = None) -> Checkpoint:
    """A SPADE generator from an official `latest_net_G.pth` or from a file of `write_safetensors`.

    Args:
        path: of the file; its name does not matter.
        settings: fields of `SPADEConfig` that an official file does not tell, or that are to be other than guessed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a SPADE generator, refused because it holds more than tensors, or settings that do not fit it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        if is_safetensors(head):
            return _read_safetensors(path, settings or {})
        if not head.startswith(TORCH_FILES):
            raise ValueError("neither a torch.save file nor safetensors")
        tensors = plain_weights(_state_dict(path))
        config = infer_config(tensors, settings or {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    metadata = {
        "source_format": "SPADE state dict",
        "source_file": path.name,
        "source_sha256": sha256,
        "license": LICENSE,
    }
    return Checkpoint(config, check_fit(tensors, config), metadata)


def convert(
    source: Path | str,
    destination: Path | str,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Reads a checkpoint and writes it as safetensors, atomically.

    Raises:
        FileExistsError: the destination is there and `overwrite` is false.
        ValueError: see `read_checkpoint`.
    """
    destination = Path(destination)
    check_destination(destination, overwrite)
    checkpoint = read_checkpoint(source, settings)
    write_safetensors(destination, checkpoint)
    return checkpoint


def write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint so that `path` is at every moment either what it was or complete.

    Raises:
        ValueError: the tensors do not fit the config, or did not come back as written.
    """
    networks = {"generator": check_fit(checkpoint.generator, checkpoint.config)}
    write_file(path, FORMAT, checkpoint.config, networks, checkpoint.metadata)


def _read_safetensors(path: Path, settings: Mapping[str, Any]) -> Checkpoint:
    config, networks, metadata = read_file(path, FORMAT, SPADEConfig, ["generator"])
    if settings:
        raise ValueError(f"settings are for official files; this one has its own: {config.model_dump_json()}")
    return Checkpoint(config, check_fit(networks["generator"], config), metadata)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch.save file, without the prefix that DataParallel adds."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"refused, it holds more than tensors and nothing of it was run: {str(error).splitlines()[0]}"
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"not a complete torch.save file: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in data.items()
    ):
        raise ValueError("wanted a state dict of tensors by name, such as latest_net_G.pth")
    return {name.removeprefix("module."): value for name, value in data.items()}


def plain_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every spectral norm, of the old kind or as a parametrization, folded into its weight: W / (u W v).

    Where v is missing (torch before 1.0) the weight that was stored beside it counts, as it did there, or else v is what one
    power iteration gives. Counters of batch norm that old versions did not have are added, and running sums of a synchronised
    batch norm that keeps some are left out.
    """
    old = re.compile(r"(.+)\.weight_(orig|u|v)")
    new = re.compile(r"(.+)\.parametrizations\.weight\.(original|0\._u|0\._v)")
    normed: dict[str, dict[str, Tensor]] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := old.fullmatch(name) or new.fullmatch(name):
            part = {"orig": "w", "original": "w", "u": "u", "0._u": "u", "v": "v", "0._v": "v"}[match[2]]
            normed.setdefault(match[1], {})[part] = tensor.float()
        elif not name.endswith(("_tmp_running_mean", "_tmp_running_var", "_running_iter")):
            plain[name] = tensor
    for name, parts in normed.items():
        stored = plain.pop(f"{name}.weight", None)
        if "w" not in parts or (u := parts.get("u")) is None:
            raise ValueError(f"the spectral norm of {name} is incomplete")
        weight = parts["w"]
        matrix = weight.flatten(1)
        if "v" in parts:
            weight = weight / torch.dot(u, matrix @ parts["v"])
        elif stored is not None:
            weight = stored.float()
        else:
            v = F.normalize(matrix.T @ u, dim=0, eps=1e-12)
            weight = weight / torch.dot(u, matrix @ v)
        plain[f"{name}.weight"] = weight
    for name in [name for name in plain if name.endswith("param_free_norm.running_mean")]:
        plain.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return plain


def infer_config(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> SPADEConfig:
    """The config of a generator with these (plain) weights.

    Args:
        settings: fields that win over what is known of the released models.

    Raises:
        ValueError: not a SPADE generator, or settings are missing or contradict the shapes; it names them.
    """
    for name in ("fc.weight", "head_0.conv_0.weight", "conv_img.weight", TELLTALE):
        if name not in tensors or tensors[name].ndim < 2:
            some = ", ".join(sorted(tensors)[:5]) or "none"
            raise ValueError(f"not a SPADE generator: no tensor {name}, only {some}, ...")
    if unknown := settings.keys() - SPADEConfig.model_fields.keys():
        raise ValueError(
            f"no setting {', '.join(sorted(unknown))}; on offer: {', '.join(SPADEConfig.model_fields)}"
        )
    fc, shared = tensors["fc.weight"], tensors[TELLTALE]
    semantic_nc, wide = shared.shape[1], len(tensors["head_0.conv_0.weight"])
    told: dict[str, Any] = {
        "ngf": wide // 16,
        "nhidden": len(shared),
        "kernel_size": shared.shape[-1],
        "use_vae": fc.ndim == 2,
    }
    if told["use_vae"]:
        told["z_dim"] = fc.shape[1]
    if "up_4.conv_0.weight" in tensors:
        told["num_upsampling_layers"] = "most"
    guessed = RELEASED.get(semantic_nc, {})
    if settings.get("label_nc", guessed.get("label_nc")) != guessed.get("label_nc"):
        guessed = {}  # another model that happens to have as many channels
    if wrong := [name for name, value in told.items() if settings.get(name, value) != value]:
        raise ValueError(
            "; ".join(f"its tensors say {name}={told[name]}, not {settings[name]}" for name in wrong)
        )
    chosen = {**guessed, **told, **settings}
    if "label_nc" in chosen:
        extra = semantic_nc - int(chosen["label_nc"])
        if extra in (0, 2):
            chosen = {"contain_dontcare": extra == 2, "use_instance": extra == 2} | chosen
        elif "contain_dontcare" in chosen:
            chosen = {"use_instance": not chosen["contain_dontcare"]} | chosen
        elif "use_instance" in chosen:
            chosen = {"contain_dontcare": not chosen["use_instance"]} | chosen
    wanted = ["label_nc", "contain_dontcare", "use_instance", "crop_size", "num_upsampling_layers"]
    if missing := [name for name in wanted if name not in chosen]:
        raise ValueError(
            f"its {semantic_nc} input channels are those of no released model, so these have to be said: {', '.join(missing)} "
            f"(label_nc counts classes; num_upsampling_layers is one of {', '.join(UPSAMPLINGS)}; for example "
            f"label_nc={semantic_nc - 1} contain_dontcare=false use_instance=true crop_size=256 num_upsampling_layers=normal)"
        )
    try:
        config = SPADEConfig.model_validate(chosen)
    except ValidationError as error:
        raise ValueError(f"this SPADE cannot be built here: {error}") from None
    if config.semantic_nc != semantic_nc:
        raise ValueError(
            f"label_nc={config.label_nc}, contain_dontcare={config.contain_dontcare} and use_instance={config.use_instance} "
            f"make {config.semantic_nc} input channels; the file has {semantic_nc}"
        )
    return config


def check_fit(tensors: Mapping[str, Tensor], config: SPADEConfig) -> dict[str, Tensor]:
    """The tensors in the network's own order, those of floating point as float32.

    Raises:
        ValueError: names, shapes or types are not those of the config's generator, or some number is not finite.
    """
    with torch.device("meta"):
        expected = Generator(config).state_dict()
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"the generator does not fit its config: missing {', '.join(missing[:5]) or 'none'}; "
            f"unknown {', '.join(extra[:5]) or 'none'}"
        )
    for name, wanted in expected.items():
        found = tensors[name]
        if found.shape != wanted.shape or found.is_floating_point() != wanted.is_floating_point():
            raise ValueError(
                f"the generator's tensor {name} is {found.dtype}{list(found.shape)}, its config says "
                f"{wanted.dtype}{list(wanted.shape)}"
            )
        if not found.isfinite().all():
            raise ValueError(f"the generator's tensor {name} holds NaN or infinity")
    return {name: tensors[name].to(wanted.dtype).contiguous() for name, wanted in expected.items()}
