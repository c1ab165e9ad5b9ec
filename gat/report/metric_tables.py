"""Tables of metrics of scenes: models by attacks, everything measured, class by class, and rows for papers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from gat.evaluation.records import Record
from gat.report.metrics import BeforeAfter, Metrics, shown, shown_interval, title
from gat.report.names import attack_name, class_name, column_name, model_name
from gat.report.statistics import Column, Estimate, Key, headline_columns
from gat.report.tables import RESULT_FIELDS, SEEN, Table, in_brackets, percent

SCORES = {"segmentation": "pixel accuracy per image", "detection": "share of objects found"}
"""What the scores of images are, by task."""


def metric_table(
    metrics: Metrics,
    suite: Collection[str] = (),
    seen: Callable[[str, Column], bool] = lambda model, column: False,
    compact: bool = False,
) -> Table:
    """The headline metric of models (rows) on clean images and under attacks (columns), as Table 1 of Poursaeed et al.

    Args:
        suite: names of attacks that belong into it.
        seen: whether a model was trained on the attack of a column.
        compact: values alone, as in print.
    """
    across = headline_columns(metrics.columns, suite)
    marked = False

    def cell(model: str, column: Column) -> str:
        nonlocal marked
        found = metrics.value(model, column)
        if found is None:
            return "–"
        mark = seen(model, column)
        marked |= mark
        text = shown(metrics.headline, found.value).rstrip("%") if compact else _told(metrics.headline, found)
        return f"{text} {SEEN}" if mark else text

    rows = tuple((model_name(model), *(cell(model, c) for c in across)) for model in metrics.models)
    caption = title(metrics.headline)
    caption += " in per cent." if compact else ", with 95% bootstrap intervals over images."
    caption += " Numbers compare only under the same protocol."
    if marked:
        caption += f" {SEEN}: the model was trained on this attack."
    header = ("Model", *(f"{column_name(c, across)}{in_brackets(c.protocol)}" for c in across))
    return Table(caption, header, rows)


def _told(metric: str, found: Estimate) -> str:
    interval = shown_interval(metric, found)
    return (
        f"{shown(metric, found.value)} ({interval}; n = {found.n})"
        if interval
        else f"{shown(metric, found.value)} (n = {found.n})"
    )


def _change(pair: BeforeAfter | None) -> str:
    return "–" if pair is None else f"{percent(pair.before)} → {percent(pair.after)}"


def all_metrics_table(metrics: Metrics, cells: Mapping[Key, Sequence[Record]]) -> Table:
    """One row per model and attack, with everything measured."""
    score = SCORES.get(metrics.task, "score per image")
    rows = []
    partly = any(row.shown for row in metrics.rows)
    for column in metrics.columns:
        for model in metrics.models:
            row = metrics.row(model, column)
            if row is None:
                continue
            attacked, records = column.attack != "none", cells.get(row.key, ())
            right = [record for record in records if record.clean_prediction == record.label]
            values = []
            for name in metrics.names:
                found = row.metrics.get(name)
                interval = shown_interval(name, found) if found else ""
                values.append(f"{shown(name, found.value)} ({interval})" if found and interval else "–")
            rows.append(
                (
                    attack_name(column.attack),
                    model_name(model),
                    *values,
                    *(
                        _change(pair) if attacked else percent(pair.after) if pair else "–"
                        for pair in (row.score, row.oracle, *([row.shown] if partly else []))
                    ),
                    f"{sum(r.success for r in right)} of {len(right)}" if attacked and records else "–",
                    str(row.n),
                    column.source,
                    column.protocol,
                )
            )
    return Table(
        caption=f"With 95% bootstrap intervals over images. {score[0].upper()}{score[1:]}: mean over images before → after the "
        "attack. Oracle: share of the pixels on which the independent oracle reads the class of the layout, before → after. "
        + ("Where it reads: the score among the pixels that it reads right in both. " if partly else "")
        + "Fooled: of the images whose answer was not wrong before.",
        header=("Attack", "Model", *map(title, metrics.names), score[0].upper() + score[1:], "Oracle",
                *(["Where it reads"] if partly else []), "Fooled", "n", "Images", "Protocol"),
        rows=tuple(rows),
    )  # fmt: skip


def metric_rows(metrics: Metrics, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of `results/<name>/table.json`: one per model, attack and metric, values as fractions; attack 'none' is called
    'clean'. `low` and `high` are None where no interval is known."""
    rows = []
    for row in metrics.rows:
        column = row.key.column
        attack = "clean" if column.attack == "none" else column.attack
        found: dict[str, tuple[float, float | None, float | None]] = {
            name: (e.value, e.low, e.high) for name, e in row.metrics.items()
        }
        found |= {f"{name}_before": (e.value, e.low, e.high) for name, e in row.clean_metrics.items()}
        for name, pair in (("score", row.score), ("oracle_score", row.oracle), ("shown_score", row.shown)):
            if pair is not None:
                found[name] = (pair.after, None, None)
                if attack != "clean":
                    found[f"{name}_before"] = (pair.before, None, None)
        for name, measured in found.items():
            about = (metrics.task, row.key.model, attack, column.protocol, column.source, name)
            rows.append(dict(zip(RESULT_FIELDS, (*about, *measured, row.n, list(seeds)), strict=True)))
    return rows


