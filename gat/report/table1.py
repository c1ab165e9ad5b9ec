"""The paper's Table 1 from run folders: undefended and adversarially trained models, clean and attacked, task by task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gat.report.finding import compared_model
from gat.report.folder import RunFolder
from gat.report.metrics import inline
from gat.report.names import model_name
from gat.report.statistics import (
    Column,
    Estimate,
    Key,
    Proportion,
    by_cell,
    clean_column,
    columns,
    models,
    summarize,
)
from gat.report.tables import Table, markdown_text, to_latex, to_markdown

MODELS = {"trained": "Adversarially trained", "original": "Original"}
"""Rows, in the paper's order."""

HEADLINES = {"classification": "accuracy", "segmentation": "pixel_accuracy", "detection": "ap"}
"""What the paper quotes for each task, in its order."""

PAPER = {
    ("classification", "LSUN"): {"trained": (0.895, 0.784), "original": (0.889, 0.0)},
    ("classification", "CelebA-HQ"): {"trained": (0.962, 0.836), "original": (0.957, 0.0)},
    ("segmentation", "COCO-Stuff"): {"trained": (0.691, 0.602), "original": (0.679, 0.027)},
    ("detection", ""): {"trained": (0.402, 0.337), "original": (0.390, 0.020)},
}
"""Table 1 of Poursaeed et al.: (task, data) -> clean and adversarial, the latter at iteration 10 for segmentation and detection. The
paper does not name the data of its detector."""


@dataclass(frozen=True)
class Measured:
    """One cell of one run.

    Attributes:
        model: 'original' or 'trained'.
        name: of the model in the records.
        attack: 'clean', or the attack's name.
        seed: of the run's training.
        value: with its interval over the examples, and their number.
        oracle: of scenes, the share of the pixels of these images on which the oracle reads the layout's class.
        shown: of scenes whose labels are pixels, the mean score among those that the oracle reads.
    """

    task: str
    data: str
    model: str
    name: str
    attack: str
    protocol: str
    source: str
    seed: int
    value: Estimate
    oracle: float | None = None
    shown: float | None = None


def measure(run: RunFolder, attack: str = "gat") -> list[Measured]:
    """The headline numbers of one run: the undefended model and the trained one, clean and under one attack.

    Args:
        run: of one task and one training seed.
        attack: its name in the records.

    Raises:
        ValueError: if the run has not these numbers, or not one seed; it says what is there.
    """
    values = _values(run)
    across = columns(values)
    clean = clean_column(across)
    attacked = [column for column in across if column.attack == attack]
    if clean is None or len(attacked) != 1:
        there = ", ".join(f"{c.attack} [{c.protocol}]" if c.protocol else c.attack for c in across)
        raise ValueError(f"{run.name}: clean images and attack {attack!r} once are wanted; there is {there}")
    return _measured(run, values, (clean, attacked[0]))


def measure_others(run: RunFolder, attack: str = "gat") -> list[Measured]:
    """What `measure` leaves out: both models under all other attacks.

    Raises:
        ValueError: if a model was not measured under one of them, or the run has not one seed.
    """
    values = _values(run)
    across = columns(values)
    return _measured(run, values, [c for c in across if c != clean_column(across) and c.attack != attack])


def _values(run: RunFolder) -> dict[Key, Estimate]:
    if len(run.seeds) != 1:
        raise ValueError(
            f"{run.name}: a run of one training seed is wanted, got seeds {run.seeds or 'unknown'}"
        )
    return _scene_values(run) if run.scene_task else _accuracies(run)


def _measured(run: RunFolder, values: Mapping[Key, Estimate], across: Sequence[Column]) -> list[Measured]:
    """The cells of both models."""
    task = run.scene_task or "classification"
    names = models(values)
    trained = compared_model(names)
    if not names or trained is None:
        raise ValueError(
            f"{run.name}: an undefended and a trained model are wanted, got {', '.join(names) or 'none'}"
        )
    scenes = run.scene_metrics.rows if run.scene_metrics else ()
    oracle = {row.key: row.oracle.after for row in scenes if row.oracle}
    among_shown = {row.key: row.shown.after for row in scenes if row.shown}
    found = []
    for model, name in (("trained", trained), ("original", names[0])):
        for column in across:
            key = Key(name, column)
            value = values.get(key)
            if value is None:
                raise ValueError(f"{run.name}: {name} was not measured under {column.attack!r}")
            shown = "clean" if column.attack == "none" else column.attack
            found.append(
                Measured(
                    task,
                    run.task,
                    model,
                    name,
                    shown,
                    column.protocol,
                    column.source,
                    run.seeds[0],
                    value,
                    oracle.get(key),
                    among_shown.get(key),
                )
            )
    return found


