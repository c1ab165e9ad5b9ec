import csv
import io

import pytest

from gat.report.statistics import Column, aggregate, by_cell, columns, judging_columns, proportion, summarize
from gat.report.tables import (
    RESULT_FIELDS,
    Table,
    aggregate_table,
    full_table,
    headline_table,
    interval,
    latex_text,
    markdown_text,
    p_value,
    percent,
    points,
    result_rows,
    rows_to_csv,
    to_latex,
    to_markdown,
)


@pytest.fixture
def summaries(draw_records):
    records = []
    for model, fooled in (("gat", 0.2), ("original", 1.0)):
        records += draw_records(model, "gat", "paper_10", "generated", fooled)
        records += draw_records(model, "none", "test", "real", 0.0)
        records += draw_records(model, "gat-style", "paper_10", "generated", fooled)
    return [summarize(key, rows) for key, rows in by_cell(records).items()]


def test_numbers_are_printed_with_one_decimal():
    assert percent(0.784) == "78.4%"
    assert points(0.0061) == "+0.6 points"
    assert points(-0.0061) == "−0.6 points"
    assert points(-0.0001) == "0.0 points"
    assert points(1734 / 2000 - 1743 / 2000) == points(-9 / 2000) == "−0.5 points"
    assert interval(proportion(81, 263)) == "25.5–36.6%"
    assert [p_value(p) for p in (0.0004, 0.012, 0.5)] == ["p < 0.001", "p = 0.012", "p = 0.50"]


def test_headline_has_models_in_rows_attacks_with_protocols_in_columns_and_no_variants(summaries):
    table = headline_table(summaries)
    assert table.header == ("Model", "Clean [test]", "GAT [paper_10]")
    assert [row[0] for row in table.rows] == ["Original", "GAT-trained"]
    assert table.rows[0][2].startswith("0.0% (0.0–6.0%; n = 60)")


def test_full_table_has_a_row_per_model_and_attack(summaries):
    table = full_table(summaries)
    assert len(table.rows) == 6
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_result_rows_have_the_fields_of_table_json_and_call_no_attack_clean(summaries):
    rows = result_rows(summaries, "hats", [3, 4])
    assert all(tuple(row) == RESULT_FIELDS for row in rows)
    (clean,) = [row for row in rows if row["attack"] == "clean" and row["model"] == "gat"]
    assert clean["task"] == "hats"
    assert clean["metric"] == "accuracy"
    assert clean["seeds"] == [3, 4]
    assert clean["low"] < clean["value"] < clean["high"] <= 1
    metrics = {row["metric"] for row in rows if row["attack"] == "gat"}
    assert metrics == {
        "accuracy", "accuracy_before", "accuracy_valid", "mean_iterations", "oracle_agreement",
    }  # fmt: skip


def test_csv_reads_back(summaries):
    rows = result_rows(summaries, 'ha,ts\n"x"', [3, 4])
    found = list(csv.DictReader(io.StringIO(rows_to_csv(rows))))
    assert len(found) == len(rows)
    assert found[0]["task"] == 'ha,ts\n"x"'
    assert float(found[0]["value"]) == rows[0]["value"]
    assert found[0]["seeds"] == "3 4"


def test_markdown_cells_cannot_break_out_of_their_table():
    table = Table("c", ("a", "b"), (("x|y\n| z", "<img src=x> [l](u) *b* `c`"),))
    lines = to_markdown(table).splitlines()
    assert len(lines) == 3
    assert lines[2] == r"| x\|y \| z | &lt;img src=x> \[l\](u) \*b\* \`c\` |"


def test_markdown_text_keeps_plain_names():
    assert markdown_text("T-shirt/top 98.1%") == "T-shirt/top 98.1%"


def test_latex_specials_are_escaped_and_signs_translated():
    assert latex_text(r"a_b & 5% $x$ \cmd{}") == r"a\_b \& 5\% \$x\$ \textbackslash{}cmd\{\}"
    assert latex_text("L∞ 1–2") == r"L$\infty$ 1--2"


def test_latex_has_one_line_per_row_and_one_column_per_cell(summaries):
    latex = to_latex(headline_table(summaries))
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert {row.count("&") for row in rows} == {2}
    assert r"\begin{tabular}{lrr}" in latex


@pytest.fixture
def joined(draw_records):
    """Three attacks; the model 'gat' was trained on the first."""
    records = []
    for model, fooled in (("gat", 0.2), ("original", 0.9)):
        records += draw_records(model, "none", "test", "real", 0.0)
        for attack in ("gat", "pgd", "spatial"):
            records += draw_records(model, attack, "p-" + attack, "real", fooled)
    cells = by_cell(records)
    chosen = judging_columns(columns(cells))
    summaries = [summarize(key, rows) for key, rows in cells.items()]
    return summaries, aggregate(cells, {"gat": [c for c in chosen if c.attack == "gat"]}, chosen)


def is_seen(model: str, column: Column) -> bool:
    return model == column.attack == "gat"


def test_headline_marks_what_was_trained_on_and_ends_with_means_and_unions(joined):
    table = headline_table(*joined, (), is_seen)
    assert table.header[2:] == (
        "GAT [p-gat]", "PGD [p-pgd]", "Spatial [p-spatial]", "Mean over unseen attacks", "All at once", "Worst attack",
    )  # fmt: skip
    marked = [(row[0], i) for row in table.rows for i, cell in enumerate(row) if "†" in cell]
    assert marked == [("GAT-trained", 2)]
    assert "† : the model" in table.caption.replace("†:", "† :")
    compact = headline_table(*joined, (), is_seen, compact=True)
    assert all(len(cell.removesuffix(" †")) <= 5 for row in compact.rows for cell in row[1:])


def test_every_mean_says_over_which_attacks_it_is(joined):
    rows = {row[:2]: row[3] for row in aggregate_table(joined[1], []).rows}
    assert rows["GAT-trained", "Mean over unseen attacks"] == "PGD [p-pgd], Spatial [p-spatial]"
    assert rows["Original", "Mean over unseen attacks"] == "GAT [p-gat], PGD [p-pgd], Spatial [p-spatial]"
    assert rows["GAT-trained", "All at once"] == "GAT [p-gat], PGD [p-pgd], Spatial [p-spatial]"


def test_means_and_unions_are_attacks_of_the_result_rows(joined):
    rows = result_rows(joined[0], "hats", [1], joined[1])
    assert all(tuple(row) == RESULT_FIELDS for row in rows)
    found = {(row["model"], row["attack"]): row for row in rows if row["metric"] == "accuracy"}
    mean = found["gat", "mean_unseen"]
    assert mean["protocol"] == "pgd [p-pgd] + spatial [p-spatial]"
    assert mean["low"] < mean["value"] < mean["high"]
    both = [found["gat", attack]["value"] for attack in ("pgd", "spatial")]
    assert mean["value"] == pytest.approx(sum(both) / 2)
    assert found["original", "union"]["value"] <= found["original", "worst"]["value"]


def test_validity_is_only_asked_of_attacks_without_a_bound_in_pixels(joined):
    table = full_table(joined[0], lambda column: column.attack == "pgd")
    column = table.header.index("Valid only")
    asked = {row[0]: row[column] != "–" for row in table.rows}
    assert asked == {"Clean": False, "GAT": True, "PGD": False, "Spatial": True}
