"""Charts as matplotlib figures: models by attacks, accuracy against iterations and budgets, and training curves.

A figure is drawn for a phone's width and light paper. `to_svg` makes it follow the page instead: ink and series colours become
CSS variables (`--ink`, `--series-0`, ...), so that one drawing serves light and dark. `to_png` keeps the light colours.
"""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gat.report.names import metric_name, model_name
from gat.report.statistics import Proportion

# Okabe and Ito's colours in an order whose neighbours also differ in lightness; series differ by dashes and markers too.
SERIES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_INK, _QUIET, _PAPER = "#1d1c1b", "#8a8783", "#fcfbf8"
_VARIABLES = {_INK: "--ink", _QUIET: "--quiet", _PAPER: "--paper"} | {
    c: f"--series-{i}" for i, c in enumerate(SERIES)
}

_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a '$' in a class name is a '$'
    "svg.fonttype": "none",
    "svg.hashsalt": "gat",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}

_BANDS_UP_TO = 4  # models in one chart; more bands hide each other

_SKIPPED_METRICS = {"step", "epoch", "time", "time_sec", "elapsed_sec", "eta_sec"}
_SHARE_WORDS = ("accuracy", "fooled", "success", "share", "agreement", "rejected", "used", "fraction")
_MOST_POINTS = 240


@dataclass(frozen=True)
class Chart:
    """A figure, its heading, and what it shows in words, for those who cannot see it."""

    title: str
    figure: Figure
    description: str


