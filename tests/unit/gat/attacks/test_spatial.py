"""Flow attacks where the best flow is known: ramps under a linear model."""

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import ATTACKS, Spatial, WorstOf
from gat.logits import LogitsTask
from tests.toys import linear_classifier

TWO = LogitsTask(2)
HEIGHT, WIDTH = 8, 14
N = 3


@pytest.fixture
def images() -> Tensor:
    """Ramps to the right, of slopes 0.02, 0.03 and 0.04 per pixel."""
    slopes = torch.tensor([0.02, 0.03, 0.04])
    ramp = slopes[:, None, None, None] * torch.arange(WIDTH) + 0.1
    return ramp.expand(N, 3, HEIGHT, WIDTH).contiguous()


@pytest.fixture
def weights() -> Tensor:
    """Random inside, nothing near the border, where ramps end."""
    weights = torch.zeros(3, HEIGHT, WIDTH)
    weights[:, 2:-2, 2:-2] = torch.randn(3, HEIGHT - 4, WIDTH - 4, generator=torch.Generator().manual_seed(0))
    return weights


def model_of(weights: Tensor, images: Tensor, lead: float = 100.0) -> nn.Module:
    """Always sure of class 0, less so the larger the weighted sum."""
    flat = weights.flatten()
    return linear_classifier(torch.stack([-flat, flat]) / 2, torch.tensor([lead / 2, -lead / 2]))


LABELS = torch.zeros(N, dtype=torch.long)


def gain(outcome, weights: Tensor) -> Tensor:
    return ((outcome.images.double() - outcome.start_images.double()) * weights.double()).sum((1, 2, 3))


@pytest.mark.parametrize("rule", ["sign", "adam"])
@pytest.mark.parametrize("unit", ["px", "grid"])
def test_it_reaches_the_best_flow_of_a_ramp_under_a_linear_model(rule, unit, images, weights):
    """Every pixel goes to the end of its bound, uphill or downhill by the sign of its weights."""
    pixels = 0.7
    bound = pixels if unit == "px" else pixels * 2 / WIDTH
    attack = Spatial(bound=bound, unit=unit, rule=rule, smoothness=0, steps=12, stop_when_fooled=False)
    outcome = attack.run(TWO, model_of(weights, images), images, LABELS)
    slopes = torch.tensor([0.02, 0.03, 0.04]).double()
    best = slopes * pixels * weights.double().sum(0).abs().sum()
    torch.testing.assert_close(gain(outcome, weights), best, rtol=1e-3, atol=1e-4)


def test_the_flow_keeps_to_its_bound_and_uses_it(images, weights):
    attack = Spatial(bound=0.03, step_size=3.0, steps=4, smoothness=0, stop_when_fooled=False)
    outcome = attack.run(TWO, model_of(weights, images), images, LABELS)
    flow = outcome.latents["flow"].double().abs()
    assert flow.max() <= 0.03 + 1e-9
    assert (flow.flatten(1).amax(1) > 0.0299).all()
    assert attack.bounds == {"linf_flow": 0.03}
    assert torch.equal(outcome.distances["linf_flow"].double(), flow.flatten(1).amax(1))


def test_no_bound_leaves_every_bit(images, weights):
    for settings in ({}, {"rule": "sign", "random_start": True}, {"padding": "zeros"}):
        attack = Spatial(bound=0, steps=3, **settings)
        outcome = attack.run(TWO, model_of(weights, images), images, LABELS)
        assert torch.equal(outcome.images, images)
        assert not outcome.success.any()


class Shifted(nn.Module):
    """Answers 1 if the edge between dark and bright has moved to the left by half a pixel in most rows."""

    def forward(self, images: Tensor) -> Tensor:
        moved = images[:, 0, :, 5].mean(1) - 0.4
        return torch.stack([-moved, moved], dim=1) * 20


def test_it_finds_a_planted_weakness_that_random_flow_does_not():
    edge = torch.zeros(4, 3, 8, 12)
    edge[..., 6:] = 1
    labels = torch.zeros(4, dtype=torch.long)
    for attack in (Spatial(bound=0.5, unit="px"), Spatial.paper(bound=0.5 * 2 / 12, steps=20)):
        found = attack.run(TWO, Shifted(), edge, labels)
        assert found.success.all()
    control = Spatial(bound=0.5, unit="px", steps=0, random_start=True).run(TWO, Shifted(), edge, labels)
    assert not control.success.any()
    assert (control.images != edge).flatten(1).any(1).all()
    assert (control.backwards == 0).all()


