"""Loss, verdict, score, metrics and checks of segmentation."""

from math import exp, log

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from gat.attacks import PGD
from gat.protocols import Task
from tasks import TASKS, SegmentationTask
from tasks.segmentation import confusion_matrices, confusion_metrics

IGNORE = 255
CLASSES = ("sky", "grass", "shoe")


@pytest.fixture
def task():
    return SegmentationTask(CLASSES)


def as_logits(scores):
    """One image of 2x2 pixels from four rows of scores per class."""
    return torch.tensor(scores, dtype=torch.float32).T.reshape(1, 3, 2, 2)


SCORES = [[2.0, 0, -1], [0.5, 0.5, 3], [0, 1, 0], [7, 7, 7]]
LOGITS = as_logits(SCORES)
LABELS = torch.tensor([[[0, 1], [1, IGNORE]]])


def random_maps(n=3, side=5, seed=0, num_classes=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (n, side, side), generator=generator)
    predictions = torch.randint(0, num_classes, (n, side, side), generator=generator)
    labels[torch.rand(n, side, side, generator=generator) < 0.2] = IGNORE
    return predictions, labels


def minus_log_softmax(logits, label):
    return log(sum(exp(x) for x in logits)) - logits[label]


def test_the_task_is_registered_and_has_the_shape_of_one(task):
    assert TASKS[task.name] is SegmentationTask
    assert isinstance(task, Task)


def test_loss_is_the_mean_cross_entropy_over_the_pixels_that_count(task):
    pixels = [minus_log_softmax(SCORES[i], label) for i, label in enumerate((0, 1, 1))]
    torch.testing.assert_close(task.loss(LOGITS, LABELS), torch.tensor([sum(pixels) / 3]))


def test_an_image_without_pixels_that_count_has_no_loss_no_gradient_and_is_not_wrong(task):
    logits = torch.randn(2, 3, 4, 4).requires_grad_()
    labels = torch.full((2, 4, 4), IGNORE)
    labels[1] = 2
    (gradient,) = torch.autograd.grad(task.loss(logits, labels).sum(), logits)
    assert task.loss(logits, labels)[0] == 0
    assert not gradient[0].any()
    assert gradient[1].abs().min() > 0
    assert task.margin(logits, labels)[0] == 0
    assert task.score(task.predict(logits), labels)[0] == 1
    assert not task.wrong(logits, labels)[0]


def test_ignored_pixels_have_no_gradient_and_the_others_softmax_minus_one_hot(task):
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(logits, LABELS).sum(), logits)
    one_hot = torch.eye(3)[torch.tensor([0, 1, 1])]
    wanted = (torch.tensor(SCORES[:3]).softmax(1) - one_hot) / 3
    torch.testing.assert_close(gradient[0].flatten(1).T[:3], wanted)
    assert not gradient[0, :, 1, 1].any()


def test_an_image_has_the_same_numbers_in_any_batch(task):
    _, labels = random_maps()
    logits = torch.randn(3, 3, 5, 5)
    for function in (task.loss, task.margin, task.wrong, task.least_likely):
        alone = [function(logits[i : i + 1], labels[i : i + 1]) for i in range(3)]
        torch.testing.assert_close(function(logits, labels), torch.cat(alone))


def test_numbers_of_half_precision_logits_are_float32(task):
    half = LOGITS.bfloat16()  # exact: all entries have few bits
    for function in (task.loss, task.margin):
        assert function(half, LABELS).dtype == torch.float32
        torch.testing.assert_close(function(half, LABELS), function(LOGITS, LABELS))


def test_predictions_margins_and_scores_of_given_logits(task):
    assert task.predict(LOGITS).tolist() == [[[0, 2], [1, 0]]]
    torch.testing.assert_close(task.margin(LOGITS, LABELS), torch.tensor([(2 - 2.5 + 1) / 3]))
    torch.testing.assert_close(task.score(task.predict(LOGITS), LABELS), torch.tensor([2 / 3]))


def test_the_least_likely_class_is_the_lowest_that_is_not_the_label_and_ignored_pixels_stay_so(task):
    labels = torch.tensor([[[2, 0], [0, IGNORE]]])
    assert task.least_likely(LOGITS, labels).tolist() == [[[1, 1], [2, IGNORE]]]


