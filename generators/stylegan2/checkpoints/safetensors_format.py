"""Our own format: one safetensors file with `generator/<name>` and `discriminator/<name>` tensors, config in the header.

The header's metadata holds `gat_format`, the config as JSON, and the checkpoint's metadata (licence, source, model card).
"""

import os
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from generators.stylegan2.checkpoints.layout import Checkpoint, check_fit
from generators.stylegan2.config import StyleGAN2Config

FORMAT = "stylegan2/1"


def read_safetensors(path: Path) -> Checkpoint:
    """Reads and validates a file of `write_safetensors`.

    Raises:
        ValueError: truncated, written by something else, or tensors that do not fit the config.
    """
    tensors: dict[str, dict[str, Tensor]] = {"generator": {}, "discriminator": {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118 - not a dict
                network, _, name = key.partition("/")
                tensors.setdefault(network, {})[name] = file.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from None
    found = metadata.pop("gat_format", None)
    if found != FORMAT:
        raise ValueError(
            f"{path} has the format {found!r}, wanted {FORMAT!r}: a file that `gat convert` wrote"
        )
    try:
        config = StyleGAN2Config.model_validate_json(metadata.pop("config", ""))
    except ValidationError as error:
        raise ValueError(f"{path} has no valid config in its header: {error}") from None
    if foreign := tensors.keys() - {"generator", "discriminator"}:
        raise ValueError(f"{path} holds tensors of unknown networks: {', '.join(sorted(foreign))}")
    discriminator = (
        check_fit(tensors["discriminator"], config, "discriminator") if tensors["discriminator"] else None
    )
    return Checkpoint(config, check_fit(tensors["generator"], config, "generator"), discriminator, metadata)


def write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint so that `path` is at every moment either what it was or complete.

    Written beside `path`, read back and compared, then renamed over it.

    Raises:
        ValueError: the tensors do not fit the config, or did not come back as written.
    """
    networks = {"generator": check_fit(checkpoint.generator, checkpoint.config, "generator")}
    if checkpoint.discriminator is not None:
        networks["discriminator"] = check_fit(checkpoint.discriminator, checkpoint.config, "discriminator")
    tensors = {
        f"{network}/{name}": tensor.detach().cpu().contiguous()
        for network, members in networks.items()
        for name, tensor in members.items()
    }
    metadata = {"gat_format": FORMAT, "config": checkpoint.config.model_dump_json()}
    if taken := metadata.keys() & checkpoint.metadata.keys():
        raise ValueError(
            f"the metadata may not have the keys {', '.join(sorted(taken))}: they describe the format"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # that of any new file here; safetensors lets nobody but the owner read
        save_file(tensors, temporary, checkpoint.metadata | metadata)
        temporary.chmod(mode)
        written = read_safetensors(temporary)
        back = {f"generator/{name}": tensor for name, tensor in written.generator.items()}
        back |= {f"discriminator/{name}": tensor for name, tensor in (written.discriminator or {}).items()}
        if tensors.keys() != back.keys() or not all(torch.equal(tensors[k], back[k]) for k in tensors):
            raise ValueError(f"{path} did not read back as it was written; is the disk full or failing?")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
