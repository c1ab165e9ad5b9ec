"""Loss, verdict and checks of classification."""

from math import exp, log

import pytest
import torch

from gat.protocols import Task
from tasks import TASKS, ClassificationTask

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
LABELS = torch.tensor([0, 1])


@pytest.fixture
def task():
    return ClassificationTask(["boot", "bag", "coat"], label_smoothing=0.3)


def minus_log_softmax(logits, label):
    return log(sum(exp(x) for x in logits)) - logits[label]


def test_the_task_is_registered_and_has_the_shape_of_one(task):
    assert TASKS[task.name] is ClassificationTask
    assert isinstance(task, Task)


def test_loss_is_the_closed_form_of_cross_entropy_per_example_without_smoothing(task):
    wanted = [minus_log_softmax([2, 0, -1], 0), minus_log_softmax([0.5, 0.5, 3], 1)]
    torch.testing.assert_close(task.loss(LOGITS, LABELS), torch.tensor(wanted))


def test_training_loss_mixes_in_the_mean_over_all_labels(task):
    uniform = [sum(minus_log_softmax(row, k) for k in range(3)) / 3 for row in ([2, 0, -1], [0.5, 0.5, 3])]
    wanted = 0.7 * task.loss(LOGITS, LABELS) + 0.3 * torch.tensor(uniform)
    torch.testing.assert_close(task.training_loss(LOGITS, LABELS), wanted)


def test_loss_gradient_is_softmax_minus_one_hot(task):
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(logits, LABELS).sum(), logits)
    wanted = LOGITS.softmax(1) - torch.eye(3)[LABELS]
    torch.testing.assert_close(gradient, wanted)


def test_an_example_has_the_same_loss_in_any_batch(task):
    logits, labels = torch.randn(3, 3), torch.tensor([2, 0, 1])
    alone = [task.loss(logits[i : i + 1], labels[i : i + 1]) for i in range(3)]
    assert torch.equal(task.loss(logits, labels), torch.cat(alone))


def test_loss_and_margin_of_half_precision_logits_are_float32(task):
    half = LOGITS.bfloat16()  # exact: all entries have few bits
    for function in (task.loss, task.training_loss, task.margin):
        assert function(half, LABELS).dtype == torch.float32
        assert torch.equal(function(half, LABELS), function(LOGITS, LABELS))


def test_predictions_margins_and_least_likely_classes_of_given_logits(task):
    assert task.predict(LOGITS).tolist() == [0, 2]
    assert task.wrong(LOGITS, LABELS).tolist() == [False, True]
    assert task.margin(LOGITS, LABELS).tolist() == [2.0, -2.5]
    assert task.least_likely(LOGITS, LABELS).tolist() == [2, 0]


def test_the_least_likely_class_is_never_the_label(task):
    assert task.least_likely(LOGITS, torch.tensor([2, 0])).tolist() == [1, 1]


def test_random_targets_are_every_other_class_equally_often(task):
    places = (torch.arange(3000) + 0.5) / 3000
    for label in range(3):
        targets = task.random_targets(torch.full([3000], label), places)
        assert targets.bincount(minlength=3).tolist() == [0 if i == label else 1500 for i in range(3)]


def test_two_classes_are_enough():
    task = ClassificationTask(("female", "male"))
    logits, labels = torch.tensor([[1.0, -1.0], [0.0, 3.0]]), torch.tensor([0, 0])
    torch.testing.assert_close(task.loss(logits, labels), torch.tensor([log(1 + exp(-2)), log(1 + exp(3))]))
    assert task.margin(logits, labels).tolist() == [2.0, -3.0]
    assert task.least_likely(logits, labels).tolist() == [1, 1]
    assert task.random_targets(torch.tensor([0, 1, 0]), torch.tensor([1e-7, 0.5, 1.0])).tolist() == [1, 0, 1]
    task.check_outputs(logits)
    task.check_labels(labels, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["cat"]}, r"at least 2 classes, got 1"),
        ({"classes": ["cat", "dog", "cat"]}, "more than one cat"),
        ({"classes": ["cat", "dog"], "label_smoothing": 1.0}, r"below 1, got 1.0"),
    ],
)
def test_impossible_tasks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassificationTask(**arguments)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.0, 1.0]), r"must be int64 \[b\] in 0 .. 2, got float32\[2\]"),
        (torch.tensor([0, 1], dtype=torch.int32), r"got int32\[2\]; use labels.long"),
        (torch.tensor([[0], [1]]), "squeeze"),
        (torch.eye(3)[:2], "argmax"),
        (torch.tensor([0, 1, 2]), "3 labels for 2 images"),
        (torch.tensor([0, -100]), r"\(boot, bag, coat\), got \[-100\]"),
        (torch.tensor([3, 1]), r"got \[3\] too; do they count from 1"),
        (torch.tensor([3, 0]), r"got \[3\] too$"),
    ],
)
def test_labels_that_do_not_fit_are_refused_at_the_door(task, labels, message):
    with pytest.raises(ValueError, match=message):
        task.check_labels(labels, 2)
