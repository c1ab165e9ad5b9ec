"""The table that commands print."""

import pytest

from gat.cli.table import print_table


def test_piped_rows_are_plain_unwrapped_lines(capsys: pytest.CaptureFixture[str]):
    print_table(("attack", "accuracy", "n"), [("gat", 0.78125, 500), ("x" * 200, 1.0, 7)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["attack", "accuracy", "n"],
        ["gat", "0.7812", "500"],
        ["x" * 200, "1", "7"],
    ]


def test_brackets_are_text_and_not_markup(capsys: pytest.CaptureFixture[str]):
    print_table(("what",), [("[red]x[/red]",)])
    assert "[red]x[/red]" in capsys.readouterr().out
