"""Our own file of a generator: safetensors with the tensors of each network as `<network>/<name>`. Its header holds the format, the
config as JSON, and where it all came from (licence, source, model card)."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Networks = dict[str, dict[str, Tensor]]
C = TypeVar("C", bound=BaseModel)


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins like this (at least 9 bytes) can be safetensors: a short header's length, then JSON."""
    return head[8:9] == b"{" and head[7:8] == b"\0"


def format_of(path: Path) -> str | None:
    """What a safetensors file says it is; None for one of somebody else's, or a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("gat_format")
    except SafetensorError:
        return None


def read_file(
    path: Path, wanted: str, config_type: type[C], networks: Collection[str]
) -> tuple[C, Networks, dict[str, str]]:
    """Config, tensors and metadata. Whether tensors fit the config is for the caller to check.

    Args:
        wanted: the format, such as 'spade/1'.
        networks: that may be in it. Those without tensors come back empty.

    Raises:
        ValueError: truncated, written by something else, or with tensors of other networks. The message does not name the file.
    """
    tensors: Networks = {network: {} for network in networks}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118 - not a dict
                network, _, name = key.partition("/")
                tensors.setdefault(network, {})[name] = file.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(f"not a complete safetensors file: {error}") from None
    found = metadata.pop("gat_format", None)
    if found != wanted:
        raise ValueError(f"has the format {found!r}, wanted {wanted!r}: a file that `gat convert` wrote")
    try:
        config = config_type.model_validate_json(metadata.pop("config", ""))
    except ValidationError as error:
        raise ValueError(f"no valid config in its header: {error}") from None
    if foreign := tensors.keys() - set(networks):
        raise ValueError(f"tensors of unknown networks: {', '.join(sorted(foreign)[:5])}")
    return config, tensors, metadata


def write_file(
    path: Path,
    format: str,
    config: BaseModel,
    networks: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Writes beside `path`, reads back, compares and renames, so that `path` is at every moment either what it was or complete.

    Raises:
        ValueError: the metadata uses the header's own keys, or the tensors did not come back as written.
    """
    tensors = {
        f"{network}/{name}": tensor.detach().cpu().contiguous()
        for network, members in networks.items()
        for name, tensor in members.items()
    }
    header = {"gat_format": format, "config": config.model_dump_json()}
    if taken := header.keys() & metadata.keys():
        raise ValueError(
            f"the metadata may not have the keys {', '.join(sorted(taken))}: they describe the format"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # of any new file here; safetensors lets nobody but the owner read
        save_file(tensors, temporary, dict(metadata) | header)
        temporary.chmod(mode)
        _, written, _ = read_file(temporary, format, type(config), networks)
        back = {f"{network}/{name}": t for network, members in written.items() for name, t in members.items()}
        if tensors.keys() != back.keys() or not all(torch.equal(tensors[k], back[k]) for k in tensors):
            raise ValueError(f"{path} did not read back as it was written; is the disk full or failing?")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_destination(path: Path, overwrite: bool) -> None:
    """Before long work: may such a file be written there?

    Raises:
        FileExistsError: it is there and `overwrite` is false.
        ValueError: another ending than .safetensors, or no folder to write into.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"wanted a destination ending in .safetensors, got {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; nothing was written")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} into")
