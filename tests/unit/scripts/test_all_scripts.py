"""What holds for every script."""

import re
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"
RUNNABLE = sorted(path for path in SCRIPTS.glob("*.py") if "def main" in path.read_text())


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.name)
def test_a_mistake_is_one_line_under_the_name_of_the_script(path: Path):
    """As `gat.cli.exit_codes` says, which has its own tests by way of `gat`."""
    end = f'if __name__ == "__main__":\n    sys.exit(exit_code("{path.name}", main))\n'
    assert path.read_text().endswith(end)
    assert not re.search(r"raise SystemExit|sys\.exit\((?!exit_code)", path.read_text())
