"""Table 1: the undefended and the adversarially trained model of every task, clean and attacked. Under runs/<name>/ each seed has a
folder with one run per task, that every other command reads."""

import json
import os
from pathlib import Path
from typing import Any

from pydantic import Field

from gat.cli.compose import RunConfig, check_same_run, open_run, write_provenance
from gat.cli.train import judge, train_models
from gat.config import Config
from gat.report import write_report
from gat.report.folder import read_run
from gat.report.table1 import (
    measure,
    measure_others,
    other_rows,
    paper_rows,
    table1_latex,
    table1_markdown,
    table1_rows,
)

RESULTS = Path("results/table1")
FACTS = ("commit", "hardware", "versions")


class Table1Config(Config):
    """Tasks and seeds of the table.

    Attributes:
        name: of the folder under runs/, or of `out`.
        seeds: every task is trained once with each.
        attack: name, among the evaluation's attacks of every run, of the one that the table shows.
        runs: name of a folder -> the run of one task; its name, out and seed are set here.
    """

    name: str = Field("table1", pattern=r"^[\w.-]+$")
    out: Path | None = None
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    attack: str = "gat"
    runs: dict[str, RunConfig] = Field(min_length=1)

    @property
    def folder(self) -> Path:
        """Where everything goes."""
        return self.out or Path("runs") / self.name

    def task_run(self, task: str, seed: int) -> RunConfig:
        """The run of one task and seed."""
        out = self.folder / f"seed{seed}" / task
        return self.runs[task].model_copy(
            update={"name": f"{self.name}-{task}-{seed}", "out": out, "seed": seed}
        )


def reproduce(config: Table1Config, only: str | None, command: str) -> None:
    """Train, judge and publish, or one half of that."""
    is_main = True
    for seed in config.seeds:
        for task in config.runs:
            is_main = run_task(config.task_run(task, seed), only)
    if is_main and only is None:
        print((publish(config, RESULTS, command) / "table.md").read_text())


def run_task(config: RunConfig, only: str | None) -> bool:
    """One run, to its page. Returns whether this is the main process."""
    check_same_run(config)
    current = open_run(config)
    write_provenance(current)
    if only != "evaluate":
        train_models(current)
    if only != "train":
        judge(current)
        if current.accelerator.is_main_process:
            print(f"page: {write_report(config.folder)}")
    return current.accelerator.is_main_process


def publish(config: Table1Config, target: Path, command: str) -> Path:
    """results/table1: table.json with the rows of all tasks, other attacks and the paper's, table.md, table.tex."""
    target.mkdir(parents=True, exist_ok=True)
    folders = [read_run(config.task_run(task, seed).folder) for seed in config.seeds for task in config.runs]
    rows = table1_rows(cell for folder in folders for cell in measure(folder, config.attack))
    others = other_rows(cell for folder in folders for cell in measure_others(folder, config.attack))
    facts = folders[0].provenance or {}
    protocols: dict[str, Any] = {}
    for folder in folders:
        protocols |= (folder.provenance or {}).get("protocols", {})
    table = {
        "command": command,
        "config": json.loads(config.model_dump_json(exclude={"out"})),
        **{key: facts.get(key) for key in FACTS},
        "protocols": protocols,
        "paper": paper_rows(),
        "rows": rows,
        "other_attacks": others,
    }
    _write(target / "table.json", json.dumps(table, indent=1) + "\n")
    _write(target / "table.md", table1_markdown(rows, others))
    _write(target / "table.tex", table1_latex(rows))
    return target


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
