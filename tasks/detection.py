"""The task of finding objects: loss, verdict, scores and checks, one number per example."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float32, Int64
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.ops import batched_nms

from gat.latents import PerExample, Verdicts
from gat.logits import further_classes
from tasks.boxes import iou

Objects = Float32[Tensor, "b m 6"]  # x0 y0 x1 y1 in px, class (-1: padding), crowd (0 or 1)
Detections = Float32[Tensor, "b d 6"]  # x0 y0 x1 y1 in px, score, class (-1: padding), by falling score


class Candidates(NamedTuple):
    """Everything a detector sees, before it makes up its mind.

    Attributes:
        boxes: [b, n, 4] in px of the image, or [b, n, k, 4] where every class has its own.
        scores: [b, n, k] in [0, 1]; 0 where there is no candidate.
    """

    boxes: Tensor
    scores: Tensor


@runtime_checkable
class DetectorOutputs(Protocol):
    """What a detector returns for a batch of images, and all that the task asks of it."""

    def losses(self, labels: Objects) -> PerExample:
        """Training loss of every image by itself, float32."""
        ...

    def candidates(self) -> Candidates:
        """Boxes and scores before non-maximum suppression, float32."""
        ...


def countable(labels: Objects) -> Bool[Tensor, "b m"]:
    """Which rows are objects that are to be found: neither padding nor crowds."""
    return (labels[..., 4] >= 0) & (labels[..., 5] == 0)


class DetectionTask:
    """Detection of objects of one or more named classes; a `gat.protocols.Task`. An object is found where the detector sees its
    class, with at least the score `threshold`, in a box that overlaps the true one by at least the IoU `overlap`.

    Args:
        classes: Names; labels index them.
        threshold: Smallest score that counts as seen.
        overlap: Smallest IoU that counts as found.
        fooled_at: An image counts as wrong once at most this share of its objects is found, and as a hit once at most this share of
            what a targeted attack wants is not.
        min_score: Smallest score that a prediction is listed with; average precision wants the doubtful ones too.
        nms_overlap: Of two predictions of one class with a larger IoU the better is kept.
        max_detections: Predictions per image (COCO: 100).

    Raises:
        ValueError: If there are no classes, two have one name, or a number is out of its range.
    """

    name = "detection"

    def __init__(
        self,
        classes: Sequence[str],
        threshold: float = 0.3,
        overlap: float = 0.5,
        fooled_at: float = 0.0,
        min_score: float = 0.05,
        nms_overlap: float = 0.6,
        max_detections: int = 100,
    ) -> None:
        if not classes:
            raise ValueError("detection needs at least 1 class, got none")
        if len(set(classes)) < len(classes):
            twice = sorted({name for name in classes if list(classes).count(name) > 1})
            raise ValueError(f"classes need different names, got more than one {', '.join(twice)}")
        shares = {
            "threshold": threshold,
            "overlap": overlap,
            "min_score": min_score,
            "nms_overlap": nms_overlap,
        }
        for name, value in shares.items():
            if not 0 < value < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {value}")
        if not 0 <= fooled_at < 1:
            raise ValueError(f"fooled_at must be at least 0 and below 1, got {fooled_at}")
        if min_score > threshold:
            raise ValueError(f"min_score must be at most the threshold, got {min_score} and {threshold}")
        if max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, got {max_detections}")
        self.classes = tuple(classes)
        self.num_classes = len(classes)
        self.threshold, self.overlap, self.fooled_at = threshold, overlap, fooled_at
        self.min_score, self.nms_overlap, self.max_detections = min_score, nms_overlap, max_detections

    def loss(self, outputs: DetectorOutputs, labels: Objects) -> PerExample:
        """The detector's own training loss, of every image by itself."""
        return outputs.losses(labels).float()

    @torch.no_grad()
    def wrong(self, outputs: DetectorOutputs, labels: Objects) -> Verdicts:
        """Whether at most `fooled_at` of the objects are found; never without objects."""
        return self._found(outputs, labels) <= self.fooled_at

    def hit(self, outputs: DetectorOutputs, targets: Objects) -> Verdicts:
        """Whether all but `fooled_at` of the targets are found; always without any."""
        return self._found(outputs, targets) >= 1 - self.fooled_at

    def _found(self, outputs: DetectorOutputs, labels: Objects) -> PerExample:
        """Share of the objects that a candidate finds; 1 without objects.

        Any candidate will do, so nothing is sorted or suppressed: it is asked in every step of an attack.
        """
        boxes, scores = outputs.candidates()
        seen = _of_class(scores, labels) >= self.threshold
        if boxes.ndim == 4:
            boxes = boxes.gather(2, _classes(labels)[:, None, :, None].expand(-1, boxes.shape[1], -1, 4))
        else:
            boxes = boxes[:, :, None]
        met = iou(boxes, labels[:, None, :, :4]) >= self.overlap
        return _share((seen & met).any(1), labels)

    @torch.no_grad()
    def predict(self, outputs: DetectorOutputs) -> Detections:
        """The best candidates after non-maximum suppression within every class, `max_detections` rows per image."""
        boxes, scores = outputs.candidates()
        num_classes = scores.shape[2]
        # A bounded number of the best goes into the suppression, as everywhere.
        best = scores.flatten(1).topk(min(scores[0].numel(), 10 * self.max_detections))
        place = best.indices if boxes.ndim == 4 else best.indices // num_classes
        chosen = boxes.reshape(len(boxes), -1, 4).gather(1, place[..., None].expand(-1, -1, 4))
        classes = (best.indices % num_classes).float()
        rows = torch.cat([chosen, best.values[..., None], classes[..., None]], dim=2).float()
        found = rows.new_zeros(len(rows), self.max_detections, 6)
        found[..., 5] = -1
        for some, target in zip(rows, found, strict=True):
            some = some[some[:, 4] >= self.min_score]
            kept = batched_nms(some[:, :4], some[:, 4], some[:, 5], self.nms_overlap)
            kept = kept[: self.max_detections]
            target[: len(kept)] = some[kept]
        return found

    def score(self, predictions: Detections, labels: Objects) -> PerExample:
        """The share of the objects that are found; 1 for an image without any."""
        same = predictions[:, :, None, 5] == labels[:, None, :, 4]
        seen = predictions[:, :, None, 4] >= self.threshold
        met = iou(predictions[:, :, None, :4], labels[:, None, :, :4]) >= self.overlap
        return _share((same & seen & met).any(1), labels)

    @torch.no_grad()
    def least_likely(self, outputs: DetectorOutputs, labels: Objects) -> Objects:
        """The same boxes, each with the class that scores lowest in the candidate box nearest to it, but never its own. Crowds and
        padding stay what they are.

        Raises:
            ValueError: With one class there is no other.
        """
        if self.num_classes < 2:
            raise ValueError(
                f"the only class is {self.classes[0]}: no other is least likely; use goal 'loss'"
            )
        boxes, scores = outputs.candidates()
        own = _classes(labels)
        if boxes.ndim == 4:
            boxes = boxes.gather(2, own[:, None, :, None].expand(-1, boxes.shape[1], -1, 4))
        else:
            boxes = boxes[:, :, None]
        nearest = iou(boxes, labels[:, None, :, :4]).argmax(1)
        there = scores.gather(1, nearest[..., None].expand(-1, -1, scores.shape[2]))
        least = there.scatter(2, own[..., None], float("inf")).argmin(2)
        return _renamed(labels, least)

    def random_targets(self, labels: Objects, places: PerExample) -> Objects:
        """The same boxes, each with another class, for `places` uniform in (0, 1) any other equally often. Crowds and padding stay
        what they are.

        Raises:
            ValueError: With one class there is no other.
        """
        if self.num_classes < 2:
            raise ValueError(
                f"the only class is {self.classes[0]}: there is no other to aim at; use goal 'loss'"
            )
        return _renamed(labels, further_classes(_classes(labels), places, self.num_classes))

    def evidence(self, predictions: Detections, labels: Objects) -> list[dict[str, list[list[float]]]]:
        """Per example its true boxes and what was predicted, both without padding; coordinates to 0.01 px."""
        found: list[dict[str, list[list[float]]]] = []
        for some, wanted in zip(predictions.double().cpu(), labels.double().cpu(), strict=True):
            some, wanted = some[some[:, 5] >= 0], wanted[wanted[:, 4] >= 0]
            found.append(
                {
                    "boxes": [[*_rounded(row[:4], 2), int(row[4]), int(row[5])] for row in wanted.tolist()],
                    "detections": [
                        [*_rounded(row[:4], 2), *_rounded(row[4:5], 6), int(row[5])] for row in some.tolist()
                    ],
                }
            )
        return found

    def metrics(self, evidence: Sequence[Any]) -> dict[str, float]:
        """Average precision by the rules of COCO, from what `evidence` gave for the examples of a data set: see
        `average_precision`."""
        return average_precision(evidence, self.num_classes)

    def resampled_metrics(
        self, evidence: Sequence[Any], draws: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """`metrics` of every draw of as many examples, given by their indices; what matches what is found out once for all."""
        return average_precisions(evidence, self.num_classes, draws)

    def check_outputs(self, outputs: object) -> None:
        """Refuses what is not the outputs of a detector of so many classes; see `check_detector_outputs`."""
        check_detector_outputs(outputs, self.num_classes)

    def check_labels(
        self, labels: Tensor, num_examples: int | None = None, size: tuple[int, int] | None = None
    ) -> None:
        """Refuses what is not float32 [b, m, 6] of boxes with an area, classes 0 .. num_classes - 1 (-1 for padding) and crowd 0
        or 1. A door check: it waits for the device.

        Args:
            num_examples: How many images there are; None if unknown.
            size: Height and width of the images in px; None if unknown.

        Raises:
            ValueError: Saying what arrived, and in which image of the batch.
        """
        wanted = "boxes must be float32 [b, m, 6] (x0 y0 x1 y1 in px, class or -1 for padding, crowd 0 or 1)"
        got = f"{str(labels.dtype).removeprefix('torch.')}{list(labels.shape)}"
        if labels.ndim != 3 or labels.shape[2] != 6:
            hint = "; a single image needs a batch axis: labels[None]" if labels.ndim == 2 else ""
            raise ValueError(f"{wanted}, got {got}{hint}")
        if labels.dtype != torch.float32:
            raise ValueError(f"{wanted}, got {got}; use labels.float()")
        if num_examples is not None and len(labels) != num_examples:
            raise ValueError(f"boxes of every image are wanted, got {len(labels)} for {num_examples} images")
        classes, crowd = labels[..., 4], labels[..., 5]
        # Not `classes >= 0`: NaN must not pass for padding.
        real = classes != -1
        rows = labels[real]
        if not rows.isfinite().all():
            raise ValueError(f"{wanted}, got NaN or infinity in {_images(real & ~labels.isfinite().all(2))}")
        alien = real & ((classes < 0) | (classes >= self.num_classes) | (classes != classes.floor()))
        if alien.any():
            values = sorted(set(classes[alien].tolist()))
            names = f" ({', '.join(self.classes[:10])}{', ...' if self.num_classes > 10 else ''})"
            hint = ""
            if values == [self.num_classes] and rows[:, 4].min() >= 1:
                hint = "; do they count from 1?"
            raise ValueError(
                f"classes of boxes must be 0 .. {self.num_classes - 1}{names}, got {values[:10]} too{hint}"
            )
        if ((crowd != 0) & (crowd != 1) & real).any():
            raise ValueError(f"{wanted}, got crowd {sorted(set(crowd[real].tolist()))[:10]}")
        x0, y0, x1, y1 = labels[..., :4].unbind(2)
        flat = real & ((x1 <= x0) | (y1 <= y0))
        if flat.any():
            hint = ""
            if (labels[..., 2:4] < labels[..., :2])[real].any():
                hint = "; if they are x y width height, add the corner to the size"
            raise ValueError(
                f"boxes need an area (x1 > x0, y1 > y0), but {int(flat.sum())} have none, in {_images(flat)}; the first is "
                f"{[round(value, 2) for value in labels[flat][0, :4].tolist()]}{hint}"
            )
        if size is not None:
            height, width = size
            # Half a pixel is rounding; more is the box of another crop or size.
            out = real & ((x0 < -0.5) | (y0 < -0.5) | (x1 > width + 0.5) | (y1 > height + 0.5))
            if out.any():
                raise ValueError(
                    f"boxes must lie in their images of {height}x{width} px, but {int(out.sum())} do not, in {_images(out)}; the "
                    f"first is {[round(value, 2) for value in labels[out][0, :4].tolist()]}"
                )
        if not countable(labels).any():
            raise ValueError(
                f"none of the {len(labels)} images has an object to find (crowds do not count); leave such images out"
            )


@torch.no_grad()
def check_detector_outputs(outputs: object, num_classes: int) -> None:
    """Refuses what is not the outputs of a detector of `num_classes` classes, or not finite. A door check: it waits for the device.

    Raises:
        ValueError: Saying what arrived.
    """
    wanted = f"a detector of {num_classes} classes must return losses(labels) and candidates()"
    if not isinstance(outputs, DetectorOutputs):
        hint = ""
        if isinstance(outputs, Mapping | list | tuple):
            hint = "; networks of torchvision and detectron2 are built by the models of these names"
        raise ValueError(f"{wanted}, see tasks.detection.DetectorOutputs; got {type(outputs).__name__}{hint}")
    boxes, scores = outputs.candidates()
    if scores.ndim != 3 or scores.shape[2] != num_classes:
        raise ValueError(f"{wanted}; got scores {list(scores.shape)}, wanted [b, n, {num_classes}]")
    fits = [[*scores.shape[:2], 4], [*scores.shape, 4]]
    if list(boxes.shape) not in fits:
        raise ValueError(f"{wanted}; got boxes {list(boxes.shape)}, wanted {fits[0]} or {fits[1]}")
    bad = ~(boxes.flatten(1).isfinite().all(1) & scores.flatten(1).isfinite().all(1))
    if bad.any():
        raise ValueError(
            f"{wanted}, all finite, but those of {int(bad.sum())} of {len(scores)} images hold NaN or infinity"
        )
    if scores.numel() and (scores.min() < 0 or scores.max() > 1):
        raise ValueError(f"{wanted}; scores must be in [0, 1], got {scores.min():.3g} to {scores.max():.3g}")


def average_precision(evidence: Sequence[Any], num_classes: int) -> dict[str, float]:
    """Average precision by the rules of COCO, computed by pycocotools.

    Args:
        evidence: Per image {"boxes": [[x0, y0, x1, y1, class, crowd], ...], "detections": [[x0, y0, x1, y1, score, class], ...]}.
        num_classes: Classes are 0 .. num_classes - 1.

    Returns:
        ap: averaged over IoU 0.5, 0.55, ... 0.95. ap50, ap75: at that IoU. All in [0, 1], averaged over the classes that have
        an object, of at most 100 detections per image; NaN if there is no object at all.
    """
    return average_precisions(evidence, num_classes, [range(len(evidence))])[0]


def average_precisions(
    evidence: Sequence[Any], num_classes: int, draws: Sequence[Sequence[int]]
) -> list[dict[str, float]]:
    """`average_precision` of every draw of images, some more than once and some not at all.

    Which detection finds which object does not depend on the other images, so it is asked once; a draw only sums up again.

    Args:
        draws: Indices of images, as many in each as there are images.
    """
    names = ("ap", "ap50", "ap75")
    objects: list[dict[str, Any]] = []
    detections: list[list[float]] = []
    for image, example in enumerate(evidence):
        for x0, y0, x1, y1, label, crowd in example["boxes"]:
            box = [x0, y0, x1 - x0, y1 - y0]
            area = box[2] * box[3]
            objects.append(
                {"id": len(objects) + 1, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": crowd}
            )  # fmt: skip
        detections += [
            [image, x0, y0, x1 - x0, y1 - y0, score, k] for x0, y0, x1, y1, score, k in example["detections"]
        ]
    if not any(row["iscrowd"] == 0 for row in objects):
        return [dict.fromkeys(names, float("nan")) for _ in draws]
    if not detections:
        return [dict.fromkeys(names, 0.0) for _ in draws]
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(evidence))],
        "categories": [{"id": k, "name": str(k)} for k in range(num_classes)],
        "annotations": objects,
    }
    found = []
    with contextlib.redirect_stdout(io.StringIO()):  # it reports what it does
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(np.array(detections, dtype=np.float64)), "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [judge.params.areaRng[0]], ["all"]
        judge.params.maxDets = [100]
        judge.evaluate()
        matches, n = judge.evalImgs, len(evidence)  # of class k and image i at k * n + i
        for draw in draws:
            judge.evalImgs = [matches[k * n + i] for k in range(num_classes) for i in draw]
            judge.accumulate()
            found.append(
                judge.eval["precision"][..., 0, 0]
            )  # IoU x recall x class; -1 for classes without objects

    def mean(values: npt.NDArray[np.float64]) -> float:
        values = values[values > -1]
        return float(values.mean()) if len(values) else float("nan")

    wanted = [judge.params.iouThrs > 0, *(np.isclose(judge.params.iouThrs, at) for at in (0.5, 0.75))]
    return [
        {name: mean(precision[rows]) for name, rows in zip(names, wanted, strict=True)} for precision in found
    ]


