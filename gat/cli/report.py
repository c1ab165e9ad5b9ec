"""Write the page of a run or an evaluation (report.html, one file that needs nothing else), the same as JSON and Markdown, and
tables (LaTeX, CSV) and figures for papers.

Example:
    gat report runs/quickstart
"""

import argparse
import json
import webbrowser
from pathlib import Path

from gat.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run, with records.jsonl in it")
    parser.add_argument(
        "--open", choices=("no", "yes"), default="no", help="show the page in a browser (default: no)"
    )
    parser.add_argument("--json", action="store_true", help="print {'page': path} instead of the path")


def run(args: argparse.Namespace) -> int:
    if not args.run.is_dir():
        there = sorted(str(folder.parent) for folder in args.run.parent.glob("*/records.jsonl"))
        raise FileNotFoundError(f"no run folder {args.run}; on offer there: {', '.join(there) or 'none'}")
    page = write_report(args.run)
    print(json.dumps({"page": str(page)}) if args.json else page)
    if args.open == "yes" and not webbrowser.open(page.resolve().as_uri()):
        raise ValueError(f"no browser could be started; open {page} yourself")
    return 0
