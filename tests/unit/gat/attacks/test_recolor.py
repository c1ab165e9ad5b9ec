"""Colour attacks where the best colour is known: one colour, under a model that weighs channels."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import ATTACKS, Recolor, WorstOf
from gat.logits import LogitsTask
from gat.spaces.color import UNITS, luv_to_rgb, rgb_to_luv

TWO = LogitsTask(2)
COLORS = torch.tensor([[0.5, 0.5, 0.5], [0.6, 0.4, 0.3], [0.4, 0.5, 0.55], [0.4, 0.6, 0.35]])
LABELS = torch.zeros(4, dtype=torch.long)


class Tint(nn.Module):
    """Answers 0 unless the mean colour, weighed, exceeds a threshold; keeps examples apart by their red."""

    def __init__(self, weights: list[float], threshold: float = 10.0) -> None:
        super().__init__()
        self.weights, self.threshold = torch.tensor(weights), threshold

    def forward(self, images: Tensor) -> Tensor:
        tint = images.mean((2, 3)) @ self.weights - self.threshold
        return torch.stack([-tint, tint], dim=1)


def plain(colors: Tensor = COLORS) -> Tensor:
    """One image of each colour."""
    return colors[:, :, None, None].expand(-1, -1, 5, 7).contiguous()


def best(weights: list[float], bound: float, channels: tuple[float, float, float] = (1, 1, 1)) -> Tensor:
    """The largest weighed colour in the box, by looking at all of a fine grid of it."""
    axis = torch.linspace(-bound, bound, 13)
    box = (
        torch.tensor(list(itertools.product(axis.tolist(), repeat=3)))
        * torch.tensor(UNITS)
        * torch.tensor(channels)
    )
    luv = rgb_to_luv(plain())[:, :, 0, 0]
    rgb = luv_to_rgb(luv[:, :, None] + box.T[None]).clamp(0, 1)
    return (rgb * torch.tensor(weights)[:, None]).sum(1).amax(1)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, -1.0, 0.2], [-0.3, 0.2, 1.0], [-1.0, -1.0, -1.0]])
@pytest.mark.parametrize("rule", ["sign", "adam"])
def test_it_reaches_the_best_colour_in_the_box(rule, weights):
    attack = Recolor(rule=rule, smoothness=0, steps=25, stop_when_fooled=False)
    outcome = attack.run(TWO, Tint(weights), plain(), LABELS)
    reached = (outcome.images.mean((2, 3)) * torch.tensor(weights)).sum(1)
    torch.testing.assert_close(reached, best(weights, 0.06), rtol=0, atol=2e-3)


def test_colours_keep_to_their_bounds_re_measured_in_cieluv():
    images = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.35
    attack = Recolor(
        bound=0.03, channels=(1.0, 0.5, 0.25), step_size=2.0, smoothness=0, steps=4, stop_when_fooled=False
    )
    outcome = attack.run(TWO, Tint([1.0, -0.5, 0.3]), images, LABELS)
    moved = (rgb_to_luv(outcome.images.double()) - rgb_to_luv(images.double())).abs().amax((0, 2, 3))
    allowed = 0.03 * torch.tensor(UNITS) * torch.tensor([1.0, 0.5, 0.25])
    assert (moved <= allowed.double() * 1.001 + 1e-3).all()
    assert (moved >= allowed.double() * 0.5).all()
    assert outcome.distances["linf_color"].max() <= 0.03 * (1 + 1e-6)
    assert attack.bounds == {"linf_color": 0.03}


def test_no_bound_leaves_every_bit_even_of_saturated_colours():
    corners = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    labels = torch.zeros(8, dtype=torch.long)
    for settings in ({}, {"rule": "sign", "random_start": True}):
        attack = Recolor(bound=0, steps=3, **settings)
        outcome = attack.run(TWO, Tint([1.0, 1.0, 1.0]), plain(corners), labels)
        assert torch.equal(outcome.images, plain(corners))


def test_it_finds_a_planted_weakness_that_random_colours_do_not():
    """Grey that leans to green enough; a random map averages out over eight nodes."""
    images = plain(torch.full((6, 3), 0.5) + torch.arange(6)[:, None] * 0.01)
    labels, model = torch.zeros(6, dtype=torch.long), Tint([-1.0, 2.0, -1.0], threshold=0.13)
    assert Recolor().run(TWO, model, images, labels).success.all()
    assert Recolor.paper(steps=60).run(TWO, model, images, labels).success.all()
    control = Recolor(steps=0, random_start=True).run(TWO, model, images, labels)
    assert not control.success.any()
    assert (control.images != images).flatten(1).any(1).all()
    assert (control.backwards == 0).all()


def test_black_can_be_lit_and_white_can_be_dimmed():
    images = plain(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    labels = LABELS[:2]
    brighter = Recolor(steps=10, stop_when_fooled=False).run(TWO, Tint([1.0, 1.0, 1.0]), images, labels)
    darker = Recolor(steps=10, stop_when_fooled=False).run(TWO, Tint([-1.0, -1.0, -1.0]), images, labels)
    assert brighter.images[0].mean() > 0.05
    assert darker.images[1].mean() < 0.93


def test_smoothness_trades_loss_for_evenness():
    """Colours whose neighbours want to go the other way."""
    ramp = torch.linspace(0.2, 0.8, 12).expand(2, 3, 1, 12).contiguous()
    signs = torch.tensor([1.0, -1.0]).repeat(6)

    class Stripes(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            sum_ = (images.mean((1, 2)) * signs).sum(1) - 10
            return torch.stack([-sum_, sum_], dim=1)

    runs = [
        Recolor(smoothness=smoothness, stop_when_fooled=False).run(TWO, Stripes(), ramp, LABELS[:2])
        for smoothness in (0.0, 0.0036)
    ]
    gains = [((o.images - o.start_images).mean((1, 2)) * signs).sum(1) for o in runs]
    assert (gains[1] < 0.8 * gains[0]).all()


def test_published_settings_take_all_steps_and_return_the_last():
    attack = Recolor.paper(steps=7)
    outcome = attack.run(TWO, Tint([1.0, 0.0, 0.0]), plain(), LABELS, record=True)
    assert (outcome.iterations == 7).all()
    assert torch.equal(outcome.images, outcome.trajectory[-1])
    assert attack.share * attack.bound == pytest.approx(0.001)
    assert attack.smoothness / attack.bound == pytest.approx(0.06)
    assert attack.bound == 0.06
    assert attack.grid == (16, 32, 32)


def test_strict_is_at_least_as_strong_as_each_of_its_parts():
    strict = Recolor.strict()
    assert isinstance(strict, WorstOf)
    assert strict.family == "recolor"
    assert strict.bounds == {"linf_color": 0.06}
    quick = strict.model_copy(
        update={"attacks": tuple(part.model_copy(update={"steps": 8}) for part in strict.attacks)}
    )
    weights = [1.0, -1.0, 0.2]
    model = Tint(weights, threshold=float(best(weights, 0.06).sort().values[1]))
    labels = model(plain()).argmax(1)
    worst = quick.run(TWO, model, plain(), labels)
    assert worst.success.any()
    for part in quick.attacks:
        assert not (part.run(TWO, model, plain(), labels).success & ~worst.success).any()
    assert {part.steps for part in strict.attacks} == {20, 100}
    assert {part.rule for part in strict.attacks} == {"adam", "sign"}


def test_grey_images_of_one_channel_are_refused():
    with pytest.raises(ValueError, match=r"recolouring needs RGB images \[b, 3, h, w\]"):
        Recolor().run(TWO, Tint([1.0]), torch.rand(2, 1, 4, 4), LABELS[:2])


def test_the_summary_tells_the_bound_in_cieluv():
    assert "color <= 6 L*, 12 u*, 12 v*; 16x32x32 nodes" in Recolor().summary
    assert "color <= 6 L*, 6 u*, 0 v*" in Recolor(channels=(1.0, 0.5, 0.0)).summary
    assert ATTACKS["recolor"] is Recolor
