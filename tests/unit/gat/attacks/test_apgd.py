"""Auto-PGD against closed forms, the authors' package and small models whose answers are known."""

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import APGD, PGD, Compute
from gat.attacks.apgd import AutoSteps, checkpoints, sparse_direction
from gat.attacks.ascent import Slots, ascend
from gat.attacks.objective import TaskObjective
from gat.attacks.steps import NORMS
from gat.logits import LogitsTask
from gat.spaces.pixels import PixelSpace
from tests.laws import TWO, Ridge, linear_case, margin_gain
from tests.toys import balanced, sine_classifier

FIVE = LogitsTask(5)
EPS = {"linf": 0.012, "l2": 0.15, "l1": 0.8}  # a part of the examples can be fooled
NORM_OF_THE_PACKAGE = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(images: Tensor) -> nn.Module:
    return balanced(sine_classifier(192, 5), images)


@pytest.fixture(scope="module")
def labels(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).argmax(1)


def check_linear_optimum(norm: str) -> None:
    """The margin of a linear model falls by eps times the dual norm of its weights. (For l1 in all but the last per cent: entries
    are moved evenly there.)"""
    model, images, labels, uphill = linear_case()
    eps = {"linf": 0.1, "l2": 0.5, "l1": 0.15}[norm]
    dual = {"linf": uphill.abs().sum(1), "l2": uphill.norm(dim=1), "l1": uphill.abs().amax(1)}[norm]
    attack = APGD(eps=eps, norm=norm, stop_when_fooled=False)
    outcome = attack.run(TWO, model, images, labels)
    assert (NORMS[norm]((outcome.images - images).double()) <= eps + 1e-5).all()
    rtol = 0.01 if norm == "l1" else 1e-3
    torch.testing.assert_close(margin_gain(outcome, uphill), eps * dual.double(), rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_attacked_as_well_as_can_be(norm):
    check_linear_optimum(norm)


def wrong_sign(patch: pytest.MonkeyPatch) -> None:
    honest = AutoSteps.__call__
    patch.setattr(
        AutoSteps, "__call__", lambda s, x, g, slots: honest(s, x, {k: -v for k, v in g.items()}, slots)
    )


def does_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AutoSteps, "__call__", lambda s, x, g, slots: dict(x))


def no_projection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AutoSteps, "_inside", lambda s, x, home: x.clamp(0, 1))


