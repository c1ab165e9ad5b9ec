"""The task of telling classes apart: loss, verdict and checks, one number per example."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from gat.latents import PerExample, Verdicts
from tasks.models.outputs import check_classifier_outputs

Logits = Float[Tensor, "b k"]
Labels = Int64[Tensor, " b"]


class ClassificationTask:
    """Classification with two or more classes; a `gat.protocols.Task`.

    All numbers are computed in float32, whatever the precision of the logits.

    Args:
        classes: Names; labels index them.
        label_smoothing: Of `training_loss` alone: the share of the target spread evenly over all classes
            (Szegedy et al. 2016, "Rethinking the Inception Architecture"). Attacks and evaluation use `loss`,
            which has none.

    Raises:
        ValueError: If there are fewer than 2 classes, two have one name, or label_smoothing is not in [0, 1).
    """

    name = "classification"

    def __init__(self, classes: Sequence[str], label_smoothing: float = 0.0) -> None:
        if len(classes) < 2:
            raise ValueError(f"classification needs at least 2 classes, got {list(classes)}")
        if len(set(classes)) < len(classes):
            twice = sorted({name for name in classes if list(classes).count(name) > 1})
            raise ValueError(f"classes need different names, got more than one {', '.join(twice)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        self.classes = tuple(classes)
        self.label_smoothing = label_smoothing

    @property
    def num_classes(self) -> int:
        """At least 2."""
        return len(self.classes)

    def loss(self, outputs: Logits, labels: Labels) -> PerExample:
        """Cross entropy: -log softmax(outputs)[label]."""
        return F.cross_entropy(outputs.float(), labels, reduction="none")

    def training_loss(self, outputs: Logits, labels: Labels) -> PerExample:
        """Cross entropy with smoothed labels: (1 - s) loss + s times its mean over all labels."""
        return F.cross_entropy(
            outputs.float(), labels, reduction="none", label_smoothing=self.label_smoothing
        )

    def predict(self, outputs: Logits) -> Labels:
        """The likeliest class; the first of equals."""
        return outputs.argmax(1)

    def wrong(self, outputs: Logits, labels: Labels) -> Verdicts:
        """Whether the likeliest class is not the label."""
        return self.predict(outputs) != labels

    def least_likely(self, outputs: Logits, labels: Labels) -> Labels:
        """The class with the smallest logit, the first of equals, among those that are not the label: what the paper's
        non-targeted attack aims at (Sec. 3.1)."""
        return outputs.float().scatter(1, labels[:, None], float("inf")).argmin(1)

    def margin(self, outputs: Logits, labels: Labels) -> PerExample:
        """Logit of the label minus the largest other logit: positive where the answer is right."""
        scores = outputs.float()
        own = scores.gather(1, labels[:, None])
        others = scores.scatter(1, labels[:, None], -float("inf"))
        return own.squeeze(1) - others.amax(1)

    def check_outputs(self, outputs: object) -> None:
        """Refuses what is not finite logits [b, num_classes]; see `check_classifier_outputs`."""
        check_classifier_outputs(outputs, self.num_classes)

    def check_labels(self, labels: Tensor, num_examples: int | None = None) -> None:
        """Refuses what is not int64 [b] in 0 .. num_classes - 1. A door check: it waits for the device.

        Args:
            num_examples: How many images there are; None if unknown.

        Raises:
            ValueError: Saying what arrived.
        """
        wanted = f"labels must be int64 [b] in 0 .. {self.num_classes - 1}"
        got = f"{str(labels.dtype).removeprefix('torch.')}{list(labels.shape)}"
        if labels.ndim != 1:
            hint = ""
            if labels.ndim == 2 and labels.shape[1] == 1:
                hint = "; use labels.squeeze(1)"
            elif labels.ndim == 2 and labels.shape[1] == self.num_classes:
                hint = "; if they are one-hot use labels.argmax(1)"
            raise ValueError(f"{wanted}, got {got}{hint}")
        if labels.dtype != torch.int64:
            hint = "" if labels.is_floating_point() or labels.is_complex() else "; use labels.long()"
            raise ValueError(f"{wanted}, got {got}{hint}")
        if num_examples is not None and len(labels) != num_examples:
            raise ValueError(
                f"one label per image is wanted, got {len(labels)} labels for {num_examples} images"
            )
        outside = sorted(set(labels[(labels < 0) | (labels >= self.num_classes)].tolist()))
        if outside:
            hint = "; do they count from 1?" if outside == [self.num_classes] and labels.min() >= 1 else ""
            raise ValueError(f"{wanted} ({', '.join(self.classes[:10])}), got {outside[:10]} too{hint}")
