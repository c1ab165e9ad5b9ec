"""TRADES against its closed forms on linear models."""

import pytest
import torch
import torch.nn.functional as F

from gat.latents import seeded_normal
from gat.training.method import divergence
from gat.training.methods import TRADES, Batch, Standard, Tools
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, linear_classifier

TASK = ClassificationTask(CLASSES)
TOOLS = Tools(TASK)
N = 6


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.randn(3, 48)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(N, 3, 4, 4) * 0.6 + 0.2


LABELS = torch.arange(N) % 3


def test_without_the_divergence_it_is_standard_training(weights, images):
    model = linear_classifier(weights)
    lesson = TRADES(beta=0).lesson(TOOLS, model, Batch(images, LABELS), 3)
    standard = Standard().lesson(TOOLS, model, Batch(images, LABELS), 3)
    assert torch.equal(lesson.images, standard.images)
    assert torch.equal(lesson.loss(TASK, model(images)), standard.loss(TASK, model(images)))
    assert lesson.total_weight == standard.total_weight == N
    assert TRADES(beta=0).trained_on() == ()


def test_the_loss_is_that_of_the_paper(weights, images):
    model, method = linear_classifier(weights), TRADES(beta=6, steps=3)
    lesson = method.lesson(TOOLS, model, Batch(images, LABELS), 0)
    clean, attacked = model(images), model(lesson.images[N:])
    loss = lesson.loss(TASK, model(lesson.images)).sum() / lesson.total_weight
    kl = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss, F.cross_entropy(clean, LABELS) + 6 * kl)
    assert lesson.num_clean == N
    assert torch.equal(lesson.images[:N], images)


def test_a_step_follows_the_gradient_of_the_divergence(weights, images):
    """With answers W x it is W^T (q - p), which no loss of the label has."""
    method = TRADES(steps=1, step_size=0.01, eps=0.03, start_noise=0.005, seed=2)
    moved, _ = method.diverging(TOOLS, linear_classifier(weights), images, key=5)
    ids = torch.arange(N) + 5 * N
    start = images + 0.005 * seeded_normal(2, ids, (3, 4, 4), "trades")
    p, q = (x.flatten(1) @ weights.T for x in (images, start))
    uphill = ((q.softmax(1) - p.softmax(1)) @ weights).sign().reshape(start.shape)
    expected = images + (start + 0.01 * uphill - images).clamp(-0.03, 0.03)
    torch.testing.assert_close(moved, expected.clamp(0, 1))


def test_the_divergence_grows_within_the_ball(weights, images):
    model = linear_classifier(weights)
    reached = []
    for steps in (0, 3, 20):
        method = TRADES(steps=steps, eps=0.05, step_size=0.02)
        moved, kl = method.diverging(TOOLS, model, images, key=0)
        assert (moved - images).abs().max() <= 0.05 + 1e-6
        with torch.no_grad():
            torch.testing.assert_close(kl, divergence(model(images), model(moved)))
        reached.append(kl)
    assert (reached[0] < reached[1]).all()
    assert (reached[1] <= reached[2] + 1e-6).all()
    assert method.diverging(TOOLS, model, images * 0, key=0)[0].min() >= 0


def test_images_that_are_wrong_already_are_moved_too(weights, images):
    model = linear_classifier(weights)
    wrong = (model(images).argmax(1) + 1) % 3
    lesson = TRADES(steps=2).lesson(TOOLS, model, Batch(images, wrong), 0)
    assert ((lesson.images[N:] - images).abs().flatten(1).amax(1) > 0.005).all()


def test_the_answer_to_the_clean_images_is_computed_once(weights, images):
    model, calls = linear_classifier(weights), []
    model.register_forward_hook(lambda *_: calls.append(1))
    TRADES(steps=7).lesson(TOOLS, model, Batch(images, LABELS), 0)
    assert len(calls) == 1 + 7 + 1  # the answer, seven steps, the last look
