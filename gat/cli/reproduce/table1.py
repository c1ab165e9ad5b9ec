"""Table 1: the undefended and the adversarially trained model of every task, clean and attacked. Under runs/<name>/ each seed has a
folder with one run per task, that every other command reads."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from gat.cli.compose import RunConfig, check_same_run, open_run, write_provenance
from gat.cli.train import judge, train_models
from gat.config import Config
from gat.files import write_json, write_text
from gat.report import write_report
from gat.report.folder import read_run
from gat.report.table1 import (
    HEADLINES,
    measure,
    measure_others,
    other_rows,
    paper_rows,
    table1_latex,
    table1_markdown,
    table1_rows,
)

FACTS = ("commit", "hardware", "versions")


class Table1Config(Config):
    """Tasks and seeds of the table.

    Attributes:
        name: of the folder under runs/, or of `out`.
        seeds: every task is trained once with each.
        attack: name, among the evaluation's attacks of every run, of the one that the table shows.
        runs: task -> its run, whose name, out and seed are set here.
    """

    name: str = Field("table1", pattern=r"^[\w.-]+$")
    out: Path | None = None
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    attack: str = "gat"
    runs: dict[str, RunConfig] = Field(min_length=1)

    @field_validator("runs")
    @classmethod
    def _of_the_papers_tasks(cls, runs: dict[str, RunConfig]) -> dict[str, RunConfig]:
        if unknown := sorted(runs.keys() - HEADLINES.keys()):
            raise ValueError(f"there is no task {', '.join(unknown)}; on offer: {', '.join(HEADLINES)}")
        return runs

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


def reproduce(
    config: Table1Config, target: Path, only: str | None, command: str, tasks: Sequence[str] = ()
) -> None:
    """Train, judge and publish, or one half of that.

    Args:
        target: folder of the table.
        tasks: names of runs; the others keep what the table in `target` says of them. Empty: all.

    Raises:
        ValueError: if a task is not among the runs, or what is kept was measured with other settings.
    """
    if unknown := sorted(set(tasks) - config.runs.keys()):
        raise ValueError(f"there is no task {', '.join(unknown)}; on offer: {', '.join(config.runs)}")
    tasks = [task for task in config.runs if task in tasks] or list(config.runs)
    kept = _kept(config, target, tasks) if only is None else {}  # before hours of work
    is_main = True
    for seed in config.seeds:
        for task in tasks:
            is_main = run_task(config.task_run(task, seed), only)
    if is_main and only is None:
        print((publish(config, target, command, tasks, kept) / "table.md").read_text())


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


def publish(
    config: Table1Config, target: Path, command: str, tasks: Sequence[str], kept: dict[str, Any]
) -> Path:
    """Into `target`: table.json with the rows of all tasks, other attacks and the paper's, table.md, table.tex.

    Args:
        command: that makes the table, but for `--task`, which is added if not all tasks are in it.
        tasks: whose runs are read.
        kept: what `_kept` found of the others.
    """
    target.mkdir(parents=True, exist_ok=True)
    by_task = {
        task: [read_run(config.task_run(task, seed).folder) for seed in config.seeds] for task in tasks
    }
    folders = [folder for task_folders in by_task.values() for folder in task_folders]
    rows = [
        *kept.get("rows", []),
        *table1_rows(cell for folder in folders for cell in measure(folder, config.attack)),
    ]
    others = [
        *kept.get("other_attacks", []),
        *other_rows(cell for folder in folders for cell in measure_others(folder, config.attack)),
    ]
    for found in (rows, others):
        found.sort(key=lambda row: list(HEADLINES).index(row["task"]))
    protocols: dict[str, Any] = dict(kept.get("protocols", {}))
    for folder in folders:
        protocols |= (folder.provenance or {}).get("protocols", {})
    origins = kept.get("origins", {}) | {
        task: {fact: (task_folders[0].provenance or {}).get(fact) for fact in FACTS}
        for task, task_folders in by_task.items()
    }
    there = [task for task in config.runs if task in origins]
    if len(there) < len(config.runs):
        command = shlex.join([*shlex.split(command), *(word for task in there for word in ("--task", task))])
    table = {
        "command": command,
        "config": json.loads(config.model_dump_json(exclude={"out"})),
        **origins[tasks[0]],
        "origins": {task: origins[task] for task in there},
        "protocols": protocols,
        "paper": paper_rows(),
        "rows": rows,
        "other_attacks": others,
    }
    write_json(target / "table.json", table)
    write_text(target / "table.md", table1_markdown(rows, others))
    write_text(target / "table.tex", table1_latex(rows))
    return target


def _kept(config: Table1Config, target: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """What a table written before says of the other tasks; {} if there is none.

    Raises:
        ValueError: if it was measured with other settings than `config` has.
    """
    path = target / "table.json"
    if not path.is_file():
        return {}
    table = json.loads(path.read_text())
    there = [task for task in config.runs if task in table["origins"] and task not in tasks]
    if not there:
        return {}
    before = Table1Config.model_validate(table["config"])
    stale = [task for task in there if before.runs[task] != config.runs[task]]
    if stale or (before.seeds, before.attack) != (config.seeds, config.attack):
        raise ValueError(
            f"{path} has {', '.join(stale or there)} of other settings than these; run it too, or remove the file"
        )
    kept = {name: [row for row in table[name] if row["task"] in there] for name in ("rows", "other_attacks")}
    named = {row["protocol"] for rows in kept.values() for row in rows}
    return {
        **kept,
        "protocols": {name: what for name, what in table["protocols"].items() if name in named},
        "origins": {task: table["origins"][task] for task in there},
    }
