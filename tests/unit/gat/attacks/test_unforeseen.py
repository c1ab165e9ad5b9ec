"""Worst-case corruptions: what they find, what they may not exceed, and what random ones do not find."""

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import ATTACKS, JPEG, Compute, Elastic, Fog, Gabor, Snow, WorstOf
from gat.attacks.run import Outcome
from gat.attacks.unforeseen import Unforeseen
from gat.logits import LogitsTask
from gat.spaces.corruptions import JPEGSpace

TWO = LogitsTask(2)
KINDS: tuple[type[Unforeseen], ...] = (JPEG, Elastic, Fog, Snow, Gabor)
SIDE = 16
N = 4


def pictures(n: int = N, side: int = SIDE) -> Tensor:
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    return nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)


class Template(nn.Module):
    """Linear and never wrong: the more the image resembles a smooth template, the less sure it is of class 0."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        template = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(4))
        self.template = nn.functional.interpolate(template, images.shape[2:], mode="bicubic")

    def forward(self, images: Tensor) -> Tensor:
        seen = (images * self.template).mean((1, 2, 3))
        return torch.stack([torch.zeros_like(seen), seen - 3], dim=1)


class Waves(Template):
    """Its doubt rises and falls again as the image comes to resemble the template."""

    def forward(self, images: Tensor) -> Tensor:
        seen = (images * self.template).mean((1, 2, 3))
        return torch.stack([torch.zeros_like(seen), torch.sin(2000 * seen) - 3], dim=1)


def gain(attack: Unforeseen, model: Template, images: Tensor, **options: object) -> tuple[Tensor, Outcome]:
    """How far each image moved along the template."""
    labels = torch.zeros(len(images), dtype=torch.long)
    outcome = attack.run(TWO, model, images, labels, **options)  # type: ignore[arg-type]
    assert outcome.attacked.all()
    return ((outcome.images - images) * model.template).double().mean((1, 2, 3)), outcome


@pytest.fixture
def images() -> Tensor:
    return pictures()


@pytest.fixture
def model(images: Tensor) -> Template:
    return Template(images)


def quick(kind: type[Unforeseen], **settings: object) -> Unforeseen:
    return kind.model_validate({"steps": 8, "step_size": None} | settings)


def test_all_of_them_are_registered():
    assert {"jpeg", "elastic", "fog", "snow", "gabor"} <= ATTACKS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_optimised_is_far_worse_than_random(kind, images, model):
    random, _ = gain(quick(kind, steps=0), model, images)
    best, outcome = gain(quick(kind), model, images)
    assert (best > random).all()
    assert (best > 0).all()
    assert best.mean() > 1.3 * random.abs().mean()
    assert (outcome.backwards > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_random_ones_ask_for_no_gradient_and_do_change_the_image(kind, images, model):
    _, outcome = gain(quick(kind, steps=0), model, images)
    assert (outcome.backwards == 0).all()
    assert ((outcome.images - images).abs().flatten(1).mean(1) > 1e-3).all()


def test_on_a_linear_model_jpeg_reaches_the_optimum(images, model):
    """Every coefficient at the border of its budget, on the side of the template's own coefficient."""
    eps = 0.01
    space = JPEGSpace(images)
    leaf = space.rest()["jpeg"].requires_grad_()
    rendered = space.freeze(space.rest(), ["jpeg"])({"jpeg": leaf}, torch.arange(N))
    slope = torch.autograd.grad((rendered * model.template).mean((1, 2, 3)).sum(), leaf)[0]
    best = eps * slope.abs().double().sum((1, 2, 3))
    reached, _ = gain(JPEG(eps=eps, steps=12, step_size=0.004), model, images)
    torch.testing.assert_close(reached, best, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("variant", ["steepest", "published"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_budget_is_kept_and_used(kind, variant, images, model):
    """Measured anew in float64, with steps so long that only projection keeps it."""
    attack = quick(kind, variant=variant, step_size=kind().budget * 1.5)
    _, outcome = gain(attack, model, images)
    assert list(attack.bounds) == [f"{kind.norm}_{attack.name}"]
    flat = torch.cat([value.double().flatten(1) for value in outcome.latents.values()], dim=1)
    length = flat.abs().amax(1) if kind.norm == "linf" else flat.norm(dim=1)
    (bound,) = attack.bounds.values()
    assert (length <= bound * (1 + 1e-5)).all()
    assert (length >= (0.7 if kind.limits else 0.9) * bound).all()
    if kind.limits and variant == "steepest":
        assert kind.limits[0] <= flat.min() <= flat.max() <= kind.limits[1]


@pytest.mark.parametrize("kind", KINDS)
def test_more_steps_restarts_and_budget_are_never_weaker(kind, images, model):
    few = quick(kind, steps=2)
    start = gain(few, model, images)[1].loss
    more = (
        few.model_copy(update={"steps": 5, "step_size": few.size}),
        few.model_copy(update={"restarts": 3}),
    )
    for attack in more:
        assert (gain(attack, model, images)[1].loss >= start).all()
    low, medium, high = (
        gain(quick(kind, steps=4, strength=strength), model, images)[0].mean()
        for strength in ("low", "medium", "high")
    )
    assert low < medium < high


@pytest.mark.parametrize("kind", KINDS)
def test_the_steepest_rule_is_no_weaker_than_the_published_one_and_far_stronger_for_elastic(
    kind, images, model
):
    steepest, _ = gain(quick(kind), model, images)
    published, _ = gain(quick(kind, variant="published"), model, images)
    if kind is Elastic:
        assert (steepest > 1.2 * published).all()
    assert steepest.mean() > 0.9 * published.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_iterate_counts_and_in_the_paper_variant_the_last(kind, images):
    model, labels = Waves(images), torch.zeros(N, dtype=torch.long)
    for attack in (quick(kind), kind.paper().model_copy(update={"steps": 8})):
        outcome = attack.run(TWO, model, images, labels, record=True)
        path = outcome.trajectory
        assert path is not None
        losses = torch.stack([TWO.loss(model(step), labels) for step in path])
        assert (losses.amax(0) > losses[-1]).any()  # or the two would be the same
        expected = losses.amax(0) if attack.keep == "best" else losses[-1]
        torch.testing.assert_close(outcome.loss, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_strict_is_at_least_as_strong_as_each_of_its_parts(kind, images):
    labels = torch.zeros(N, dtype=torch.long)
    strict = kind.strict()
    assert isinstance(strict, WorstOf)
    assert strict.family == kind().name
    assert len({(part.seed, part.step_size) for part in strict.attacks}) == 2
    short = WorstOf(attacks=tuple(part.model_copy(update={"steps": 3}) for part in strict.attacks))
    model = Template(images)
    worst = short.run(TWO, model, images, labels)
    for part in short.attacks:
        assert (worst.loss >= part.run(TWO, model, images, labels).loss - 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_depends_on_its_id_not_on_its_batch(kind, images, model):
    ids = torch.tensor([40, 7, 1000, 2])
    attack = quick(kind, steps=3)
    _, together = gain(attack, model, images, ids=ids)
    order = torch.tensor([2, 0, 3, 1])
    _, shuffled = gain(attack, model, images[order], ids=ids[order])
    torch.testing.assert_close(shuffled.images, together.images[order], rtol=0, atol=1e-4)
    _, narrow = gain(attack, model, images, ids=ids, compute=Compute(width=2))
    torch.testing.assert_close(narrow.images, together.images, rtol=0, atol=1e-4)
    if kind is not Elastic:
        _, others = gain(quick(kind, steps=0), model, images, ids=ids + 1)
        assert (
            others.images - gain(quick(kind, steps=0), model, images, ids=ids)[1].images
        ).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_and_restarts_draw_anew_and_the_same_seed_the_same(kind, images, model):
    first, again, other = (
        gain(quick(kind, steps=0, seed=seed), model, images)[1].images for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert ((other - first).abs().flatten(1).amax(1) > 1e-3).all()
    worst, _ = gain(quick(kind, steps=0, restarts=4), model, images)
    assert (worst > gain(quick(kind, steps=0), model, images)[0]).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 40), (3, 8, 8)])
def test_any_size_and_grey_images_will_do(kind, shape):
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 2))
    labels = model(images).argmax(1)
    attacked = quick(kind, steps=1)(model, images, labels)
    assert attacked.shape == images.shape
    assert not torch.equal(attacked, images)


def test_published_settings_are_those_of_the_suite():
    rows = {
        (JPEG, "imagenet"): (1 / 255, 3 / 255, 6 / 255, 0.0024, 80),
        (JPEG, "cifar10"): (1 / 255, 3 / 255, 6 / 255, 0.0024, 50),
        (Elastic, "imagenet"): (0.1, 0.25, 0.5, 0.003, 100),
        (Elastic, "cifar10"): (0.1, 0.25, 0.5, 0.006, 30),
        (Snow, "imagenet"): (10, 15, 25, 0.1, 100),
        (Snow, "cifar10"): (3, 4, 5, 0.2, 20),
        (Gabor, "imagenet"): (0.02, 0.04, 0.06, 0.0003125, 100),
        (Gabor, "cifar10"): (0.02, 0.03, 0.04, 0.0025, 80),
    }
    for (kind, preset), (low, medium, high, size, steps) in rows.items():
        papers = [kind.paper(strength, preset) for strength in ("low", "medium", "high")]
        assert [paper.budget for paper in papers] == [low, medium, high]
        assert {(paper.size, paper.num_steps) for paper in papers} == {(size, steps)}


@pytest.mark.parametrize(("preset", "sides"), [("cifar10", (32, 64)), ("imagenet", (80, 160))])
def test_a_corruption_changes_as_much_at_every_size(preset, sides):
    """What is given in pixels scales with the image."""
    for kind in (Snow, Gabor, Fog):
        changes = []
        for side in sides:
            images = torch.full((3, 3, side, side), 0.5)
            model = Template(images)
            _, outcome = gain(kind(preset=preset, steps=0), model, images)
            changes.append((outcome.images - images).abs().mean().item())
        assert changes[0] == pytest.approx(changes[1], rel=0.35)


def test_the_rounded_jpeg_counts_levels_and_says_so(images, model):
    attack = JPEG(quality=30, steps=4)
    assert attack.budget == 0.3
    assert attack.size == pytest.approx(0.06)
    assert "quality 30" in attack.summary
    random, _ = gain(attack.model_copy(update={"steps": 0}), model, images)
    best, _ = gain(attack, model, images)
    assert (best > random).all()


def test_the_shared_part_is_no_attack_of_its_own():
    with pytest.raises(TypeError, match="abstract"):
        Unforeseen()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strength": "extreme"}, "strength"),
        ({"eps": -1}, "eps"),
        ({"steps": -1}, "steps"),
        ({"preset": "mnist"}, "preset"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Snow(**settings)
