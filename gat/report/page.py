"""The report of a run: one self-contained HTML page, the same as JSON, and as Markdown."""

import base64
import io
import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image

from gat.evaluation.records import Record, budget, control
from gat.report.checks import Doubt, check
from gat.report.finding import compared_model, finding, ranking
from gat.report.folder import RunFolder, read_run
from gat.report.gallery import Gallery, GalleryItem, Panel, difference, difference_factors, to_uint8
from gat.report.names import (
    GROUPS,
    PANELS,
    attack_name,
    class_name,
    column_name,
    definition,
    group_name,
    model_name,
    panel_name,
    variant,
)
from gat.report.plots import (
    SERIES,
    Chart,
    budget_chart,
    flatten,
    heatmap_chart,
    survival_chart,
    to_pdf,
    to_png,
    to_svg,
    training_charts,
)
from gat.report.statistics import (
    Aggregate,
    Column,
    Estimate,
    Key,
    Paired,
    Proportion,
    Summary,
    aggregate,
    by_cell,
    columns,
    compare,
    difference_of_means,
    headline_columns,
    judging_columns,
    main_attack,
    models,
    oracle_agreement,
    per_class,
    proportion,
    summarize,
    survival,
)
from gat.report.tables import (
    Table,
    aggregate_table,
    class_table,
    full_table,
    headline_table,
    interval,
    markdown_text,
    p_value,
    percent,
    points,
    result_rows,
    rows_to_csv,
    to_latex,
    to_markdown,
)

_MODELS_SIDE_BY_SIDE = 3  # with large numbers; more models become a heat-map
_ATTACKS_TO_JOIN = 3  # fewer attacks need no mean
_ROWS_OPEN = 30  # of a table; a longer one is one click away
_STRIPS_OPEN = 2  # models whose pictures of one attack are shown; the others are one click away
_CARDS_OPEN = 6  # per model and layer group; the others are one click away
_MOST_PX = 256  # larger pictures are shrunk, so that the page can still be mailed
_PIXEL_ART_PX = 96  # up to this size, pixels are shown as squares


@dataclass(frozen=True)
class Results:
    """All numbers of a run, computed once and rendered three times."""

    folder: RunFolder
    cells: Mapping[Key, Sequence[Record]]
    summaries: Sequence[Summary]
    columns: Sequence[Column]
    models: Sequence[str]
    aggregates: Sequence[Aggregate]
    doubts: Sequence[Doubt]
    finding: str

    def records(self, model: str, column: Column) -> Sequence[Record]:
        return self.cells.get(Key(model, column), ())

    def summary(self, model: str, column: Column) -> Summary | None:
        return next((s for s in self.summaries if s.key == (model, column)), None)

    def paired(self, model: str, column: Column) -> Paired | None:
        """Against the baseline; None for the baseline itself."""
        if model == self.models[0]:
            return None
        return compare(self.records(self.models[0], column), self.records(model, column))

    def joined(self, model: str, name: str) -> Aggregate | None:
        return next((a for a in self.aggregates if (a.model, a.name) == (model, name)), None)

    def most_steps(self, column: Column) -> int:
        """That any model was given."""
        return max((s.max_iterations for s in self.summaries if s.key.column == column), default=0)


