"""What the training scripts of both generators share."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from torch import nn

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


def forget_later_rows(log: Path, step: int) -> None:
    """Lines after the checkpoint will be written again, and a killed process may have left half a line."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if line.endswith("}")]
        kept = [line + "\n" for line in lines if json.loads(line)["step"] <= step]
        write_text(log, "".join(kept))
