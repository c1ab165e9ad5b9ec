"""Which StyleGAN2 to use, and how to draw from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from gat.config import Config
from generators.stylegan2.checkpoints import read_checkpoint
from generators.stylegan2.generator import Generator
from generators.stylegan2.space import StyleGAN2Space

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


class StyleGAN2SpaceConfig(Config):
    """A checkpoint as a space.

    Attributes:
        checkpoint: any file that `gat convert` reads, or the name of one that ships with the project.
        psi: truncation of random latents; 1 is none.
        noise: 'random' or 'const' noise to start from.
        classes: names of the labels, where the checkpoint does not know them.
    """

    name: Literal["stylegan2"] = "stylegan2"
    checkpoint: Path = Path("fashion_mnist_32.safetensors")
    psi: float = Field(1.0, ge=0)
    noise: Literal["random", "const"] = "random"
    classes: tuple[str, ...] | None = None

    def build(
        self, classes: Sequence[str], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> StyleGAN2Space:
        """Read the checkpoint.

        Args:
            classes: of the data; the generator's must be the same in the same order.
            dtype: of the activations.

        Raises:
            FileNotFoundError: with the names of what ships.
            ValueError: if the generator draws other classes than the data has, or cannot be read.
        """
        path = self.checkpoint
        if not path.is_file() and (WEIGHTS / path).is_file():
            path = WEIGHTS / path
        if not path.is_file():
            shipped = ", ".join(sorted(file.name for file in WEIGHTS.glob("*.safetensors"))) or "none"
            raise FileNotFoundError(f"there is no generator checkpoint {path}; shipped ones: {shipped}")
        checkpoint = read_checkpoint(path)
        known = self.classes or tuple(json.loads(checkpoint.metadata.get("classes", "null")) or classes)
        if tuple(known) != tuple(classes):
            raise ValueError(f"{path.name} draws {', '.join(known)}, but the data has {', '.join(classes)}")
        generator = Generator(checkpoint.config)
        generator.load_state_dict(checkpoint.generator)
        return StyleGAN2Space(generator.to(device), classes, self.psi, self.noise, dtype)
