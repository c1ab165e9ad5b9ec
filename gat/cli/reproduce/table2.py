"""Table 2: every defence against every attack. Under runs/<name>/ each seed has a folder with one run per row, that every other
command reads, and one with the records of all rows."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from gat.cli.compose import BASE, ORIGINAL, RunConfig, check_same_run, open_run, write_provenance
from gat.cli.evaluate import JUDGE, judge_together, models_of, suite_words
from gat.cli.train import train_models
from gat.config import Config, load
from gat.evaluation.records import archive_records, read_records, write_records
from gat.evaluation.suites import Protocol, suite
from gat.files import write_json, write_text, written_whole
from gat.report import write_report
from gat.report.folder import read_run
from gat.report.results import Results, Shared, compute, unseen_by_both
from gat.report.tables import result_rows
from gat.training.methods import MethodConfig

PAPER_COLUMNS = ("clean", "gat", "pgd", "spatial", "recolor", "perceptual", "mean_unseen")
PAPER = {
    "gat": (89.5, 78.4, 39.4, 47.8, 52.3, 28.9, 42.1),
    "at-pgd": (81.2, 6.3, 56.7, 5.1, 37.9, 2.8, 13.0),
    "advprop": (89.4, 7.8, 57.6, 6.0, 38.5, 3.5, 22.7),
    "at-spatial": (76.3, 5.4, 3.1, 66.0, 4.1, 2.2, 3.7),
    "at-recolor": (88.6, 4.7, 7.3, 0.4, 60.7, 1.7, 3.5),
    "pat": (72.4, 18.3, 40.1, 46.3, 42.5, 30.1, 36.5),
}
"""Table 2 of Poursaeed et al.: accuracy in per cent on LSUN. Not all of its means are the means of its rows: advprop's would be 13.9."""


class Table2Config(Config):
    """Rows and seeds of the table.

    Attributes:
        name: of the folder under runs/, or of `out`.
        seeds: every row is trained once with each.
        run: what all rows share; its name, out, seed and method are set here.
        rows: name of the model in tables -> training method. The undefended `original` is always there.
        suite, protocols: every attack of the suite runs under each protocol.
    """

    name: str = Field("table2", pattern=r"^[\w.-]+$")
    out: Path | None = None
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    run: RunConfig = RunConfig()
    rows: dict[str, MethodConfig] = Field(min_length=1)
    suite: str = "table2"
    protocols: tuple[Protocol, ...] = Field(("strict", "paper"), min_length=1)

    @field_validator("rows")
    @classmethod
    def _named(cls, rows: dict[str, MethodConfig]) -> dict[str, MethodConfig]:
        if ORIGINAL in rows or BASE in rows:
            raise ValueError(f"{ORIGINAL} and {BASE} are always trained; no row can have their name")
        return rows

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.out or Path("runs") / self.name

    def judged_folder(self, protocol: Protocol, seed: int) -> Path:
        """Where the records of all rows of one seed under one protocol go."""
        return self.folder / f"seed{seed}-{protocol}"

    def row_run(self, row: str, seed: int) -> RunConfig:
        """The run of one row and seed."""
        return self.run.model_copy(
            update={
                "name": f"{self.name}-{row}-{seed}",
                "out": self.folder / f"seed{seed}" / row,
                "seed": seed,
                "method": self.rows[row],
            }
        )


def reproduce(config: Table2Config, target: Path, only: str | None, command: str) -> None:
    """Train, judge and publish into the folder `target`, or one half of that."""
    if only != "evaluate":
        for seed in config.seeds:
            train_rows(config, seed)
    if only == "train":
        return
    is_main = True
    for protocol in config.protocols:
        for seed in config.seeds:
            is_main = judge_rows(config, seed, protocol, command)
    if is_main and only is None:
        for protocol in config.protocols:
            print(f"page: {pool_seeds(config, protocol)}")
        print((publish(config, target, command) / "table.md").read_text())


def train_rows(config: Table2Config, seed: int) -> None:
    """Every row of one seed, each in a run folder of its own; all start from one base and share one original."""
    first: Path | None = None
    for row in config.rows:
        run_config = config.row_run(row, seed)
        check_same_run(run_config)
        current = open_run(run_config)
        write_provenance(current)
        if first is not None and current.accelerator.is_main_process:
            for name in (BASE, ORIGINAL):
                source, target = first / f"{name}.safetensors", current.model_path(name)
                if not target.exists():
                    with written_whole(target) as temporary:
                        shutil.copyfile(source, temporary)
        current.accelerator.wait_for_everyone()
        train_models(current)
        first = first or run_config.folder


def judge_rows(config: Table2Config, seed: int, protocol: Protocol, command: str) -> bool:
    """Every row of one seed against every attack of the suite. Returns whether this is the main process."""
    folders = [config.row_run(row, seed).folder for row in config.rows]
    first = config.row_run(next(iter(config.rows)), seed)
    words = suite_words(first, config.suite, protocol, keep_own=False)
    # How many examples is the table's to say, what they are attacked with is the suite's.
    words.append(f"evaluation.num={json.dumps(first.evaluation.num)}")
    evaluated = load(RunConfig, [first.folder / "config.yaml"], [*words, f"out={first.folder}"])
    current = open_run(evaluated)
    models, facts = models_of(current, folders)
    judged = suite(config.suite, protocol, JUDGE if evaluated.oracle else None).judged
    facts |= {
        "runs": list(map(str, folders)),
        "suite": {"name": config.suite, "protocol": protocol, "attacks": list(judged)},
    }
    judge_together(current, models, config.judged_folder(protocol, seed), facts, command)
    return current.accelerator.is_main_process


