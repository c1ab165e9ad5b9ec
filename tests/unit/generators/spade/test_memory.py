"""What an attack is said to need, against what it allocates."""

import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gat.attacks import LatentAttack
from gat.attacks.run import Compute
from gat.latents import Latents
from generators.spade.config import SPADEConfig
from generators.spade.networks import Generator
from generators.spade.space import SPADESpace
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, tiny_layouts, tiny_spade_generator


class Watched(TorchDispatchMode):
    """Bytes of all tensors that were made inside and are alive, and the most that ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                storage = result.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return results

    def _forget(self, known: int, nbytes: int) -> None:
        self.known.discard(known)
        self.live -= nbytes


def peak_bytes(space: SPADESpace, attack: LatentAttack, batch: int) -> int:
    layouts, labels = tiny_layouts(batch, space.image_size), torch.zeros(batch, dtype=torch.long)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).requires_grad_(False)
    model[-1].weight.data.mul_(0.01)
    model[-1].bias.data[0] = 1  # right at the start, and never fooled
    watched = Watched()
    with watched:
        latents: Latents = space.sample(layouts, torch.arange(batch), seed=0)
        watched.peak = watched.live
        outcome = attack.run(
            ClassificationTask(CLASSES), model, space, latents, labels, compute=Compute(width=batch)
        )
    assert (outcome.backwards >= 2).all()
    return watched.peak


@pytest.mark.parametrize("group", ["coarse", "fine", "all"])
@pytest.mark.parametrize("coarse_grid", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_that_is_announced_is_what_an_attack_allocates(group, coarse_grid, dtype):
    space = SPADESpace(
        tiny_spade_generator(ngf=4, crop_size=64), CLASSES, coarse_grid=coarse_grid, dtype=dtype
    )
    attack = LatentAttack(group=group, step_size={"*": 0.01}, max_steps=2)
    moved = attack.moved(space)
    announced = space.memory_needed(moved, 4) - space.memory_needed(moved, 2)
    allocated = peak_bytes(space, attack, 4) - peak_bytes(space, attack, 2)
    assert 0.85 < announced / allocated < 1.3


def test_the_batch_is_the_widest_that_fits_the_budget():
    generator = tiny_spade_generator(crop_size=64)
    moved = [name for name, site in SPADESpace(generator, CLASSES).sites.items() if site.group == "fine"]
    assert SPADESpace(generator, CLASSES).max_width(moved) is None
    space = SPADESpace(generator, CLASSES, memory_budget_gib=0.05)
    width = space.max_width(moved)
    assert width is not None and width > 1
    assert space.memory_needed(moved, width) <= 0.05 * 2**30 < space.memory_needed(moved, width + 1)
    coarse = SPADESpace(generator, CLASSES, memory_budget_gib=0.05, coarse_grid=8).max_width(moved)
    assert coarse is not None and coarse > width
    poor = SPADESpace(generator, CLASSES, memory_budget_gib=0.001)
    with pytest.raises(
        ValueError, match=r"one example needs 0\.00 GiB and the budget is 0\.001 GiB: move coarser"
    ):
        poor.max_width(moved)


def test_an_attack_on_all_of_the_coco_model_needs_gigabytes_and_a_coarse_grid_makes_it_bearable():
    """81 million values of 4 bytes per image (324 MB), of which an attack holds about a dozen copies."""
    with torch.device("meta"):
        generator = Generator(SPADEConfig(label_nc=182))
    scales = dict.fromkeys(generator.site_shapes(), 1.0)
    full, coarse, half = (
        SPADESpace(generator, [str(i) for i in range(182)], scales, grid, dtype=dtype)
        for grid, dtype in ((None, torch.float32), (32, torch.float32), (32, torch.bfloat16))
    )
    assert sum(site.bytes_per_example for site in full.sites.values()) == 324_009_984
    every = list(full.sites)
    needed = [space.memory_needed(every, 1) - space.memory_needed(every, 0) for space in (full, coarse, half)]
    assert 3.2e9 < needed[0] < 4.2e9
    assert needed[1] < 0.6 * needed[0]
    assert needed[2] < 0.7 * needed[1]
    weights = sum(parameter.nbytes for parameter in generator.parameters())
    assert full.memory_needed(every, 0) == weights