def write_report(run: Path) -> Path:
    """Write `report.html`, `report.json` and `report.md` into a run folder, from what lies there and from nothing else; beside them
    `tables/` (Markdown, LaTeX, CSV, and table.json) and `figures/` (PNG and PDF).

    What is missing or damaged is said on the page. Of provenance.json, `command` (text, or a list of arguments), `classes`
    (names by label), `seeds`, `trained_on` ({model: kinds of attacks}), `suite` ({`attacks`: names that means are over}) and
    `protocols` ({id: settings}, among them `kinds`: of attacks, as in `trained_on`, `summary`: a line of text, and `bounds`:
    {distance: largest value}) have their own places; all other entries are printed as they are.

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
        **_tables(results),
        **_figures(results),
        "report.html": to_html(results),
    }
    for name, content in pages.items():
        path = run / name
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        data = content.encode(errors="replace") if isinstance(content, str) else content
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return run / "report.html"


def compute(folder: RunFolder) -> Results:
    """All numbers of a run."""
    cells = by_cell(folder.records)
    shown = columns(cells)
    judging = judging_columns(shown, folder.suite)
    joined: list[Aggregate] = []
    if len(judging) >= _ATTACKS_TO_JOIN:
        seen = {model: [c for c in judging if folder.seen(model, c)] for model in models(cells)}
        joined = aggregate(cells, seen, judging)
    several = len(models(cells)) >= _MODELS_SIDE_BY_SIDE
    return Results(
        folder=folder,
        cells=cells,
        summaries=[summarize(key, records) for key, records in cells.items()],
        columns=shown,
        models=models(cells),
        aggregates=joined,
        doubts=check(folder),
        finding=(ranking(cells, joined) if several else None) or finding(cells),
    )


def _tables(results: Results) -> dict[str, str]:
    """Files for papers and programs; nothing without records."""
    if not results.cells:
        return {}
    folder = results.folder
    rows = _rows(results)
    table = headline_table(results.summaries, results.aggregates, folder.suite, folder.seen)
    print_ = headline_table(results.summaries, results.aggregates, folder.suite, folder.seen, compact=True)
    provenance = folder.provenance or {}
    facts = {
        name: provenance.get(name) for name in ("command", "commit", "hardware", "trained_on", "protocols")
    }
    content = {**facts, "rows": rows}
    return {
        "tables/accuracy.md": f"{to_markdown(table)}\n\n{markdown_text(table.caption)}\n",
        "tables/accuracy.tex": to_latex(print_) + "\n",
        "tables/rows.csv": rows_to_csv(rows),
        "tables/table.json": json.dumps(_finite(content), indent=1, default=str, allow_nan=False) + "\n",
    }


def _rows(results: Results) -> list[dict[str, Any]]:
    return result_rows(results.summaries, results.folder.task, results.folder.seeds, results.aggregates)


def _figures(results: Results) -> dict[str, bytes]:
    """The heat-map, where there are enough attacks for one, and the curves over budgets."""
    found = {}
    if results.aggregates:
        found["heatmap"] = _heatmap(results)
    for base, chart in _budget_charts(results).items():
        found["budget-" + "".join(c if c.isalnum() else "-" for c in base)] = chart
    return {
        f"figures/{name}.{kind}": draw(chart.figure)
        for name, chart in found.items()
        for kind, draw in (("png", to_png), ("pdf", to_pdf))
    }


def _heatmap(results: Results) -> Chart:
    shown = headline_columns(results.columns, results.folder.suite)
    joint = [name for name in _joint(results) if name != "worst"]
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


def _joint(results: Results) -> list[str]:
    return list(dict.fromkeys(a.name for a in results.aggregates))


def _budget_charts(results: Results) -> dict[str, Chart]:
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


def to_json(results: Results) -> str:
    """Everything on the page but the pictures. Numbers that are not finite become null."""
    folder, attack = results.folder, main_attack(results.columns)
    content = {
        "run": folder.name,
        "finding": results.finding,
        "rows": _rows(results),
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
            for first, second, estimate in _mean_differences(results)
        ],
        "paired": [
            _flat(Key(second, column)) | {"baseline": first} | asdict(paired)
            for column in results.columns
            for first, second in combinations(results.models, 2)
            if (paired := compare(results.records(first, column), results.records(second, column)))
        ],
        "classes": list(folder.classes),
        "per_class": asdict(_classes(results, attack)) if attack else None,
        "accuracy_per_class": [
            _flat(key)
            | {"label": label, "value": sum(r.correct for r in found) / len(found), "n": len(found)}
            for key, records in results.cells.items()
            for label, found in per_class(records).items()
        ],
        "doubts": [asdict(doubt) for doubt in results.doubts],
        "provenance": folder.provenance,
        "config": folder.config,
    }
    return json.dumps(_finite(content), indent=1, default=str, allow_nan=False) + "\n"


def _mean_differences(results: Results) -> list[tuple[str, str, Estimate]]:
    """Of the model with the best mean over unseen attacks and every other one: its mean less the other's."""
    means = [a for a in results.aggregates if a.name == "mean_unseen"]
    if len(means) < 2:
        return []
    best = max(means, key=lambda a: a.share.value)

    def of(a: Aggregate) -> list[Sequence[Record]]:
        return [results.records(a.model, column) for column in a.columns]

    return [
        (other.model, best.model, difference_of_means(of(other), of(best)))
        for other in means
        if other is not best
    ]


