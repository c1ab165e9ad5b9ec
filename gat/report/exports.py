"""A run as JSON, as Markdown, and as tables and figures for papers."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import combinations
from typing import Any

from gat.report.charts import budget_charts, heatmap
from gat.report.metric_tables import metric_table
from gat.report.plots import (
    Chart,
    to_pdf,
    to_png,
)
from gat.report.results import (
    Results,
    classes_table,
    command_line,
    definitions,
    mean_differences,
    pixel_classes,
    rows_of,
    scene_tables,
)
from gat.report.statistics import (
    Key,
    compare,
    main_attack,
    per_class,
    survival,
)
from gat.report.tables import (
    aggregate_table,
    full_table,
    headline_table,
    markdown_text,
    rows_to_csv,
    to_latex,
    to_markdown,
)


def tables(results: Results) -> dict[str, str]:
    """Files for papers and programs; nothing without records."""
    if not (results.folder.scene_metrics if results.folder.scene_task else results.cells):
        return {}
    folder, metrics = results.folder, results.folder.scene_metrics
    rows = rows_of(results)
    if metrics is not None:
        name = "metrics"
        table = metric_table(metrics, folder.suite, folder.seen)
        print_ = metric_table(metrics, folder.suite, folder.seen, compact=True)
    else:
        name = "accuracy"
        table = headline_table(results.summaries, results.aggregates, folder.suite, folder.seen)
        print_ = headline_table(
            results.summaries, results.aggregates, folder.suite, folder.seen, compact=True
        )
    provenance = folder.provenance or {}
    facts = {key: provenance.get(key) for key in ("command", "commit", "hardware", "trained_on", "protocols")}
    content = {**facts, "rows": rows}
    return {
        f"tables/{name}.md": f"{to_markdown(table)}\n\n{markdown_text(table.caption)}\n",
        f"tables/{name}.tex": to_latex(print_) + "\n",
        "tables/rows.csv": rows_to_csv(rows),
        "tables/table.json": json.dumps(finite(content), indent=1, default=str, allow_nan=False) + "\n",
    }


def figures(results: Results) -> dict[str, bytes]:
    """The heat-map, where there are enough attacks for one, and the curves over budgets."""
    found: dict[str, Chart] = {}
    if results.folder.scene_task:
        return {}
    if results.aggregates:
        found["heatmap"] = heatmap(results)
    for base, chart in budget_charts(results).items():
        found["budget-" + "".join(c if c.isalnum() else "-" for c in base)] = chart
    return {
        f"figures/{name}.{kind}": draw(chart.figure)
        for name, chart in found.items()
        for kind, draw in (("png", to_png), ("pdf", to_pdf))
    }


def to_json(results: Results) -> str:
    """Everything on the page but the pictures. Numbers that are not finite become null."""
    folder, attack = results.folder, main_attack(results.columns)
    if folder.scene_task:
        classes = pixel_classes(results)
    else:
        classes = classes_table(results, attack) if attack else None
    content = {
        "run": folder.name,
        "finding": results.finding,
        "rows": rows_of(results),
        "summaries": [
            _flat(s.key) | {k: v for k, v in asdict(s).items() if k != "key"} for s in results.summaries
        ],
        "survival": [
            _flat(Key(model, column)) | {"accuracy_after_steps": [p.value for p in survival(records, steps)]}
            for (model, column), records in results.cells.items()
            if (steps := results.most_steps(column))
        ],
        "aggregates": [
            {"model": a.model, "name": a.name, "over": [c._asdict() for c in a.columns], **asdict(a.share)}
            for a in results.aggregates
        ],
        "mean_differences": [
            {"first": first, "second": second, **asdict(estimate)}
            for first, second, estimate in mean_differences(results)
        ],
        "paired": []
        if folder.scene_task
        else [
            _flat(Key(second, column)) | {"baseline": first} | asdict(paired)
            for column in results.columns
            for first, second in combinations(results.models, 2)
            if (paired := compare(results.records(first, column), results.records(second, column)))
        ],
        "classes": list(folder.classes),
        "per_class": asdict(classes) if classes else None,
        "accuracy_per_class": []
        if folder.scene_task
        else [
            _flat(key)
            | {"label": label, "value": sum(r.correct for r in found) / len(found), "n": len(found)}
            for key, records in results.cells.items()
            for label, found in per_class(records).items()
        ],
        "doubts": [asdict(doubt) for doubt in results.doubts],
        "provenance": folder.provenance,
        "config": folder.config,
    }
    return json.dumps(finite(content), indent=1, default=str, allow_nan=False) + "\n"


def _flat(key: Key) -> dict[str, str]:
    return {"model": key.model, **key.column._asdict()}


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return value


def to_text(results: Results) -> str:
    """The page as Markdown, without pictures and curves."""
    folder = results.folder
    parts = [f"# {markdown_text(folder.name)}", f"**{markdown_text(results.finding)}**"]
    if folder.scene_task:
        for table in scene_tables(results):
            parts += [markdown_text(table.caption), to_markdown(table)]
    elif results.cells:
        tables = [headline_table(results.summaries, results.aggregates, folder.suite, folder.seen)]
        if results.aggregates:
            tables.append(aggregate_table(results.aggregates, results.columns))
        tables.append(full_table(results.summaries, folder.bounded))
        for table in tables:
            parts += [markdown_text(table.caption), to_markdown(table)]
        if attack := main_attack(results.columns):
            table = classes_table(results, attack)
            parts += [markdown_text(table.caption), to_markdown(table)]
    parts.append("## Warnings")
    parts.append(
        "\n".join(f"- **{doubt.level}**: {markdown_text(doubt.text)}" for doubt in results.doubts)
        or "None of the checks found anything."
    )
    if meanings := definitions(results):
        parts.append("## What the attacks are")
        for meaning in meanings:
            lines = [f"- **{markdown_text(meaning['name'])}**: {markdown_text(meaning['text'])}"]
            lines += [
                f"  - {markdown_text(name)}: {markdown_text(text)}" for name, text in meaning["variants"]
            ]
            parts.append("\n".join(lines))
    if command := command_line(folder):
        fence = "`" * 3 if "```" not in command else "~" * 12
        parts += ["## Command", f"{fence}\n{command}\n{fence}"]
    return "\n\n".join(parts) + "\n"
