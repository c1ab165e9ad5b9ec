"""Turn a StyleGAN2 or SPADE checkpoint of somebody else into safetensors: tensors, config, licence and source in one file.

Reads the pickles of stylegan2-ada-pytorch, of stylegan3's StyleGAN2 and of the TensorFlow StyleGAN2, rosinality's .pt, and SPADE's
latest_net_G.pth. Nothing in the file is executed; whatever is not on the list of known contents is refused by name.

The settings of SPADE's released models are known. Of others those that no shape tells are given as key=value.

Example:
    gat convert stylegan2-car-config-f.pkl car.safetensors
    gat convert checkpoints/coco_pretrained/latest_net_G.pth coco.safetensors
    gat convert latest_net_G.pth mine.safetensors label_nc=20 crop_size=512 num_upsampling_layers=more aspect_ratio=2
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gat.cli.table import print_table
from generators.spade import checkpoint as spade
from generators.stylegan2 import checkpoints as stylegan2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="checkpoint to read")
    parser.add_argument("destination", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="of a SPADE generator, such as crop_size=512"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the destination if it exists")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    checkpoint: spade.Checkpoint | stylegan2.Checkpoint
    if spade.is_spade(args.source):
        settings = parse_settings(args.settings)
        checkpoint = spade.convert(args.source, args.destination, args.overwrite, settings)
        facts = _facts_of_spade(checkpoint)
    elif args.settings:
        raise ValueError(
            f"settings such as {args.settings[0]} are for SPADE generators, which {args.source} is not"
        )
    else:
        checkpoint = stylegan2.convert(args.source, args.destination, args.overwrite)
        facts = _facts_of_stylegan2(checkpoint)
    result = {
        "source": str(args.source),
        "destination": str(args.destination),
        "bytes": args.destination.stat().st_size,
        "parameters": sum(tensor.numel() for tensor in checkpoint.generator.values()),
        "has_discriminator": getattr(checkpoint, "discriminator", None) is not None,
        "config": checkpoint.config.model_dump(mode="json"),
        "metadata": checkpoint.metadata,
    }
    if args.json:
        print(json.dumps(result))
        return 0
    written = ("written", f"{args.destination} ({result['bytes']:,} bytes)")
    print_table(("", ""), [written, *facts, *checkpoint.metadata.items()])
    return 0


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """key=value, the value in YAML.

    Raises:
        ValueError: for anything else.
    """
    settings = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise ValueError(f"wanted key=value, got {word!r}")
        settings[key] = yaml.safe_load(value)
    return settings


def _facts_of_stylegan2(checkpoint: stylegan2.Checkpoint) -> list[tuple[str, str]]:
    config = checkpoint.config
    drawn = f"{config.img_resolution} px, {config.img_channels} channels, {config.architecture} architecture"
    return [
        ("images", drawn),
        ("classes", str(config.c_dim or "unconditional")),
        ("latents", f"z {config.z_dim}, w {config.w_dim}"),
        ("discriminator", "yes" if checkpoint.discriminator is not None else "no"),
    ]


def _facts_of_spade(checkpoint: spade.Checkpoint) -> list[tuple[str, str]]:
    config = checkpoint.config
    height, width = config.image_size
    extra = [
        name
        for name, there in (("unknown", config.contain_dontcare), ("edges", config.use_instance))
        if there
    ]
    start = f"z {config.z_dim}" if config.use_vae else "the layout"
    return [
        (
            "images",
            f"{height} x {width} px (height x width), '{config.num_upsampling_layers}' upsampling layers",
        ),
        ("classes", f"{config.label_nc}, and channels for: {', '.join(extra) or 'nothing else'}"),
        ("starts from", start),
    ]