def _flat(key: Key) -> dict[str, str]:
    return {"model": key.model, **key.column._asdict()}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value


def to_text(results: Results) -> str:
    """The page as Markdown, without pictures and curves."""
    folder = results.folder
    parts = [f"# {markdown_text(folder.name)}", f"**{markdown_text(results.finding)}**"]
    if results.cells:
        tables = [headline_table(results.summaries, results.aggregates, folder.suite, folder.seen)]
        if results.aggregates:
            tables.append(aggregate_table(results.aggregates, results.columns))
        tables.append(full_table(results.summaries, folder.bounded))
        for table in tables:
            parts += [markdown_text(table.caption), to_markdown(table)]
        if attack := main_attack(results.columns):
            table = _classes(results, attack)
            parts += [markdown_text(table.caption), to_markdown(table)]
    parts.append("## Warnings")
    parts.append(
        "\n".join(f"- **{doubt.level}**: {markdown_text(doubt.text)}" for doubt in results.doubts)
        or "None of the checks found anything."
    )
    if meanings := _definitions(results):
        parts.append("## What the attacks are")
        for meaning in meanings:
            lines = [f"- **{markdown_text(meaning['name'])}**: {markdown_text(meaning['text'])}"]
            lines += [
                f"  - {markdown_text(name)}: {markdown_text(text)}" for name, text in meaning["variants"]
            ]
            parts.append("\n".join(lines))
    if command := _command(folder):
        fence = "`" * 3 if "```" not in command else "~" * 12
        parts += ["## Command", f"{fence}\n{command}\n{fence}"]
    return "\n\n".join(parts) + "\n"


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
    wide = len(results.models) > _MODELS_SIDE_BY_SIDE
    full = full_table(results.summaries, folder.bounded) if results.cells else None
    attack = main_attack(results.columns)
    charts = training_charts(folder.metrics)
    return environment.get_template("page.html").render(
        folder=folder,
        finding=results.finding,
        doubts=results.doubts,
        models=[
            {"name": model_name(model), "series": i % len(SERIES)} for i, model in enumerate(results.models)
        ],
        headline=[] if wide else [_headline_row(results, column, shown) for column in shown],
        joint=[] if wide else [_joint_row(results, name) for name in _joint(results)],
        heat=_heat(results, shown) if wide else None,
        sets=aggregate_table(results.aggregates, results.columns) if results.aggregates else None,
        differences=_difference_table(results),
        budgets=_svgs([*_budget_charts(results).values()]),
        gallery=_gallery(folder.gallery, folder.classes) if folder.gallery else None,
        curves=_svgs(_survival_charts(results, shown)),
        variant_curves=_svgs(_survival_charts(results, variants)),
        full=full,
        full_open=full is not None and len(full.rows) <= _ROWS_OPEN,
        classes=_classes(results, attack) if attack else None,
        training=_svgs(charts[:3]),
        more_training=_svgs(charts[3:]),
        command=_command(folder),
        provenance=_facts(folder.provenance),
        definitions=_definitions(results),
        protocols=_protocols(results),
    )


def _headline_row(results: Results, column: Column, among: Sequence[Column]) -> dict[str, Any]:
    return {
        "name": column_name(column, among),
        "column": column,
        "cells": [
            {
                "summary": results.summary(model, column),
                "paired": results.paired(model, column),
                "seen": results.folder.seen(model, column),
                "valid": _valid(results, model, column),
            }
            for model in results.models
        ],
    }


