"""Our DeepLab-v2 against numbers that the public code of its COCO-Stuff weights computed (see deeplab_v2/README.md)."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gat.latents import seeded_uniform
from tasks.models.deeplab_v2 import DeepLabV2, DeepLabV2Config

FIXTURE = Path(__file__).parent / "deeplab_v2" / "logits.safetensors"
CLASSES, BLOCKS, RATES, SCALES = 5, (1, 2, 1, 1), (6, 12, 18, 24), (0.5, 0.75)
NUMBER_ZERO = torch.zeros(1, dtype=torch.long)


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Weights that depend on their names alone, so that they need not be stored."""
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        uniform = seeded_uniform(0, NUMBER_ZERO, tuple(value.shape), name)[0]
        if name.endswith(("bn.weight", "running_var")):
            value.copy_(uniform + 0.5)
        else:
            value.copy_((2 * uniform - 1) * (0.1 if value.ndim == 1 else (6 / value[0].numel()) ** 0.5))
            if ".layer1." in name:
                value.div_(100)  # images arrive as bytes
            if ".aspp." in name:
                value.div_(10)


def picture() -> Tensor:
    """Of a size that no stride divides, with more in red than in blue."""
    colours = torch.tensor([1.0, 0.7, 0.4]).reshape(3, 1, 1)
    return seeded_uniform(0, NUMBER_ZERO, (3, 29, 37), "picture") * colours


@pytest.mark.parametrize(("name", "scales"), [("one_scale", ()), ("three_scales", SCALES)])
def test_logits_are_those_of_the_public_code_from_a_checkpoint_under_its_names(name, scales, tmp_path):
    with safe_open(FIXTURE, framework="pt") as file:
        wanted, names = file.get_tensor(name), file.metadata()["names"].split("\n")
    network = DeepLabV2(CLASSES, BLOCKS, RATES)
    fill(network)
    save_file({key: network.state_dict()[key] for key in names}, tmp_path / "public.safetensors")
    config = DeepLabV2Config(
        blocks=BLOCKS, rates=RATES, scales=scales, weights=tmp_path / "public.safetensors"
    )
    with torch.no_grad():
        found = config.build(CLASSES, 32).eval()(picture())
    assert (found - wanted).abs().max() <= 1e-5
    assert wanted.abs().max() > 0.5
