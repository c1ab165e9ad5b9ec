"""Carlini & Wagner's attack against torchattacks, closed forms, and what its settings do."""

import pytest
import torch
import torchattacks
from torch import nn

from gat.attacks import CW
from gat.logits import LogitsTask
from tests.toys import balanced, conv_classifier, linear_classifier

TASK = LogitsTask(6)


@pytest.fixture
def case() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Images that are partly black and partly white, as clipping leaves them."""
    generator = torch.Generator().manual_seed(1)
    images = nn.functional.interpolate(torch.rand(6, 3, 4, 4, generator=generator), size=12, mode="bilinear")
    images = (images * 1.4 - 0.2).clamp(0, 1)
    model = balanced(conv_classifier(6), images)
    return model, images, model(images).argmax(1)


def test_with_fewer_passes_it_gets_nearer_than_torchattacks(case):
    model, images, labels = case
    images = images * 0.98 + 0.01  # theirs is not finite at 0 and 1
    ours = CW(steps=25, rounds=3).run(TASK, model, images, labels)
    assert ours.success.all()
    best = torch.full([len(images)], torch.inf)
    for c in (1.0, 10.0):
        theirs = torchattacks.CW(model, c=c, steps=100, lr=0.01)(images, labels)
        distance = (theirs - images).flatten(1).norm(dim=1)
        best = torch.where(model(theirs).argmax(1) != labels, distance, torch.inf).minimum(best)
    assert (ours.forwards < 100).all()
    assert ours.distances["l2_pixels"].mean() <= 1.01 * best.mean()


def test_the_margin_is_as_wide_as_asked():
    """And the distance of a linear model grows by what that takes."""
    weights = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    model = linear_classifier(weights, -weights.sum(1) / 2)
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4
    logits = model(images)
    labels, gap = logits.argmax(1), (logits[:, 0] - logits[:, 1]).abs()
    for confidence in (0.0, 3.0):
        outcome = CW(confidence=confidence, steps=25, rounds=3).run(LogitsTask(2), model, images, labels)
        assert outcome.success.all()
        after = model(outcome.images)
        assert ((after[:, 0] - after[:, 1]).abs() >= confidence - 1e-4).all()
        best = (gap + confidence) / (weights[0] - weights[1]).norm()
        torch.testing.assert_close(outcome.distances["l2_pixels"], best, rtol=0.04, atol=1e-3)


def test_more_rounds_never_get_farther(case):
    model, images, labels = case
    distances = [
        CW(rounds=rounds, steps=20).run(TASK, model, images, labels).distances["l2_pixels"]
        for rounds in (1, 3)
    ]
    for fewer, more in zip(distances, distances[1:], strict=False):
        assert (more <= fewer)[fewer > 0].all()
    assert distances[-1].mean() < distances[0].mean()


@pytest.mark.parametrize("constant", [1e-3, 1e3])
def test_the_weight_is_found_wherever_the_search_begins(case, constant):
    model, images, labels = case
    reference = CW(rounds=3, steps=20).run(TASK, model, images, labels)
    outcome = CW(rounds=8, steps=20, constant=constant).run(TASK, model, images, labels)
    assert outcome.success.all()
    assert outcome.distances["l2_pixels"].mean() < 1.08 * reference.distances["l2_pixels"].mean()


def test_the_scale_of_the_logits_does_not_matter(case):
    model, images, labels = case
    plain = CW(steps=20, rounds=3).run(TASK, model, images, labels)
    scaled = CW(steps=20, rounds=3).run(TASK, nn.Sequential(model, Scale(1000)), images, labels)
    torch.testing.assert_close(
        scaled.distances["l2_pixels"], plain.distances["l2_pixels"], rtol=0.02, atol=1e-3
    )


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * self.factor


def test_to_stop_a_round_early_saves_passes_and_hardly_any_distance(case):
    model, images, labels = case
    early, full = (
        CW(steps=50, rounds=2, abort_early=abort).run(TASK, model, images, labels) for abort in (True, False)
    )
    assert full.forwards.tolist() == [2 + 2 * 51] * len(images)
    assert early.forwards.sum() < full.forwards.sum()
    assert early.distances["l2_pixels"].mean() <= 1.02 * full.distances["l2_pixels"].mean()
