"""Loss, verdict, score, metrics and checks of detection, and the geometry of boxes."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from gat.protocols import Task
from tasks import TASKS, DetectionTask
from tasks.boxes import clip, giou, iou
from tasks.detection import Candidates, average_precision

CLASSES = ("boot", "bag", "coat")
PADDING = [0.0, 0, 0, 0, -1, 0]


class Answer(NamedTuple):
    """Outputs of a detector that says what it is told."""

    boxes: Tensor
    scores: Tensor

    def losses(self, labels: Tensor) -> Tensor:
        return self.scores.flatten(1).sum(1).bfloat16()

    def candidates(self) -> Candidates:
        return Candidates(self.boxes, self.scores)


@pytest.fixture
def task():
    return DetectionTask(CLASSES, threshold=0.3)


def random_boxes(generator, *shape, side=40.0):
    corner = torch.rand(*shape, 2, generator=generator) * side
    return torch.cat([corner, corner + 2 + torch.rand(*shape, 2, generator=generator) * side / 2], dim=-1)


def random_case(seed=0, b=6, n=30, m=4, k=3, own_boxes=False):
    """Answers and labels of which some are found: half of the candidates are near an object."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(b, m, 6)
    labels[..., :4] = random_boxes(generator, b, m)
    labels[..., 4] = torch.randint(-1, k, (b, m), generator=generator)
    labels[..., 5] = (torch.rand(b, m, generator=generator) < 0.2) & (labels[..., 4] >= 0)
    labels[0, :, 4] = -1  # nothing there
    labels[labels[..., 4] < 0] = torch.tensor(PADDING)
    shape = (b, n, k) if own_boxes else (b, n)
    boxes = random_boxes(generator, *shape)
    near = labels[:, :, :4].repeat(1, n // m, 1)
    near = near + torch.randn(near.shape, generator=generator) * 2
    near = torch.where(
        (near[..., 2:] > near[..., :2]).all(2, keepdim=True), near, torch.tensor([0.0, 0, 1, 1])
    )
    if own_boxes:
        boxes[:, : near.shape[1]] = near[:, :, None]
    else:
        boxes[:, : near.shape[1]] = near
    return Answer(boxes, torch.rand(b, n, k, generator=generator) ** 2), labels


def overlap(a, b):
    """IoU of two lists of four numbers."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / both if both > 0 else 0.0


def found_slowly(answer, labels, threshold=0.3):
    """Share of objects found per image, by four loops."""
    shares = []
    for boxes, scores, rows in zip(
        answer.boxes.tolist(), answer.scores.tolist(), labels.tolist(), strict=True
    ):
        real = [row for row in rows if row[4] >= 0 and row[5] == 0]
        hits = 0
        for row in real:
            k = int(row[4])
            hits += any(
                score[k] >= threshold and overlap(box[k] if isinstance(box[0], list) else box, row) >= 0.5
                for box, score in zip(boxes, scores, strict=True)
            )
        shares.append(hits / len(real) if real else 1.0)
    return shares


def test_the_task_is_registered_and_has_the_shape_of_one(task):
    assert TASKS[task.name] is DetectionTask
    assert isinstance(task, Task)


# Boxes


def test_iou_and_giou_are_those_of_torchvision():
    generator = torch.Generator().manual_seed(0)
    a, b = random_boxes(generator, 20), random_boxes(generator, 30)
    torch.testing.assert_close(iou(a[:, None], b), box_iou(a, b))
    torch.testing.assert_close(giou(a[:, None], b), generalized_box_iou(a, b))
    assert 0 < (box_iou(a, b) > 0).float().mean() < 1


def test_giou_of_boxes_apart_is_minus_the_gap_between_them():
    a, b = torch.tensor([0.0, 0, 1, 1]), torch.tensor([3.0, 0, 4, 1], requires_grad=True)
    value = giou(a, b)
    assert value.item() == pytest.approx(-0.5)  # the hull of 4 px has 2 that neither covers
    (gradient,) = torch.autograd.grad(value, b)
    assert gradient[0] < 0  # moving its near side closer helps
    assert iou(a, b).item() == 0


def test_boxes_without_area_overlap_nothing():
    point = torch.tensor([1.0, 1, 1, 1])
    assert float(iou(point, point)) == 0
    assert torch.isfinite(giou(point, torch.zeros(4)))


def test_boxes_are_cut_off_at_the_borders_of_an_image():
    boxes = torch.tensor([[-3.0, 2, 70, 40]])
    assert clip(boxes, torch.tensor([64.0, 32.0])).tolist() == [[0, 2, 64, 32]]


# Verdicts, predictions, scores


@pytest.mark.parametrize("own_boxes", [False, True])
@pytest.mark.parametrize("fooled_at", [0.0, 0.5])
def test_wrong_says_what_four_loops_say(own_boxes, fooled_at):
    task = DetectionTask(CLASSES, threshold=0.3, fooled_at=fooled_at)
    answer, labels = random_case(seed=1, b=24, n=12, own_boxes=own_boxes)
    shares = found_slowly(answer, labels)
    wanted = [share <= fooled_at for share in shares]
    assert 0 < sum(wanted) < len(wanted)
    assert task.wrong(answer, labels).tolist() == wanted
    hits = [share >= 1 - fooled_at for share in shares]
    assert task.hit(answer, labels).tolist() == hits
    assert 0 < sum(hits) < len(hits) and hits != [not wrong for wrong in wanted]


def test_an_image_without_objects_is_never_wrong_and_scores_one(task):
    answer, labels = random_case()
    assert (labels[0, :, 4] == -1).all()
    assert not task.wrong(answer, labels)[0]
    assert task.score(task.predict(answer), labels)[0] == 1


def test_class_score_and_overlap_all_have_to_be_right(task):
    labels = torch.tensor([[[0.0, 0, 10, 10, 1, 0]]])
    half = [0.0, 0, 10, 5]  # IoU is exactly a half
    cases = {
        (0.9, 1, tuple(half)): False,
        (0.3, 1, tuple(half)): False,
        (0.29, 1, tuple(half)): True,
        (0.9, 0, tuple(half)): True,
        (0.9, 1, (0.0, 0, 10, 4.9)): True,
    }
    for (score, k, box), wanted in cases.items():
        answer = Answer(torch.tensor([[box]]), torch.zeros(1, 1, 3))
        answer.scores[0, 0, k] = score
        assert bool(task.wrong(answer, labels)) is wanted
        assert float(task.score(task.predict(answer), labels)) == 1 - wanted


def suppress_slowly(boxes, scores, k, nms, least):
    rows = [
        (score, box[label] if isinstance(box[0], list) else box, label)
        for box, some in zip(boxes, scores, strict=True)
        for label, score in enumerate(some)
        if score >= least
    ]
    kept = []
    for score, box, label in sorted(rows, key=lambda row: -row[0]):
        if all(other != label or overlap(box, best) <= nms for _, best, other in kept):
            kept.append((score, box, label))
    return kept


@pytest.mark.parametrize("own_boxes", [False, True])
def test_predictions_are_those_of_greedy_suppression_by_falling_score(own_boxes):
    task = DetectionTask(CLASSES, min_score=0.1, nms_overlap=0.4, max_detections=80)
    answer, _ = random_case(own_boxes=own_boxes)
    predictions = task.predict(answer)
    assert predictions.shape == (6, 80, 6)
    for rows, boxes, scores in zip(predictions, answer.boxes.tolist(), answer.scores.tolist(), strict=True):
        wanted = suppress_slowly(boxes, scores, 3, 0.4, 0.1)
        assert 10 < len(wanted) < 80
        torch.testing.assert_close(
            rows[: len(wanted)],
            torch.tensor([[*box, score, label] for score, box, label in wanted], dtype=torch.float32),
        )
        assert rows[len(wanted) :, 5].eq(-1).all() and rows[len(wanted) :, :5].eq(0).all()


def test_no_more_than_the_best_are_predicted(task):
    answer, _ = random_case()
    few = DetectionTask(CLASSES, max_detections=3).predict(answer)
    assert torch.equal(few, task.predict(answer)[:, :3])


def test_an_example_is_judged_the_same_in_any_batch(task):
    answer, labels = random_case()
    alone = [(Answer(*(part[i : i + 1] for part in answer)), labels[i : i + 1]) for i in range(6)]
    assert torch.equal(task.wrong(answer, labels), torch.cat([task.wrong(*one) for one in alone]))
    assert torch.equal(task.predict(answer), torch.cat([task.predict(one) for one, _ in alone]))
    assert torch.equal(
        task.least_likely(answer, labels), torch.cat([task.least_likely(*one) for one in alone])
    )


def test_the_score_is_the_share_of_objects_that_some_prediction_finds(task):
    answer, labels = random_case(seed=3, b=12)
    predictions = task.predict(answer)
    shares = []
    for rows, wanted in zip(predictions.tolist(), labels.tolist(), strict=True):
        real = [row for row in wanted if row[4] >= 0 and row[5] == 0]
        hits = [any(p[5] == r[4] and p[4] >= 0.3 and overlap(p, r) >= 0.5 for p in rows) for r in real]
        shares.append(sum(hits) / len(real) if real else 1.0)
    assert len(set(shares)) > 2
    torch.testing.assert_close(task.score(predictions, labels), torch.tensor(shares))


def test_losses_are_float32(task):
    answer, labels = random_case()
    assert task.loss(answer, labels).dtype == torch.float32


def test_the_least_likely_class_is_read_off_the_nearest_box_and_is_never_the_label(task):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]]])
    scores = torch.tensor([[[0.1, 0.5, 0.4], [0.3, 0.2, 0.9]]])
    rows = [[0.0, 0, 9, 10, 0, 0], [20, 21, 30, 30, 0, 0], [0, 0, 9, 9, 2, 1], PADDING]
    targets = task.least_likely(Answer(boxes, scores), torch.tensor([rows]))
    assert targets[0, :, 4].tolist() == [2, 1, 2, -1]  # crowd and padding stay
    targets[..., 4] = torch.tensor(rows)[:, 4]
    assert targets[0].tolist() == rows


def test_random_targets_are_the_same_boxes_of_other_classes(task):
    rows = [[0.0, 0, 9, 10, 0, 0], [20, 21, 30, 30, 2, 0], [0, 0, 9, 9, 2, 1], PADDING]
    targets = task.random_targets(torch.tensor([rows, rows]), torch.tensor([0.2, 0.8]))
    assert targets[..., 4].tolist() == [[1, 0, 2, -1], [2, 1, 2, -1]]  # crowd and padding stay
    targets[..., 4] = torch.tensor(rows)[:, 4]
    assert targets.tolist() == [rows, rows]


def test_with_one_class_there_is_no_other_to_aim_at():
    answer, labels = random_case(k=1)
    with pytest.raises(ValueError, match="the only class is boot"):
        DetectionTask(["boot"]).least_likely(answer, labels)
    with pytest.raises(ValueError, match="the only class is boot"):
        DetectionTask(["boot"]).random_targets(labels, torch.full([len(labels)], 0.5))


# Average precision


def predictions_of(labels, score=0.9):
    """Perfect ones."""
    found = torch.zeros(len(labels), 10, 6)
    found[..., 5] = -1
    for rows, target in zip(labels, found, strict=True):
        real = rows[(rows[:, 4] >= 0) & (rows[:, 5] == 0)]
        target[: len(real)] = torch.cat([real[:, :4], torch.full((len(real), 1), score), real[:, 4:5]], 1)
    return found


def test_perfect_detections_have_a_precision_of_one(task):
    _, labels = random_case(b=12)
    evidence = task.evidence(predictions_of(labels), labels)
    assert task.metrics(evidence) == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1})
    assert next(iter(task.metrics(evidence))) == "ap"


def test_evidence_survives_json_and_holds_no_padding(task):
    answer, labels = random_case()
    evidence = task.evidence(task.predict(answer), labels)
    assert json.loads(json.dumps(evidence)) == evidence
    assert evidence[0]["boxes"] == []
    for example, rows in zip(evidence, labels, strict=True):
        assert len(example["boxes"]) == int((rows[:, 4] >= 0).sum())
        assert all(k >= 0 for *_, k in example["detections"])
    exact = [
        {
            "boxes": [[*row[:4], int(row[4]), int(row[5])] for row in rows.tolist() if row[4] >= 0],
            "detections": [[*row[:5], int(row[5])] for row in some.tolist() if row[5] >= 0],
        }
        for rows, some in zip(labels, task.predict(answer), strict=True)
    ]
    assert task.metrics(evidence) == pytest.approx(average_precision(exact, 3), abs=0.01)


def test_precision_of_given_detections_is_the_closed_form():
    square, other = [0.0, 0, 10, 10], [20.0, 20, 30, 30]
    truth = [[*square, 0, 0], [*other, 0, 0]]
    # One of two objects found first, then a false alarm: precision 1 up to recall 1/2, none above; of 101 recalls 51 are reached.
    one = [{"boxes": truth, "detections": [[*square, 0.9, 0], [40, 40, 50, 50, 0.8, 0]]}]
    assert average_precision(one, 1) == pytest.approx(dict.fromkeys(("ap", "ap50", "ap75"), 51 / 101))
    # The false alarm first: precision 1/2 there.
    late = [{"boxes": truth, "detections": [[*square, 0.7, 0], [40, 40, 50, 50, 0.8, 0]]}]
    assert average_precision(late, 1)["ap50"] == pytest.approx(51 / 101 / 2)
    # An IoU of 0.62 passes at 0.5, 0.55 and 0.6 of ten thresholds.
    loose = [{"boxes": truth[:1], "detections": [[0, 0, 10, 6.2, 0.9, 0]]}]
    assert average_precision(loose, 1) == pytest.approx({"ap": 0.3, "ap50": 1, "ap75": 0})
    # The wrong class finds nothing; classes without objects do not count.
    assert average_precision([{"boxes": truth, "detections": [[*square, 0.9, 2]]}], 3)["ap"] == 0


def test_detections_of_crowds_and_in_other_images_are_told_apart():
    crowd, lone = [0.0, 0, 30, 30, 0, 1], [40.0, 40, 50, 50, 0, 0]
    on_crowd = [[1, 1, 12, 12, 0.95, 0], [15, 15, 28, 28, 0.94, 0], [*lone[:4], 0.9, 0]]
    assert average_precision([{"boxes": [crowd, lone], "detections": on_crowd}], 1)["ap50"] == pytest.approx(
        1
    )
    assert average_precision([{"boxes": [lone], "detections": on_crowd}], 1)["ap50"] == pytest.approx(1 / 3)
    elsewhere = [{"boxes": [lone], "detections": []}, {"boxes": [], "detections": [[*lone[:4], 0.9, 0]]}]
    assert average_precision(elsewhere, 1)["ap50"] == 0


def test_precision_is_nan_without_objects_and_zero_without_detections(task):
    alarm = {"boxes": [], "detections": [[0, 0, 9, 9, 0.9, 0]]}
    for evidence in ([], [alarm], [{"boxes": [[0, 0, 9, 9, 0, 1]], "detections": []}]):
        assert all(value != value for value in task.metrics(evidence).values())
    assert set(task.metrics([{"boxes": [[0, 0, 9, 9, 0, 0]], "detections": []}]).values()) == {0.0}


def test_precision_of_a_draw_is_that_of_its_images(task):
    """Every draw against the whole computation on the images drawn; crowds, empty images and repetitions included."""
    answer, labels = random_case(b=12)
    evidence = task.evidence(task.predict(answer), labels)
    rng = np.random.default_rng(0)
    draws = [list(range(12)), [5] * 12, *rng.integers(12, size=(6, 12)).tolist()]
    found = task.resampled_metrics(evidence, draws)
    assert len({metrics["ap"] for metrics in found}) > 4
    for draw, metrics in zip(draws, found, strict=True):
        assert metrics == pytest.approx(task.metrics([evidence[i] for i in draw]), nan_ok=True, abs=1e-12)
    assert found[0] == task.metrics(evidence)
    bare = [
        {"boxes": [], "detections": [[0, 0, 9, 9, 0.9, 0]]},
        {"boxes": [[0, 0, 9, 9, 0, 0]], "detections": []},
    ]
    nothing, missed = task.resampled_metrics(bare, [[0, 0], [1, 1]])
    assert all(value != value for value in nothing.values())
    assert set(missed.values()) == {0.0}


def test_precision_says_nothing_on_the_way(task, capfd):
    _, labels = random_case()
    task.metrics(task.evidence(predictions_of(labels), labels))
    assert capfd.readouterr() == ("", "")


# Bad input

GOOD = torch.tensor([[[0.0, 0, 8, 8, 2, 0], PADDING], [PADDING, [1, 1, 3, 2, 0, 1]]])


def changed(row, column, value):
    labels = GOOD.clone()
    labels[0, row, column] = value
    return labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (GOOD[0], r"got float32\[2, 6\]; a single image needs a batch axis"),
        (GOOD[..., :5], r"got float32\[2, 2, 5\]"),
        (GOOD.double(), r"got float64.*use labels.float\(\)"),
        (changed(0, 4, 3), r"0 .. 2 \(boot, bag, coat\), got \[3.0\] too"),
        (changed(0, 4, 1.5), r"got \[1.5\] too"),
        (changed(0, 4, -2), r"got \[-2.0\] too"),
        (changed(0, 5, 2), r"got crowd \[1.0, 2.0\]"),
        (changed(0, 2, 0), r"1 have none, in image 0 of the batch; the first is \[0.0, 0.0, 0.0, 8.0\]$"),
        (changed(0, 1, 9), r"x y width height"),
        (changed(0, 0, float("nan")), "NaN or infinity in image 0"),
        (changed(0, 4, float("nan")), "NaN or infinity in image 0"),
        (changed(0, 2, 33), r"must lie in their images of 24x32 px.*image 0.*\[0.0, 0.0, 33.0, 8.0\]"),
        (GOOD[1:], "none of the 1 images has an object to find"),
    ],
)
def test_labels_that_are_no_boxes_are_refused(task, labels, message):
    with pytest.raises(ValueError, match=message):
        task.check_labels(labels, None, (24, 32))


def test_good_labels_pass_and_are_counted(task):
    task.check_labels(GOOD, 2, (24, 32))
    task.check_labels(changed(0, 0, -0.4), 2, (24, 32))  # rounding
    with pytest.raises(ValueError, match="got 2 for 3 images"):
        task.check_labels(GOOD, 3)
    one_based = GOOD.clone()
    one_based[0, 0, 4] = 3
    one_based[1, 1, 4] = 1
    with pytest.raises(ValueError, match="do they count from 1"):
        task.check_labels(one_based, 2)


def test_outputs_that_are_no_detectors_are_refused(task):
    good, _ = random_case()
    task.check_outputs(good)
    task.check_outputs(random_case(own_boxes=True)[0])
    bad = {
        r"got Tensor": torch.zeros(2, 3),
        r"got dict; networks of torchvision and detectron2": {"loss": 1},
        r"got scores \[6, 30, 2\], wanted \[b, n, 3\]": Answer(good.boxes, good.scores[..., :2]),
        r"got boxes \[6, 29, 4\]": Answer(good.boxes[:, 1:], good.scores),
        r"those of 6 of 6 images hold NaN": Answer(good.boxes * float("nan"), good.scores),
        r"in \[0, 1\], got .* to 3": Answer(good.boxes, good.scores.clamp(min=3.0)),
    }
    for message, outputs in bad.items():
        with pytest.raises(ValueError, match=message):
            task.check_outputs(outputs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ()}, "at least 1 class"),
        ({"classes": ("a", "b", "a")}, "more than one a"),
        ({"threshold": 0.0}, "threshold must be above 0"),
        ({"overlap": 1.0}, "overlap must be above 0 and below 1, got 1.0"),
        ({"fooled_at": 1.0}, "fooled_at must be at least 0 and below 1"),
        ({"min_score": 0.4}, "at most the threshold, got 0.4 and 0.3"),
        ({"max_detections": 0}, "at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DetectionTask(**({"classes": CLASSES, "threshold": 0.3} | settings))
