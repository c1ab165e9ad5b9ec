"""`python -m gat.report RUN` writes the report of a run folder and prints where it is."""

import argparse
import sys
from pathlib import Path

from gat.report.page import write_report


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 if there is nothing to report on."""
    parser = argparse.ArgumentParser(prog="python -m gat.report", description="Write the report of a run.")
    parser.add_argument("run", type=Path, help="run folder")
    try:
        print(write_report(parser.parse_args(arguments).run))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
