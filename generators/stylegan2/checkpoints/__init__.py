"""Reading everybody's StyleGAN2 checkpoints without running anything in them, and writing our own.

    checkpoint = read_checkpoint("stylegan2-ffhq.pkl")
    generator = Generator(checkpoint.config)
    generator.load_state_dict(checkpoint.generator)
    convert("stylegan2-ffhq.pkl", "stylegan2-ffhq.safetensors")

What a file is is told from its first bytes, never from its name.
"""

import hashlib
import mmap
from pathlib import Path

from generators.checkpoint_file import check_destination, is_safetensors
from generators.stylegan2.checkpoints import nvidia, rosinality, tensorflow
from generators.stylegan2.checkpoints.layout import Checkpoint
from generators.stylegan2.checkpoints.restricted_pickle import (
    LazyTensor,
    Record,
    RefusedPickle,
    load,
    load_torch_file,
)
from generators.stylegan2.checkpoints.safetensors_format import read_safetensors, write_safetensors

__all__ = [
    "Checkpoint",
    "RefusedPickle",
    "convert",
    "read_checkpoint",
    "read_safetensors",
    "write_safetensors",
]

READABLE = (
    "pickles of stylegan2-ada-pytorch, of stylegan3's StyleGAN2 and of the TensorFlow StyleGAN2, "
    "rosinality's .pt, and safetensors that `gat convert` wrote"
)
ZIP = b"PK\x03\x04"
LEGACY_TORCH = (
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number with which torch.save once began
)


def read_checkpoint(path: Path | str) -> Checkpoint:
    """A StyleGAN2 from any supported file.

    Args:
        path: of the file; its name does not matter.

    Raises:
        FileNotFoundError: there is no such file.
        RefusedPickle: a ValueError; the file contains something outside the allow-list, which is named. Nothing was executed.
        ValueError: not a StyleGAN2 that can be read: the message says what it is and what is supported.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    metadata = {"source_file": path.name, "source_sha256": sha256}
    try:
        if is_safetensors(head):
            return read_safetensors(path)
        if head.startswith((ZIP, LEGACY_TORCH)):
            return _from_torch_file(path, metadata)
        if head[:1] == b"\x80":
            return _from_pickle(path, metadata)
    except RefusedPickle as error:
        raise RefusedPickle(f"{path}: {error}") from None
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from None
    raise ValueError(f"{path} is {_guess(head)}. Readable are {READABLE}")


def convert(source: Path | str, destination: Path | str, overwrite: bool = False) -> Checkpoint:
    """Reads any supported checkpoint and writes it as safetensors, atomically.

    Args:
        source: what to read.
        destination: a path ending in .safetensors.
        overwrite: whether an existing destination may be replaced.

    Returns:
        The checkpoint, as written.

    Raises:
        FileExistsError: the destination is there and `overwrite` is false.
        ValueError: see `read_checkpoint`.
    """
    destination = Path(destination)
    check_destination(destination, overwrite)
    checkpoint = read_checkpoint(source)
    write_safetensors(destination, checkpoint)
    return checkpoint


def _from_torch_file(path: Path, metadata: dict[str, str]) -> Checkpoint:
    data = load_torch_file(path)
    if rosinality.is_rosinality(data):
        return rosinality.from_data(data, metadata)
    raise ValueError(
        f"a torch.save file with {_contents(data)}, not a checkpoint of rosinality/stylegan2-pytorch"
    )


def _from_pickle(path: Path, metadata: dict[str, str]) -> Checkpoint:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        data = load(stream)
    if nvidia.is_nvidia(data):
        return nvidia.from_data(data, path.stat().st_size, metadata)
    if tensorflow.is_tensorflow(data):
        return tensorflow.from_data(data, metadata)
    raise ValueError(f"a pickle with {_contents(data)}, not a StyleGAN2. Readable are {READABLE}")


def _contents(data: object) -> str:
    """What is in an unexpected file, in a few words."""
    if isinstance(data, dict):
        keys = [str(key)[:30] for key in data if isinstance(key, str | int)]
        return f"a dict of {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}"
    names = {Record: "a network object", LazyTensor: "a tensor"}
    return names.get(type(data), f"a {type(data).__name__}")


def _guess(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page: the download did not get the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer: run `git lfs pull` to get the file itself"
    if head.startswith(b"\x1f\x8b"):
        return "gzip-compressed: unpack it first"
    return f"neither a pickle nor a torch or safetensors file (it begins with {head[:8].hex(' ')})"
