"""The task of telling what every pixel shows: loss, verdict, scores and checks, one number per example."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gat.latents import PerExample, Verdicts
from gat.logits import IGNORE, further_classes
from gat.outputs import check_segmenter_outputs

Logits = Float[Tensor, "b k h w"]
LabelMaps = Int64[Tensor, "b h w"]


class SegmentationTask:
    """Segmentation into two or more named classes; a `gat.protocols.Task`. Labels are 0 .. k - 1, and 255 for pixels that do not
    count. All numbers are float32, whatever the precision of the logits.

    Args:
        classes: Names; labels index them.
        fooled_at: An image counts as wrong once at most this share of its pixels is right, and as a hit once at most this share
            is not what a targeted attack wants.

    Raises:
        ValueError: If there are fewer than 2 classes or more than 255, two have one name, or fooled_at is not in [0, 1).
    """

    name = "segmentation"

    def __init__(self, classes: Sequence[str], fooled_at: float = 0.1) -> None:
        if not 2 <= len(classes) <= IGNORE:
            raise ValueError(f"segmentation needs 2 to {IGNORE} classes, got {len(classes)}")
        if len(set(classes)) < len(classes):
            twice = sorted({name for name in classes if list(classes).count(name) > 1})
            raise ValueError(f"classes need different names, got more than one {', '.join(twice)}")
        if not 0 <= fooled_at < 1:
            raise ValueError(f"fooled_at must be at least 0 and below 1, got {fooled_at}")
        self.classes = tuple(classes)
        self.num_classes = len(classes)
        self.fooled_at = fooled_at

    def loss(self, outputs: Logits, labels: Int64[Tensor, "b height width"]) -> PerExample:
        """Cross entropy, averaged over the pixels that count; 0 for an image without any.

        Raises:
            ValueError: If label maps and logits have different sizes.
        """
        if outputs.shape[2:] != labels.shape[1:]:
            height, width = labels.shape[1:]
            raise ValueError(
                f"label maps must be as large as the logits and images, got maps of {height}x{width} px for logits of "
                f"{outputs.shape[2]}x{outputs.shape[3]} px; resize maps by nearest neighbour"
            )
        pixels = F.cross_entropy(outputs.float(), labels, reduction="none", ignore_index=IGNORE)
        return pixels.sum((1, 2)) / _num_pixels(labels)

    def predict(self, outputs: Logits) -> LabelMaps:
        """The likeliest class of every pixel; the first of equals."""
        return outputs.argmax(1)

    def score(self, predictions: LabelMaps, labels: LabelMaps) -> PerExample:
        """Pixel accuracy: the share of the pixels that count which are right; 1 for an image without any."""
        counts = labels != IGNORE
        right = ((predictions == labels) & counts).sum((1, 2)) + ~counts.flatten(1).any(1)
        return right / _num_pixels(labels)

    def wrong(self, outputs: Logits, labels: LabelMaps) -> Verdicts:
        """Whether at most `fooled_at` of the pixels that count are right."""
        return self.score(self.predict(outputs), labels) <= self.fooled_at

    def hit(self, outputs: Logits, targets: LabelMaps) -> Verdicts:
        """Whether all but `fooled_at` of the pixels that count are as the targets say."""
        return self.score(self.predict(outputs), targets) >= 1 - self.fooled_at

    def only_read(self, outputs: Logits, labels: LabelMaps) -> LabelMaps:
        """The labels of the pixels that are right; the others do not count."""
        return torch.where(self.predict(outputs) == labels, labels, IGNORE)

    def least_likely(self, outputs: Logits, labels: LabelMaps) -> LabelMaps:
        """Per pixel the class with the smallest logit, the first of equals, among those that are not the label. Pixels that do not
        count still do not."""
        counts = labels != IGNORE
        own = torch.where(counts, labels, 0)[:, None]
        return torch.where(counts, outputs.float().scatter(1, own, float("inf")).argmin(1), IGNORE)

    def random_targets(self, labels: LabelMaps, places: PerExample) -> LabelMaps:
        """For `places` uniform in (0, 1), every map in which each class is another, all by the same distance. Pixels that do not count
        still do not."""
        counts = labels != IGNORE
        own = torch.where(counts, labels, 0)
        return torch.where(counts, further_classes(own, places, self.num_classes), IGNORE)

    def margin(self, outputs: Logits, labels: LabelMaps) -> PerExample:
        """Logit of the label minus the largest other logit, averaged over the pixels that count; 0 for an image without any."""
        scores, counts = outputs.float(), labels != IGNORE
        own = torch.where(counts, labels, 0)[:, None]
        others = scores.scatter(1, own, -float("inf")).amax(1)
        lead = scores.gather(1, own).squeeze(1) - others
        return torch.where(counts, lead, 0).sum((1, 2)) / _num_pixels(labels)

    def evidence(self, predictions: LabelMaps, labels: LabelMaps) -> list[list[list[int]]]:
        """Per example its confusion matrix without the zeros: [[label, prediction, pixels], ...]."""
        matrices = confusion_matrices(predictions, labels, self.num_classes)
        found: list[list[list[int]]] = [[] for _ in range(len(labels))]
        where = matrices.nonzero()
        rows = torch.cat([where, matrices[tuple(where.T)][:, None]], dim=1)
        for example, label, prediction, pixels in rows.tolist():
            found[example].append([label, prediction, pixels])
        return found

    def metrics(self, evidence: Sequence[Any]) -> dict[str, float]:
        """Of a data set, from the sum of what `evidence` gave for its examples: see `confusion_metrics`."""
        return confusion_metrics(self._matrices(evidence).sum(0))

    def resampled_metrics(
        self, evidence: Sequence[Any], draws: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """`metrics` of every draw of examples, given by their indices."""
        matrices = self._matrices(evidence)
        return [confusion_metrics(matrices[torch.as_tensor(draw)].sum(0)) for draw in draws]

    def _matrices(self, evidence: Sequence[Any]) -> Int64[Tensor, "b k k"]:
        """The confusion matrix of every example, from what `evidence` gave for it."""
        k = self.num_classes
        entries = [(i, *entry) for i, example in enumerate(evidence) for entry in example]
        example, label, prediction, pixels = torch.tensor(entries, dtype=torch.int64).reshape(-1, 4).T
        matrices = torch.zeros(len(evidence) * k * k, dtype=torch.int64)
        matrices.index_add_(0, (example * k + label) * k + prediction, pixels)
        return matrices.reshape(len(evidence), k, k)

    def check_outputs(self, outputs: object) -> None:
        """Refuses what is not finite logits [b, num_classes, h, w]; see `check_segmenter_outputs`."""
        check_segmenter_outputs(outputs, self.num_classes)

    def check_labels(self, labels: Tensor, num_examples: int | None = None) -> None:
        """Refuses what is not int64 [b, h, w] of 0 .. num_classes - 1 and 255. A door check: it waits for the device.

        Args:
            num_examples: How many images there are; None if unknown.

        Raises:
            ValueError: Saying what arrived.
        """
        wanted = f"label maps must be int64 [b, h, w] of 0 .. {self.num_classes - 1}, and {IGNORE} for pixels to ignore"
        got = f"{str(labels.dtype).removeprefix('torch.')}{list(labels.shape)}"
        if labels.ndim != 3:
            hint = ""
            if labels.ndim == 4 and labels.shape[1] == 1:
                hint = "; use labels.squeeze(1)"
            elif labels.ndim == 4 and labels.shape[1] == self.num_classes:
                hint = "; if they are one-hot use labels.argmax(1)"
            elif labels.ndim == 2:
                hint = "; a single map needs a batch axis: labels[None]"
            raise ValueError(f"{wanted}, got {got}{hint}")
        if labels.dtype != torch.int64:
            hint = "; use labels.long()"
            if labels.is_floating_point() or labels.is_complex():
                hint = "; classes have no fractions: read them from a PNG or array of integers, and resize them by nearest neighbour"
            raise ValueError(f"{wanted}, got {got}{hint}")
        if num_examples is not None and len(labels) != num_examples:
            raise ValueError(
                f"one label map per image is wanted, got {len(labels)} maps for {num_examples} images"
            )
        outside = sorted(
            set(labels[(labels != IGNORE) & ((labels < 0) | (labels >= self.num_classes))].tolist())
        )
        if outside:
            names = f" ({', '.join(self.classes[:10])}{', ...' if self.num_classes > 10 else ''})"
            hint = ""
            if outside == [self.num_classes] and labels.min() >= 1:
                hint = "; do they count from 1?"
            elif outside == [-1]:
                hint = f"; if -1 is for pixels to ignore, make it {IGNORE}"
            raise ValueError(f"{wanted}{names}, got {outside[:10]} too{hint}")
        empty = (labels == IGNORE).flatten(1).all(1).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"every label map needs a pixel that counts, but all pixels of number {', '.join(map(str, empty[:10]))} of the batch are "
                f"{IGNORE}; leave these images out"
            )


def _num_pixels(labels: LabelMaps) -> PerExample:
    """Pixels that count, at least 1."""
    return (labels != IGNORE).sum((1, 2)).clamp(min=1).float()


def confusion_matrices(predictions: LabelMaps, labels: LabelMaps, num_classes: int) -> Int64[Tensor, "b k k"]:
    """Pixels by label (row) and prediction (column) of every image; those labelled 255 are left out."""
    counts: Bool[Tensor, "b h w"] = labels != IGNORE
    example = torch.arange(len(labels), device=labels.device)[:, None, None].expand_as(labels)
    cell = (example * num_classes + labels) * num_classes + predictions
    shape = (len(labels), num_classes, num_classes)
    return torch.bincount(cell[counts], minlength=len(labels) * num_classes**2).reshape(shape)


def confusion_metrics(matrix: Int64[Tensor, "k k"]) -> dict[str, float]:
    """What one reads off a confusion matrix (Long et al. 2015, "Fully Convolutional Networks", Sec. 5).

    Returns:
        pixel_accuracy: share of right pixels. mean_class_accuracy: that share within each class, averaged. miou: intersection over
        union of each class, averaged. fwiou: the same, weighted by the class's share of the labels. Averages are over classes that
        are the label of some pixel; all are NaN if there is no pixel at all.
    """
    matrix = matrix.double()
    right, labelled, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    seen = labelled > 0
    accuracy = right[seen] / labelled[seen]
    iou = right[seen] / (labelled + predicted - right)[seen]
    return {
        "pixel_accuracy": float(right.sum() / labelled.sum()),
        "mean_class_accuracy": float(accuracy.mean()),
        "miou": float(iou.mean()),
        "fwiou": float((iou * labelled[seen]).sum() / labelled.sum()),
    }
