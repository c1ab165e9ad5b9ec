"""Make a table of the paper again: train everything with every seed, judge it, and set the result beside the paper's.

Example:
    gat reproduce table1 --config configs/fashion_table1.yaml
    gat reproduce table1 --config configs/fashion_table1.yaml --task detection
    gat reproduce table2 --config configs/fashion_table2.yaml
    gat reproduce table2 --config configs/fashion_table2.yaml --only train 'seeds=[1]'
    gat reproduce table1 --config configs/fashion_table1.yaml name=longer --results results/longer runs.detection.train.steps=9000

The same command again goes on where it stopped. Several processes may train different seeds of one table at the same time
(`--only train`); the last call, without --only, evaluates and writes results/<table>/, or what `--results` names, from all of them.
"""

import argparse
import shlex
from pathlib import Path

from gat.cli.reproduce import table1, table2
from gat.config import dump, load

CONFIGS: dict[str, type[table1.Table1Config | table2.Table2Config]] = {
    "table1": table1.Table1Config,
    "table2": table2.Table2Config,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", choices=tuple(CONFIGS))
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
        help="one of the runs of table1, again for more; the others keep what the table says of them; default: all",
    )
    parser.add_argument("--results", type=Path, help="folder of the table; default: results/<table>")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")


def run(args: argparse.Namespace) -> int:
    options = [word for path in args.config for word in ("--config", str(path))]
    options += ["--results", str(args.results)] if args.results else []
    command = shlex.join(["gat", "reproduce", args.table, *options, *args.overrides])
    target = args.results or Path("results") / args.table
    if args.task and args.table != "table1":
        raise ValueError(f"{args.table} has no tasks to choose from; --task is for table1")
    config = load(CONFIGS[args.table], args.config, args.overrides)
    if args.dry_run:
        print(dump(config), end="")
    elif isinstance(config, table1.Table1Config):
        table1.reproduce(config, target, args.only, command, args.task)
    else:
        table2.reproduce(config, target, args.only, command)
    return 0
