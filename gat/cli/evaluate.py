"""Measure the models of a run again, under its own or other attacks.

Example:
    gat evaluate runs/quickstart
    gat evaluate runs/quickstart evaluation.num_real=2000 'evaluation.attacks.pgd-strong={name: pgd, steps: 100}'

What was measured before under the same settings is not measured again.
"""

import argparse
import json
from pathlib import Path

from gat.cli.compose import RunConfig, check_same_run, open_run, write_provenance
from gat.cli.table import print_table
from gat.cli.train import judge
from gat.config import load
from gat.evaluation.records import read_records
from gat.report import write_report
from gat.report.statistics import Summary, by_cell, summarize


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as evaluation.num_real=2000")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    settings = args.run / "config.yaml"
    if not settings.is_file():
        raise FileNotFoundError(f"{args.run} is not the folder of a run: it has no config.yaml")
    config = load(RunConfig, [settings], [*args.overrides, f"out={args.run}"])
    check_same_run(config)
    current = open_run(config)
    write_provenance(current)
    judge(current)
    current.accelerator.end_training()
    if current.accelerator.is_main_process:
        write_report(args.run)
        cells = by_cell(read_records(args.run / "records.jsonl"))
        rows = [_row(summarize(key, records)) for key, records in cells.items()]
        if args.json:
            print(json.dumps(rows))
        else:
            print_table(list(rows[0]), [list(row.values()) for row in rows])
    return 0


def _row(summary: Summary) -> dict[str, str | int | float]:
    key, accuracy = summary.key, summary.accuracy
    return {
        "model": key.model,
        "attack": key.column.attack,
        "protocol": key.column.protocol or "-",
        "images": key.column.source,
        "n": accuracy.n,
        "accuracy": round(accuracy.value, 4),
        "low": round(accuracy.low, 4),
        "high": round(accuracy.high, 4),
        "iterations": "-" if summary.mean_iterations is None else round(summary.mean_iterations, 2),
        "oracle": "-" if summary.oracle_agreement is None else round(summary.oracle_agreement.value, 4),
    }