def test_random_targets_are_maps_of_other_classes_and_ignored_pixels_stay_so(task):
    labels = torch.tensor([[[2, 0], [0, IGNORE]]] * 2)
    targets = task.random_targets(labels, torch.tensor([0.2, 0.8]))
    assert targets.tolist() == [[[0, 1], [1, IGNORE]], [[1, 2], [2, IGNORE]]]


@pytest.mark.parametrize(("right", "wrong"), [(0, True), (10, True), (11, False), (100, False)])
def test_an_image_is_wrong_once_at_most_a_tenth_of_its_pixels_is_right(task, right, wrong):
    labels = torch.zeros(1, 11, 10, dtype=torch.long)
    labels[0, 10] = IGNORE  # does not count, whatever is predicted there
    predicted = torch.ones(110, dtype=torch.long)
    predicted[:right] = 0
    predicted[100:] = 2
    logits = torch.eye(3)[predicted].T.reshape(1, 3, 11, 10)
    assert task.wrong(logits, labels).tolist() == [wrong]
    assert SegmentationTask(CLASSES, fooled_at=0.5).wrong(logits, labels).tolist() == [right <= 50]


@pytest.mark.parametrize(
    ("on_target", "hit"), [(0, False), (11, False), (89, False), (90, True), (100, True)]
)
def test_a_target_is_hit_once_at_most_a_tenth_of_its_pixels_is_missed(task, on_target, hit):
    """Not being wrong about the target, 11 % of its pixels, is no hit."""
    targets = torch.zeros(1, 11, 10, dtype=torch.long)
    targets[0, 10] = IGNORE
    predicted = torch.ones(110, dtype=torch.long)
    predicted[:on_target] = 0
    logits = torch.eye(3)[predicted].T.reshape(1, 3, 11, 10)
    assert task.hit(logits, targets).tolist() == [hit]


def test_a_targeted_attack_on_a_segmenter_succeeds_where_the_map_is_the_target(task):
    """Each pixel's class is its colour: the attack can paint any map, given the steps, and no other map counts."""
    labels, targets = torch.zeros(2, 4, 4, dtype=torch.long), torch.ones(2, 4, 4, dtype=torch.long)
    targets[0, :2] = 2
    images = torch.eye(3)[labels].permute(0, 3, 1, 2) * 0.2 + 0.4
    few, many = (
        PGD(goal="targeted", eps=0.5, steps=steps, step_size=0.06, random_start=False).run(
            task, torch.nn.Identity(), images, labels, targets=targets
        )
        for steps in (1, 8)
    )
    assert many.success.all() and not few.success.any()
    assert torch.equal(many.predictions, targets)


def test_confusion_matrices_are_those_of_scikit_learn_with_labels_in_rows():
    predictions, labels = random_maps(side=9)
    found = confusion_matrices(predictions, labels, 3)
    assert found.dtype == torch.int64
    for i in range(3):
        counts = labels[i] != IGNORE
        wanted = confusion_matrix(labels[i][counts], predictions[i][counts], labels=range(3))
        assert np.array_equal(found[i], wanted)


def test_evidence_holds_every_pixel_once_and_nothing_else(task):
    predictions, labels = random_maps()
    labels[2] = IGNORE
    evidence = task.evidence(predictions, labels)
    assert evidence[2] == []
    for i in range(2):
        for label, prediction, pixels in evidence[i]:
            assert pixels == int(((labels[i] == label) & (predictions[i] == prediction)).sum()) > 0
        assert sum(pixels for *_, pixels in evidence[i]) == int((labels[i] != IGNORE).sum())


def test_metrics_are_those_of_the_matrix_summed_over_examples(task):
    predictions, labels = random_maps(n=4, seed=1)
    evidence = task.evidence(predictions, labels)
    total = confusion_metrics(confusion_matrices(predictions, labels, 3).sum(0))
    assert task.metrics(evidence) == total
    parts = [*task.evidence(predictions[:1], labels[:1]), *task.evidence(predictions[1:], labels[1:])]
    assert task.metrics(parts) == total
    assert next(iter(total)) == "pixel_accuracy"


def test_metrics_of_a_draw_are_those_of_its_images(task):
    predictions, labels = random_maps(n=4, seed=1)
    evidence = task.evidence(predictions, labels)
    draws = [[0, 1, 2, 3], [2, 2, 0, 2], [3, 3, 3, 3]]
    found = task.resampled_metrics(evidence, draws)
    assert found == [task.metrics([evidence[i] for i in draw]) for draw in draws]
    assert found[0] != found[1] != found[2]


