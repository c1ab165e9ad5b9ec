"""README.md says what results/ says."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
RESULTS = REPOSITORY / "results"
README = (REPOSITORY / "README.md").read_text()


def test_the_tables_of_the_readme_are_those_of_the_results(script):
    assert script.fill(README, RESULTS) == README


def test_a_number_typed_by_hand_is_replaced(script):
    row = next(line for line in README.splitlines() if line.startswith("| gat | generated | gat | "))
    typed = README.replace(row, row.replace("| gat | generated | gat | ", "| gat | generated | gat | 9"))
    assert typed != README
    assert script.fill(typed, RESULTS) == README


@pytest.mark.parametrize("change", [("table: table2 ", "table: table3 "), ("<!-- table: table1 -->\n", "")])
def test_a_table_that_is_lost_or_unknown_is_named(script, change):
    with pytest.raises(ValueError, match="table2"):
        script.fill(README.replace(*change), RESULTS)
