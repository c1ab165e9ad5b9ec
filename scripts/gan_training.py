"""What the training scripts of both generators share."""

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gat.config import ConfigError
from gat.files import write_text
from gat.training.loop import DivergedError

S = TypeVar("S")


def _truth(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"wanted true or false, got {text!r}") from None


def parse_settings(cls: type[S], description: str | None, arguments: Sequence[str] | None) -> S:
    """Settings from flags.

    Args:
        cls: a dataclass; every field is a flag of its name, with its type and default. Literals are choices.
        arguments: words of a command line; None takes this process's.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in fields(cls):  # type: ignore[arg-type]
        choices = get_args(field.type) or None
        kind: Any = str if choices else _truth if field.type is bool else field.type
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            default=field.default,
            choices=choices,
            metavar=None if choices else str(field.default),
        )
    return cls(**vars(parser.parse_args(arguments)))


def seeded(seed: int, *path: int) -> torch.Generator:
    """A generator that depends only on its arguments: (seed, step, rank), so nothing needs storing to resume."""
    state = seed
    for part in path:
        state = (state * 1_000_003 + part + 1) % 2**63
    return torch.Generator().manual_seed(state)


def share_left(step: int, total_steps: int, decay: float) -> float:
    """Of a learning rate that falls linearly to zero over the last `decay` of the steps; 0 keeps it."""
    return min(1.0, (1 - step / total_steps) / decay) if decay > 0 else 1.0


def read_state(state_file: Path, shape: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call has left to go on from; None if there was none.

    Raises:
        ConfigError: if it is of a run of another `shape`.
    """
    if not state_file.exists():
        return None
    state: dict[str, Any] = torch.load(state_file, map_location="cpu", weights_only=True)
    if state.get("shape") != shape:
        raise ConfigError(
            f"{state_file} is of another run: {state.get('shape')}, this one is {shape}; choose another --out or remove it"
        )
    return state


def check_finite(module: nn.Module, step: int, state_file: Path) -> None:
    """
    Raises:
        DivergedError: if a weight or a buffer is not a number.
    """
    bad = [name for name, value in module.state_dict().items() if not bool(value.isfinite().all())]
    if bad:
        raise DivergedError(
            f"{len(bad)} weights, {bad[0]} among them, are not finite at step {step}; the last good state is {state_file}"
        )


class Ticks:
    """What training says of itself: means over so many images, a line each in `log.jsonl`.

    Args:
        images: that a tick lasts, or the first whole step behind that.
        step: that is resumed. Lines behind it will be written again, and a killed process may have left half a line.
    """

    def __init__(
        self, out: Path, accelerator: Accelerator, images_per_step: int, images: float, step: int
    ) -> None:
        self.log, self.state_file, self.accelerator = out / "log.jsonl", out / "state.pt", accelerator
        self.images_per_step, self.images = images_per_step, images
        self._begin(step)
        if accelerator.is_main_process and self.log.exists():
            lines = [line for line in self.log.read_text().splitlines() if line.endswith("}")]
            kept = [line + "\n" for line in lines if json.loads(line)["step"] <= step]
            write_text(self.log, "".join(kept))

    def _begin(self, step: int) -> None:
        self.totals: dict[str, Tensor] = {}
        self.start_step, self.start_sec = step, time.time()

    def add(self, news: Mapping[str, Tensor]) -> None:
        """One step's numbers."""
        for name, value in news.items():
            self.totals[name] = self.totals.get(name, torch.zeros_like(value)) + value.detach()

    def images_at(self, step: int) -> int:
        """In this tick up to that step."""
        return (step - self.start_step) * self.images_per_step

    def is_over(self, step: int) -> bool:
        return self.images_at(step) >= self.images

    def means(self, step: int) -> dict[str, float]:
        """Per step, over all processes.

        Raises:
            DivergedError: if one is not a number.
        """
        values = self.accelerator.reduce(torch.stack(list(self.totals.values())), "mean")
        values = values / (step - self.start_step)
        means = dict(zip(self.totals, values.tolist(), strict=True))
        if not all(math.isfinite(value) for value in means.values()):
            raise DivergedError(
                f"training diverged at step {step}: {means}; the last good state is {self.state_file}"
            )
        return means

    def write(self, step: int, numbers: Mapping[str, float]) -> dict[str, float]:
        """The line of this tick. The next one begins."""
        speed = self.images_at(step) / (time.time() - self.start_sec)
        kimg = step * self.images_per_step / 1000
        row = {"kimg": kimg, "step": step, **numbers, "images_per_sec": speed}
        if self.accelerator.is_main_process:
            with open(self.log, "a") as log:
                log.write(json.dumps(row) + "\n")
        self._begin(step)
        return row
