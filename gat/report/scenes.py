"""What the page shows of scenes: metrics of models under attacks, and strips of pictures with the answers to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gat.report.drawing import (
    PIXEL_ART_PX,
    UNLABELLED,
    UNLABELLED_COLOUR,
    data_uri,
    judged_boxes,
    paint,
    palette,
)
from gat.report.gallery import amplification, difference, to_uint8
from gat.report.metric_tables import mean_over_unseen
from gat.report.metrics import MEANINGS, SHORT, MetricRow, Metrics, shown, shown_interval, title
from gat.report.names import attack_name, class_name, column_name, model_name
from gat.report.plots import SERIES
from gat.report.results import Results
from gat.report.statistics import Column, Key, headline_columns, judging_columns, models
from gat.report.strips import Boxes, Frame, LabelMap, Strip, Strips
from gat.report.tables import percent, points

_SCENES_OPEN = 3  # of an attack; the others are one click away
_MOST_ABREAST = {
    "segmentation": 7,
    "detection": 4,
}  # figures in a row on a wide screen; names of objects want room
_ATTACKS_TO_JOIN = 3  # fewer attacks need no mean
_WORTH_A_SWATCH = (
    0.01  # share of a picture's pixels from which on a class is in the legend, if it is not in the true map
)
_LETTER_HEIGHT = 0.085  # of names of objects, by the width of the picture; half as large on a wide screen
_LETTER_WIDTH = 0.62  # by its height, about

_Text = tuple[float, float, float, float]  # left, baseline, length, height


def metric_view(results: Results) -> dict[str, Any] | None:
    """The headline table; None without metrics."""
    metrics, folder = results.folder.scene_metrics, results.folder
    if metrics is None:
        return None
    across = headline_columns(metrics.columns, folder.suite)
    judging = judging_columns(metrics.columns, folder.suite)
    means = [mean_over_unseen(metrics, model, judging, folder.seen) for model in metrics.models]
    return {
        "title": "Average precision" if metrics.headline == "ap" else title(metrics.headline),
        "score": {"segmentation": "Per image", "detection": "Objects found"}.get(metrics.task, "Score"),
        "models": [
            {"name": model_name(model), "series": i % len(SERIES)} for i, model in enumerate(metrics.models)
        ],
        "rows": [_metric_row(metrics, column, across, folder.seen) for column in across],
        "shown": any(row.shown for row in metrics.rows),
        "means": []
        if len(judging) < _ATTACKS_TO_JOIN
        else [None if mean is None else shown(metrics.headline, mean) for mean in means],
        "meanings": [(title(name), MEANINGS[name]) for name in metrics.names if name in MEANINGS],
    }


def _metric_row(metrics: Metrics, column: Column, among: Sequence[Column], seen: Any) -> dict[str, Any]:
    cells = []
    for model in metrics.models:
        row = metrics.row(model, column)
        cells.append(_metric_cell(metrics, row, bool(seen(model, column))) if row else None)
    return {"name": column_name(column, among), "column": column, "cells": cells}


def _metric_cell(metrics: Metrics, row: MetricRow, seen: bool) -> dict[str, Any]:
    found = row.metrics[metrics.headline]
    first = metrics.models[0]
    baseline = None if row.key.model == first else metrics.value(first, row.key.column)
    attacked = row.key.column.attack != "none"
    return {
        "estimate": found,
        "value": shown(metrics.headline, found.value),
        "interval": shown_interval(metrics.headline, found),
        "n": row.n,
        "others": [
            f"{SHORT.get(name, title(name))} {shown(name, row.metrics[name].value)}"
            for name in metrics.names[1:]
            if name in row.metrics
        ],
        "change": points(found.value - baseline.value) if baseline else "",
        **{
            name: f"{percent(pair.before)} → {percent(pair.after)}" if pair and attacked else ""
            for name, pair in (("score", row.score), ("oracle", row.oracle), ("shown", row.shown))
        },
        "seen": seen,
    }


def strip_view(strips: Strips) -> dict[str, Any]:
    """What the template shows: attacks, in each the scenes, in each a strip per model."""
    height, width, _ = to_uint8(strips.items[0].frames[0].image).shape if strips.items else (1, 1, 3)
    thresholds = sorted({strip.threshold for strip in strips.items if strip.threshold is not None})
    return {
        "task": strips.task,
        "seed": strips.seed,
        "size": f"{width}×{height}",
        "pixel_art": max(height, width) <= PIXEL_ART_PX,
        "thresholds": " or ".join(f"{threshold:g}" for threshold in thresholds),
        "attacks": [
            _attack_view([strip for strip in strips.items if strip.attack == attack], strips)
            for attack in dict.fromkeys(strip.attack for strip in strips.items)
        ],
    }


def _attack_view(items: Sequence[Strip], strips: Strips) -> dict[str, Any]:
    factor = _factor(items)
    order = models(Key(strip.model, Column("", "", "")) for strip in items)
    scenes = []
    for scene in dict.fromkeys(strip.id for strip in items):
        here = sorted((s for s in items if s.id == scene), key=lambda s: order.index(s.model))
        scenes.append(
            {
                "id": scene,
                "legend": _legend(here, strips) if strips.task == "segmentation" else [],
                "strips": [
                    _strip(s, strips, factor) | {"series": order.index(s.model) % len(SERIES)} for s in here
                ],
            }
        )
    fooled = [
        f"{model_name(model)} {sum(s.state == 'fooled' for s in mine)} of {sum(s.state != 'wrong before' for s in mine)}"
        for model in order
        if (mine := [s for s in items if s.model == model])
    ]
    return {
        "name": attack_name(items[0].attack),
        "settings": items[0].settings,
        "factor": factor,
        "counts": "Fooled: " + ", ".join(fooled),
        "open": scenes[:_SCENES_OPEN],
        "more": scenes[_SCENES_OPEN:],
    }


def _factor(items: Sequence[Strip]) -> int:
    """Amplification of differences, one for all strips of an attack."""
    changes = []
    for strip in items:
        change = difference(to_uint8(strip.frames[0].image), to_uint8(strip.frames[-1].image), 1)
        changes.append(change[change > 0])
    return amplification(np.concatenate(changes))


def _legend(items: Sequence[Strip], strips: Strips) -> list[dict[str, str]]:
    """Classes that are in the true map, or that an answer has more than a few pixels of."""
    there = set(np.unique(items[0].truth).tolist())
    for strip in items:
        for frame in strip.frames:
            counts = np.bincount(_labels(frame.answer).ravel(), minlength=256)
            there |= set(np.flatnonzero(counts >= _WORTH_A_SWATCH * counts.sum()).tolist())
    colours = palette(max(len(strips.classes), 1))
    named = [
        {"name": class_name(label, strips.classes), "colour": _hex(colours[label].tolist())}
        for label in sorted(there)
        if label < len(colours) and label != UNLABELLED
    ]
    rest = [{"name": "no class", "colour": _hex(UNLABELLED_COLOUR)}]
    return named + (rest if len(named) < len(there) else [])


def _labels(answer: LabelMap | Boxes) -> LabelMap:
    assert answer.dtype == np.uint8  # of segmentation
    return answer


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"


def _strip(strip: Strip, strips: Strips, factor: int) -> dict[str, Any]:
    start, end = to_uint8(strip.frames[0].image), to_uint8(strip.frames[-1].image)
    changed = {
        "image": data_uri(difference(start, end, factor)),
        "alt": f"Difference of the last and the first picture, ×{factor}",
        "classes": False,
        "marks": None,
    }
    last = _steps(strip.frames[-1].iteration)
    if strips.task == "segmentation":
        figures = [_map_figure(frame, strips) for frame in strip.frames]
        truth = {**_map(_labels(strip.truth), strips), "alt": "The true label map"}
        figures.append(
            {
                "head": f"Change, ×{factor}",
                "score": "",
                "note": "below: true map",
                "pictures": [changed, truth],
            }
        )
    else:
        figures = [_box_figure(frame, strip, strips) for frame in strip.frames]
        true = _marks(
            start.shape[:2],
            [(*box[:4], "true", class_name(int(box[4]), strips.classes)) for box in strip.truth.tolist()],
        )
        names = ", ".join(class_name(int(box[4]), strips.classes) for box in strip.truth.tolist())
        truth = {
            "image": data_uri(start),
            "alt": f"The true objects: {names or 'none'}",
            "classes": False,
            "marks": true,
        }
        figures.append(
            {"head": "True objects", "score": "", "note": str(len(strip.truth)), "pictures": [truth]}
        )
        figures.append(
            {"head": f"Change, ×{factor}", "score": "", "note": f"start to {last}", "pictures": [changed]}
        )
    state = {
        "fooled": f"fooled after {_steps(strip.iterations)}",
        "held": f"held for {_steps(strip.iterations)}",
        "wrong before": "wrong before, so not attacked",
    }[strip.state]
    return {
        "model": model_name(strip.model),
        "fooled": strip.state == "fooled",
        "state": state,
        "figures": figures,
        "abreast": min(len(figures), _MOST_ABREAST[strips.task]),
    }


def _head(frame: Frame) -> str:
    return "Start" if frame.iteration == 0 else _steps(frame.iteration)


def _map(label_map: LabelMap, strips: Strips) -> dict[str, Any]:
    return {
        "image": data_uri(paint(label_map, len(strips.classes)), classes=True),
        "classes": True,
        "marks": None,
    }


def _map_figure(frame: Frame, strips: Strips) -> dict[str, Any]:
    labels = _labels(frame.answer)
    counts = np.bincount(labels.ravel(), minlength=256)
    most = [label for label in np.argsort(-counts, kind="stable")[:3].tolist() if counts[label]]
    words = ", ".join(
        f"{class_name(label, strips.classes)} {percent(counts[label] / labels.size)}" for label in most
    )
    rendering = {
        "image": data_uri(to_uint8(frame.image)),
        "alt": f"The picture, {_head(frame).lower()}",
        "classes": False,
        "marks": None,
    }
    answer = {
        **_map(labels, strips),
        "alt": f"The answer, {percent(frame.score)} of the pixels right; mostly {words}",
    }
    return {"head": _head(frame), "score": percent(frame.score), "note": "", "pictures": [rendering, answer]}


def _box_figure(frame: Frame, strip: Strip, strips: Strips) -> dict[str, Any]:
    picture = to_uint8(frame.image)
    rows: list[tuple[Any, ...]] = []
    said: dict[str, list[str]] = {"found": [], "wrong": [], "missed": []}
    for seen in judged_boxes(frame.answer, strip.truth, strip.threshold or 0.0, strip.overlap or 0.5):
        text = class_name(seen.label, strips.classes)
        if seen.score is not None:
            text = f"{text} {_score(seen.score)}"
        rows.append((*seen.box, seen.kind, f"✗ {text}" if seen.kind == "wrong" else text))
        said[seen.kind].append(text)
    objects = int((strip.truth[:, 5] == 0).sum())
    words = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in said.items() if names)
    count = len(said["wrong"])
    return {
        "head": _head(frame),
        "score": f"{round(frame.score * objects)} of {objects} found" if objects else "no object",
        "note": f"{count} wrong box{'' if count == 1 else 'es'}" if count else "no wrong box",
        "pictures": [
            {
                "image": data_uri(picture),
                "alt": f"The picture with the answer, {_head(frame).lower()}; {words or 'nothing is there and nothing was seen'}",
                "classes": False,
                "marks": _marks(picture.shape[:2], rows),
            }
        ],
    }


def _score(value: float) -> str:
    """'.93'; '1.0' at the top."""
    return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1.0"


def _marks(size: tuple[int, ...], rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Boxes and their names as drawn over a picture; names avoid each other and the picture's edges.

    Args:
        size: height and width of the picture in px.
        rows: x0 y0 x1 y1 kind text.
    """
    height, width = size
    letter = _LETTER_HEIGHT * width
    taken: list[_Text] = []
    boxes = []
    for x0, y0, x1, y1, kind, text in rows:
        length = _LETTER_WIDTH * letter * len(text)
        offers = [
            (min(max(x, 0.0), max(width - length, 0.0)), min(max(y, letter), height - 0.2 * letter))
            for y in (y0 - 0.25 * letter, y0 + letter, y1 - 0.3 * letter, y1 + letter, (y0 + y1) / 2)
            for x in (x0, x1 - length)
        ]
        x, y = min(offers, key=lambda place: _covered((*place, length, letter), taken))
        taken.append((x, y, length, letter))
        boxes.append({"x": x0, "y": y0, "width": max(x1 - x0, 0.0), "height": max(y1 - y0, 0.0), "kind": kind,
                      "text": text, "text_x": round(x, 2), "text_y": round(y, 2)})  # fmt: skip
    return {"width": width, "height": height, "letter": round(letter, 2), "boxes": boxes}


def _covered(text: _Text, others: Sequence[_Text]) -> float:
    """Area that a text shares with others."""
    x, y, length, height = text
    return sum(
        max(min(x + length, left + wide) - max(x, left), 0)
        * max(min(y, low) - max(y - height, low - high), 0)
        for left, low, wide, high in others
    )