@pytest.mark.parametrize("mutant", [wrong_sign, does_nothing, no_projection])
@pytest.mark.parametrize("norm", NORMS)
def test_a_broken_step_does_not_pass(mutant, norm, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check_linear_optimum(norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_same_start_gives_the_images_of_the_authors_package(norm, steps, model, images, labels):
    """As long as it agrees to a rounding: in the end a sign or a check may differ."""
    from pyautoattack.autopgd_base import APGDAttack

    start = images.clone()
    start[:, :, 2:4, 2:5] += (
        0.2 * EPS[norm] / 18
    )  # sparse, since the package's first l1 step is as dense as the start
    start = start.clamp(0, 1)
    peer = APGDAttack(
        model, n_iter=steps, norm=NORM_OF_THE_PACKAGE[norm], eps=EPS[norm], seed=0, device="cpu"
    )
    peer.init_hyperparam(images)
    theirs, *_ = peer.attack_single_run(images, labels, x_init=start)
    ours = run_rule(model, images, labels, start, norm, steps)
    same = ((ours - theirs).abs() < 1e-5).flatten(1).all(1)
    assert not torch.equal(ours, images)
    losses = [FIVE.loss(model(found), labels) for found in (ours, theirs)]
    if norm == "l1" and steps > 1:  # the package never moves fewer than 2 entries
        assert losses[0].mean() >= losses[1].mean() - 0.01
    else:
        assert same.float().mean() >= (1.0 if steps <= 3 else 0.7)
        torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=2e-3)


@torch.no_grad()
def run_rule(
    model: nn.Module, images: Tensor, labels: Tensor, start: Tensor, norm: str, steps: int
) -> Tensor:
    """The iterate of largest loss after `steps` steps of the rule from this start, through the loop."""
    space = PixelSpace(tuple(images.shape[1:]))
    objective = TaskObjective(FIVE, model, space.freeze({"pixels": images}, ["pixels"]), labels)

    def loss_alone(latents, rows):
        loss, fooled = objective(latents, rows)
        return loss, torch.zeros_like(fooled)

    rule = AutoSteps(images, EPS[norm], norm, steps, 0.75)
    found = ascend(
        loss_alone, {"pixels": start}, rule, steps, stop_when_fooled=False, center={"pixels": images}, width=7
    )
    return found.latents["pixels"]


@pytest.mark.filterwarnings("ignore:there are")  # points whose gradient vanishes, says the package
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted_dlr"])
def test_robust_accuracy_is_that_of_the_authors_package(norm, loss, model, images, labels):
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    eps = EPS[norm]
    options = {
        "n_iter": 20, "norm": NORM_OF_THE_PACKAGE[norm], "eps": eps, "seed": 0, "device": "cpu", "n_restarts": 1,
        "use_largereps": norm == "l1",
    }  # fmt: skip
    if loss == "targeted_dlr":
        peer = APGDAttack_targeted(model, n_target_classes=4, **options)
    else:
        peer = APGDAttack(model, loss=loss, **options)
    with torch.random.fork_rng():
        theirs = model(peer.perturb(images.clone(), labels.clone())).argmax(1) == labels
    ours = APGD(eps=eps, norm=norm, loss=loss, steps=20).run(FIVE, model, images, labels)
    assert 0 < theirs.float().mean() < 1  # or the test would show nothing
    assert (~ours.success).float().mean() <= theirs.float().mean() + 1 / 12


def test_it_is_stronger_than_pgd_with_as_many_steps(model, images, labels):
    for norm, eps in EPS.items():
        ours, pgd = (
            attack(eps=4 * eps, norm=norm, steps=30, stop_when_fooled=False).run(FIVE, model, images, labels)
            for attack in (APGD, PGD)
        )
        assert ours.loss.mean() > pgd.loss.mean()


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(0) == []
    assert checkpoints(3) == [1, 2]


def sizes_after(losses: list[list[float]], ages: list[int]) -> list[list[float]]:
    """Step sizes of a rule of 100 steps that saw these losses, one list per example, at those ages."""
    images = torch.full((len(losses), 1, 2, 2), 0.5)
    rule = AutoSteps(images, 0.1, "linf", 100, 0.75)
    everyone = torch.arange(len(losses))
    slots = Slots.open(everyone, everyone, {"pixels": images}, {"pixels": images})
    slope, found = {"pixels": torch.ones_like(images)}, []
    for age, loss in enumerate(zip(*losses, strict=True)):
        slots.age, slots.loss = torch.full_like(everyone, age), torch.tensor(loss)
        slots.latents = rule(slots.latents, slope, slots)
        if age in ages:
            found.append(rule.table["size"].tolist())
    return found


def test_the_step_is_halved_at_a_check_if_the_loss_rose_too_seldom_or_stopped_rising():
    rising = [float(t) for t in range(58)]
    falling = [-float(t) for t in range(58)]
    # Rises four times of five, but never again above its first peak.
    stagnant = [float(t % 5) for t in range(58)]
    found = sizes_after([rising, falling, stagnant], [21, 22, 41, 57])
    for sizes, wanted in zip(
        found, [[0.2, 0.2, 0.2], [0.2, 0.1, 0.2], [0.2, 0.05, 0.1], [0.2, 0.025, 0.1]], strict=True
    ):
        assert sizes == pytest.approx(wanted)


def test_after_halving_it_goes_on_from_the_best_image():
    images = torch.full((1, 1, 2, 2), 0.5)
    rule = AutoSteps(images, 0.1, "linf", 4, 0.75)
    assert checkpoints(4) == [1, 2, 3]
    slots = Slots.open(torch.arange(1), torch.arange(1), {"pixels": images}, {"pixels": images})
    first = rule({"pixels": images}, {"pixels": torch.ones_like(images)}, slots)["pixels"]
    assert first.flatten().tolist() == pytest.approx([0.6] * 4)  # 2 eps, cut to the ball, without momentum
    slots.age, slots.loss = torch.tensor([1]), torch.tensor([-1.0])
    slots.loss = torch.tensor([-torch.inf])
    rule.table["loss"][:], rule.table["top"][:] = 1.0, 1.0  # what was seen at the start; this is a step down
    second = rule({"pixels": first}, {"pixels": -torch.ones_like(images)}, slots)["pixels"]
    # From the start again, along its gradient and not the last one, by eps; then momentum 0.75, the last move 0.
    assert rule.table["size"].tolist() == pytest.approx([0.1])
    assert second.flatten().tolist() == pytest.approx([0.5 + 0.75 * 0.1] * 4)


def test_a_sparse_direction_takes_the_largest_entries():
    gradient = torch.tensor([[3.0, -5, 1, 0, 2, -4, 0.5, 0.1, 0.2, 0.3], [0.0] * 10]).reshape(2, 1, 2, 5)
    found = sparse_direction(gradient, torch.tensor([0.2, 0.1])).flatten(1)
    assert found.tolist() == [[0, -0.5, 0, 0, 0, -0.5, 0, 0, 0, 0], [0] * 10]
    assert sparse_direction(gradient, torch.tensor([0.0, 0.0])).flatten(1)[0].tolist() == [0, -1, *[0] * 8]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "targeted_dlr"])
