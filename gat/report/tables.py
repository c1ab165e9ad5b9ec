"""Tables as Markdown, LaTeX, CSV and JSON rows, made from summaries of records."""

import csv
import io
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from gat.report.names import attack_name, class_name, column_name, model_name
from gat.report.statistics import (
    Aggregate,
    Column,
    Estimate,
    Key,
    Proportion,
    Summary,
    columns,
    headline_columns,
    models,
)

RESULT_FIELDS = (
    "task", "model", "attack", "protocol", "source", "metric", "value", "low", "high", "n", "seeds",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column names the row."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def percent(value: float) -> str:
    """0.784 -> '78.4%'."""
    return f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference of shares, signed: 0.006 -> '+0.6 points'."""
    rounded = f"{round(100 * abs(value), 9):.1f}"  # 9 of 2000 is 0.45 points, however it was computed
    sign = "" if float(rounded) == 0 else "+" if value > 0 else "−"
    return f"{sign}{rounded} points"


def p_value(value: float) -> str:
    """'p < 0.001' or 'p = 0.012'."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def interval(share: Proportion | Estimate) -> str:
    """'75.7–80.8%'."""
    return f"{100 * share.low:.1f}–{100 * share.high:.1f}%"


def in_brackets(protocol: str) -> str:
    """' [paper-10]'; nothing where there is no protocol, as for clean images."""
    return f" [{protocol}]" if protocol else ""


def _with_interval(share: Proportion | Estimate | None) -> str:
    return f"{percent(share.value)} ({interval(share)}; n = {share.n})" if share else "–"


SEEN = "†"
"""Marks an attack that the model was trained on."""


def headline_table(
    summaries: Sequence[Summary],
    aggregates: Sequence[Aggregate] = (),
    suite: Collection[str] = (),
    seen: Callable[[str, Column], bool] = lambda model, column: False,
    compact: bool = False,
) -> Table:
    """Models by clean and attacks, as Tables 1 and 2 of Poursaeed et al., with means and unions to the right.

    Each column has its protocol, each cell its interval and n.

    Args:
        aggregates: see `statistics.aggregate`.
        suite: names of attacks that belong into it.
        seen: whether a model was trained on the attack of a column.
        compact: values alone, as in print.
    """
    cells = {summary.key: summary for summary in summaries}
    shown = headline_columns(columns(cells), suite)
    joint = list(dict.fromkeys(a.name for a in aggregates))
    found = {(a.model, a.name): a.share for a in aggregates}
    marked = False

    def cell(share: Proportion | Estimate | None, mark: bool = False) -> str:
        nonlocal marked
        marked |= mark
        text = (f"{100 * share.value:.1f}" if share else "–") if compact else _with_interval(share)
        return f"{text} {SEEN}" if mark else text

    rows = []
    for model in models(cells):
        row = [model_name(model)]
        for column in shown:
            summary = cells.get(Key(model, column))
            row.append(cell(summary.accuracy if summary else None, bool(summary) and seen(model, column)))
        rows.append((*row, *(cell(found.get((model, name))) for name in joint)))
    caption = "Accuracy in per cent." if compact else "Accuracy, with 95% Wilson intervals."
    caption += " Numbers compare only under the same protocol."
    if marked:
        caption += f" {SEEN}: the model was trained on this attack."
    if joint:
        caption += " The mean is over the attacks that the model was not trained on, with a bootstrap interval over examples."
    return Table(
        caption=caption,
        header=(
            "Model",
            *(f"{column_name(c, shown)}{in_brackets(c.protocol)}" for c in shown),
            *map(attack_name, joint),
        ),
        rows=tuple(rows),
    )


def aggregate_table(aggregates: Sequence[Aggregate], among: Sequence[Column]) -> Table:
    """Every mean and union with the very attacks it is over."""
    return Table(
        caption="Means, unions and worst attacks, each with the very attacks it is over. Mean over unseen attacks: unweighted, over "
        "the attacks the model was not trained on, 95% bootstrap interval over examples. All at once: share of real images on which the "
        "model is right under every one of the attacks, Wilson interval.",
        header=("Model", "What", "Accuracy", "Over"),
        rows=tuple(
            (
                model_name(a.model),
                attack_name(a.name),
                _with_interval(a.share),
                ", ".join(f"{column_name(c, among)}{in_brackets(c.protocol)}" for c in a.columns),
            )
            for a in aggregates
        ),
    )


def full_table(
    summaries: Sequence[Summary], bounded: Callable[[Column], bool] = lambda column: False
) -> Table:
    """One row per model and attack, with everything measured.

    Args:
        bounded: whether an attack stays within a norm of the pixels, so that nobody asks whether its pictures are valid.
    """
    cells = {summary.key: summary for summary in summaries}
    rows = []
    for column in columns(cells):
        for model in models(cells):
            summary = next((s for key, s in cells.items() if key == (model, column)), None)
            if summary is None:
                continue
            attacked = column.attack != "none"
            rows.append(
                (
                    attack_name(column.attack),
                    model_name(model),
                    percent(summary.accuracy_before.value),
                    percent(summary.accuracy.value),
                    interval(summary.accuracy),
                    str(summary.accuracy.n),
                    f"{summary.mean_iterations:.1f}" if summary.mean_iterations is not None else "–",
                    _with_interval(summary.oracle_agreement) if attacked else "–",
                    percent(summary.accuracy_valid.value)
                    if attacked and summary.accuracy_valid and not bounded(column)
                    else "–",
                    column.source,
                    column.protocol,
                )
            )
    return Table(
        caption="Before: accuracy on the starting images. Steps: gradient steps to success, mean over successes. Oracle: "
        "successful pictures on which the independent oracle still reads the label, of those it read right before the attack. Valid "
        "only: accuracy that counts as broken only examples with such a picture, for attacks without a bound in pixels; a picture "
        "that lost its label may hide another that would not have.",
        header=(
            "Attack",
            "Model",
            "Before",
            "Accuracy",
            "95% interval",
            "n",
            "Steps",
            "Oracle agrees",
            "Valid only",
            "Images",
            "Protocol",
        ),
        rows=tuple(rows),
    )


def class_table(
    column: Column,
    accuracies: dict[str, dict[int, Proportion]],
    agreements: dict[str, dict[int, Proportion | None]],
    classes: tuple[str, ...],
) -> Table:
    """Per class: each model's accuracy under one attack, and the oracle's agreement on the pictures that fooled it."""
    labels = sorted({label for found in accuracies.values() for label in found})
    rows = []
    for label in labels:
        cells = [class_name(label, classes)]
        for model in accuracies:
            accuracy, agreement = accuracies[model].get(label), agreements[model].get(label)
            cells.append(f"{percent(accuracy.value)} of {accuracy.n}" if accuracy else "–")
            cells.append(f"{percent(agreement.value)} of {agreement.n}" if agreement else "–")
        rows.append(tuple(cells))
    header = ["Class"]
    for model in accuracies:
        header += [f"{model_name(model)}: accuracy", f"{model_name(model)}: oracle agrees"]
    return Table(
        caption=f"Per class, {attack_name(column.attack)}{in_brackets(column.protocol)}",
        header=tuple(header),
        rows=tuple(rows),
    )


def result_rows(
    summaries: Sequence[Summary], task: str, seeds: Sequence[int], aggregates: Sequence[Aggregate] = ()
) -> list[dict[str, Any]]:
    """The rows of `results/<name>/table.json`: one per model, attack and metric, values as fractions.

    Attack 'none' is called 'clean'. `low` and `high` are None where no interval is defined (mean iterations). Aggregates are attacks
    of their own ('mean_unseen', 'union', 'worst'), whose protocol names the very attacks.
    """
    rows = []

    def add(
        summary: Summary, metric: str, value: float, low: float | None, high: float | None, n: int
    ) -> None:
        column = summary.key.column
        attack = "clean" if column.attack == "none" else column.attack
        cell = (task, summary.key.model, attack, column.protocol, column.source, metric, value, low, high, n)
        rows.append(dict(zip(RESULT_FIELDS, (*cell, list(seeds)), strict=True)))

    for summary in summaries:
        shares = {"accuracy": summary.accuracy}
        if summary.key.column.attack != "none":
            shares["accuracy_before"] = summary.accuracy_before
            if summary.oracle_agreement:
                shares["oracle_agreement"] = summary.oracle_agreement
            if summary.accuracy_valid:
                shares["accuracy_valid"] = summary.accuracy_valid
        for metric, share in shares.items():
            add(summary, metric, share.value, share.low, share.high, share.n)
        if summary.mean_iterations is not None:
            add(summary, "mean_iterations", summary.mean_iterations, None, None, summary.successes)
    for a in aggregates:
        over = " + ".join(f"{column.attack}{in_brackets(column.protocol)}" for column in a.columns)
        source = " + ".join(dict.fromkeys(column.source for column in a.columns))
        measured = (a.share.value, a.share.low, a.share.high, a.share.n)
        cell = (task, a.model, a.name, over, source, "accuracy", *measured, list(seeds))
        rows.append(dict(zip(RESULT_FIELDS, cell, strict=True)))
    return rows


def rows_to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Of `result_rows`, one line each; seeds separated by blanks."""
    file = io.StringIO()
    writer = csv.DictWriter(file, RESULT_FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, "seeds": " ".join(map(str, row["seeds"]))})
    return file.getvalue()


def markdown_text(text: str) -> str:
    """Untrusted text as inert inline Markdown: on one line, with every character that Markdown or HTML would act on escaped."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#~!$])", r"\\\1", text)


def to_markdown(table: Table) -> str:
    """A pipe table; numbers (all but the first column) to the right."""
    lines = [table.header, tuple("---" if i == 0 else "---:" for i in range(len(table.header))), *table.rows]
    return "\n".join(
        "| " + " | ".join(cell if i == 1 else markdown_text(cell) for cell in line) + " |"
        for i, line in enumerate(lines)
    )


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "∞": r"$\infty$", "–": "--", "−": "$-$",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Untrusted text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def to_latex(table: Table) -> str:
    """A `tabular` with booktabs rules, inside `table`."""

    def line(cells: Sequence[str]) -> str:
        return "    " + " & ".join(latex_text(cell) for cell in cells) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{latex_text(table.caption)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"    \toprule",
            line(table.header),
            r"    \midrule",
            *map(line, table.rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )
