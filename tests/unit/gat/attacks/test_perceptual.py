"""PPGD, LPA and FastLPA against a closed-form optimum, an independent measure of the bound, and sabotage."""

import math

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import ATTACKS, LPA, PPGD, Compute, FastLPA, WorstOf
from gat.attacks.perceptual import ball as balls
from gat.attacks.perceptual import lagrange, ppgd
from gat.attacks.perceptual.ball import Ball, open_ball
from gat.logits import LogitsTask
from gat.perceptual import add_network, perceptual_distance
from tests.toys import balanced, conv_classifier

TWO, THREE = LogitsTask(2), LogitsTask(3)
SIDE, N = 8, 6


class Turn(nn.Module):
    """An angle as a direction, (cos, sin): |difference| = 2 sin(angle / 2)."""

    def forward(self, angle: Tensor) -> Tensor:
        return torch.stack([angle.cos(), angle.sin()], dim=1)


class Dial(nn.Module):
    """Turns with the weighted mean of the image; answers 1 beyond `threshold`. What a bound allows is known in closed form."""

    def __init__(self, threshold: float = 9.0) -> None:
        super().__init__()
        self.turn, self.threshold = Turn(), threshold
        weights = torch.randn(3 * SIDE * SIDE, generator=torch.Generator().manual_seed(2))
        self.register_buffer("weights", weights / weights.norm())

    def angle(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weights

    def forward(self, images: Tensor) -> Tensor:
        angle = self.angle(images)
        lead = (angle - self.threshold) + 0 * self.turn(angle).sum(1)
        return torch.stack([torch.zeros_like(lead), lead], dim=1)


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = nn.functional.interpolate(
        torch.rand(N, 3, 4, 4, generator=generator), size=SIDE, mode="bilinear"
    )
    return (coarse * 0.6 + 0.2 + 0.05 * torch.randn(N, 3, SIDE, SIDE, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="module")
def model(images: Tensor) -> nn.Module:
    return balanced(conv_classifier(), images)


@pytest.fixture(scope="module")
def labels(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).argmax(1)


@pytest.fixture(scope="module")
def judge() -> nn.Module:
    """Another network to see with."""
    torch.manual_seed(5)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.Tanh(),
    ).eval()
    add_network("judge", network)
    return network


ATTACKS_IN_A_BALL = {
    "ppgd": lambda **k: PPGD(steps=12, stop_when_fooled=False, **k),
    "lpa": lambda **k: LPA(steps=10, rounds=3, stop_when_fooled=False, **k),
    "fast_lpa": lambda **k: FastLPA(steps=20, projection="boundary", **k),
}


def reaches_the_optimum(kind: str) -> None:
    """Nothing within the bound turns the dial by more than 2 asin(bound / 2)."""
    dial, bound = Dial(), 0.5
    grey = 0.5 + 0.1 * torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    settings = {"bound": bound, "layers": ("turn",), "kappa": None}
    outcome = ATTACKS_IN_A_BALL[kind](**settings).run(TWO, dial, grey, torch.zeros(4, dtype=torch.long))
    turned = dial.angle(outcome.images.double().float()) - dial.angle(grey)
    best = 2 * math.asin(bound / 2)
    assert (turned <= best * 1.001).all(), f"{turned.max():.4f} is more than the bound allows, {best:.4f}"
    share = {"ppgd": 0.999, "lpa": 0.97, "fast_lpa": 0.88}[kind]  # the last has one round of few steps
    assert (turned >= best * share).all(), f"{turned.min():.4f} falls short of {best:.4f}"


@pytest.mark.parametrize("kind", ATTACKS_IN_A_BALL)
def test_it_reaches_the_optimum_within_the_bound(kind: str):
    reaches_the_optimum(kind)


def finds_what_fools_inside(kind: str) -> None:
    """A threshold that only the last fifth of the bound passes."""
    grey = torch.full((1, 3, SIDE, SIDE), 0.5)
    start = float(Dial().angle(grey))
    labels = torch.zeros(1, dtype=torch.long)
    settings = {"bound": 0.5, "layers": ("turn",)}
    reach = 2 * math.asin(0.25)
    within, beyond = Dial(start + 0.8 * reach), Dial(start + 1.1 * reach)
    assert ATTACKS_IN_A_BALL[kind](**settings).run(TWO, within, grey, labels).success.all()
    assert not ATTACKS_IN_A_BALL[kind](**settings).run(TWO, beyond, grey, labels).success.any()


@pytest.mark.parametrize("kind", ATTACKS_IN_A_BALL)
def test_it_finds_what_fools_inside_the_bound_and_claims_nothing_outside(kind: str):
    finds_what_fools_inside(kind)


@pytest.mark.parametrize("kind", ATTACKS_IN_A_BALL)
@pytest.mark.parametrize("network", ["self", "judge"])
def test_the_bound_holds_measured_in_float64_by_whom_it_names(kind, network, model, judge, images, labels):
    attack = ATTACKS_IN_A_BALL[kind](bound=0.2, network=network, kappa=None)
    outcome = attack.run(THREE, model, images, labels)
    eye = judge if network == "judge" else model
    eye.double()
    measured = perceptual_distance(eye, images.double(), outcome.images.double())
    eye.float()
    name = f"lpips_{network}"
    assert attack.bounds == {name: 0.2}
    torch.testing.assert_close(outcome.distances[name].double(), measured.double(), rtol=1e-4, atol=1e-5)
    assert (measured <= 0.2 * (1 + 1e-5)).all()
    assert (measured > 0.18).all()


@pytest.mark.parametrize("kind", ATTACKS_IN_A_BALL)
def test_it_beats_the_control_that_does_not_optimise(kind, model, judge, images, labels):
    control = PPGD(bound=0.15, network="judge", steps=0, noise=1).run(THREE, model, images, labels)
    assert (control.distances["lpips_judge"] > 0.149).all()  # the control uses all of its bound
    assert control.backwards.sum() == 0
    outcome = ATTACKS_IN_A_BALL[kind](bound=0.15, network="judge").run(THREE, model, images, labels)
    assert (outcome.loss > control.loss).all()
    assert outcome.success.sum() > control.success.sum()


def test_the_boundary_is_met_from_inside(model, images):
    rows = torch.arange(N)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    with open_ball("self", None, model, images, 0.3, 3) as ball:
        far, near = (images + 0.5 * noise).clamp(0, 1), (images + 0.005 * noise).clamp(0, 1)
        assert (ball.distance(far, rows) > 0.35).all()
        ended = ball.to_boundary(far, rows)
        assert torch.equal(ball.to_boundary(near, rows), near)  # inside: to the bit
        reached = ball.distance(ended, rows)
        # On the line, and not outside.
        t = ((ended - images) * (far - images)).flatten(1).sum(1) / (far - images).flatten(1).square().sum(1)
    torch.testing.assert_close(ended, images + t[:, None, None, None] * (far - images), rtol=0, atol=1e-5)
    assert (reached <= 0.3).all()
    assert (reached >= 0.3 * 0.999).all()


def test_the_boundary_is_met_on_crooked_lines(images):
    """Distances that rise fast and then hardly, or hardly and then fast."""
    for power in (0.15, 0.5, 1.0, 2.0, 6.0):
        ball = Ball.__new__(Ball)
        ball.originals, ball.radius = torch.zeros(3, 1, 1, 1), 0.3
        ball.distance = lambda x, rows, power=power: x.flatten() ** power  # type: ignore[method-assign]
        ended = ball.to_boundary(torch.tensor([0.9, 1.0, 0.5]).reshape(3, 1, 1, 1), torch.arange(3), looks=10)
        reached = ended.flatten() ** power
        small = torch.tensor([0.9, 1.0, 0.5]) ** power <= 0.3
        assert (reached <= 0.3 + 1e-7).all()
        assert ((reached >= 0.3 * 0.99) | small).all(), (power, reached)


def test_the_published_projection_leaves_budget_unused_and_says_so(model, images):
    rows = torch.arange(N)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    far = (images + 0.3 * noise).clamp(0, 1)
    with open_ball("self", None, model, images, 0.5, N) as ball:
        assert (ball.distance(far, rows) > 0.5).all()
        reached = ball.distance(ball.newton(far, rows), rows)
        bisected = ball.distance(ball._bisect(far, rows), rows)
    # It aims 0.1 below, in units of distance, and a tenth further than it should.
    assert (reached < 0.41).all()
    assert (reached > 0.34).all()
    torch.testing.assert_close(bisected, torch.full([N], 0.5), rtol=1e-2, atol=0)
    assert LPA.paper().bounds == {}
    assert PPGD.paper().bounds == {}


@pytest.mark.parametrize("kind", [PPGD, LPA])
def test_the_two_protocols_differ_in_the_way_that_they_say(kind, model, judge, images, labels):
    bound = 0.02
    paper = kind.paper(bound, "judge")
    assert (paper.projection, paper.keep) == ("newton", "last")
    strict = kind.strict(bound, "judge")
    assert isinstance(strict, WorstOf)
    assert strict.bounds == {"lpips_judge": bound}
    assert strict.family == paper.family == "perceptual"
    short = paper.model_copy(update={"steps": 8})
    hard = WorstOf(attacks=tuple(a.model_copy(update={"steps": 8}) for a in strict.attacks))
    found = [attack.run(THREE, model, images, labels).success for attack in (short, hard)]
    assert found[0].sum() < found[1].sum()
    assert (found[0] <= found[1]).all()


def test_published_settings():
    assert LPA.paper().model_dump(include={"steps", "rounds", "first_weight", "overstep", "kappa"}) == {
        "steps": 40, "rounds": 5, "first_weight": 0.01, "overstep": True, "kappa": 1.0,
    }  # fmt: skip
    assert (PPGD.paper().steps, PPGD.paper().cg_steps, PPGD.paper().stop_when_fooled) == (40, 5, False)
    fast = FastLPA()
    assert (fast.steps, fast.kappa, fast.projection, fast.keep) == (10, None, "none", "last")
    assert {"ppgd", "lpa", "fast_lpa"} <= ATTACKS.keys()


def test_fast_lpa_follows_the_published_recurrence(model, images, labels):
    """Every iterate, from a plain loop over the formulas."""
    bound, steps = 0.3, 4
    attack = FastLPA(bound=bound, steps=steps, layers=("2", "4"))
    path = attack.run(THREE, model, images, labels, record=True).trajectory
    assert path is not None

    def phi(x: Tensor) -> Tensor:
        parts = []
        for maps in (model[:3](x), model[:5](x)):
            unit = maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10)
            parts.append(unit.flatten(1) / maps[0, 0].numel() ** 0.5)
        return torch.cat(parts, 1)

    x, center = path[0], phi(images).detach()
    for t in range(steps):
        x = x.detach().requires_grad_()
        logits, apart = model(x), (phi(x) - center).norm(dim=1)
        own = logits.gather(1, labels[:, None])[:, 0]
        other = logits.scatter(1, labels[:, None], -1e9).amax(1)
        loss = other - own - 10 * 0.1 ** (1 - t / steps) * (apart - bound).relu()
        (g,) = torch.autograd.grad(loss.sum(), x)
        g = g / g.flatten(1).norm(dim=1)[:, None, None, None]
        per_length = (phi(x + 0.1 * g) - phi(x)).norm(dim=1) / 0.1
        x = (x + g * (bound * 0.1 ** (t / steps) / per_length)[:, None, None, None]).clamp(0, 1).detach()
        torch.testing.assert_close(path[t + 1], x, rtol=0, atol=2e-4)
        x = path[t + 1]  # or rounding adds up


def test_fast_lpa_trains_on_the_last_iterate_of_what_is_right(model, images, labels):
    given = labels.clone()
    given[0] = (given[0] + 1) % 3
    outcome = FastLPA(bound=0.3, steps=10).run(THREE, model, images, given)
    assert torch.equal(outcome.images[0], images[0])
    assert (outcome.loss[1:] > THREE.loss(model(images), given)[1:]).all()
    assert outcome.iterations[1:].max() <= 10
    assert (outcome.backwards[1:] == 10).all()


def test_the_weight_of_the_penalty_grows_where_a_round_ends_outside(model, images, labels):
    seen = []
    honest = lagrange.LagrangeRule.penalty

    class Spy(lagrange.LagrangeRule):
        def penalty(self, latents, images, rows):
            seen.append(self.weight.clone())
            return honest(self, latents, images, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lagrange, "LagrangeRule", Spy)
        # Nothing is inside a ball this small, so every round ends outside.
        LPA(bound=1e-4, steps=2, rounds=3, noise=0.1).run(THREE, model, images, labels)
    assert [float(weight.amax()) for weight in seen[:7]] == pytest.approx([1, 1, 10, 10, 100, 100, 1000])


def test_more_steps_of_one_size_are_never_weaker(model, judge, images, labels):
    found = [
        PPGD(bound=0.1, network="judge", steps=k, step_size=0.03).run(THREE, model, images, labels).success
        for k in (1, 2, 4, 8)
    ]
    for fewer, more in zip(found, found[1:], strict=False):
        assert (more >= fewer).all()
    assert found[-1].sum() > found[0].sum()