def test_examples_do_not_see_each_other_at_any_width(norm, loss, model, images, labels):
    """Slots change hands at different ages: some examples are fooled at once, some never."""
    attack = APGD(eps=EPS[norm], norm=norm, loss=loss, steps=8, n_targets=2)
    ids = torch.arange(100, 112)
    together = attack.run(FIVE, model, images, labels, ids=ids)
    assert 0 < together.success.sum() < 12
    assert len(together.iterations.unique()) > 1
    for order in (torch.arange(12), torch.arange(12).flip(0)):
        other = attack.run(
            FIVE, model, images[order], labels[order], ids=ids[order], compute=Compute(width=5, sync_every=3)
        )
        same = (other.images - together.images[order]).abs() < 1e-4
        assert same.float().mean() > 0.99
        assert torch.equal(other.success, together.success[order])
    few = torch.tensor([3, 11])
    alone = attack.run(FIVE, model, images[few], labels[few], ids=ids[few])
    assert ((alone.images - together.images[few]).abs() < 1e-4).float().mean() > 0.99


def test_more_targets_and_restarts_are_never_weaker(model, images, labels):
    for more, fewer in (({"n_targets": 4}, {"n_targets": 1}), ({"restarts": 3}, {"restarts": 1})):
        weak, strong = (
            APGD(eps=0.006, loss="targeted_dlr", steps=5, **settings).run(FIVE, model, images, labels)
            for settings in (fewer, more)
        )
        assert (strong.success >= weak.success).all()
        assert (strong.backwards >= weak.backwards).all()
        assert strong.targets is None


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("loss", ["dlr", "targeted_dlr", "margin"])
def test_few_classes_are_no_obstacle(classes, loss, images):
    model = balanced(sine_classifier(192, classes), images)
    labels = model(images).argmax(1)
    outcome = APGD(eps=0.08, loss=loss, steps=10).run(LogitsTask(classes), model, images, labels)
    assert outcome.success.float().mean() > 0.9


def test_a_given_target_is_hit_and_any_wrong_answer_is_not_enough(model, images, labels):
    targets = (labels + 1) % 5
    for loss in ("ce", "dlr", "targeted_dlr"):
        attack = APGD(eps=0.08, loss=loss, goal="targeted", steps=20)
        outcome = attack.run(FIVE, model, images, labels, targets=targets)
        assert torch.equal(outcome.success, outcome.predictions == targets)
        assert outcome.success.float().mean() > 0.5


def test_the_best_iterate_is_kept():
    images = torch.full((3, 3, 4, 4), 0.5)
    labels = torch.zeros(3, dtype=torch.long)
    for steps in (2, 10, 30):
        attack = APGD(eps=0.1, steps=steps, random_start=False, stop_when_fooled=False)
        outcome = attack.run(TWO, Ridge(), images, labels)
        assert outcome.loss.min() >= TWO.loss(Ridge()(images), labels).max()
    assert outcome.success.all()


class Noisy(nn.Module):
    """Adds a large random number to the margin: a single look is worthless."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.generator = model, torch.Generator().manual_seed(0)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.model(images) + 0.5 * torch.randn(len(images), 5, generator=self.generator)


def test_a_random_model_is_asked_several_times(model, images, labels):
    noisy = Noisy(model)
    outcome = APGD(eps=0.01, steps=3, eot=4, stop_when_fooled=False).run(FIVE, noisy, images, labels)
    assert noisy.calls == 4 * (2 + 4)
    assert outcome.forwards.max() == 2 + 4


def test_zero_steps_from_a_random_start_is_the_control_without_optimisation(model, images, labels):
    outcome = APGD(eps=0.01, steps=0).run(FIVE, model, images, labels)
    assert outcome.backwards.sum() == 0
    assert (outcome.images != images).any()


def test_the_likeliest_other_classes_come_first(model, images, labels):
    found = APGD(loss="targeted_dlr", n_targets=2)._rivals(FIVE, model, images, labels, Compute(width=5))
    ranking = model(images).argsort(1, descending=True)
    assert torch.equal(found, ranking[:, 1:3])
    wrong = ranking[:, 1]
    found = APGD(loss="targeted_dlr")._rivals(FIVE, model, images, wrong, Compute())
    assert torch.equal(found, ranking[:, [0, 2, 3, 4]])
