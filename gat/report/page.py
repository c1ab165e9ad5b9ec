"""The report of a run: one self-contained HTML page, the same as JSON, and as Markdown."""

import base64
import io
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image

from gat.evaluation.records import Record
from gat.report.checks import Doubt, check
from gat.report.finding import compared_model, finding
from gat.report.folder import RunFolder, read_run
from gat.report.gallery import Gallery, GalleryItem, Panel, difference, difference_factors, to_uint8
from gat.report.names import (
    GROUPS,
    attack_name,
    class_name,
    column_name,
    definition,
    group_name,
    model_name,
    panel_name,
    variant,
)
from gat.report.plots import SERIES, Chart, flatten, survival_chart, to_svg, training_charts
from gat.report.statistics import (
    Column,
    Key,
    Paired,
    Summary,
    by_cell,
    columns,
    compare,
    headline_columns,
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
    class_table,
    full_table,
    headline_table,
    interval,
    markdown_text,
    p_value,
    percent,
    points,
    result_rows,
    to_markdown,
)

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

    def seen(self, model: str, column: Column) -> bool:
        """Whether the model was trained on attacks of this kind, as far as the provenance tells."""
        provenance = self.folder.provenance or {}
        trained_on, protocols = provenance.get("trained_on"), provenance.get("protocols")
        kinds = trained_on.get(model) if isinstance(trained_on, dict) else None
        settings = protocols.get(column.protocol) if isinstance(protocols, dict) else None
        kind = settings.get("name") if isinstance(settings, dict) else column.attack
        return isinstance(kinds, list) and kind in kinds

    def most_steps(self, column: Column) -> int:
        """That any model was given."""
        return max((s.max_iterations for s in self.summaries if s.key.column == column), default=0)


def write_report(run: Path) -> Path:
    """Write `report.html`, `report.json` and `report.md` into a run folder, from what lies there and from nothing else.

    What is missing or damaged is said on the page. Of provenance.json, `command` (text, or a list of arguments), `classes`
    (names by label), `seeds`, `trained_on` ({model: kinds of attacks}) and `protocols` ({id: settings}, among them `name`: kind
    of attack, `summary`: a line of text, and `bounds`: {distance: largest value}) have their own places; all other entries are
    printed as they are.

    Args:
        run: the run folder; see `gat.evaluation.records` for what it holds.

    Returns:
        Path of the HTML page.

    Raises:
        ValueError: if `run` is not a folder, or holds nothing to report on.
    """
    results = compute(read_run(run))
    pages = {"report.json": to_json(results), "report.md": to_text(results), "report.html": to_html(results)}
    for name, content in pages.items():
        temporary = run / (name + ".tmp")
        temporary.write_text(content, encoding="utf-8", errors="replace")
        os.replace(temporary, run / name)
    return run / "report.html"


def compute(folder: RunFolder) -> Results:
    """All numbers of a run."""
    cells = by_cell(folder.records)
    return Results(
        folder=folder,
        cells=cells,
        summaries=[summarize(key, records) for key, records in cells.items()],
        columns=columns(cells),
        models=models(cells),
        doubts=check(folder),
        finding=finding(cells),
    )


def to_json(results: Results) -> str:
    """Everything on the page but the pictures. Numbers that are not finite become null."""
    folder, attack = results.folder, main_attack(results.columns)
    content = {
        "run": folder.name,
        "finding": results.finding,
        "rows": result_rows(results.summaries, folder.task, folder.seeds),
        "summaries": [
            _flat(s.key) | {k: v for k, v in asdict(s).items() if k != "key"} for s in results.summaries
        ],
        "survival": [
            _flat(Key(model, column)) | {"accuracy_after_steps": [p.value for p in survival(records, steps)]}
            for (model, column), records in results.cells.items()
            if (steps := results.most_steps(column))
        ],
        "paired": [
            _flat(Key(model, column)) | {"baseline": results.models[0]} | asdict(paired)
            for column in results.columns
            for model in results.models
            if (paired := results.paired(model, column))
        ],
        "classes": list(folder.classes),
        "per_class": asdict(_classes(results, attack)) if attack else None,
        "doubts": [asdict(doubt) for doubt in results.doubts],
        "provenance": folder.provenance,
        "config": folder.config,
    }
    return json.dumps(_finite(content), indent=1, default=str, allow_nan=False) + "\n"


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
        for table in (headline_table(results.summaries), full_table(results.summaries)):
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
    folder, shown = results.folder, headline_columns(results.columns)
    variants = [column for column in results.columns if column not in shown]
    attack = main_attack(results.columns)
    charts = training_charts(folder.metrics)
    return environment.get_template("page.html").render(
        folder=folder,
        finding=results.finding,
        doubts=results.doubts,
        models=[
            {"name": model_name(model), "series": i % len(SERIES)} for i, model in enumerate(results.models)
        ],
        headline=[_headline_row(results, column, shown) for column in shown],
        gallery=_gallery(folder.gallery, folder.classes) if folder.gallery else None,
        curves=_svgs(_survival_charts(results, shown)),
        variant_curves=_svgs(_survival_charts(results, variants)),
        full=full_table(results.summaries) if results.cells else None,
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
                "seen": results.seen(model, column),
            }
            for model in results.models
        ],
    }


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
    settings = (results.folder.provenance or {}).get("protocols")
    settings = settings if isinstance(settings, dict) else {}
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
            ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value),
        )
        for name, value in flatten(values or {}).items()
        if name not in {"command"} and not name.startswith("protocols/")
    ]


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
        "factors": ", ".join(f"{panel_name(kind).lower()} ×{factor}" for kind, factor in factors.items()),
        "seed": gallery.seed,
        "oracle": any(panel.oracle is not None for item in gallery.items for panel in item.panels),
        "pixel_art": max(height, width) <= _PIXEL_ART_PX,
        "size": f"{width}×{height}",
        "groups": [
            {
                "name": group_name(group),
                "models": [
                    _strip(
                        model,
                        [i for i in gallery.items if (i.group, i.model) == (group, model)],
                        classes,
                        factors,
                    )
                    for model in models(
                        Key(i.model, Column("", "", "")) for i in gallery.items if i.group == group
                    )
                ],
            }
            for group in groups
        ],
    }


def _strip(
    model: str, items: Sequence[GalleryItem], classes: tuple[str, ...], factors: Mapping[str, int]
) -> dict[str, Any]:
    panels = [panel for item in items for panel in item.panels]
    counts = []
    for kind in dict.fromkeys(panel.kind for panel in panels):
        verdicts = [panel.success for panel in panels if panel.kind == kind]
        counts.append(f"{panel_name(kind).lower()} {sum(verdicts)} of {len(verdicts)}")
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
