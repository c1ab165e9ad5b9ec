"""What a training script leaves to go on from, and how it dies while it writes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor


def state_of(out: Path) -> dict[str, Any]:
    return torch.load(out / "state.pt", weights_only=True)


def tensors(node: object) -> list[Tensor]:
    if isinstance(node, Tensor):
        return [node]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return [tensor for child in children for tensor in tensors(child)]


def numbers(state: dict[str, Any]) -> dict[str, object]:
    return {name: value for name, value in state.items() if isinstance(value, int | float | str)}


def assert_same_state(a: Path, b: Path) -> None:
    first, second = state_of(a), state_of(b)
    assert numbers(first) == numbers(second)
    x, y = tensors(first), tensors(second)
    assert len(x) == len(y) > 100 and all(map(torch.equal, x, y))


@contextmanager
def killed_while_saving(out: Path, moment: int) -> Iterator[None]:
    """A state is half written, for the `moment`-th time, when Ctrl-C comes; and a line of the log is half there."""
    save, states = torch.save, 0

    def dying(content: object, path: Path) -> None:
        nonlocal states
        states += 1
        if states > moment:
            path.write_bytes(b"half a state")
            raise KeyboardInterrupt
        save(content, path)

    with patch("torch.save", dying), pytest.raises(KeyboardInterrupt):
        yield
    with open(out / "log.jsonl", "a") as log:
        log.write('{"kimg": 0.0')