def _axes(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """With room for a legend of these labels above the axes."""
    figure = Figure(
        figsize=(4.6, 2.65 + 0.2 * math.ceil(len(labels) / _legend_columns(labels))), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(axis="y", color=_QUIET, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _line(i: int) -> dict[str, Any]:
    """Colour, dashes and marker of the i-th model: no two of the first 36 share all three."""
    turn = i + i // len(SERIES)
    return {
        "color": SERIES[i % len(SERIES)],
        "linestyle": _DASHES[turn % len(_DASHES)],
        "marker": _MARKERS[turn % len(_MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.8,
        "clip_on": False,
    }


def _legend_columns(labels: Sequence[str]) -> int:
    return 2 if max(map(len, labels), default=0) <= 20 else 1


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        [label if len(label) <= 44 else label[:43] + "…" for label in labels],
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=_legend_columns(labels),
        borderaxespad=0.2,
        columnspacing=1.4,
        handlelength=2.4,
    )


def survival_chart(title: str, curves: Mapping[str, Sequence[Proportion]], models: Sequence[str]) -> Chart:
    """Share not yet fooled after t = 0, 1, ... gradient steps, one line per model, with 95 % bands.

    Args:
        title: the attack's name.
        curves: model -> its `statistics.survival`.
        models: all models of the report; a model has the same colour and marker in every chart.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes([model_name(model) for model in curves])
        for model, curve in curves.items():
            style = _line(models.index(model))
            steps = range(len(curve))
            if len(curves) <= _BANDS_UP_TO:
                axes.fill_between(
                    steps,
                    [p.low for p in curve],
                    [p.high for p in curve],
                    color=style["color"],
                    alpha=0.15,
                    linewidth=0,
                    step="post",
                )
            often = math.ceil(len(curve) / 16)  # markers of a long attack would run into each other
            axes.step(
                steps,
                [p.value for p in curve],
                where="post",
                markevery=often,
                label=model_name(model),
                **style,
            )
        axes.set_ylim(0, 1)
        axes.set_xlim(0, max(1, *(len(curve) - 1 for curve in curves.values())))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("gradient steps")
        _legend(axes)
    words = "; ".join(
        f"{model_name(model)} from {100 * curve[0].value:.1f}% before the first step to "
        f"{100 * curve[-1].value:.1f}% after {len(curve) - 1}"
        for model, curve in curves.items()
    )
    return Chart(title, figure, f"Share of examples not yet fooled under {title}: {words}.")


def budget_chart(
    title: str, curves: Mapping[str, Mapping[float, Proportion]], models: Sequence[str], unit: str = ""
) -> Chart:
    """Accuracy at multiples of an attack's budget, one line per model, with 95 % bands.

    Args:
        title: the attack's name.
        curves: model -> multiple -> accuracy; 0 is the accuracy before the attack.
        models: all models of the report.
        unit: what one budget is, in words.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes([model_name(model) for model in curves])
        for model, curve in curves.items():
            style = _line(models.index(model))
            factors = sorted(curve)
            shares = [curve[factor] for factor in factors]
            if len(curves) <= _BANDS_UP_TO:
                low, high = [p.low for p in shares], [p.high for p in shares]
                axes.fill_between(factors, low, high, color=style["color"], alpha=0.15, linewidth=0)
            axes.plot(factors, [p.value for p in shares], label=model_name(model), **style)
        axes.set_ylim(0, 1)
        axes.set_xlim(0, max(factor for curve in curves.values() for factor in curve))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(f"budget, 1 = {unit}" if unit else "budget, in multiples of the main one")
        _legend(axes)
    words = "; ".join(
        f"{model_name(model)}: "
        + ", ".join(f"{100 * curve[factor].value:.1f}% at ×{factor:g}" for factor in sorted(curve))
        for model, curve in curves.items()
    )
    return Chart(title, figure, f"Accuracy under {title} at multiples of its budget. {words}.")


def heatmap_chart(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    marked: Sequence[Sequence[bool]],
) -> Chart:
    """Accuracies of models (rows) by attacks (columns), the better the darker.

    Args:
        values: shares; None is left empty.
        marked: gets a frame: attacks that the model was trained on.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.6 + 0.95 * len(columns), 1.5 + 0.42 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_axis_on()
        grid = np.array([[math.nan if v is None else v for v in row] for row in values], dtype=float)
        axes.imshow(
            grid, cmap="Blues", vmin=0, vmax=1.25, aspect="auto"
        )  # the darkest blues would drown the ink
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                text = "–" if value is None else f"{100 * value:.1f}"
                axes.text(j, i, text, ha="center", va="center", color=_INK, fontsize=9.5)
                if marked[i][j]:
                    axes.add_patch(
                        Rectangle(
                            (j - 0.45, i - 0.42),
                            0.9,
                            0.84,
                            fill=False,
                            edgecolor=_INK,
                            linewidth=1.1,
                            linestyle=":",
                        )
                    )
        axes.set_xticks(range(len(columns)), [fill(name, 13) for name in columns], rotation=0, fontsize=8.5)
        axes.set_yticks(range(len(rows)), [name if len(name) <= 32 else name[:31] + "…" for name in rows])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    words = "; ".join(
        f"{name}: "
        + ", ".join(f"{c} {100 * v:.1f}%" for c, v in zip(columns, row, strict=True) if v is not None)
        for name, row in zip(rows, values, strict=True)
    )
    return Chart("Models by attacks", figure, f"Accuracy in per cent; dotted: seen in training. {words}.")


@dataclass(frozen=True)
class Series:
    """One training curve."""

    metric: str
    label: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def training_series(metrics: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Curves in rows of metrics.jsonl.

    A row has `step` and any numbers; nested objects are joined with '/'. Texts in a row (for example its `stage`) say which
    training the row belongs to. Non-finite values are left out here and reported by `checks`.
    """
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for index, row in enumerate(metrics):
        flat = flatten(row)
        texts = " ".join(str(value) for value in flat.values() if isinstance(value, str))
        step = flat.get("step", index)
        for name, value in flat.items():
            if name == "loss" and "loss_clean" in flat:  # the parts say more than their sum
                continue
            if name in _SKIPPED_METRICS or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if math.isfinite(value) and isinstance(step, (int, float)):
                curves.setdefault((texts, name), []).append((float(step), float(value)))
    found = []
    for (texts, name), pairs in curves.items():
        steps, values = zip(*sorted(pairs, key=lambda pair: pair[0]), strict=True)
        label = metric_name(name)
        found.append(Series(name, f"{label} ({model_name(texts)})" if texts else label, steps, values))
    return found


def flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'loss': {'clean': 1}} -> {'loss/clean': 1}."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _panel(metric: str) -> str:
    words = metric.replace("/", "_").split("_")
    if "loss" in words:
        return "Loss"
    if any(word in _SHARE_WORDS for word in words):
        return "Shares"
    if metric.endswith("_per_sec"):
        return "Speed, per second"
    return metric_name(metric).capitalize()


def training_charts(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Losses in one chart, shares in one, speeds in one, every other metric in its own; curves of one point are left out."""
    panels: dict[str, list[Series]] = {}
    for series in training_series(metrics):
        if len(series.steps) > 1:
            panels.setdefault(_panel(series.metric), []).append(series)
    order = ["Loss", "Shares", "Speed, per second"]
    titles = sorted(
        panels, key=lambda title: (title not in order, order.index(title) if title in order else 0)
    )
    return [_training_chart(title, panels[title]) for title in titles]


def _training_chart(title: str, curves: Sequence[Series]) -> Chart:
    with mpl.rc_context(_STYLE):
        figure, axes = _axes([series.label for series in curves])
        for i, series in enumerate(curves):
            steps, low, mean, high = _bins(series)
            colour = SERIES[i % len(SERIES)]
            if low != high:
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                steps,
                mean,
                color=colour,
                linestyle=_DASHES[i % len(_DASHES)],
                linewidth=1.6,
                label=series.label,
            )
        if title == "Shares":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            if all(0 <= value <= 1 for series in curves for value in series.values):
                axes.set_ylim(0, 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel("training step")
        _legend(axes)
    words = "; ".join(f"{s.label} from {s.values[0]:.3g} to {s.values[-1]:.3g}" for s in curves)
    return Chart(title, figure, f"{title} during training: {words}.")


def _bins(series: Series) -> tuple[list[float], list[float], list[float], list[float]]:
    """Steps, lowest, mean and highest value of runs of neighbouring points, so that long trainings stay light to draw."""
    size = math.ceil(len(series.steps) / _MOST_POINTS)
    parts = [slice(start, start + size) for start in range(0, len(series.steps), size)]
    return (
        [sum(series.steps[part]) / len(series.steps[part]) for part in parts],
        [min(series.values[part]) for part in parts],
        [sum(series.values[part]) / len(series.values[part]) for part in parts],
        [max(series.values[part]) for part in parts],
    )


def to_svg(figure: Figure) -> str:
    """An inline `<svg>` without prolog, whose colours follow the page."""
    buffer = io.StringIO()
    _save(figure, buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # several drawings share one page, where ids must be unique
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var({variable})")
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def to_pdf(figure: Figure) -> bytes:
    """A PDF, the same for the same figure."""
    buffer = io.BytesIO()
    _save(figure, buffer, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return buffer.getvalue()


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """A PNG on light paper."""
    buffer = io.BytesIO()
    _save(figure, buffer, format="png", dpi=dpi, facecolor=_PAPER, metadata={"Software": None})
    return buffer.getvalue()


def _save(figure: Figure, file: io.StringIO | io.BytesIO, **options: Any) -> None:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Names in other scripts: the reader's fonts draw them in an SVG, a box does in a PNG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, **options)
