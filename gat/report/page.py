"""The report of a run: one self-contained HTML page, the same as JSON, and as Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gat.evaluation.records import budget, control
from gat.files import written_whole
from gat.report.cards import gallery_view
from gat.report.charts import budget_charts, survival_charts
from gat.report.exports import figures, tables, to_json, to_text
from gat.report.folder import read_run
from gat.report.metric_tables import all_metrics_table
from gat.report.names import (
    attack_name,
    column_name,
    model_name,
)
from gat.report.plots import (
    SERIES,
    Chart,
    to_svg,
    training_charts,
)
from gat.report.results import (
    MODELS_SIDE_BY_SIDE,
    Results,
    classes_table,
    command_line,
    compute,
    definitions,
    flat_facts,
    joint_names,
    mean_differences,
    pixel_classes,
    protocols,
    valid_accuracy,
)
from gat.report.scenes import metric_view, strip_view
from gat.report.statistics import (
    Column,
    headline_columns,
    main_attack,
)
from gat.report.tables import (
    Table,
    aggregate_table,
    full_table,
    interval,
    p_value,
    percent,
    points,
)

_ROWS_OPEN = 30  # of a table; a longer one is one click away


def write_report(run: Path) -> Path:
    """Write `report.html`, `report.json` and `report.md` into a run folder, from what lies there and from nothing else; beside them
    `tables/` (Markdown, LaTeX, CSV, and table.json) and `figures/` (PNG and PDF).

    What is missing or damaged is said on the page. Of provenance.json, `command` (text, or a list of arguments), `classes`
    (names by label), `task` ('segmentation' or 'detection', where scenes are answered), `seeds`, `trained_on` ({model: kinds of
    attacks}), `suite` ({`attacks`: names that means are over}) and `protocols` ({id: settings}, among them `kinds`: of attacks, as
    in `trained_on`, `summary`: a line of text, and `bounds`: {distance: largest value}) have their own places; all other entries
    are printed as they are.

    Args:
        run: the run folder; see `gat.evaluation.records` for what it holds.

    Returns:
        Path of the HTML page.

    Raises:
        ValueError: if `run` is not a folder, or holds nothing to report on.
    """
    results = compute(read_run(run))
    pages: dict[str, str | bytes] = {
        "report.json": to_json(results),
        "report.md": to_text(results),
        **tables(results),
        **figures(results),
        "report.html": to_html(results),
    }
    for name, content in pages.items():
        path = run / name
        path.parent.mkdir(exist_ok=True)
        data = content.encode(errors="replace") if isinstance(content, str) else content
        with written_whole(path) as temporary:
            temporary.write_bytes(data)
    return run / "report.html"


def to_html(results: Results) -> str:
    """The page: no scripts, nothing from the network, pictures inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "interval": interval, "p_value": p_value}
    folder = results.folder
    shown = headline_columns(results.columns, folder.suite)
    variants = [
        column
        for column in results.columns
        if column not in shown and control(column.attack) is None and budget(column.attack)[1] == 1
    ]
    charts = training_charts(folder.metrics)
    parts = _scene_parts(results) if folder.scene_task else _classifier_parts(results, shown)
    full = parts["full"]
    return environment.get_template("page.html").render(
        folder=folder,
        finding=results.finding,
        doubts=results.doubts,
        models=[
            {"name": model_name(model), "series": i % len(SERIES)} for i, model in enumerate(results.models)
        ],
        scene_task=folder.scene_task,
        **parts,
        curves=_svgs(survival_charts(results, shown)),
        variant_curves=_svgs(survival_charts(results, variants)),
        full_open=full is not None and len(full.rows) <= _ROWS_OPEN,
        training=_svgs(charts[:3]),
        more_training=_svgs(charts[3:]),
        command=command_line(folder),
        provenance=flat_facts(folder.provenance),
        definitions=definitions(results),
        protocols=protocols(results),
    )


