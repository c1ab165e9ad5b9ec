"""The charts of a run, from its numbers."""

from collections.abc import Sequence

from gat.evaluation.records import budget
from gat.report.names import (
    attack_name,
    column_name,
    model_name,
)
from gat.report.plots import (
    Chart,
    budget_chart,
    heatmap_chart,
    survival_chart,
)
from gat.report.results import Results, joint_names
from gat.report.statistics import (
    Column,
    Proportion,
    headline_columns,
    survival,
)


def heatmap(results: Results) -> Chart:
    shown = headline_columns(results.columns, results.folder.suite)
    joint = [name for name in joint_names(results) if name != "worst"]
    values, marked = [], []
    for model in results.models:
        found = [results.summary(model, column) for column in shown]
        means = [results.joined(model, name) for name in joint]
        values.append(
            [s.accuracy.value if s else None for s in found] + [m.share.value if m else None for m in means]
        )
        marked.append([results.folder.seen(model, c) for c in shown] + [False] * len(joint))
    names = [*(column_name(c, shown) for c in shown), *map(attack_name, joint)]
    return heatmap_chart([model_name(model) for model in results.models], names, values, marked)


def budget_charts(results: Results) -> dict[str, Chart]:
    """Attack -> its curve, for those that ran at more than one budget."""
    families: dict[str, dict[float, Column]] = {}
    for column in results.columns:
        base, factor = budget(column.attack)
        families.setdefault(base, {})[factor] = column
    charts = {}
    for base, by_factor in families.items():
        if len(by_factor) < 2:
            continue
        curves: dict[str, dict[float, Proportion]] = {}
        for model in results.models:
            for factor, column in by_factor.items():
                if summary := results.summary(model, column):
                    curves.setdefault(model, {})[factor] = summary.accuracy
                    curves[model].setdefault(0.0, summary.accuracy_before)
        settings = results.folder.protocols.get(by_factor[1.0].protocol) if 1.0 in by_factor else None
        bounds = settings.get("bounds") if isinstance(settings, dict) else None
        unit = (
            ", ".join(f"{name} {value:.4g}" for name, value in (bounds or {}).items())
            if isinstance(bounds, dict)
            else ""
        )
        charts[base] = budget_chart(attack_name(base), curves, results.models, unit)
    return charts


def survival_charts(results: Results, chosen: Sequence[Column]) -> list[Chart]:
    """Attacks of one step have no curve."""
    charts = []
    for column in chosen:
        steps = results.most_steps(column)
        if steps > 1:
            curves = {
                model: survival(records, steps)
                for model in results.models
                if (records := results.records(model, column))
            }
            charts.append(survival_chart(column_name(column, results.columns), curves, results.models))
    return charts