def test_smoothness_trades_loss_for_evenness(images, weights):
    model = model_of(weights, images)
    runs = [
        Spatial(bound=0.1, steps=20, smoothness=smoothness, stop_when_fooled=False).run(
            TWO, model, images, LABELS
        )
        for smoothness in (0.0, 0.01)
    ]
    gains = [gain(outcome, weights) for outcome in runs]
    assert (gains[1] < gains[0]).all()
    steepest = [outcome.latents["flow"].diff(dim=3).abs().mean() for outcome in runs]
    assert steepest[1] < 0.7 * steepest[0]


def test_published_settings_take_all_steps_and_return_the_last(images, weights):
    attack = Spatial.paper(steps=7)
    outcome = attack.run(TWO, model_of(weights, images), images, LABELS, record=True)
    assert (outcome.iterations == 7).all()
    assert torch.equal(outcome.images, outcome.trajectory[-1])
    assert attack.share * attack.bound == pytest.approx(0.01)
    assert attack.smoothness / attack.bound == pytest.approx(0.05)
    assert attack.padding == "zeros"
    assert attack.bound == 0.05
    assert not attack.random_start


class Narrow(nn.Module):
    """Fooled only while the edge is a little, but not far, to the left."""

    def forward(self, images: Tensor) -> Tensor:
        moved = images[:, 0, :, 5].mean(1)
        return torch.stack([torch.full_like(moved, 0.5), 1 - 5 * (moved - 0.3).abs()], dim=1)


def test_the_last_iterate_may_lose_what_the_best_one_has():
    """Steps of 0.3 px: one arrives, the second is too far."""
    edge = torch.zeros(2, 3, 8, 12)
    edge[..., 6:] = 1
    settings = {
        "bound": 1.0,
        "unit": "px",
        "rule": "sign",
        "step_size": 0.3,
        "smoothness": 0,
        "stop_when_fooled": False,
    }
    labels = torch.zeros(2, dtype=torch.long)
    start = Spatial(**settings, steps=0).run(TWO, Narrow(), edge, labels)
    assert start.attacked.all()
    for steps in (1, 2, 3, 4):
        assert Spatial(**settings, steps=steps).run(TWO, Narrow(), edge, labels).success.all()
    assert not Spatial(**settings, steps=2, keep="last").run(TWO, Narrow(), edge, labels).success.any()


def test_strict_is_at_least_as_strong_as_each_of_its_parts(images, weights):
    strict = Spatial.strict(bound=0.1)
    assert isinstance(strict, WorstOf)
    assert strict.family == "spatial"
    assert strict.bounds == {"linf_flow": 0.1}
    quick = strict.model_copy(
        update={"attacks": tuple(part.model_copy(update={"steps": 5}) for part in strict.attacks)}
    )
    best = (torch.tensor([0.02, 0.03, 0.04]) * 0.05 * WIDTH * weights.sum(0).abs().sum()).sort().values
    model = model_of(weights, images, lead=float(best[1]))
    labels = model(images).argmax(1)
    worst = quick.run(TWO, model, images, labels)
    for part in quick.attacks:
        assert not (part.run(TWO, model, images, labels).success & ~worst.success).any()
    assert {part.steps for part in strict.attacks} == {20, 100}
    assert {part.rule for part in strict.attacks} == {"adam", "sign"}
    assert all(part.keep == "best" for part in strict.attacks)


def test_a_targeted_attack_arrives():
    edge = torch.zeros(4, 3, 8, 12)
    edge[..., 6:] = 1
    attack = Spatial(bound=0.5, unit="px", goal="targeted")
    attacked = attack(Shifted(), edge, torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long))
    assert (Shifted()(attacked).argmax(1) == 1).all()


def test_the_summary_tells_the_bound_in_both_units():
    assert "flow <= 0.05 grid units (0.7 px of 28, 5.6 of 224)" in Spatial().summary
    assert (
        "flow <= 0.7 px (0.05 grid units of 28 px, 0.00625 of 224)" in Spatial(bound=0.7, unit="px").summary
    )
    assert "last iterate" in Spatial.paper().summary
    assert ATTACKS["spatial"] is Spatial
