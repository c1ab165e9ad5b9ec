"""Draw what label maps say, with a SPADE generator: the part of `gat sample` behind --semantics.

An .npz holds `seg` [n, channels, h, w], the encoded maps as the generator reads them (one-hot classes, unknown, edges of
instances), and for the VAE branch perhaps `z` [n, z_dim]. A .png is a label map (one value per pixel: 0..k-1, 255 unknown); without
--instances every region of one class counts as one instance. z is otherwise numpy.random.RandomState(seed).randn(n, z_dim).

What is written holds `images` [n, h, w, 3] uint8 and `images_float` [n, 3, h, w] in [-1, 1] (the network's output), `names` of the
maps and `z` (empty without the VAE branch); or is one .png per map.
"""

import argparse
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from gat.progress import progress
from generators.spade.checkpoint import Checkpoint, read_checkpoint
from generators.spade.config import SPADEConfig
from generators.spade.networks import Generator, encode_layouts


class Scenes(NamedTuple):
    """What to draw."""

    names: list[str]
    semantics: Float[Tensor, "n k h w"]
    z: Float[Tensor, "n z"] | None


def run(args: argparse.Namespace, path: Path, seeds: list[int]) -> int:
    if args.semantics is None:
        raise ValueError(
            f"--semantics: wanted, because {path.name} draws from label maps: an .npz, a .png or a folder"
        )
    if args.labels is not None or args.grid or args.psi != 1 or args.noise != "const":
        raise ValueError(
            f"--labels, --psi, --noise and --grid mean nothing to {path.name}, a SPADE generator"
        )
    if len(seeds) != 1:
        raise ValueError(f"--seeds: wanted one, for z of all maps, got {len(seeds)}")
    checkpoint = read_checkpoint(path)
    scenes = read_scenes(args.semantics, args.instances, args.resize, checkpoint.config, seeds[0])
    raw = draw(checkpoint, scenes, args.device, args.batch_size)
    # Rounded down, as the official code does.
    images = ((raw + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    if args.out.suffix == ".npz":
        z = np.empty((len(images), 0), np.float32) if scenes.z is None else scenes.z.numpy()
        np.savez(args.out, images=images, images_float=raw.numpy(), names=np.array(scenes.names), z=z)
        files = [args.out]
    else:
        single = len(images) == 1
        files = [
            args.out if single else args.out.with_name(f"{args.out.stem}-{name}.png") for name in scenes.names
        ]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(file)
    if args.json:
        print(
            json.dumps(
                {"files": [str(file) for file in files], "shape": list(raw.shape), "names": scenes.names}
            )
        )
    else:
        print(f"{len(images)} images: {files[0]}" + (f" ... {files[-1]}" if len(files) > 1 else ""))
    return 0


def read_scenes(path: Path, instances: Path | None, resize: bool, config: SPADEConfig, seed: int) -> Scenes:
    """From an .npz, a .png or a folder of .png.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: not maps that this generator can draw.
    """
    if not path.exists():
        raise FileNotFoundError(f"--semantics: there is no {path}")
    if path.suffix == ".npz":
        if instances is not None or resize:
            raise ValueError(
                "--instances and --resize are for .png maps; an .npz holds them as the generator reads them"
            )
        return _from_archive(path, config, seed)
    files = sorted(path.glob("*.png")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"--semantics: there is no .png in {path}")
    layouts = []
    for file in files:
        labels = read_map(file)
        of_instances = labels
        if instances is not None:
            of_instances = read_map(instances / file.name if instances.is_dir() else instances)
            if of_instances.shape != labels.shape:
                raise ValueError(
                    f"{file.name}: the label map is {_size(labels)} px, its instance map {_size(of_instances)}"
                )
        layout = torch.stack([labels, of_instances])[None]
        if tuple(labels.shape) != config.image_size:
            if not resize:
                height, width = config.image_size
                raise ValueError(
                    f"{file} is {_size(labels)} px, the generator draws {height}x{width} (height x width); --resize makes it fit"
                )
            layout = F.interpolate(layout.double(), config.image_size, mode="nearest").long()
        layouts.append(layout)
    try:
        semantics = encode_layouts(torch.cat(layouts), config)
    except ValueError as error:
        raise ValueError(f"--semantics: {error}") from None
    return Scenes([file.stem for file in files], semantics, _draw_z(len(files), config, seed))


def read_map(path: Path) -> Int64[Tensor, "h w"]:
    """A label or instance map: an image with one value per pixel, which a lossy or coloured one has not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: for any other image.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no map {path}")
    try:
        with Image.open(path) as image:
            if image.format != "PNG" or image.mode not in ("1", "L", "P", "I", "I;16"):
                raise ValueError(
                    f"{path} is a {image.format} of mode {image.mode}; a map is a PNG with one whole number per pixel"
                )
            return torch.from_numpy(np.asarray(image).astype(np.int64))
    except OSError as error:
        raise ValueError(f"{path} is no readable image: {error}") from None


def _size(image: Tensor) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _draw_z(num: int, config: SPADEConfig, seed: int) -> Tensor | None:
    if not config.use_vae:
        return None
    return torch.from_numpy(np.random.RandomState(seed).randn(num, config.z_dim)).float()


def _from_archive(path: Path, config: SPADEConfig, seed: int) -> Scenes:
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is no .npz of plain arrays: {error}") from None
    wanted = (config.semantic_nc, *config.image_size)
    if "seg" not in arrays:
        raise ValueError(f"{path} has no array `seg`, only {', '.join(arrays) or 'none'}")
    seg = arrays["seg"]
    if seg.ndim != 4 or seg.shape[1:] != wanted or len(seg) == 0 or seg.dtype.kind not in "buif":
        raise ValueError(
            f"`seg` must be [n, {', '.join(map(str, wanted))}] (channels, height, width), got {seg.dtype}{list(seg.shape)}"
        )
    semantics = torch.from_numpy(seg.astype(np.float32))
    if not semantics.isfinite().all():
        raise ValueError("`seg` holds NaN or infinity")
    z = _draw_z(len(seg), config, seed)
    if "z" in arrays:
        if z is None:
            raise ValueError("the archive has `z`, but this generator starts from the layout")
        if arrays["z"].shape != z.shape:
            raise ValueError(f"`z` must be {list(z.shape)}, got {list(arrays['z'].shape)}")
        z = torch.from_numpy(arrays["z"].astype(np.float32))
    return Scenes([f"{i:04d}" for i in range(len(seg))], semantics, z)


@torch.no_grad()
def draw(
    checkpoint: Checkpoint, scenes: Scenes, device: str = "cpu", batch_size: int = 16
) -> Float[Tensor, "n 3 h w"]:
    """Images in [-1, 1], in float32."""
    generator = Generator(checkpoint.config)
    generator.load_state_dict(checkpoint.generator)
    generator.eval().requires_grad_(False).to(device)
    images = []
    with progress("drawing", total=len(scenes.names)) as advance:
        for rows in torch.arange(len(scenes.names)).split(batch_size):
            z = None if scenes.z is None else scenes.z[rows].to(device)
            images.append(generator(scenes.semantics[rows].to(device), z).cpu())
            advance(len(rows))
    return torch.cat(images)