def pixel_class_table(
    metrics: Metrics,
    cells: Mapping[Key, Sequence[Record]],
    chosen: Sequence[str],
    among: Sequence[Column],
    classes: tuple[str, ...],
) -> Table | None:
    """Intersection over union of every class, of some models under some attacks, from the evidence in the records; None if they
    hold none. Beside them the oracle's, on clean images: where it is blind, nobody knows what a picture shows.

    Args:
        chosen, among: the models and the columns.
    """
    matrices = {
        f"{model_name(model)}: {column_name(column, metrics.columns)}": _confusion(found)
        for column in among
        for model in chosen
        if (found := [r.evidence for r in cells.get(Key(model, column), ()) if r.evidence])
    }
    if not matrices:
        return None
    for column in [column for column in among if column.attack == "none"][:1]:
        if found := [r.oracle_evidence for r in cells.get(Key(chosen[0], column), ()) if r.oracle_evidence]:
            matrices[f"Oracle: {column_name(column, metrics.columns)}"] = _confusion(found)
    size = max(len(matrix) for matrix in matrices.values())
    pixels = sum(np.pad(matrix.sum(1), (0, size - len(matrix))) for matrix in matrices.values())
    rows = []
    for label in np.flatnonzero(pixels).tolist():
        cells_of_row = [class_name(label, classes)]
        for matrix in matrices.values():
            if label >= len(matrix) or not (
                union := matrix[label].sum() + matrix[:, label].sum() - matrix[label, label]
            ):
                cells_of_row.append("–")
            else:
                cells_of_row.append(percent(float(matrix[label, label] / union)))
        rows.append(tuple(cells_of_row))
    return Table(
        caption="Intersection over union per class, over all pixels of the images.",
        header=("Class", *matrices),
        rows=tuple(rows),
    )


def _confusion(evidence: Sequence[Any]) -> Int64[np.ndarray, "k k"]:
    """Pixels by label and answer, from each image's [[label, answer, pixels], ...]."""
    entries = np.array([entry for example in evidence for entry in example], np.int64).reshape(-1, 3)
    size = int(entries[:, :2].max(initial=0)) + 1
    matrix = np.zeros((size, size), np.int64)
    np.add.at(matrix, (entries[:, 0], entries[:, 1]), entries[:, 2])
    return matrix


def mean_over_unseen(
    metrics: Metrics, model: str, judging: Sequence[Column], seen: Callable[[str, Column], bool]
) -> float | None:
    """Unweighted mean of the headline metric over the attacks that a model was not trained on; None unless there are two."""
    found = [
        value.value
        for column in judging
        if not seen(model, column) and (value := metrics.value(model, column)) is not None
    ]
    return sum(found) / len(found) if len(found) > 1 else None