def pool_seeds(config: Table2Config, protocol: Protocol) -> Path:
    """One page over all seeds: the same rows, every example once per seed."""
    parts = [config.judged_folder(protocol, seed) for seed in config.seeds]
    pooled = config.folder / protocol
    pooled.mkdir(parents=True, exist_ok=True)
    write_records(
        pooled / "records.jsonl",
        (record for part in parts for record in read_records(part / "records.jsonl")),
    )
    facts = json.loads((parts[0] / "provenance.json").read_text())
    facts["seeds"] = facts["seeds"] | {"training": list(config.seeds)}
    (pooled / "provenance.json").write_text(json.dumps(facts, indent=1))
    for name in ("config.yaml", "gallery.json", "gallery.npz", "probes.json"):
        if (parts[0] / name).exists():
            shutil.copyfile(parts[0] / name, pooled / name)
    return write_report(pooled)


def publish(config: Table2Config, target: Path, command: str) -> Path:
    """Into `target`: table.json with the rows of all protocols and the paper's, table.md, and the records that they came from."""
    target.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    protocols: dict[str, Any] = {}
    texts = []
    pairs: dict[str, list[dict[str, Any]]] = {}
    champion = "gat" if "gat" in config.rows else next(iter(config.rows))
    for protocol in config.protocols:
        pooled = compute(read_run(config.folder / protocol))
        single = {
            seed: _rows(compute(read_run(config.judged_folder(protocol, seed))), [seed])
            for seed in config.seeds
        }
        found = _rows(pooled, list(config.seeds))
        for row in found:
            same = [r for rows_of_seed in single.values() for r in rows_of_seed if _cell(r) == _cell(row)]
            row["per_seed"] = [round(r["value"], 4) for r in same]
        rows += found
        facts = pooled.folder.provenance or {}
        protocols |= facts.get("protocols", {})
        texts.append(f"## Protocol {protocol}\n\n{table_of(found, pooled)}")
        shared = unseen_by_both(pooled, champion)
        if shared:
            texts.append(
                f"### {champion} and the others, protocol {protocol}\n\n{shared_table(shared, champion)}"
            )
        pairs[protocol] = [
            {"model": champion, **asdict(pair), "columns": [column.attack for column in pair.columns]}
            for pair in shared
        ]
    archive_records(
        target / "records.jsonl.gz",
        (
            (seed, record)
            for protocol in config.protocols
            for seed in config.seeds
            for record in read_records(config.judged_folder(protocol, seed) / "records.jsonl")
        ),
    )
    table = {
        "command": command,
        "config": json.loads(config.model_dump_json(exclude={"out"})),
        **{key: facts.get(key) for key in ("commit", "hardware", "versions", "trained_on")},
        "protocols": protocols,
        "paper": PAPER,
        "unseen_by_both": pairs,
        "rows": rows,
    }
    write_json(target / "table.json", table)
    write_text(target / "table.md", "\n\n".join([*texts, paper_table()]) + "\n")
    return target


def _rows(results: Results, seeds: list[int]) -> list[dict[str, Any]]:
    return result_rows(results.summaries, "classification", seeds, results.aggregates)


def _cell(row: dict[str, Any]) -> tuple[str, ...]:
    return row["model"], row["attack"], row["protocol"], row["source"], row["metric"]


def table_of(rows: list[dict[str, Any]], results: Results) -> str:
    """Models down, attacks across: accuracy in per cent, the lowest and the highest seed in brackets where there are several."""
    judged = list(results.folder.suite)
    across = ["clean", *judged, "mean_unseen", "union"]
    found = {(r["model"], r["attack"]): r for r in rows if r["metric"] == "accuracy"}
    lines = ["| model | " + " | ".join(across) + " |", "|---" * (len(across) + 1) + "|"]
    for model in results.models:
        cells = []
        for attack in across:
            row = found.get((model, attack))
            if row is None:
                cells.append("")
                continue
            seeds = row["per_seed"]
            spread = f" ({100 * min(seeds):.1f}-{100 * max(seeds):.1f})" if len(seeds) > 1 else ""
            known = any(results.folder.seen(model, c) for c in results.columns if c.attack == attack)
            cells.append(f"{100 * row['value']:.1f}{spread}{'*' if known else ''}")
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    n = {row["n"] for (_, attack), row in found.items() if attack in judged}
    sizes = f"{min(n)}" if len(n) == 1 else f"{min(n)} to {max(n)}"
    lines += [
        "",
        f"`*`: an attack of this kind was trained on, so it is not in mean_unseen. n = {sizes} per cell, all seeds together.",
    ]
    return "\n".join(lines)


def shared_table(pairs: Sequence[Shared], model: str) -> str:
    """One model against each other one, over the attacks that neither was trained on: in per cent, 95 % intervals over examples."""
    lines = [
        f"| other model | attacks neither was trained on | {model} | other | difference |",
        "|---" * 5 + "|",
    ]
    for pair in pairs:
        apart = pair.difference
        interval = f"{100 * apart.value:+.1f} ({100 * apart.low:+.1f} to {100 * apart.high:+.1f})"
        attacks = ", ".join(column.attack for column in pair.columns)
        means = f"{100 * pair.mean.value:.1f} | {100 * pair.other_mean.value:.1f}"
        lines.append(f"| {pair.other} | {attacks} | {means} | {interval} |")
    return "\n".join(lines)


def paper_table() -> str:
    """Table 2 of Poursaeed et al. as printed."""
    lines = ["## The paper's Table 2 (LSUN, per cent)", "", "| model | " + " | ".join(PAPER_COLUMNS) + " |"]
    lines += ["|---" * (len(PAPER_COLUMNS) + 1) + "|"]
    lines += [
        f"| {model} | " + " | ".join(f"{value:.1f}" for value in values) + " |"
        for model, values in PAPER.items()
    ]
    return "\n".join(lines)