def _valid(results: Results, model: str, column: Column) -> Proportion | None:
    """Accuracy against pictures that still show their label, where nothing else holds the attack to that."""
    summary = results.summary(model, column)
    if summary is None or column.attack == "none" or results.folder.bounded(column):
        return None
    return summary.accuracy_valid


def _joint_row(results: Results, name: str) -> dict[str, Any]:
    return {"name": attack_name(name), "cells": [results.joined(model, name) for model in results.models]}


def _heat(results: Results, shown: Sequence[Column]) -> dict[str, Any]:
    """Models in rows, clean, attacks and means in columns."""
    joint = [name for name in _joint(results) if name != "worst"]
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
                    "valid": _valid(results, model, column),
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
    found = _mean_differences(results)
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


def _survival_charts(results: Results, chosen: Sequence[Column]) -> list[Chart]:
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


def _svgs(charts: Sequence[Chart]) -> list[dict[str, Any]]:
    return [
        {"title": chart.title, "description": chart.description, "svg": Markup(to_svg(chart.figure))}
        for chart in charts
    ]


def _classes(results: Results, column: Column) -> Table:
    """Of the baseline and the trained model."""
    trained = compared_model(results.models)
    chosen = [model for model in (results.models[0], trained) if model and results.records(model, column)]
    by_class = {model: per_class(results.records(model, column)) for model in chosen}
    return class_table(
        column,
        {
            model: {label: proportion(sum(r.correct for r in rs), len(rs)) for label, rs in found.items()}
            for model, found in by_class.items()
        },
        {
            model: {label: oracle_agreement(rs) for label, rs in found.items()}
            for model, found in by_class.items()
        },
        results.folder.classes,
    )


def _definitions(results: Results) -> list[dict[str, Any]]:
    """Each family of attacks with what it does and what its variants leave out."""
    families: dict[str, list[str]] = {}
    for attack in dict.fromkeys(column.attack for column in results.columns):
        families.setdefault(attack.split("-")[0], []).append(attack)
    return [
        {
            "name": attack_name(family),
            "text": definition(family) or f"Not described here; the configuration says what '{family}' is.",
            "variants": [(attack_name(attack), text) for attack in attacks if (text := variant(attack))],
        }
        for family, attacks in families.items()
    ]


def _protocols(results: Results) -> list[dict[str, Any]]:
    """Each protocol id, the attacks that ran under it, and its settings where the provenance tells them."""
    settings = results.folder.protocols
    found = []
    for protocol in dict.fromkeys(column.protocol for column in results.columns if column.protocol):
        attacks = dict.fromkeys(attack_name(c.attack) for c in results.columns if c.protocol == protocol)
        stated = settings.get(protocol)
        facts = (
            _facts(stated) if isinstance(stated, dict) else [("", str(stated))] if stated is not None else []
        )
        summary = next((text for name, text in facts if name in {"", "summary"}), "")
        facts = [fact for fact in facts if fact[0] not in {"", "summary"}]
        found.append({"id": protocol, "attacks": "; ".join(attacks), "summary": summary, "settings": facts})
    return found


def _facts(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Nested values as a flat list of names and texts."""
    return [
        (
            name.strip("/").replace("/", " › "),
            "; ".join(map(_fact, value)) or "none" if isinstance(value, list) else str(value),
        )
        for name, value in flatten(values or {}).items()
        if name not in {"command"} and not name.startswith(("protocols/", "command/"))
    ]


def _fact(value: Any) -> str:
    """Settings in a list, for example of the attacks that one tries in turn, on one line."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={part}" for name, part in flatten(value).items())
    return str(value)


def _command(folder: RunFolder) -> str:
    command = (folder.provenance or {}).get("command", "")
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command)


