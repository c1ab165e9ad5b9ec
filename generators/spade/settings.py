"""Which SPADE to use, and what of it attacks may move."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from gat.config import Config
from generators.spade.checkpoint import read_checkpoint
from generators.spade.networks import Generator
from generators.spade.space import SPADESpace

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


class SPADESpaceConfig(Config):
    """A checkpoint as a space.

    Attributes:
        checkpoint: a file that `gat convert` wrote, an official latest_net_G.pth of a released model, or the name of a file that
            ships with the project.
        coarse_grid: moved sites are offsets at most so many px wide, enlarged bilinearly; None moves gamma and beta themselves.
        memory_budget_gib: what an attack may use of the device's memory; it sets the batch width. None is no limit.
        classes: names of the semantic classes, where the checkpoint does not know them.
    """

    name: Literal["spade"] = "spade"
    checkpoint: Path = Path("fashion_scenes_64.safetensors")
    coarse_grid: int | None = Field(None, ge=1)
    memory_budget_gib: float | None = Field(None, gt=0)
    classes: tuple[str, ...] | None = None

    def build(
        self,
        classes: Sequence[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        image_size: tuple[int, int] | None = None,
    ) -> SPADESpace:
        """Read the checkpoint.

        Args:
            classes: of the data's semantic maps; the generator's must be the same in the same order.
            dtype: of the activations.
            image_size: height and width of the data in px; None does not check.

        Raises:
            FileNotFoundError: with the names of what ships.
            ValueError: if the generator knows other classes or sizes than the data has, or cannot be read.
        """
        path = self.checkpoint
        if not path.is_file() and (WEIGHTS / path).is_file():
            path = WEIGHTS / path
        if not path.is_file():
            shipped = ", ".join(sorted(file.name for file in WEIGHTS.glob("*.safetensors"))) or "none"
            raise FileNotFoundError(f"there is no generator checkpoint {path}; shipped ones: {shipped}")
        checkpoint = read_checkpoint(path)
        known = self.classes or checkpoint.config.classes or tuple(classes)
        if tuple(known) != tuple(classes):
            raise ValueError(f"{path.name} draws {', '.join(known)}, but the data has {', '.join(classes)}")
        if image_size is not None and tuple(image_size) != checkpoint.config.image_size:
            drawn = "x".join(str(side) for side in checkpoint.config.image_size)
            raise ValueError(
                f"{path.name} draws images of {drawn} px (height x width), but the data has {image_size[0]}x{image_size[1]}; "
                "set the data's size"
            )
        generator = Generator(checkpoint.config)
        generator.load_state_dict(checkpoint.generator)
        scales = json.loads(checkpoint.metadata.get("site_scales", "null"))
        return SPADESpace(
            generator.to(device), classes, scales, self.coarse_grid, self.memory_budget_gib, dtype
        )
