"""The loss of a lesson, and that cutting and joining lessons does not change it."""

from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gat.training.method import Lesson, divergence, join
from tasks.classification import ClassificationTask
from tests.toys import CLASSES

TASK = ClassificationTask(CLASSES)
WEIGHTS = torch.randn(3, 3 * 16, generator=torch.Generator().manual_seed(0))


def answers(images: Tensor) -> Tensor:
    return images.flatten(1) @ WEIGHTS.T


def lesson(n: int, anchored: int = 0, seed: int = 0, **options: Tensor) -> Lesson:
    """`n` clean images, and one adversarial one with an anchor for each of the first `anchored`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n + anchored, 3, 4, 4, generator=generator)
    labels = torch.arange(n + anchored) % 3
    if anchored:
        options["weights"] = torch.rand(n + anchored, generator=generator)
        options["anchors"] = torch.cat([torch.arange(n), torch.arange(anchored)])
        options["pulls"] = torch.cat([torch.zeros(n), torch.rand(anchored, generator=generator)])
    return Lesson(images, labels, n, {}, **options)


def total(*lessons: Lesson) -> Tensor:
    return torch.stack([part.loss(TASK, answers(part.images)).sum() for part in lessons]).sum()


def test_the_divergence_is_that_of_the_distributions():
    p, q = torch.randn(5, 4), torch.randn(5, 4)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(divergence(p, q), expected)
    assert (divergence(p, p) == 0).all()
    dense = divergence(p[:, :, None, None].expand(5, 4, 2, 3), q[:, :, None, None].expand(5, 4, 2, 3))
    torch.testing.assert_close(dense, expected)


def test_the_divergence_moves_both_answers():
    p, q = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    kl = divergence(p, q)
    of_p, of_q = torch.autograd.grad(kl.sum(), (p, q))
    with torch.no_grad():
        torch.testing.assert_close(of_q, q.softmax(1) - p.softmax(1))
        ratio = p.log_softmax(1) - q.log_softmax(1)
        torch.testing.assert_close(of_p, p.softmax(1) * (ratio - kl[:, None]))


def test_a_plain_lesson_has_label_losses():
    part = lesson(7)
    torch.testing.assert_close(
        part.loss(TASK, answers(part.images)),
        F.cross_entropy(answers(part.images), part.labels, reduction="none"),
    )
    assert part.total_weight == 7


def test_training_may_smooth_labels():
    part, smooth = lesson(7), ClassificationTask(CLASSES, label_smoothing=0.3)
    expected = F.cross_entropy(answers(part.images), part.labels, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(part.loss(smooth, answers(part.images)), expected)


def test_weights_and_pulls_are_what_they_say():
    part = lesson(4, anchored=3)
    outputs = answers(part.images)
    labels = F.cross_entropy(outputs, part.labels, reduction="none")
    expected = part.weights * labels
    expected[4:] += part.pulls[4:] * divergence(outputs[:3], outputs[4:])
    torch.testing.assert_close(part.loss(TASK, outputs), expected)
    assert (expected[4:] > part.weights[4:] * labels[4:]).all()
    torch.testing.assert_close(part.total_weight, part.weights.sum())


def test_answers_that_are_not_logits_say_themselves_how_far_apart_they_are():
    class Answers:
        def divergence(self, anchors):
            return anchors.float()

    part = lesson(4, anchored=3)
    task = Mock(training_loss=lambda outputs, labels: torch.zeros(len(labels)))
    torch.testing.assert_close(part.loss(task, Answers()), part.pulls * part.anchors)
    with pytest.raises(
        ValueError, match=r"logits as one tensor, or with a method divergence\(anchors\); dict is neither"
    ):
        part.loss(task, {})


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("anchored", [0, 3, 5])
def test_micro_batches_are_the_whole(count, anchored):
    whole = lesson(5, anchored)
    rows = whole.micro_batches(count)
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(len(whole.images)))
    assert len(rows) <= count
    parts = [whole.take(some) for some in rows]
    torch.testing.assert_close(total(*parts), total(whole))
    assert sum(part.num_clean for part in parts) == whole.num_clean


def test_micro_batches_without_anchors_are_consecutive():
    assert [rows.tolist() for rows in lesson(7).micro_batches(3)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("sizes", [((4, 0),), ((4, 0), (3, 0)), ((4, 2), (3, 0)), ((2, 0), (4, 4), (3, 1))])
def test_joined_lessons_ask_for_what_each_of_them_does(sizes):
    parts = [lesson(n, anchored, seed=i) for i, (n, anchored) in enumerate(sizes)]
    whole = join(parts, {"some": 1.0})
    torch.testing.assert_close(total(whole), total(*parts))
    assert whole.num_clean == sum(n for n, _ in sizes)
    assert float(whole.total_weight) == pytest.approx(sum(float(part.total_weight) for part in parts))
    clean = torch.cat([part.images[: part.num_clean] for part in parts])
    assert torch.equal(whole.images[: whole.num_clean], clean)
    assert whole.facts == {"some": 1.0}
    if not any(anchored for _, anchored in sizes):
        assert whole.weights is whole.anchors is whole.pulls is None


def test_lessons_that_are_adversarial_alone_join_behind_the_clean_ones():
    attacked = Lesson(torch.ones(2, 3, 4, 4), torch.tensor([1, 2]), 0)
    whole = join([attacked, lesson(3)], {})
    assert whole.num_clean == 3
    assert torch.equal(whole.images[3:], attacked.images)
    assert whole.labels[3:].tolist() == [1, 2]
