"""Draw images from a StyleGAN2 or SPADE checkpoint, foreign or our own.

StyleGAN2 uses the official seed convention: z = numpy.random.RandomState(seed).randn(1, z_dim), so a seed draws what the official
generate.py draws with it. A class-conditional generator draws every seed for every label.

Example:
    gat sample fashion_mnist_32.safetensors --seeds 0-9 --labels all --psi 0.7 --out sheet.png --grid
    gat sample stylegan2-ffhq.pkl --seeds 0-3,17 --noise const --out faces.npz
    gat sample coco.safetensors --semantics seg.npz --out scenes.npz
    gat sample coco.safetensors --semantics labels/ --instances instances/ --resize --out scene.png

An .npz holds `images` [n, h, w, c] uint8, `images_float` [n, c, h, w] float32 (the network's output, nominally in [-1, 1]),
`seeds`, `labels` (-1 if unconditional), `classes`, `psi` and `noise`. A .png is one image; several become one file each, or a
sheet with --grid: a row per label, a column per seed.

SPADE draws what --semantics says, see `gat.cli.sample_scenes`; of the other options it knows --seeds (one, for z), --batch-size,
--device and --json.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from gat.cli import sample_scenes
from gat.progress import progress
from generators.spade.checkpoint import is_spade
from generators.stylegan2.checkpoints import Checkpoint, read_checkpoint
from generators.stylegan2.generator import Generator
from generators.stylegan2.settings import WEIGHTS

MAX_IMAGES = 100_000


class Samples(NamedTuple):
    """Images in the order label by label, seed by seed."""

    raw: Float[Tensor, "n c h w"]  # nominally in [-1, 1], not clamped
    seeds: list[int]
    labels: list[int]  # -1 if the generator is unconditional

    @property
    def images(self) -> UInt8[np.ndarray, "n h w c"]:
        """0..255, rounded as the official code does."""
        return (self.raw * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", type=Path, help="what `gat convert` reads or wrote, or a name that ships"
    )
    parser.add_argument("--seeds", default="0", help="such as 0-3,17 (default: 0)")
    parser.add_argument(
        "--labels", help="such as 0,3 or coat,bag or all; wanted if the generator is conditional"
    )
    parser.add_argument(
        "--psi", type=float, default=1.0, help="truncation: 1 is none, 0 the mean image (default: 1)"
    )
    parser.add_argument(
        "--noise",
        choices=("const", "random", "none"),
        default="const",
        help="noise inputs: the checkpoint's, the seed's own, or none (default: const)",
    )
    parser.add_argument(
        "--semantics", type=Path, help="SPADE: an .npz with `seg`, a label map as .png, or a folder of those"
    )
    parser.add_argument("--instances", type=Path, help="SPADE: instance maps of the same names")
    parser.add_argument("--resize", action="store_true", help="SPADE: label maps to the generator's size")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .npz or .png")
    parser.add_argument("--grid", action="store_true", help="one sheet instead of one .png per image")
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time (default: 16)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the written files")


def run(args: argparse.Namespace) -> int:
    if args.out.suffix not in (".npz", ".png"):
        raise ValueError(f"--out: wanted a file ending in .npz or .png, got {args.out}")
    if not args.out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {args.out.parent}")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size: wanted 1 or more, got {args.batch_size}")
    seeds = parse_seeds(args.seeds)
    shipped = WEIGHTS / args.checkpoint
    path = shipped if shipped.is_file() and not args.checkpoint.exists() else args.checkpoint
    if is_spade(path):
        return sample_scenes.run(args, path, seeds)
    if args.semantics or args.instances or args.resize:
        raise ValueError(f"--semantics: {path.name} is not a SPADE generator and draws from no label maps")
    checkpoint = read_checkpoint(path)
    labels = parse_labels(args.labels, checkpoint)
    if len(seeds) * len(labels) > MAX_IMAGES:
        raise ValueError(
            f"--seeds: {len(seeds) * len(labels)} images at once are too many; at most {MAX_IMAGES}"
        )
    if args.out.suffix == ".png" and checkpoint.config.img_channels not in (1, 3):
        raise ValueError(
            f"a .png has 1 or 3 channels, this generator draws {checkpoint.config.img_channels}; use .npz"
        )
    samples = draw(checkpoint, seeds, labels, args.psi, args.noise, args.device, args.batch_size)
    if args.out.suffix == ".npz":
        classes = np.array(class_names(checkpoint), dtype=np.str_)
        np.savez(
            args.out,
            images=samples.images,
            images_float=samples.raw.numpy(),
            seeds=np.array(samples.seeds),
            labels=np.array(samples.labels),
            classes=classes,
            psi=np.float64(args.psi),
            noise=np.str_(args.noise),
        )
        files = [args.out]
    else:
        files = write_png(args.out, samples, num_columns=len(seeds) if args.grid else 0)
    if args.json:
        shape = list(samples.raw.shape)
        print(json.dumps({"files": [str(file) for file in files], "shape": shape, "labels": samples.labels}))
    else:
        print(f"{len(samples.seeds)} images: {files[0]}" + (f" ... {files[-1]}" if len(files) > 1 else ""))
    return 0


def parse_seeds(text: str) -> list[int]:
    """'0-3,17' -> [0, 1, 2, 3, 17].

    Raises:
        ValueError: for anything else, or beyond what numpy takes as a seed.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= 2**32:
            raise ValueError(f"--seeds: wanted numbers and ranges below 2^32 such as 0-3,17, got {part!r}")
        if last - first >= MAX_IMAGES:
            raise ValueError(f"--seeds: {part!r} are too many; at most {MAX_IMAGES}")
        seeds += range(first, last + 1)
    return seeds


