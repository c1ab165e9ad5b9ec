"""The script a test is about; a model that every kind of attack can fool, and images for it."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(scope="module")
def script(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """`scripts/NAME.py` for `test_NAME.py`, with its folder on the path as `python scripts/NAME.py` has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module(request.path.stem.removeprefix("test_"))


class Halves(nn.Module):
    """Class 0 is a left half brighter than the right one, through a feature map, so that every kind of attack has something to move."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        half = maps.shape[-1] // 2
        lead = self.scale * (x[..., :half].mean((1, 2, 3)) - x[..., half:].mean((1, 2, 3)))
        lead = lead + 1e-3 * maps.tanh().mean((1, 2, 3))
        return torch.stack([lead, -lead], dim=1)


@pytest.fixture
def model() -> nn.Module:
    return Halves().eval()


@pytest.fixture
def images() -> Tensor:
    """Grey noise, the left half brighter by 0.004 to 0.09."""
    x = torch.rand(8, 1, 16, 16).expand(-1, 3, -1, -1) * 0.5 + 0.2
    x = x - x.mean((1, 2, 3), keepdim=True) + 0.45
    x[..., :8] -= x[..., :8].mean((1, 2, 3), keepdim=True) - 0.45
    x[..., 8:] -= x[..., 8:].mean((1, 2, 3), keepdim=True) - 0.45
    x[..., :8] += torch.linspace(0.004, 0.09, 8)[:, None, None, None]
    return x.clamp(0, 1)


@pytest.fixture
def labels() -> Tensor:
    return torch.zeros(8, dtype=torch.long)
