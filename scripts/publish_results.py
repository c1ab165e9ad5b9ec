"""Merge the runs of several seeds into results/<name>: table.json, table.md and the records of attacked images.

    python scripts/publish_results.py runs/fashion_gat_0 runs/fashion_gat_1 runs/fashion_gat_2 --out results/fashion_gat

The runs may differ in their seed alone. Accuracies are over the examples of all seeds together (n says how many), so the
interval covers the choice of examples; the value of every seed stands beside it as `per_seed`. `pairs` counts the examples that only
one of two models has right.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gat.cli.exit_codes import exit_code
from gat.evaluation.records import Record, archive_records, read_records
from gat.files import write_json, write_text
from gat.report.statistics import BASELINE, by_cell, compare, mcnemar, summarize
from gat.report.tables import result_rows

VARIES = {"seed", "name", "out"}  # between runs of one result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in args.runs]
    shared = [{key: value for key, value in config.items() if key not in VARIES} for config in configs]
    for run, config in zip(args.runs, shared, strict=True):
        different = [key for key in config if config[key] != shared[0].get(key)]
        if different:
            raise ValueError(
                f"{run} differs from {args.runs[0]} in {', '.join(different)}; only the seed may"
            )
    seeds = [config["seed"] for config in configs]
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"every run needs its own seed, got {seeds}")

    per_seed = [read_records(run / "records.jsonl") for run in args.runs]
    pooled = [record for records in per_seed for record in records]
    rows = result_rows(
        [summarize(key, cell) for key, cell in by_cell(pooled).items()], "classification", seeds
    )
    single = [
        result_rows([summarize(k, c) for k, c in by_cell(records).items()], "classification", [])
        for records in per_seed
    ]
    for row in rows:
        row["per_seed"] = [
            round(other["value"], 4)
            for found in single
            for other in found
            if identity(other) == identity(row)
        ]
    provenance = json.loads((args.runs[0] / "provenance.json").read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    runs = " ".join(map(str, args.runs))
    table = {
        "command": f"python scripts/publish_results.py {runs} --out {args.out}",
        "trained_with": [f"python train_gat.py --config configs/{args.out.name}.yaml name={run.name} seed={seed}"
                         for run, seed in zip(args.runs, seeds, strict=True)],
        "commit": provenance["commit"],
        "hardware": provenance["hardware"],
        "versions": provenance["versions"],
        "protocols": provenance["protocols"],
        "rows": rows,
        "pairs": pairs(per_seed),
    }  # fmt: skip
    write_json(args.out / "table.json", table)
    write_text(args.out / "table.md", markdown(rows))
    archive_records(
        args.out / "records.jsonl.gz",
        ((seed, record) for seed, records in zip(seeds, per_seed, strict=True) for record in records),
    )
    print(markdown(rows))


def pairs(per_seed: Sequence[Sequence[Record]]) -> list[dict[str, Any]]:
    """Every other model beside the undefended one on the same examples of the same seed, under each attack."""
    cells = [by_cell(records) for records in per_seed]
    rows = []
    for key in cells[0]:
        if key.model == BASELINE:
            continue
        found = [compare(cell[key._replace(model=BASELINE)], cell[key]) for cell in cells]
        counted = [pair for pair in found if pair is not None]
        n, lost, won = (
            sum(getattr(pair, part) for pair in counted) for part in ("n", "only_first", "only_second")
        )
        rows.append(
            {
                "attack": "clean" if key.column.attack == "none" else key.column.attack,
                "protocol": key.column.protocol,
                "model": key.model,
                "baseline": BASELINE,
                "n": n,
                "only_baseline": lost,
                "only_model": won,
                "difference": (won - lost) / n,
                "p_value": mcnemar(lost, won),
                "per_seed": [round(pair.difference, 4) for pair in counted],
            }
        )
    return rows


def identity(row: dict[str, Any]) -> tuple[str, ...]:
    return row["model"], row["attack"], row["protocol"], row["source"], row["metric"]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Accuracy of every model under every attack: per cent, 95 % interval, seeds' values."""
    lines = [
        "| attack | images | model | accuracy % (95 %) | n | per seed | steps to fool | label still read % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cells: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["attack"], row["source"], row["model"]), {})[row["metric"]] = row
    for (attack, source, model), metrics in sorted(
        cells.items(), key=lambda cell: (cell[0][0] != "clean", cell[0])
    ):
        accuracy = metrics["accuracy"]
        seeds = ", ".join(f"{100 * value:.1f}" for value in accuracy["per_seed"])
        steps = f"{metrics['mean_iterations']['value']:.1f}" if "mean_iterations" in metrics else ""
        oracle = f"{100 * metrics['oracle_agreement']['value']:.1f}" if "oracle_agreement" in metrics else ""
        lines.append(
            f"| {attack} | {source} | {model} | {100 * accuracy['value']:.1f} ({100 * accuracy['low']:.1f}-"
            f"{100 * accuracy['high']:.1f}) | {accuracy['n']} | {seeds} | {steps} | {oracle} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(exit_code("publish_results.py", main))