def test_only_pixels_that_are_right_are_read(task):
    logits = torch.eye(3)[torch.tensor([[[0, 1, 2], [2, 1, 0]]])].permute(0, 3, 1, 2)
    labels = torch.tensor([[[0, 2, 2], [255, 1, 1]]])
    assert task.only_read(logits, labels).tolist() == [[[0, 255, 2], [255, 1, 255]]]


def test_metrics_of_a_matrix_by_hand():
    """Two classes that are labels, and one that is only predicted: it is averaged over by none."""
    matrix = torch.tensor([[6, 1, 1], [0, 2, 0], [0, 0, 0]])
    assert confusion_metrics(matrix) == pytest.approx(
        {
            "pixel_accuracy": 8 / 10,
            "mean_class_accuracy": (6 / 8 + 2 / 2) / 2,
            "miou": (6 / 8 + 2 / 3) / 2,
            "fwiou": 0.8 * 6 / 8 + 0.2 * 2 / 3,
        }
    )


def test_metrics_of_perfect_predictions_are_one_and_of_no_pixels_are_not_numbers(task):
    _, labels = random_maps()
    perfect = task.metrics(task.evidence(torch.where(labels == IGNORE, 0, labels), labels))
    assert set(perfect.values()) == {1.0}
    assert all(np.isnan(value) for value in task.metrics([[], []]).values())


def test_the_mean_score_is_the_pixel_accuracy_where_images_have_equally_many_pixels(task):
    predictions, labels = random_maps()
    labels = torch.where(labels == IGNORE, 1, labels)
    accuracy = task.metrics(task.evidence(predictions, labels))["pixel_accuracy"]
    assert float(task.score(predictions, labels).mean()) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.zeros(2, 4, 4), "no fractions"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), r"uint8\[2, 4, 4\]; use labels.long"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.long), r"squeeze\(1\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.long), r"argmax\(1\)"),
        (torch.zeros(4, 4, dtype=torch.long), r"labels\[None\]"),
        (torch.zeros(3, 4, 4, dtype=torch.long), "3 maps for 2 images"),
        (torch.full((2, 4, 4), 3), r"\(sky, grass, shoe\), got \[3\] too; do they count from 1"),
        (torch.full((2, 4, 4), -1), "if -1 is for pixels to ignore, make it 255"),
        (torch.full((2, 4, 4), 254), r"got \[254\] too"),
    ],
)
def test_label_maps_that_are_none_are_refused(task, labels, says):
    with pytest.raises(ValueError, match=says):
        task.check_labels(labels, 2)


def test_a_map_of_ignored_pixels_alone_is_refused_by_its_number(task):
    labels = torch.zeros(4, 2, 2, dtype=torch.long)
    labels[:, 0] = IGNORE
    task.check_labels(labels, 4)
    labels[[1, 3]] = IGNORE
    with pytest.raises(ValueError, match="number 1, 3 of the batch"):
        task.check_labels(labels, 4)


def test_maps_of_another_size_than_the_logits_are_refused(task):
    with pytest.raises(ValueError, match="maps of 8x4 px for logits of 4x8 px"):
        task.loss(torch.zeros(1, 3, 4, 8), torch.zeros(1, 8, 4, dtype=torch.long))


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        (torch.zeros(2, 3), r"got \[2, 3\]"),
        (torch.zeros(2, 4, 5, 5), r"got \[2, 4, 5, 5\]"),
        (torch.zeros(2, 3, 5, 5, dtype=torch.long), "floating point"),
        (torch.full((2, 3, 5, 5), float("nan")), "2 of 2 images hold NaN"),
        (torch.randn(2, 3, 5, 5).softmax(1), "probabilities"),
        ({"out": torch.zeros(2, 3, 5, 5), "aux": None}, r"\['out'\]"),
    ],
)
def test_outputs_that_are_no_logits_of_pixels_are_refused(task, outputs, says):
    with pytest.raises(ValueError, match=says):
        task.check_outputs(outputs)
    task.check_outputs(torch.randn(2, 3, 5, 5))


def test_settings_that_make_no_sense_are_refused():
    for classes, says in (
        (("a",), "2 to 255 classes, got 1"),
        (("a", "b", "a"), "different names.* a"),
        (tuple(map(str, range(256))), "got 256"),
    ):
        with pytest.raises(ValueError, match=says):
            SegmentationTask(classes)
    with pytest.raises(ValueError, match="fooled_at"):
        SegmentationTask(CLASSES, fooled_at=1.0)