def _scene_values(run: RunFolder) -> dict[Key, Estimate]:
    metrics = run.scene_metrics
    if metrics is None:
        raise ValueError(f"{run.name}: metrics.json is missing or damaged")
    wanted = HEADLINES[run.scene_task or ""]
    lacking = sorted({row.key.model for row in metrics.rows if wanted not in row.metrics})
    if lacking:
        raise ValueError(
            f"{run.name}: {inline(wanted)} is wanted and was not measured for {', '.join(lacking)}"
        )
    return {row.key: row.metrics[wanted] for row in metrics.rows}


def _accuracies(run: RunFolder) -> dict[Key, Estimate]:
    if not run.records:
        raise ValueError(f"{run.name}: records.jsonl is missing or damaged")
    return {key: _estimate(summarize(key, cell).accuracy) for key, cell in by_cell(run.records).items()}


def _estimate(share: Proportion) -> Estimate:
    return Estimate(share.value, share.low, share.high, share.n)


def table1_rows(measured: Iterable[Measured]) -> list[dict[str, Any]]:
    """Rows of `results/table1/table.json`: for every task, model and attack the mean over seeds.

    Returns:
        Rows {task, data, model, attack, protocol, source, metric, value, low, high, interval, n, seeds, per_seed, oracle, shown},
        values as fractions. `model` is its name in the records, as in all results. `low` and `high` are the lowest and the highest seed;
        of a single seed, its 95 % interval over examples; `interval` says which. `n` counts the examples of all seeds together.

    Raises:
        ValueError: if runs of one task differ in method, data or protocol, or two have the same seed.
    """
    groups: dict[tuple[str, str, str], list[Measured]] = {}
    for cell in measured:
        groups.setdefault((cell.task, cell.model, _kind(cell)), []).append(cell)
    rows = []
    for (task, _, _), cells in sorted(groups.items(), key=lambda group: _order(group[0])):
        cells = sorted(cells, key=lambda cell: cell.seed)
        seeds = [cell.seed for cell in cells]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{task}: every run needs its own seed, got {seeds}")
        about = {(cell.name, cell.data, cell.attack, cell.protocol, cell.source) for cell in cells}
        if len(about) > 1:
            raise ValueError(f"{task}: runs differ in model, data, attack or protocol, got {sorted(about)}")
        ((name, data, attack, protocol, source),) = about
        values = [cell.value.value for cell in cells]
        low, high = (
            (min(values), max(values)) if len(cells) > 1 else (cells[0].value.low, cells[0].value.high)
        )
        rows.append(
            {
                "task": task,
                "data": data,
                "model": name,
                "attack": attack,
                "protocol": protocol,
                "source": source,
                "metric": HEADLINES[task],
                "value": sum(values) / len(values),
                "low": low,
                "high": high,
                "interval": "lowest and highest seed" if len(cells) > 1 else "95% over examples",
                "n": sum(cell.value.n for cell in cells),
                "seeds": seeds,
                "per_seed": values,
                "oracle": _mean([cell.oracle for cell in cells]),
                "shown": _mean([cell.shown for cell in cells]),
            }
        )
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    """None unless all are there."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there and len(there) == len(values) else None


def other_rows(measured: Iterable[Measured]) -> list[dict[str, Any]]:
    """`table1_rows` of what `measure_others` found, attack by attack."""
    by_attack: dict[str, list[Measured]] = {}
    for cell in measured:
        by_attack.setdefault(cell.attack, []).append(cell)
    return [row for cells in by_attack.values() for row in table1_rows(cells)]


def _title(role: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Of our own models: the paper's words for what GAT trained, and for what another method trained that one's name."""
    others = {row["model"] for row in rows if _role(row) == role} - {"gat", "original"}
    return ", ".join(map(model_name, sorted(others))) if others else MODELS[role]


def _role(row: Mapping[str, Any]) -> str:
    return "original" if row["model"] == "original" else "trained"


def _kind(cell: Measured) -> str:
    return "clean" if cell.attack == "clean" else "adversarial"


