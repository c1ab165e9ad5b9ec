"""StyleGAN2 in our own file, see `generators.checkpoint_file`: a generator, and the discriminator where there is one."""

from pathlib import Path

from generators.checkpoint_file import read_file, write_file
from generators.stylegan2.checkpoints.layout import Checkpoint, check_fit
from generators.stylegan2.config import StyleGAN2Config

FORMAT = "stylegan2/1"


def read_safetensors(path: Path) -> Checkpoint:
    """Reads and validates a file of `write_safetensors`.

    Raises:
        ValueError: truncated, written by something else, or tensors that do not fit the config.
    """
    config, networks, metadata = read_file(path, FORMAT, StyleGAN2Config, ["generator", "discriminator"])
    return Checkpoint(
        config,
        check_fit(networks["generator"], config, "generator"),
        check_fit(networks["discriminator"], config, "discriminator") if networks["discriminator"] else None,
        metadata,
    )


def write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint so that `path` is at every moment either what it was or complete.

    Raises:
        ValueError: the tensors do not fit the config, or did not come back as written.
    """
    config = checkpoint.config
    networks = {"generator": check_fit(checkpoint.generator, config, "generator")}
    if checkpoint.discriminator is not None:
        networks["discriminator"] = check_fit(checkpoint.discriminator, config, "discriminator")
    write_file(path, FORMAT, config, networks, checkpoint.metadata)
