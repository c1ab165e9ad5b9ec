"""Train a classifier on clean and adversarial images, judge it before and after, and write the page.

Example:
    gat train --config configs/quickstart.yaml
    accelerate launch train_gat.py --config configs/quickstart.yaml train.steps=2000 seed=1

The same command again goes on where a run stopped. Everything is written to runs/<name>: the weights of both models,
training/*/metrics.jsonl, records.jsonl, gallery.json and report.html.
"""

import argparse
import json
from pathlib import Path
from typing import cast

from torch import nn

from gat.cli.compose import BASE, ORIGINAL, Run, RunConfig, check_same_run, open_run, write_provenance
from gat.cli.memory import memory_report
from gat.config import dump, load
from gat.evaluation.evaluate import evaluate
from gat.evaluation.gallery import make_gallery
from gat.evaluation.strips import make_strips
from gat.processes import leave_together
from gat.report import write_report
from gat.report.gallery import write_gallery
from gat.report.strips import SceneTask, write_strips
from gat.training.loop import TrainSettings, train
from gat.training.methods import Method, Standard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, action="append", default=[], help="YAML file; a later one wins"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.lr=1e-3 or seed=1")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration and what memory attacks need, and stop",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    config = load(RunConfig, args.config, args.overrides)
    if args.dry_run:
        print(dump(config), end="")
        for line in memory_report(config):
            print(f"# memory: {line}")
        return 0
    check_same_run(config)
    current = open_run(config)
    write_provenance(current)
    train_models(current)
    judge(current)
    leave_together(current.accelerator)
    if current.accelerator.is_main_process:
        page = write_report(config.folder)
        print(json.dumps({"run": str(config.folder), "page": str(page)}) if args.json else f"page: {page}")
    return 0


def train_models(current: Run) -> None:
    """Clean images first; from there the method, and beside it the original for as many more steps on clean images, so that
    the two differ in nothing but the method. What is finished is not done again."""
    config = current.config

    def learn(name: str, start: nn.Module, method: Method, settings: TrainSettings, seed: int) -> None:
        folder = config.folder / "training" / name
        model = train(
            start,
            current.train_data,
            method,
            current.tools,
            settings,
            current.accelerator,
            folder,
            seed,
            stage=name,
            drawn=current.layouts,
        )
        current.save_model(model, name)

    if not current.model_path(BASE).exists():
        model = current.new_model()
        if getattr(config.model, "weights", None) is None:
            learn(BASE, model, Standard(), config.base, config.seed)
        else:
            current.save_model(model, BASE)
    for name, method in ((ORIGINAL, Standard()), (config.method.name, config.method)):
        if not current.model_path(name).exists():
            learn(name, current.finished_model(BASE), method, config.train, config.seed + 1)


def judge(current: Run) -> None:
    """Records and pictures of both models."""
    config, tools = current.config, current.tools
    models = {name: current.finished_model(name) for name in (ORIGINAL, config.method.name)}
    evaluate(models, current.test_data, tools, config.evaluation, current.accelerator, config.folder)
    if config.gallery is not None and current.accelerator.is_main_process:
        items = make_gallery(models, tools, config.gallery)
        write_gallery(config.folder, items, current.train_data.classes, config.gallery.seed)
    if config.strips is not None and current.accelerator.is_main_process:
        strips = make_strips(models, current.test_data, tools, config.strips)
        task = cast(SceneTask, tools.task.name)
        write_strips(config.folder, strips, task, current.test_data.classes, config.strips.seed)
    current.accelerator.wait_for_everyone()
