"""The task of telling classes apart: loss, verdict and checks, one number per example."""

from collections.abc import Sequence

import torch.nn.functional as F

from gat.latents import PerExample
from gat.logits import Labels, Logits, LogitsTask


class ClassificationTask(LogitsTask):
    """Classification with two or more named classes; a `gat.protocols.Task`.

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
        super().__init__(len(classes))
        if len(set(classes)) < len(classes):
            twice = sorted({name for name in classes if list(classes).count(name) > 1})
            raise ValueError(f"classes need different names, got more than one {', '.join(twice)}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        self.classes = tuple(classes)
        self.label_smoothing = label_smoothing

    def training_loss(self, outputs: Logits, labels: Labels) -> PerExample:
        """Cross entropy with smoothed labels: (1 - s) loss + s times its mean over all labels."""
        return F.cross_entropy(
            outputs.float(), labels, reduction="none", label_smoothing=self.label_smoothing
        )
