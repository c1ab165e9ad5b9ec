"""The task of any classifier that returns logits: loss, verdict and checks, one number per example."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from gat.latents import PerExample, Verdicts
from gat.outputs import check_classifier_outputs

Logits = Float[Tensor, "b k"]
Labels = Int64[Tensor, " b"]

IGNORE = 255  # label of pixels that do not count


class LogitsTask:
    """Classification as the attacks see it; a `gat.protocols.Task`. All numbers are float32, whatever the precision of the logits.

    Args:
        num_classes: at least 2.

    Raises:
        ValueError: for fewer.
    """

    name = "classification"
    classes: tuple[str, ...] = ()  # names, where they are known

    def __init__(self, num_classes: int) -> None:
        if num_classes < 2:
            raise ValueError(f"classification needs at least 2 classes, got {num_classes}")
        self.num_classes = num_classes

    def loss(self, outputs: Logits, labels: Labels) -> PerExample:
        """Cross entropy: -log softmax(outputs)[label]."""
        return F.cross_entropy(outputs.float(), labels, reduction="none")

    def predict(self, outputs: Logits) -> Labels:
        """The likeliest class; the first of equals."""
        return outputs.argmax(1)

    def wrong(self, outputs: Logits, labels: Labels) -> Verdicts:
        """Whether the likeliest class is not the label."""
        return self.predict(outputs) != labels

    def hit(self, outputs: Logits, targets: Labels) -> Verdicts:
        """Whether the likeliest class is the target."""
        return self.predict(outputs) == targets

    def least_likely(self, outputs: Logits, labels: Labels) -> Labels:
        """The class with the smallest logit, the first of equals, among those that are not the label: what the paper's
        non-targeted attack aims at (Sec. 3.1)."""
        return outputs.float().scatter(1, labels[:, None], float("inf")).argmin(1)

    def random_targets(self, labels: Labels, places: PerExample) -> Labels:
        """For `places` uniform in (0, 1), every class but the label equally often."""
        return further_classes(labels, places, self.num_classes)

    def score(self, predictions: Labels, labels: Labels) -> PerExample:
        """1 where the answer is right, else 0."""
        return (predictions == labels).float()

    def evidence(self, predictions: Labels, labels: Labels) -> list[list[int]]:
        """[label, prediction] per example."""
        return torch.stack([labels, predictions], 1).tolist()

    def metrics(self, evidence: Sequence[list[int]]) -> dict[str, float]:
        """Accuracy."""
        return {"accuracy": sum(label == answer for label, answer in evidence) / max(len(evidence), 1)}

    def resampled_metrics(
        self, evidence: Sequence[list[int]], draws: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """Accuracy of every draw of examples, given by their indices."""
        return [self.metrics([evidence[i] for i in draw]) for draw in draws]

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
            names = f" ({', '.join(self.classes[:10])})" if self.classes else ""
            raise ValueError(f"{wanted}{names}, got {outside[:10]} too{hint}")


def further_classes(
    classes: Int64[Tensor, "b ..."], places: PerExample, num_classes: int
) -> Int64[Tensor, "b ..."]:
    """Every class of an example the same number of classes further round the circle, 1 to `num_classes` - 1: for `places` uniform in
    (0, 1), all equally often."""
    further = 1 + (places.double() * (num_classes - 1)).long().clamp(max=num_classes - 2)
    return (classes + further.reshape(-1, *[1] * (classes.ndim - 1))) % num_classes
