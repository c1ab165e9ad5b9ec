"""Square attack: what it proposes, what it finds, and what it is not given."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gat.attacks import Compute, Square
from gat.attacks.ascent import Slots
from gat.attacks.square import Squares, bump
from gat.attacks.steps import NORMS
from gat.logits import LogitsTask
from tests.laws import TWO, linear_case, margin_gain
from tests.toys import balanced, sine_classifier

FIVE = LogitsTask(5)
EPS = {"linf": 0.015, "l2": 0.25, "l1": 1.5}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(images: Tensor) -> nn.Module:
    return balanced(sine_classifier(192, 5), images)


@pytest.fixture(scope="module")
def labels(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).argmax(1)


def proposals(norm: str, ages: list[int], n: int = 40, side: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Grey images, the starts of the attack, and what it proposes from there, per age."""
    images = torch.full((n, 3, side, side), 0.5)
    rule = Squares(Square(eps=EPS[norm], norm=norm), images, torch.arange(n))
    start = rule.start(images, 0)
    everyone = torch.arange(n)
    slots = Slots.open(everyone, everyone, {"pixels": start}, {"pixels": images})
    found = []
    for age in ages:
        slots.age = torch.full_like(everyone, age)
        found.append(rule({"pixels": start}, {}, slots)["pixels"])
    return images, start, torch.stack(found)


def test_linf_starts_with_stripes_and_changes_one_square():
    images, start, found = proposals("linf", [0, 11, 4001])
    offset = (start - images) / EPS["linf"]
    torch.testing.assert_close(offset.abs(), torch.ones_like(offset), rtol=0, atol=1e-4)
    assert (offset == offset[:, :, :1]).all()
    assert abs(offset[:, :, 0].mean()) < 0.1
    for proposal, side in zip(found, (18, 13, 2), strict=True):  # 80 %, 40 % and 0.6 % of 20 x 20
        torch.testing.assert_close(
            (proposal - images).abs() / EPS["linf"], torch.ones_like(offset), rtol=0, atol=1e-4
        )
        changed = (proposal != start).any(1)
        for image in changed[changed.flatten(1).any(1)]:
            rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
            assert rows.max() - rows.min() < side
            assert columns.max() - columns.min() < side
    places = (found[2] != start).any(1).nonzero()[:, 1:]
    assert places.min() == 0 and places.max() == 19  # up to the borders
    assert len(places.unique(dim=0)) > 20  # every example has its own


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_balls_are_filled_by_every_proposal(norm):
    images, start, found = proposals(norm, [0, 11, 600])
    for tried in (start, *found):
        size = NORMS[norm]((tried - images).double())
        torch.testing.assert_close(size, torch.full_like(size, EPS[norm]), rtol=1e-4, atol=0)
    for proposal in found:
        assert ((proposal - start).flatten(1).abs().amax(1) > 0).all()
    small = (found[2] - start).abs().amax(1) > 1e-5
    assert small.float().mean() < 0.7  # two squares, and rescaling only what moved or all of it evenly


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("side", [3, 5, 8])
def test_a_bump_is_that_of_the_authors(norm, side):
    from pyautoattack.square import SquareAttack

    peer = SquareAttack(nn.Identity(), norm=norm.upper(), eps=1.0, device="cpu")
    with torch.random.fork_rng():
        theirs = peer.eta(side)
    ours = bump(side, norm)
    np.testing.assert_allclose(NORMS[norm](ours[None]), 1, rtol=1e-5)
    assert any(torch.allclose(theirs, turned, atol=1e-5) for turned in (ours, ours.T))


