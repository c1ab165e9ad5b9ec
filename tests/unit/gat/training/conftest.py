"""A tiny generator, a tiny classifier in training mode, and a small instance of every method."""

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gat.attacks import PGD, FastLPA, LatentAttack
from gat.training.methods import (
    GAT,
    METHODS,
    PAT,
    TRADES,
    AdversarialTraining,
    AdvProp,
    Method,
    Mixed,
    RandomLatents,
    Standard,
    Tools,
)
from generators.stylegan2.space import StyleGAN2Space
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, balanced, conv_classifier, tiny_space

N = 12
ROTATION = (("coarse", "style"), ("fine", "noise"), ("all", "both"))  # 16-pixel images have no middle
QUICK_PGD = PGD(steps=2, stop_when_fooled=False)
QUICK_LATENT = LatentAttack(step_size={"style/*": 0.2, "noise/*": 1.0}, max_steps=2)
SMALL: dict[str, Method] = {
    "standard": Standard(),
    "adversarial_training": AdversarialTraining(attack=QUICK_PGD),
    "trades": TRADES(steps=2),
    "pat": PAT(attack=FastLPA(steps=2, layers=("0", "2"))),
    "advprop": AdvProp(attack=QUICK_PGD),
    "gat": GAT(attack=QUICK_LATENT, rotation=ROTATION),
    "random_latents": RandomLatents(),
    "mixed": Mixed(
        methods=(
            GAT(attack=QUICK_LATENT, rotation=ROTATION),
            TRADES(steps=1),
            AdversarialTraining(attack=QUICK_PGD),
        )
    ),
}


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(params=METHODS)
def small_method(request: pytest.FixtureRequest) -> Method:
    """Every registered method in turn, made quick."""
    return SMALL[request.param]


@pytest.fixture(scope="session")
def space() -> StyleGAN2Space:
    return tiny_space()


@pytest.fixture(scope="session")
def tools(space: StyleGAN2Space) -> Tools:
    return Tools(ClassificationTask(CLASSES), space)


@pytest.fixture
def model(space: StyleGAN2Space) -> nn.Module:
    """In training mode, as the loop leaves it."""
    latents = space.sample(torch.arange(60) % 3, torch.arange(60), seed=0)
    images = space.freeze(latents, [])({}, torch.arange(60))
    return balanced(conv_classifier(), images).train()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(N, 3, 16, 16), torch.arange(N) % 3
