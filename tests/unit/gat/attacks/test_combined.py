"""Recolouring, bending and adding together do what each does alone, and more."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from gat.attacks import ATTACKS, Combined, Recolor, Spatial, WorstOf
from gat.logits import LogitsTask
from tests.toys import linear_classifier

TWO = LogitsTask(2)
N, SIDE = 3, 10
LABELS = torch.zeros(N, dtype=torch.long)


@pytest.fixture
def images() -> Tensor:
    """Two ramps across each other."""
    x, y = torch.arange(SIDE) / SIDE, torch.arange(SIDE)[:, None] / SIDE
    ramps = torch.stack([0.3 + 0.3 * x + 0 * y, 0.6 - 0.3 * y + 0 * x, 0.3 + 0.2 * (x + y)])
    return torch.stack([ramps, ramps.flip(0), ramps.flip(2)])


@pytest.fixture
def weights() -> Tensor:
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(weights: Tensor) -> torch.nn.Module:
    flat = weights.flatten()
    return linear_classifier(torch.stack([-flat, flat]) / 2, torch.tensor([100.0, -100.0]))


def gain(attack, model, images: Tensor, weights: Tensor) -> Tensor:
    outcome = attack.run(TWO, model, images, LABELS)
    return ((outcome.images.double() - images.double()) * weights.double()).sum((1, 2, 3))


FAST = {"steps": 10, "rule": "sign", "smoothness": 0, "stop_when_fooled": False}


def test_one_part_alone_is_that_attack(images, weights, model):
    for part, alone in (
        ("recolor", Recolor(bound=0.04, **FAST)),
        ("spatial", Spatial(bound=0.03, **FAST)),
    ):
        combined = Combined(parts=(part,), color_bound=0.04, flow_bound=0.03, **FAST)
        assert combined.bounds == alone.bounds
        torch.testing.assert_close(
            gain(combined, model, images, weights), gain(alone, model, images, weights), rtol=1e-4, atol=1e-4
        )


def test_an_addition_alone_reaches_the_optimum_of_a_linear_model(images, weights, model):
    reached = gain(Combined(parts=("additive",), delta_bound=0.02, **FAST), model, images, weights)
    torch.testing.assert_close(reached, 0.02 * weights.double().abs().sum().expand(N), rtol=1e-4, atol=1e-4)


def test_together_they_do_more_than_each_alone(images, weights, model):
    together = gain(Combined(**FAST), model, images, weights)
    for part in ("recolor", "spatial", "additive"):
        assert (together > gain(Combined(parts=(part,), **FAST), model, images, weights) * 1.05).all()


@pytest.mark.parametrize("rule", ["adam", "sign"])
def test_every_part_keeps_to_its_bound(rule, images, model):
    attack = Combined(
        color_bound=0.04,
        flow_bound=0.03,
        delta_bound=0.02,
        rule=rule,
        step_size=2.0,
        steps=4,
        stop_when_fooled=False,
    )
    contrasty = (images * 3 - 0.7).clamp(0, 1)  # ends at black and white
    outcome = attack.run(TWO, model, contrasty, LABELS)
    assert attack.bounds == {"linf_color": 0.04, "linf_flow": 0.03, "linf_delta": 0.02}
    for name, bound in attack.bounds.items():
        reached = outcome.latents[name.removeprefix("linf_")].double().abs().flatten(1).amax(1)
        assert (reached <= bound * (1 + 1e-6)).all()
        assert (reached >= bound * 0.99).all()
        torch.testing.assert_close(outcome.distances[name].double(), reached)
    assert 0 <= outcome.images.min() <= outcome.images.max() <= 1


def test_no_bound_leaves_every_bit(images, model):
    saturated = (images * 4 - 1).clamp(0, 1)
    attack = Combined(color_bound=0, flow_bound=0, delta_bound=0, steps=2, stop_when_fooled=False)
    assert torch.equal(attack.run(TWO, model, saturated, LABELS).images, saturated)


def test_the_control_does_not_optimise(images, model):
    outcome = Combined(steps=0, random_start=True).run(TWO, model, images, LABELS)
    assert (outcome.backwards == 0).all()
    assert (outcome.images != images).flatten(1).any(1).all()


def test_protocols_and_summary():
    paper, strict = Combined.paper(), Combined.strict()
    assert (paper.keep, paper.stop_when_fooled, paper.steps) == ("last", False, 100)
    assert isinstance(strict, WorstOf)
    assert strict.family == "combined"
    assert strict.bounds == Combined().bounds
    assert (
        "12 v* + flow <= 0.05 grid units (0.7 px of 28, 5.6 of 224) + addition <= 8/255;"
        in Combined().summary
    )
    assert "flow" not in Combined(parts=("additive",)).summary
    assert ATTACKS["combined"] is Combined
    with pytest.raises(ValidationError, match="parts"):
        Combined(parts=())