@pytest.mark.parametrize("norm", NORMS)
def test_what_it_finds_is_what_the_authors_find(norm, model, images, labels):
    from pyautoattack.square import SquareAttack

    peer = SquareAttack(
        model, norm={"linf": "Linf"}.get(norm, norm.upper()), eps=EPS[norm], n_queries=100, seed=0, device="cpu",
        verbose=False,
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():
        theirs = model(peer.perturb(images.clone(), labels.clone())).argmax(1) == labels
    outcome = Square(eps=EPS[norm], norm=norm, queries=100).run(FIVE, model, images, labels)
    assert 0 < outcome.success.sum() < 12
    assert (~outcome.success).sum() <= theirs.sum() + 2
    assert (NORMS[norm]((outcome.images - images).double()) <= EPS[norm] + 1e-5).all()
    assert 0 <= outcome.images.min() <= outcome.images.max() <= 1
    # Not one gradient; the fooled leave; the rest make every query, the start's and the two outside the loop included.
    assert outcome.backwards.sum() == 0
    assert outcome.zero_gradients.sum() == 0
    assert (outcome.forwards[~outcome.success] == 103).all()
    assert (outcome.forwards[outcome.success] == outcome.iterations[outcome.success] + 3).all()
    assert outcome.forwards[outcome.success].min() < 50


def check_it_climbs() -> None:
    """Most of what can be gained on a linear model."""
    model, images, labels, uphill = linear_case()
    outcome = Square(eps=0.02, queries=400).run(TWO, model, images, labels)
    gain = margin_gain(outcome, uphill) / (0.02 * uphill.abs().sum(1))
    assert (outcome.success | (gain > 0.6)).all()
    assert (~outcome.success).any()


def test_on_a_linear_model_it_climbs():
    check_it_climbs()


def only_one_query(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Squares, "__call__", lambda self, x, g, slots: dict(slots.best))


def from_the_last_and_not_the_best(patch: pytest.MonkeyPatch) -> None:
    honest = Squares.__call__

    def mutant(self, latents, gradient, slots):
        best, slots.best = slots.best, latents
        moved = honest(self, latents, gradient, slots)
        slots.best = best
        return moved

    patch.setattr(Squares, "__call__", mutant)


@pytest.mark.parametrize("mutant", [only_one_query, from_the_last_and_not_the_best])
def test_a_broken_search_does_not_climb(mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check_it_climbs()


@pytest.mark.parametrize("norm", NORMS)
def test_examples_do_not_see_each_other_at_any_width(norm, model, images, labels):
    attack = Square(eps=EPS[norm], norm=norm, queries=25, restarts=2)
    ids = torch.arange(500, 512)
    together = attack.run(FIVE, model, images, labels, ids=ids)
    order = torch.arange(12).flip(0)
    other = attack.run(
        FIVE, model, images[order], labels[order], ids=ids[order], compute=Compute(width=5, sync_every=3)
    )
    torch.testing.assert_close(other.images, together.images[order], rtol=0, atol=1e-4)
    alone = attack.run(FIVE, model, images[4:5], labels[4:5], ids=ids[4:5])
    torch.testing.assert_close(alone.images, together.images[4:5], rtol=0, atol=1e-4)
    elsewhere = attack.run(FIVE, model, images, labels, ids=ids + 1)
    assert not torch.equal(elsewhere.images, together.images)


def test_more_queries_and_restarts_are_never_weaker(model, images, labels):
    base = {"eps": EPS["linf"], "queries": 5}
    weak = Square(**base).run(FIVE, model, images, labels)
    for more in ({"queries": 30}, {"restarts": 3}):
        strong = Square(**(base | more)).run(FIVE, model, images, labels)
        assert (strong.success >= weak.success).all()
        assert strong.success.sum() >= weak.success.sum()


def test_it_needs_no_gradient_at_all(images):
    class Steps(nn.Module):
        """Answers 1 where more than half of the pixels are bright: its gradient is zero everywhere."""

        def forward(self, images: Tensor) -> Tensor:
            bright = (images > 0.5).float().mean((1, 2, 3))
            return torch.stack([torch.full_like(bright, 0.55), bright], 1)

    grey = images * 0.02 + 0.489
    labels = torch.zeros(12, dtype=torch.long)
    outcome = Square(eps=0.02, queries=100).run(TWO, Steps(), grey, labels)
    assert outcome.attacked.all()
    assert outcome.success.all()


def test_a_given_target_is_hit(model, images, labels):
    targets = (labels + 1) % 5
    outcome = Square(eps=0.15, queries=200, goal="targeted").run(FIVE, model, images, labels, targets=targets)
    assert torch.equal(outcome.success, outcome.predictions == targets)
    assert outcome.success.float().mean() > 0.5


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 9), (1, 28, 28)])
@pytest.mark.parametrize("norm", NORMS)
def test_images_of_any_shape_are_attacked(norm, shape):
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    model = balanced(sine_classifier(images[0].numel(), 2), images)
    outcome = Square(norm=norm, eps=1e-3, queries=60).run(TWO, model, images, model(images).argmax(1))
    assert outcome.images.isfinite().all()