def _classes(labels: Objects) -> Tensor:
    """int64 [b, m]; 0 for padding."""
    return labels[..., 4].clamp(min=0).long()


def _renamed(labels: Objects, classes: Int64[Tensor, "b m"]) -> Objects:
    """The same boxes with these classes. Crowds and padding stay what they are."""
    renamed = labels.clone()
    renamed[..., 4] = torch.where(countable(labels), classes.to(labels), labels[..., 4])
    return renamed


def _of_class(scores: Float[Tensor, "b n k"], labels: Objects) -> Float[Tensor, "b n m"]:
    """Every candidate's score for the class of every object."""
    return scores.gather(2, _classes(labels)[:, None].expand(-1, scores.shape[1], -1))


def _share(found: Bool[Tensor, "b m"], labels: Objects) -> PerExample:
    real = countable(labels)
    total = real.sum(1)
    return torch.where(total > 0, (found & real).sum(1) / total.clamp(min=1), 1.0)


def _rounded(values: Sequence[float], digits: int) -> list[float]:
    return [round(value, digits) for value in values]


def _images(rows: Bool[Tensor, "b m"]) -> str:
    """'image 3 of the batch', or the first few."""
    numbers = rows.any(1).nonzero().flatten().tolist()
    more = ", ..." if len(numbers) > 5 else ""
    return f"image{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:5]))}{more} of the batch"
