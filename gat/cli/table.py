"""A table for people on standard output: ruled on a terminal, plain aligned columns when piped."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print rows under their columns; columns of numbers are aligned to the right.

    Args:
        columns: headings.
        rows: cells, shown by `str`; floats with four significant digits.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000)  # never wrap what another program reads
    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD if console.is_terminal else None
    )
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(f"{cell:.4g}" if isinstance(cell, float) else str(cell)) for cell in row))
    console.print(table)
