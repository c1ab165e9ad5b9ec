"""Doubts about metrics of data sets of scenes, found by looking at them."""

import math
from collections.abc import Iterator

from gat.evaluation.records import control
from gat.report.doubt import Doubt
from gat.report.metrics import MetricRow, Metrics, inline, overlap, shown, shown_interval
from gat.report.names import column_name, model_name
from gat.report.statistics import clean_column
from gat.report.tables import in_brackets, percent, points

BY_CLASS = "mean_class_accuracy"
MAX_WIDTH = 0.10
"""Widest 95 % interval that passes without a word."""
MIN_READ = 0.80
"""Least share of the pixels of starting images that an oracle should read right to be a judge."""
MIN_READ_CLASS = 0.67
"""The same within each class, averaged: pixels of rare classes hardly move their share."""
MAX_UNREAD = 0.10
"""Largest share of pixels that an oracle may lose to an attack without a word."""


def check_metrics(metrics: Metrics) -> Iterator[Doubt]:
    """What a reader of these numbers should know."""
    yield from _not_finite(metrics)
    yield from _no_effect(metrics)
    yield from _clean(metrics)
    yield from _width(metrics)
    yield from _oracle(metrics)


def _where(row: MetricRow, metrics: Metrics) -> str:
    column = row.key.column
    return (
        f"{model_name(row.key.model)}, {column_name(column, metrics.columns)}{in_brackets(column.protocol)}"
    )


def _not_finite(metrics: Metrics) -> Iterator[Doubt]:
    for row in metrics.rows:
        bad = [inline(name) for name, found in row.metrics.items() if not math.isfinite(found.value)]
        if bad:
            yield Doubt("wrong", f"{_where(row, metrics)}: {', '.join(bad)} is not finite.")


def _no_effect(metrics: Metrics) -> Iterator[Doubt]:
    """An attack on the undefended model must lower its scores, and one on a trained model must not raise them."""
    for row in metrics.rows:
        attacked = row.key.column.attack != "none" and control(row.key.column.attack) is None
        if not attacked or row.score is None:
            continue
        where, before, after = _where(row, metrics), row.score.before, row.score.after
        changed = (
            f"the mean score per image is {percent(before)} before the attack and {percent(after)} after it"
        )
        if row.key.model == metrics.models[0] and after >= before:
            yield Doubt(
                "wrong",
                f"{where}: {changed}, on the undefended model. The attack is probably broken (no gradient, a wrong sign, or no step "
                "at all).",
            )
        elif after > before:
            yield Doubt(
                "careful",
                f"{where}: {changed}. A model that is better under attack may have learnt to read the attack, or the attack helps it "
                "where it aims at what is partly right (wrong classes, but the boxes of the objects); neither is robustness. Judge it "
                "by an attack with another goal, or one that aims with `contrast: true`.",
            )


def _clean(metrics: Metrics) -> Iterator[Doubt]:
    column, what = clean_column(metrics.columns), inline(metrics.headline)
    if column is None:
        yield Doubt("careful", f"No clean {what} was measured: there are no rows of attack 'none'.")
        return
    baseline = metrics.value(metrics.models[0], column)
    if len(metrics.models) == 1:
        name = model_name(metrics.models[0])
        yield Doubt("note", f"Only one model was evaluated ({name}): there is nothing to compare it to.")
    for name in metrics.models[1:]:
        other = metrics.value(name, column)
        if baseline is None or other is None or other.value >= baseline.value:
            continue
        together = overlap(baseline, other)
        yield Doubt(
            "note" if together else "careful",
            f"{model_name(name)} is worse than {model_name(metrics.models[0])} on clean images: {what} "
            f"{points(other.value - baseline.value)} (n = {other.n})"
            + (", and the 95% intervals overlap." if together else "."),
        )


def _width(metrics: Metrics) -> Iterator[Doubt]:
    judging = [row for row in metrics.rows if control(row.key.column.attack) is None]
    widths = [
        (row.metrics[metrics.headline].high - row.metrics[metrics.headline].low, row) for row in judging
    ]
    wide = [pair for pair in widths if pair[0] > MAX_WIDTH]
    if wide:
        _, worst = max(wide, key=lambda pair: pair[0])
        found = worst.metrics[metrics.headline]
        yield Doubt(
            "careful",
            f"Too few images: {len(wide)} of {len(judging)} values of {inline(metrics.headline)} have a 95% interval wider than "
            f"{100 * MAX_WIDTH:.0f} points. The widest: {_where(worst, metrics)}, {shown(metrics.headline, found.value)} "
            f"({shown_interval(metrics.headline, found)}) from n = {worst.n}.",
        )


def _oracle(metrics: Metrics) -> Iterator[Doubt]:
    attacked = [
        row
        for row in metrics.rows
        if row.key.column.attack != "none" and control(row.key.column.attack) is None
    ]
    asked = [(row, row.oracle) for row in attacked if row.oracle is not None]
    if attacked and not asked:
        yield Doubt(
            "careful",
            "No independent oracle was asked, so nobody knows how far the pictures still show their layouts.",
        )
    if not asked:
        return
    row, read = min(asked, key=lambda pair: pair[1].before)
    if read.before < MIN_READ:
        yield Doubt(
            "careful",
            f"The oracle is a poor judge: it reads only {percent(read.before)} of the pixels of the starting images right "
            f"({_where(row, metrics)}).",
        )
    value = min(
        (row.oracle_metrics.get(BY_CLASS, 1) for row in metrics.rows if row.key.column.attack == "none"),
        default=1,
    )
    if value < MIN_READ_CLASS:
        yield Doubt(
            "careful",
            f"The oracle is blind to some classes: averaged over them, it reads {percent(value)} of a class's pixels in clean images. "
            "What it says of pictures is about the other classes; the table by class says which.",
        )
    row, read = max(asked, key=lambda pair: pair[1].before - pair[1].after)
    lost = read.before - read.after
    if lost > 0:
        text = (
            f"After the attack the oracle reads the layout on {percent(read.after)} of the pixels, on {percent(read.before)} before, "
            f"where it loses most: {_where(row, metrics)}."
        )
        if lost > MAX_UNREAD:
            yield Doubt(
                "careful", text + " Some of these pictures may no longer show what they were drawn from."
            )
        else:
            yield Doubt("note", text)
