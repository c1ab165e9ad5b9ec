"""Numbers of whole data sets of scenes, as an evaluation leaves them in metrics.json; see `gat.evaluation.metrics`."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gat.report.statistics import Column, Estimate, Key, columns, models

METRICS_JSON = "metrics.json"

TITLES = {
    "pixel_accuracy": "Pixel accuracy",
    "mean_class_accuracy": "Mean class accuracy",
    "miou": "Mean IoU",
    "fwiou": "Frequency-weighted IoU",
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
}
SHORT = {"mean_class_accuracy": "Class accuracy", "miou": "mIoU", "fwiou": "fwIoU"}
MEANINGS = {
    "pixel_accuracy": "Share of all labelled pixels whose class is answered right.",
    "mean_class_accuracy": "That share within each class, averaged over classes.",
    "miou": "Of each class, pixels that are both labelled and answered so, by pixels that are either; averaged over classes.",
    "fwiou": "The same, weighted by how many pixels a class has.",
    "ap": "Average precision by COCO's rules, in per cent: averaged over classes, recalls and IoUs from 0.5 to 0.95.",
    "ap50": "Average precision where an IoU of 0.5 is enough.",
    "ap75": "Average precision where an IoU of 0.75 is needed.",
}


class BeforeAfter(NamedTuple):
    """Mean over examples, on the starting images and on the attacked ones."""

    before: float
    after: float


@dataclass(frozen=True)
class MetricRow:
    """One model under one attack.

    Attributes:
        n: images.
        metrics: name -> value with its 95 % interval, on the attacked images.
        clean_metrics: the same on the starting images; {} if they were not kept.
        score: means of the task's scores per image: pixel accuracy, or the share of objects that is found.
        oracle: share of the pixels on which the independent oracle reads the class of the layout; None if none was asked.
        shown: as `score`, among the pixels that the oracle reads right in both images; None where the labels are not pixels.
        oracle_metrics: name -> value of what the oracle reads in the attacked images; {} where the labels are not pixels.
    """

    key: Key
    n: int
    metrics: Mapping[str, Estimate]
    clean_metrics: Mapping[str, Estimate] = field(default_factory=dict)
    score: BeforeAfter | None = None
    oracle: BeforeAfter | None = None
    shown: BeforeAfter | None = None
    oracle_metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Metrics:
    """All rows of metrics.json, and which metric to quote first."""

    task: str
    headline: str
    rows: tuple[MetricRow, ...]

    @property
    def columns(self) -> list[Column]:
        """Clean, then the attacks."""
        return columns(row.key for row in self.rows)

    @property
    def models(self) -> list[str]:
        """The baseline first."""
        return models(row.key for row in self.rows)

    @property
    def names(self) -> list[str]:
        """Of the metrics, the headline first."""
        found = dict.fromkeys(name for row in self.rows for name in row.metrics)
        return sorted(found, key=lambda name: name != self.headline)

    def row(self, model: str, column: Column | None) -> MetricRow | None:
        """None if this was not measured."""
        return next((row for row in self.rows if row.key == (model, column)), None)

    def value(self, model: str, column: Column | None) -> Estimate | None:
        """The headline metric; None if this was not measured."""
        row = self.row(model, column)
        return row.metrics.get(self.headline) if row else None


def title(metric: str) -> str:
    """'Mean IoU' for 'miou'; unknown names as they are."""
    return TITLES.get(metric, metric)


def inline(metric: str) -> str:
    """Of a metric, inside a sentence: 'pixel accuracy', but 'AP'."""
    name = title(metric)
    return name if name.startswith("AP") else name[:1].lower() + name[1:]


def is_percentage(metric: str) -> bool:
    """Whether a percent sign follows; by convention none does after average precision."""
    return not title(metric).startswith("AP")


def shown(metric: str, value: float) -> str:
    """0.784 -> '78.4%', of average precision '78.4'; '–' if there is no number."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}{'%' if is_percentage(metric) else ''}"


def shown_interval(metric: str, estimate: Estimate) -> str:
    """'75.7–80.8%'; '' if there is none."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f}{'%' if is_percentage(metric) else ''}"


def overlap(first: Estimate, second: Estimate) -> bool:
    """Whether two intervals share a value, so that the examples hardly tell the two numbers apart."""
    return first.low <= second.high and second.low <= first.high


def read_metrics(path: Path) -> Metrics:
    """Read metrics.json.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged.
    """
    try:
        content = json.loads(path.read_text())
        rows = tuple(_row(row) for row in content["rows"])
        headline = content["headline"]
        without = [row.key for row in rows if headline not in row.metrics]
        if not rows or without:
            raise ValueError(f"no row, or one without the headline metric {headline!r}")
        return Metrics(str(content["task"]), headline, rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not the metrics of an evaluation ({error!r})") from error


def _row(row: dict[str, Any]) -> MetricRow:
    key = Key(row["model"], Column(row["attack"], row.get("protocol") or "", row.get("source") or ""))
    n = row["n"]
    if not all(isinstance(part, str) for part in (key.model, *key.column)) or not isinstance(n, int):
        raise ValueError(f"names should be texts and n a whole number, got {[*key, n]}")
    return MetricRow(
        key,
        n,
        _estimates(row["metrics"], n),
        _estimates(row.get("clean_metrics") or {}, n),
        _pair(row.get("score")),
        _pair(row.get("oracle")),
        _pair(row.get("shown")),
        {str(name): _number(value) for name, value in (row.get("oracle_metrics") or {}).items()},
    )


def _estimates(values: Mapping[str, Any], n: int) -> dict[str, Estimate]:
    found = {}
    for name, value in values.items():
        number, low, high = (_number(value.get(part)) for part in ("value", "low", "high"))
        found[str(name)] = Estimate(number, low, high, n)
    return found


def _pair(value: Mapping[str, Any] | None) -> BeforeAfter | None:
    return None if value is None else BeforeAfter(_number(value["before"]), _number(value["after"]))


def _number(value: Any) -> float:
    """NaN for None, which is how JSON writes it here."""
    return math.nan if value is None else float(value)
