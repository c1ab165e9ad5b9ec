"""Make a table of the paper again: train everything with every seed, judge it, and set the result beside the paper's.

Example:
    gat reproduce table1 --config configs/fashion_table1.yaml
    gat reproduce table1 --config configs/fashion_table1.yaml --task detection
    gat reproduce table2 --config configs/fashion_table2.yaml
    gat reproduce table2 --config configs/fashion_table2.yaml --only train 'seeds=[1]'

The same command again goes on where it stopped. Several processes may train different seeds of one table at the same time
(`--only train`); the last call, without --only, evaluates and writes results/<table>/ from all of them.
"""

import argparse
from pathlib import Path

from gat.cli.reproduce import table1, table2
from gat.config import dump, load

TABLES = ("table1", "table2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", choices=TABLES)
    parser.add_argument(
        "--config", type=Path, action="append", default=[], help="YAML file; a later one wins"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as seeds=[0]")
    parser.add_argument(
        "--only", choices=("train", "evaluate"), help="one half of the work; default: both, and the table"
    )
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME",
        help="one of the runs of table1, again for more; the others keep what results/table1 says of them; default: all",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")


def run(args: argparse.Namespace) -> int:
    command = " ".join(["gat reproduce", args.table, *(f"--config {path}" for path in args.config)])
    if args.task and args.table != "table1":
        raise ValueError(f"{args.table} has no tasks to choose from; --task is for table1")
    if args.table == "table1":
        first = load(table1.Table1Config, args.config, args.overrides)
        print(dump(first), end="") if args.dry_run else table1.reproduce(first, args.only, command, args.task)
    else:
        second = load(table2.Table2Config, args.config, args.overrides)
        print(dump(second), end="") if args.dry_run else table2.reproduce(second, args.only, command)
    return 0