def class_names(checkpoint: Checkpoint) -> list[str]:
    """From the metadata (`classes`, a JSON list), else empty."""
    try:
        names = json.loads(checkpoint.metadata.get("classes", "[]"))
    except json.JSONDecodeError:
        names = []
    fits = isinstance(names, list) and len(names) == checkpoint.config.c_dim
    return [str(name) for name in names] if fits else []


def parse_labels(text: str | None, checkpoint: Checkpoint) -> list[int]:
    """Numbers or class names -> numbers; [-1] for an unconditional generator.

    Raises:
        ValueError: saying which classes there are.
    """
    num_classes, names = checkpoint.config.c_dim, class_names(checkpoint)
    if num_classes == 0:
        if text is not None:
            raise ValueError("--labels: this generator is unconditional, it has no classes to choose from")
        return [-1]
    numbered = [f"{i} {name}" for i, name in enumerate(names)] or [f"0..{num_classes - 1}"]
    on_offer = f"on offer: {', '.join(numbered)}, or all"
    if text is None:
        raise ValueError(f"--labels: wanted, because this generator draws by class; {on_offer}")
    if text == "all":
        return list(range(num_classes))
    labels = []
    for word in (part.strip() for part in text.split(",")):
        if word in names:
            labels.append(names.index(word))
        elif word.isdecimal() and int(word) < num_classes:
            labels.append(int(word))
        else:
            raise ValueError(f"--labels: no class {word!r}; {on_offer}")
    return labels


@torch.no_grad()
def draw(
    checkpoint: Checkpoint,
    seeds: Sequence[int],
    labels: Sequence[int],
    psi: float = 1.0,
    noise: str = "const",
    device: str = "cpu",
    batch_size: int = 16,
) -> Samples:
    """Every seed for every label, in float32.

    Args:
        noise: 'const', 'none', or 'random': then a function of the seed alone, on any device and in any batch.
    """
    config = checkpoint.config
    generator = Generator(config)
    generator.load_state_dict(checkpoint.generator)
    generator.eval().requires_grad_(False)
    jobs = [(seed, label) for label in labels for seed in seeds]
    shapes = generator.synthesis.noise_shapes()
    generator.to(device)
    images = []
    with progress("drawing", total=len(jobs)) as advance:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            z = c = None
            if config.z_dim:
                rows = [np.random.RandomState(seed).randn(1, config.z_dim) for seed, _ in batch]
                z = torch.from_numpy(np.concatenate(rows)).float().to(device)
            if config.c_dim:
                c = F.one_hot(torch.tensor([label for _, label in batch]), config.c_dim).float().to(device)
            if noise == "random":
                sources = [torch.Generator().manual_seed(seed) for seed, _ in batch]
                maps = {
                    site: torch.stack([torch.randn(shape, generator=source) for source in sources]).to(device)
                    for site, shape in shapes.items()
                }
            else:
                maps = generator.noise(len(batch), noise)
            ws = generator.mapping(z, c, psi)
            images.append(generator.synthesis.render(generator.synthesis.styles(ws), maps).cpu())
            advance(len(batch))
    return Samples(torch.cat(images), [seed for seed, _ in jobs], [label for _, label in jobs])


def write_png(out: Path, samples: Samples, num_columns: int = 0) -> list[Path]:
    """One sheet with `num_columns` columns, or (0) one file per image, named by label and seed if there are several."""
    images = samples.images
    n, h, w, c = images.shape
    if num_columns:
        rows = images.reshape(n // num_columns, num_columns, h, w, c)
        images = rows.transpose(0, 2, 1, 3, 4).reshape(1, n // num_columns * h, num_columns * w, c)
    files = [out]
    if len(images) > 1:
        tags = [
            f"seed{seed:04d}" if label < 0 else f"label{label:02d}-seed{seed:04d}"
            for seed, label in zip(samples.seeds, samples.labels, strict=True)
        ]
        files = [out.with_name(f"{out.stem}-{tag}{out.suffix}") for tag in tags]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image[:, :, 0] if c == 1 else image).save(file)
    return files
