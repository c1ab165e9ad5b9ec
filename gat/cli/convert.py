"""Turn a StyleGAN2 checkpoint of somebody else into safetensors: tensors, config, licence and source in one file.

Reads the pickles of stylegan2-ada-pytorch, of stylegan3's StyleGAN2 and of the TensorFlow StyleGAN2, and rosinality's .pt.
Nothing in the file is executed; whatever is not on the list of known contents is refused by name.

Example:
    gat convert stylegan2-car-config-f.pkl car.safetensors
"""

import argparse
import json
from pathlib import Path

from gat.cli.table import print_table
from generators.stylegan2.checkpoints import convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="checkpoint to read")
    parser.add_argument("destination", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the destination if it exists")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    checkpoint = convert(args.source, args.destination, args.overwrite)
    result = {
        "source": str(args.source),
        "destination": str(args.destination),
        "bytes": args.destination.stat().st_size,
        "parameters": sum(tensor.numel() for tensor in checkpoint.generator.values()),
        "has_discriminator": checkpoint.discriminator is not None,
        "config": checkpoint.config.model_dump(mode="json"),
        "metadata": checkpoint.metadata,
    }
    if args.json:
        print(json.dumps(result))
        return 0
    config = checkpoint.config
    rows = [
        ("written", f"{args.destination} ({result['bytes']:,} bytes)"),
        (
            "images",
            f"{config.img_resolution} px, {config.img_channels} channels, {config.architecture} architecture",
        ),
        ("classes", str(config.c_dim or "unconditional")),
        ("latents", f"z {config.z_dim}, w {config.w_dim}"),
        ("discriminator", "yes" if checkpoint.discriminator is not None else "no"),
        *checkpoint.metadata.items(),
    ]
    print_table(("", ""), rows)
    return 0
