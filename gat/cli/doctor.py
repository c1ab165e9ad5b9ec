"""Check this machine and this installation: versions, devices, precision, processes, optional parts, shipped weights, disk.

Exit code 0 if everything needed works, 1 otherwise.

Example:
    gat doctor
    gat doctor --json
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from gat.cli.table import print_table
from gat.doctor import examine

ROOT = Path(__file__).resolve().parents[2]  # of the installation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: {'ok': ..., 'checks': [...]}"
    )


def run(args: argparse.Namespace) -> int:
    checks = examine([ROOT / "generators" / "weights", ROOT / "tasks" / "models" / "shipped"], Path.cwd())
    failed = [check for check in checks if check.status == "failed"]
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}))
        return 1 if failed else 0
    print_table(("check", "", "found"), [(check.name, check.status, check.found) for check in checks])
    for check in checks:
        if check.advice:
            print(f"{check.name}: {check.advice}")
    print(f"\n{len(failed)} failed" if failed else "\neverything needed works")
    return 1 if failed else 0
