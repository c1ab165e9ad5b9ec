"""README.md and docs/results.md say what results/ says."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
RESULTS = REPOSITORY / "results"
TEXTS = {name: (REPOSITORY / name).read_text() for name in ("README.md", "docs/results.md")}


@pytest.mark.parametrize("name", TEXTS)
def test_the_tables_are_those_of_the_results(script, name):
    assert set(script.DOCUMENTS) == set(TEXTS)
    assert script.fill(name, TEXTS[name], RESULTS) == TEXTS[name]


@pytest.mark.parametrize(
    ("name", "start"),
    [("README.md", "| clean, real images | "), ("docs/results.md", "| gat | generated | gat | ")],
)
def test_a_number_typed_by_hand_is_replaced(script, name, start):
    text = TEXTS[name]
    row = next(line for line in text.splitlines() if line.startswith(start))
    typed = text.replace(row, row.replace(start, f"{start}9"))
    assert typed != text
    assert script.fill(name, typed, RESULTS) == text


@pytest.mark.parametrize("change", [("table: table2 ", "table: table3 "), ("<!-- table: table1 -->\n", "")])
def test_a_table_that_is_lost_or_unknown_is_named(script, change):
    with pytest.raises(ValueError, match=r"README.md has the tables .*table2"):
        script.fill("README.md", TEXTS["README.md"].replace(*change), RESULTS)
