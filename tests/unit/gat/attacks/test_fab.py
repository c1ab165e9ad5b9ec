"""FAB against torchattacks and what its settings do."""

from typing import Any

import pytest
import torch
import torchattacks
from torch import nn

from gat.attacks import FAB, DeepFool
from gat.attacks.minimum_norm import Case
from gat.attacks.steps import NORMS
from gat.logits import LogitsTask
from tests.toys import balanced, conv_classifier

TASK = LogitsTask(6)


@pytest.fixture
def case() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network far from linear, so that its boundaries take more than one step to find."""
    generator = torch.Generator().manual_seed(1)
    images = nn.functional.interpolate(torch.rand(7, 3, 4, 4, generator=generator), size=12, mode="bilinear")
    model = conv_classifier(6)
    with torch.no_grad():
        model[0].weight.mul_(12)
    return balanced(model, images), images, model(images).argmax(1)


@pytest.mark.parametrize(("norm", "name"), [("linf", "Linf"), ("l2", "L2")])
def test_it_gets_as_near_as_torchattacks_with_as_many_steps(case, norm, name):
    model, images, labels = case
    # Their l1 fails for several images at once.
    theirs = torchattacks.FAB(model, norm=name, steps=10, eps=100.0, n_classes=6)(images, labels)
    ours = FAB(norm=norm, steps=10).run(TASK, model, images, labels)
    assert ours.success.all()
    assert ours.distances[f"{norm}_pixels"].mean() <= 1.01 * NORMS[norm](theirs - images).mean()


def test_it_gets_nearer_than_deepfool(case):
    model, images, labels = case
    fab, deepfool = (
        attack.run(TASK, model, images, labels).distances["l2_pixels"]
        for attack in (FAB(norm="l2", steps=20), DeepFool())
    )
    assert fab.mean() < 0.98 * deepfool.mean()


@pytest.mark.parametrize("targeted", [False, True])
def test_more_steps_and_restarts_never_get_farther(case, targeted):
    model, images, labels = case

    def distance(steps: int, restarts: int) -> torch.Tensor:
        attack = FAB(norm="l2", steps=steps, restarts=restarts, targeted=targeted, n_target_classes=3)
        return attack.run(TASK, model, images, labels).distances["l2_pixels"]

    short, long, thrice = distance(3, 1), distance(8, 1), distance(3, 3)
    assert (long <= short).all()
    assert (thrice <= short).all()
    assert long.sum() < short.sum()
    assert targeted or thrice.sum() < short.sum()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_starts_are_near_and_belong_to_seed_and_example(case, norm):
    model, images, labels = case
    unknown = torch.zeros(7, dtype=torch.long)

    def starts(ids: torch.Tensor, attempt: int = 1, **settings: Any) -> torch.Tensor:
        problem = Case(
            TASK, model, images, labels, ids, None, False, model(images).detach(), nearest=images.clone(),
            distance=torch.tensor([0.1] * 6 + [torch.inf]), forwards=unknown, backwards=unknown,
        )  # fmt: skip
        return FAB(norm=norm, restarts=3, **settings).search(problem).begin(attempt, torch.arange(7))

    ids = torch.arange(7) + 100
    first = starts(ids)
    length = NORMS[norm](first - images)
    assert (length[:6] <= 0.05 + 1e-6).all()  # half of the nearest found
    assert (length > 0.01).all()
    assert torch.equal(starts(ids, attempt=0), images)
    assert torch.equal(first, starts(ids))
    assert torch.equal(first[3] - images[3], (starts(ids.flip(0)) - images)[3])
    for other in (starts(ids, attempt=2), starts(ids, seed=1), starts(ids + 1)):
        assert (other != first).flatten(1).any(1).all()
    assert (NORMS[norm](starts(ids, eps=0.02) - images) <= 0.01 + 1e-6).all()


def test_class_after_class_takes_one_backward_pass_a_step_and_stops_inside_the_budget(case):
    model, images, labels = case
    free = FAB(norm="linf", steps=4, targeted=True, n_target_classes=9).run(TASK, model, images, labels)
    assert free.backwards.tolist() == [5 * 4] * 7  # no more than five other classes
    assert free.forwards.tolist() == [2 + 5 * (2 * 4 + 1)] * 7
    large = FAB(norm="linf", steps=4, targeted=True, eps=1.0).run(TASK, model, images, labels)
    assert large.success.all()
    assert (large.forwards < free.forwards / 3).all()


def test_the_pull_to_the_image_and_the_way_back_both_get_it_nearer(case):
    """What alpha_max and beta are for."""
    model, images, labels = case
    bare, pulled, full = (
        FAB(norm="l2", steps=20, **off).run(TASK, model, images, labels).distances["l2_pixels"].sum()
        for off in ({"alpha_max": 0.0, "beta": 1.0}, {"beta": 1.0}, {})
    )
    assert pulled < 0.995 * bare
    assert full < 0.99 * pulled