def test_a_target_counts_only_when_it_is_hit(model, judge, images, labels):
    targets = (labels + 1) % 3
    for kind in (LPA, PPGD):
        attack = kind(bound=0.4, network="judge", goal="targeted", steps=10)
        outcome = attack.run(THREE, model, images, labels, targets=targets)
        assert outcome.success.any()
        assert torch.equal(outcome.predictions == targets, outcome.success)


@pytest.mark.parametrize("kind", ["ppgd", "lpa", "fast_lpa"])
@pytest.mark.parametrize("network", ["self", "judge"])
def test_networks_are_left_as_found_and_passes_are_counted(kind, network, model, judge, images, labels):
    judge.train()
    judge[0].weight.requires_grad_(False)
    statistics, passes = judge[1].running_mean.clone(), []
    handle = model.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    try:
        attack = ATTACKS[kind].model_validate({"bound": 0.2, "network": network, "steps": 4})
        outcome = attack.run(THREE, model, images, labels, compute=Compute(width=4))
    finally:
        handle.remove()
        judge.eval()
        judge[0].weight.requires_grad_(True)
    # One image more was looked at to find the layers.
    assert sum(passes) == int(outcome.forwards.sum()) + (network == "self")
    assert torch.equal(judge[1].running_mean, statistics)
    for part in (*model.modules(), *judge.modules()):
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_the_classifiers_own_pass_gives_the_distance(model, images, labels):
    """FastLPA with its own features: a pass for the loss and one for the step's length, no third."""
    steps = 5
    outcome = FastLPA(bound=0.2, steps=steps).run(THREE, model, images, labels)
    start_and_end = 2 + 1 + 1  # answers before and after, the originals' features, the final distance
    allowed = 1
    assert (outcome.forwards == 2 * steps + 1 + start_and_end + allowed).all()
    assert (outcome.backwards == steps).all()