def _order(group: tuple[str, str, str]) -> tuple[int, int, bool]:
    task, model, kind = group
    return list(HEADLINES).index(task), list(MODELS).index(model), kind != "clean"


def table1(rows: Sequence[Mapping[str, Any]], compact: bool = False) -> Table:
    """Table 1 as the paper prints it: models down, tasks across, and below it the paper's.

    Args:
        rows: of `table1_rows`.
        compact: values alone, as in print.

    Raises:
        ValueError: without rows.
    """
    if not rows:
        raise ValueError("Table 1 needs rows, got none")
    tasks = [task for task in HEADLINES if any(row["task"] == task for row in rows)]
    data = {row["task"]: row["data"] for row in rows}
    found = {(row["task"], _role(row), row["attack"] == "clean"): row for row in rows}

    def cell(task: str, model: str, clean: bool) -> str:
        row = found.get((task, model, clean))
        if row is None:
            return "–"
        value = f"{100 * row['value']:.1f}"
        return value if compact else f"{value} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"

    lines = [
        (_title(model, rows), *(cell(task, model, clean) for task in tasks for clean in (True, False)))
        for model in MODELS
    ]
    # The paper has two data sets of classification, so the columns of the other tasks are said once.
    sources: dict[str, list[str]] = {}
    for task, where in PAPER:
        sources.setdefault(task, []).append(where)
    for turn in range(max(len(sources[task]) for task in tasks)):
        for model, name in MODELS.items():
            values: list[str] = []
            names: list[str] = []
            for task in tasks:
                there = sources[task][turn : turn + 1]
                names += filter(None, there)
                values += [f"{100 * v:.1f}" for v in PAPER[task, there[0]][model]] if there else ["", ""]
            lines.append((f"Paper, {name[0].lower()}{name[1:]} ({', '.join(names)})", *values))
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    sizes = "; ".join(
        f"{task} ({data[task]}) "
        + ", ".join(
            f"{'clean' if clean else 'adversarial'} n = {row['n']}"
            for clean in (True, False)
            if (row := found.get((task, "trained", clean)))
        )
        for task in tasks
    )
    spread = (
        ""
        if compact
        else (f" In brackets {', or '.join(dict.fromkeys(str(row['interval']) for row in rows))}.")
    )
    protocols = ", ".join(
        dict.fromkeys(f"{row['attack']} [{row['protocol']}]" for row in rows if row["attack"] != "clean")
    )
    caption = (
        f"Accuracy, pixel accuracy and average precision in per cent, mean over training seeds {', '.join(map(str, seeds))}.{spread} "
        f"Adversarial: {protocols}. {sizes}, all seeds together. The paper's rows are Table 1 of Poursaeed et al., on other data and "
        "models."
    )
    headings = {"classification": "Classification", "segmentation": "Segmentation", "detection": "Detection"}
    header = ("Model", *(f"{headings[task]}, {kind}" for task in tasks for kind in ("clean", "adversarial")))
    return Table(caption, header, tuple(lines))


def other_attacks(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Both models under every other attack: a line per task and attack."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: list(HEADLINES).index(row["task"])):
        value = f"{100 * row['value']:.1f} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"
        lines.setdefault((row["task"], row["attack"], row["source"]), {})[_role(row)] = value
    return Table(
        "Other attacks",
        ("Task", "Attack", "Images", *(_title(role, rows) for role in ("original", "trained"))),
        tuple((*line, both["original"], both["trained"]) for line, both in lines.items()),
    )


def table1_markdown(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]] = ()) -> str:
    """Of `table1_rows`, with spreads, sizes and the paper's numbers; below it `other_rows`, if there are any."""
    table = table1(rows)
    text = f"{to_markdown(table)}\n\n{markdown_text(table.caption)}\n"
    return text + f"\n## Other attacks\n\n{to_markdown(other_attacks(others))}\n" if others else text


def table1_latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of `table1_rows`, as in print."""
    return to_latex(table1(rows, compact=True)) + "\n"


def paper_rows() -> list[dict[str, Any]]:
    """The paper's Table 1 as rows of `table1_rows`, without what it does not say."""
    return [
        {
            "task": task,
            "data": data,
            "model": {"trained": "gat"}.get(role, role),
            "attack": attack,
            "metric": HEADLINES[task],
            "value": value,
        }
        for (task, data), by_role in PAPER.items()
        for role, values in by_role.items()
        for attack, value in zip(("clean", "gat"), values, strict=True)
    ]