def _classifier_parts(results: Results, shown: Sequence[Column]) -> dict[str, Any]:
    """Accuracies, and the gallery."""
    folder, attack = results.folder, main_attack(results.columns)
    wide = len(results.models) > MODELS_SIDE_BY_SIDE
    return {
        "metrics": None,
        "strips": None,
        "headline": [] if wide else [_headline_row(results, column, shown) for column in shown],
        "joint": [] if wide else [_joint_row(results, name) for name in joint_names(results)],
        "heat": _heat(results, shown) if wide else None,
        "sets": aggregate_table(results.aggregates, results.columns) if results.aggregates else None,
        "differences": _difference_table(results),
        "budgets": _svgs([*budget_charts(results).values()]),
        "gallery": gallery_view(folder.gallery, folder.classes) if folder.gallery else None,
        "full": full_table(results.summaries, folder.bounded) if results.cells else None,
        "classes": classes_table(results, attack) if attack else None,
    }


def _scene_parts(results: Results) -> dict[str, Any]:
    """Metrics of the data set, and strips; what is about the classes of images is left out."""
    metrics, strips = results.folder.scene_metrics, results.folder.strips
    return {
        "metrics": metric_view(results),
        "strips": strip_view(strips) if strips else None,
        **dict.fromkeys(("headline", "joint", "heat", "sets", "differences", "budgets", "gallery")),
        "full": all_metrics_table(metrics, results.cells) if metrics else None,
        "classes": pixel_classes(results),
    }


def _headline_row(results: Results, column: Column, among: Sequence[Column]) -> dict[str, Any]:
    return {
        "name": column_name(column, among),
        "column": column,
        "cells": [
            {
                "summary": results.summary(model, column),
                "paired": results.paired(model, column),
                "seen": results.folder.seen(model, column),
                "valid": valid_accuracy(results, model, column),
            }
            for model in results.models
        ],
    }


def _joint_row(results: Results, name: str) -> dict[str, Any]:
    return {"name": attack_name(name), "cells": [results.joined(model, name) for model in results.models]}


def _heat(results: Results, shown: Sequence[Column]) -> dict[str, Any]:
    """Models in rows, clean, attacks and means in columns."""
    joint = [name for name in joint_names(results) if name != "worst"]
    rows = []
    for i, model in enumerate(results.models):
        cells: list[dict[str, Any]] = []
        for column in shown:
            summary = results.summary(model, column)
            paired = results.paired(model, column)
            cells.append(
                {
                    "share": summary.accuracy if summary else None,
                    "seen": summary is not None and results.folder.seen(model, column),
                    "valid": valid_accuracy(results, model, column),
                    "paired": paired,
                }
            )
        for name in joint:
            found = results.joined(model, name)
            cells.append(
                {"share": found.share if found else None, "seen": False, "valid": None, "paired": None}
            )
        rows.append({"name": model_name(model), "series": i % len(SERIES), "cells": cells})
    header = [
        {"name": column_name(c, shown), "protocol": c.protocol, "source": c.source, "joint": False}
        for c in shown
    ]
    header += [{"name": attack_name(n), "protocol": "", "source": "", "joint": True} for n in joint]
    return {"header": header, "rows": rows, "swatches": len(rows) <= len(SERIES)}


def _difference_table(results: Results) -> Table | None:
    """Mean over unseen attacks of the best model less that of each other."""
    found = mean_differences(results)
    if not found:
        return None
    best = model_name(found[0][1])
    return Table(
        caption=f"Mean over unseen attacks: {best} less each other model, on the same examples; 95% bootstrap interval. Where two models "
        "were trained on different attacks, their means are over different sets, listed below.",
        header=("Against", "Difference", "95% interval"),
        rows=tuple(
            (
                model_name(other),
                points(e.value),
                " to ".join(points(x).removesuffix(" points") for x in (e.low, e.high)),
            )
            for other, _, e in found
        ),
    )


def _svgs(charts: Sequence[Chart]) -> list[dict[str, Any]]:
    return [
        {"title": chart.title, "description": chart.description, "svg": Markup(to_svg(chart.figure))}
        for chart in charts
    ]
