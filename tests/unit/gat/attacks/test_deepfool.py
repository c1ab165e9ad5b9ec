"""DeepFool against torchattacks, which loops over images, and what its settings do."""

import pytest
import torch
import torchattacks
from torch import nn

from gat.attacks import DeepFool
from gat.logits import LogitsTask
from tests.toys import balanced, conv_classifier, linear_classifier


@pytest.fixture
def case() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = nn.functional.interpolate(torch.rand(8, 3, 4, 4, generator=generator), size=12, mode="bilinear")
    model = balanced(conv_classifier(6), images)
    return model, images, model(images).argmax(1)


def test_it_gets_as_near_as_torchattacks(case):
    model, images, labels = case
    theirs = torchattacks.DeepFool(model, steps=50)(images, labels)
    ours = DeepFool().run(LogitsTask(6), model, images, labels)
    assert ours.success.all()
    distance = (theirs - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(ours.distances["l2_pixels"], distance, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_example_is_done_when_it_is_across(norm):
    """One step fools a linear model; only an example that one step leaves short of it needs more."""
    weights = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    model = linear_classifier(weights, -weights.sum(1) / 2)
    images = torch.full((4, 3, 4, 4), 0.5) + 0.01 * torch.randn(4, 3, 4, 4)
    outcome = DeepFool(norm=norm).run(LogitsTask(2), model, images, model(images).argmax(1))
    assert outcome.success.all()
    assert outcome.iterations.tolist() == [1] * 4
    assert outcome.forwards.tolist() == [4] * 4  # before, at the start, across, after


def test_the_overshoot_is_a_share_of_the_way():
    weights = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    model = linear_classifier(weights, -weights.sum(1) / 2)
    images = torch.rand(4, 3, 4, 4) * 0.2 + 0.4
    labels = model(images).argmax(1)
    near, far = (
        DeepFool(overshoot=share).run(LogitsTask(2), model, images, labels).distances["l2_pixels"]
        for share in (0.0, 0.5)
    )
    torch.testing.assert_close(far, 1.5 * near, rtol=1e-4, atol=1e-5)


def test_with_fewer_candidates_it_takes_fewer_passes_and_is_never_nearer_on_average(case):
    model, images, labels = case
    few, all_six = (DeepFool(candidates=c).run(LogitsTask(6), model, images, labels) for c in (2, 6))
    assert few.backwards.sum() < all_six.backwards.sum()
    assert few.distances["l2_pixels"].mean() >= 0.999 * all_six.distances["l2_pixels"].mean()


def test_without_steps_nothing_moves(case):
    model, images, labels = case
    outcome = DeepFool(steps=0).run(LogitsTask(6), model, images, labels)
    assert torch.equal(outcome.images, images)
    assert not outcome.success.any()


def test_every_iterate_can_be_recorded(case):
    model, images, labels = case
    outcome = DeepFool(steps=4).run(LogitsTask(6), model, images, labels, record=True)
    assert outcome.trajectory is not None
    assert outcome.trajectory.shape == (5, *images.shape)
    assert torch.equal(outcome.trajectory[0], images)
    assert outcome.success.any()
    step, example = outcome.iterations[outcome.success], outcome.success.nonzero().squeeze(1)
    torch.testing.assert_close(outcome.trajectory[step, example], outcome.images[example])