def _gallery(gallery: Gallery, classes: tuple[str, ...]) -> dict[str, Any]:
    """What the template shows: layer groups, in each the models, in each the cards."""
    factors = difference_factors(gallery)
    order = list(GROUPS)
    groups = sorted(
        dict.fromkeys(item.group for item in gallery.items),
        key=lambda group: order.index(group) if group in order else len(order),
    )
    height, width, _ = to_uint8(gallery.items[0].original).shape if gallery.items else (1, 1, 3)
    return {
        "factors": ", ".join(f"{_inline(kind)} ×{factor}" for kind, factor in factors.items()),
        "seed": gallery.seed,
        "oracle": any(panel.oracle is not None for item in gallery.items for panel in item.panels),
        "pixel_art": max(height, width) <= _PIXEL_ART_PX,
        "size": f"{width}×{height}",
        "groups": [
            {
                "name": group_name(group),
                "shown": _STRIPS_OPEN,
                "models": [
                    _strip(
                        model,
                        [i for i in gallery.items if (i.group, i.model) == (group, model)],
                        classes,
                        factors,
                    )
                    for model in _shown_first(i.model for i in gallery.items if i.group == group)
                ],
            }
            for group in groups
        ],
    }


def _shown_first(names: Iterable[str]) -> list[str]:
    """The baseline, the model the page is about, then the others."""
    ordered = models(Key(name, Column("", "", "")) for name in names)
    about = compared_model(ordered)
    return sorted(ordered, key=lambda name: (name != ordered[0], name != about))


def _inline(kind: str) -> str:
    """Of a panel, inside a sentence: 'style-based', but 'PGD'."""
    name = panel_name(kind)
    return name.lower() if kind in PANELS else name


def _strip(
    model: str, items: Sequence[GalleryItem], classes: tuple[str, ...], factors: Mapping[str, int]
) -> dict[str, Any]:
    panels = [panel for item in items for panel in item.panels]
    counts = []
    for kind in dict.fromkeys(panel.kind for panel in panels):
        verdicts = [panel.success for panel in panels if panel.kind == kind]
        counts.append(f"{_inline(kind)} {sum(verdicts)} of {len(verdicts)}")
    cards = [_card(item, classes, factors) for item in items]
    return {
        "name": model_name(model),
        "counts": "fooled: " + ", ".join(counts) if counts else "",
        "panels": 1 + max((len(item.panels) for item in items), default=0),
        "open": cards[:_CARDS_OPEN],
        "more": cards[_CARDS_OPEN:],
    }


def _card(item: GalleryItem, classes: tuple[str, ...], factors: Mapping[str, int]) -> dict[str, Any]:
    label, original = class_name(item.label, classes), to_uint8(item.original)

    def oracle(reading: int | None) -> dict[str, Any] | None:
        return (
            None
            if reading is None
            else {"name": class_name(reading, classes), "agrees": reading == item.label}
        )

    def attacked(panel: Panel) -> dict[str, Any]:
        answer, image = class_name(panel.prediction, classes), to_uint8(panel.image)
        steps = f"{panel.iterations} step{'' if panel.iterations == 1 else 's'}"
        state = "fooled" if panel.success else "held" if item.prediction == item.label else "wrong before"
        name = panel_name(panel.kind)
        return {
            "name": name,
            "image": _data_uri(image),
            "alt": f"{name} version of a {label}; the model answers {answer}, {state} after {steps}",
            "difference": _data_uri(difference(original, image, factors[panel.kind])),
            "factor": factors[panel.kind],
            "answer": answer,
            "state": state,
            "steps": steps,
            "oracle": oracle(panel.oracle),
        }

    return {
        "label": label,
        "id": item.id,
        "image": _data_uri(original),
        "alt": f"Original {label}; the model answers {class_name(item.prediction, classes)}",
        "answer": class_name(item.prediction, classes),
        "right": item.prediction == item.label,
        "oracle": oracle(item.oracle),
        "panels": [attacked(panel) for panel in item.panels],
    }


def _data_uri(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((_MOST_PX, _MOST_PX))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