def test_in_mixed_precision_the_bound_holds_in_full(model, images, labels):
    for attack in (LPA(bound=0.2, steps=6), PPGD(bound=0.2, steps=6), FastLPA(bound=0.2)):
        outcome = attack.run(THREE, model, images, labels, compute=Compute(autocast=torch.bfloat16))
        reached = perceptual_distance(model, images, outcome.images)
        torch.testing.assert_close(outcome.distances["lpips_self"], reached, rtol=1e-4, atol=1e-5)
        if attack.bounds:
            assert (reached <= 0.2 * (1 + 1e-5)).all()


def test_settings_that_make_no_sense_are_refused(model, images, labels):
    for bad in (
        {"bound": -1},
        {"steps": -1},
        {"rounds": 0},
        {"layers": ()},
        {"projection": "exact"},
        {"eps": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            LPA(**bad)
    with pytest.raises(ValueError, match="'nobody' is not known"):
        LPA(network="nobody")(model, images, labels)


# Sabotage: what is broken on purpose breaks a law.


def wrong_sign(patch: pytest.MonkeyPatch) -> None:
    for module in (lagrange, ppgd):
        honest = module.unit
        patch.setattr(module, "unit", lambda g, honest=honest: -honest(g))


def does_nothing(patch: pytest.MonkeyPatch) -> None:
    for rule in (lagrange.LagrangeRule, ppgd.NaturalRule):
        patch.setattr(rule, "__call__", lambda self, latents, gradient, slots: dict(latents))


def no_projection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ball, "to_boundary", lambda self, images, rows, looks=0: images)
    patch.setattr(lagrange.LagrangeRule, "penalty", _no_penalty)


def _no_penalty(self, latents, images, rows):
    self._here = (self.ball.embed(images, rows).detach(), torch.zeros(len(rows)))
    return torch.zeros(len(rows)), torch.ones(len(rows), dtype=torch.bool)


def short_projection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(balls, "SHORT", 0.2)
    honest = lagrange.LagrangeRule.__init__

    def mutant(self, ball, *rest, **options):
        ball.radius *= 0.8
        honest(self, ball, *rest, **options)

    patch.setattr(lagrange.LagrangeRule, "__init__", mutant)


@pytest.mark.parametrize("kind", ATTACKS_IN_A_BALL)
@pytest.mark.parametrize("mutant", [wrong_sign, does_nothing, no_projection, short_projection])
def test_a_broken_attack_breaks_a_law(mutant, kind: str, monkeypatch: pytest.MonkeyPatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        reaches_the_optimum(kind)
