"""README.md says what results/ says."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
RESULTS = REPOSITORY / "results"
README = (REPOSITORY / "README.md").read_text()


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], str]:
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    return importlib.import_module("readme_tables").fill


def test_the_tables_of_the_readme_are_those_of_the_results(fill):
    assert fill(README, RESULTS) == README


def test_a_number_typed_by_hand_is_replaced(fill):
    row = next(line for line in README.splitlines() if line.startswith("| gat | generated | gat | "))
    typed = README.replace(row, row.replace("| gat | generated | gat | ", "| gat | generated | gat | 9"))
    assert typed != README
    assert fill(typed, RESULTS) == README


@pytest.mark.parametrize("change", [("table: table2 ", "table: table3 "), ("<!-- table: table1 -->\n", "")])
def test_a_table_that_is_lost_or_unknown_is_named(fill, change):
    with pytest.raises(ValueError, match="table2"):
        fill(README.replace(*change), RESULTS)
