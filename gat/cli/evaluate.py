"""Measure the models of one or several runs, under their own attacks or a named suite of them.

Example:
    gat evaluate runs/quickstart
    gat evaluate runs/quickstart evaluation.num_real=2000 'evaluation.attacks.pgd-strong={name: pgd, steps: 100}'
    gat evaluate runs/scenes data.num_test=5000 --out runs/scenes_on_more
    gat evaluate runs/quickstart --suite table2 --protocol paper 'evaluation.budgets=[0.5, 2]'
    gat evaluate runs/gat runs/at_pgd runs/pat --suite table2 --out runs/table2

Several runs make one table: each run's trained model under the name of its folder, and the undefended original once (once for
each, where they differ). Data, generator, oracle and settings are those of the first run, and the data of the others must be the
same. What was measured before under the same settings is not measured again, and a stopped evaluation goes on where it was.
"""

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from gat.cli.compose import (
    NOT_LEARNT_FROM,
    ORIGINAL,
    Run,
    RunConfig,
    check_same_run,
    open_run,
    write_provenance,
)
from gat.cli.table import print_table
from gat.config import ConfigError, load, read_yaml
from gat.evaluation.evaluate import evaluate
from gat.evaluation.gallery import make_gallery, pictures_of
from gat.evaluation.plan import cells, fingerprint
from gat.evaluation.records import control
from gat.evaluation.suites import SUITES, Protocol, suite
from gat.files import write_json
from gat.processes import leave_together
from gat.report import write_report
from gat.report.folder import RunFolder, read_run
from gat.report.gallery import write_gallery
from gat.report.metrics import MetricRow
from gat.report.results import compute
from gat.report.statistics import Aggregate, Summary

JUDGE = "oracle"  # the network with whose features suites measure perceptual distances: the run's oracle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|key=value",
        help="folders of finished runs; settings, such as evaluation.num_real=2000",
    )
    parser.add_argument(
        "--suite", choices=tuple(SUITES), help="attacks to use; default: those of the run's configuration"
    )
    parser.add_argument(
        "--protocol",
        choices=("strict", "paper"),
        default="strict",
        help="settings of the suite (default: strict)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write to; default: the run's own, or runs/evaluation-SUITE for several",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    folders = [Path(word) for word in args.words if "=" not in word or os.path.isdir(word)]
    overrides = [word for word in args.words if "=" in word and not os.path.isdir(word)]
    if not folders:
        raise ConfigError(f"wanted the folder of a run, got only settings: {' '.join(overrides)}")
    own_folder = len(folders) == 1 and args.out is None
    out = args.out or (folders[0] if own_folder else Path("runs") / f"evaluation-{args.suite or 'own'}")
    config = read_config(folders[0])
    words = suite_words(config, args.suite, args.protocol, keep_own=own_folder) if args.suite else []
    config = load(RunConfig, [folders[0] / "config.yaml"], [*words, *overrides, f"out={folders[0]}"])
    check_same_run(config)
    current = open_run(config)
    models, facts = models_of(current, folders)
    if not own_folder:
        facts["runs"] = list(map(str, folders))
    if args.suite:
        chosen = suite(args.suite, args.protocol, JUDGE if config.oracle else None)
        facts["suite"] = {"name": args.suite, "protocol": args.protocol, "attacks": list(chosen.judged)}
    options = ["--suite", args.suite, "--protocol", args.protocol] if args.suite else []
    command = shlex.join(["gat", "evaluate", *args.words, *options, "--out", str(out)])
    page = judge_together(current, models, out, facts, command)
    leave_together(current.accelerator)
    if current.accelerator.is_main_process:
        rows = _rows(read_run(out))
        if args.json:
            print(json.dumps(rows))
        else:
            print_table(list(rows[0]), [list(row.values()) for row in rows])
            print(f"page: {page}")
    return 0


def read_config(folder: Path) -> RunConfig:
    """Of a finished run.

    Raises:
        FileNotFoundError: if the folder is none.
    """
    settings = folder / "config.yaml"
    if not settings.is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run: it has no config.yaml")
    if runs := read_yaml(settings).get("runs"):
        raise ConfigError(f"{folder} is the folder of an evaluation; name its runs instead: {' '.join(runs)}")
    return load(RunConfig, [settings], [f"out={folder}"])


def suite_words(config: RunConfig, name: str, protocol: Protocol, keep_own: bool) -> list[str]:
    """A suite as settings, which later ones may change.

    Args:
        keep_own: leave the run's own attacks in, under the suite's.
    """
    chosen = suite(name, protocol, JUDGE if config.oracle else None)
    if config.generator is None and any(attack.needs == "generator" for attack in chosen.attacks.values()):
        raise ConfigError(
            f"suite {name} moves a generator's latents, and this run has no generator; on offer: generator.name=stylegan2"
        )
    own = {name: attack for name, attack in config.evaluation.attacks.items() if keep_own}
    attacks = {name: attack.model_dump(mode="json") for name, attack in {**own, **chosen.attacks}.items()}
    settings = {
        "attacks": attacks,
        "num": {**config.evaluation.num, **chosen.num},
        "suite": name,
        "protocol": protocol,
    }
    return [f"evaluation.{key}={json.dumps(value)}" for key, value in settings.items()] + [
        f"evaluation.transfer={chosen.transfer}"
    ]


def models_of(current: Run, folders: list[Path]) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """The models of these runs by their names in tables, and what the provenance says about them.

    Raises:
        ConfigError: if the runs' data differ, or two would have the same name.
    """
    models: dict[str, nn.Module] = {}
    trained_on: dict[str, list[str]] = {}
    sources: dict[str, str] = {}
    seeds: set[int] = set()
    originals: dict[str, str] = {}
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names) or ORIGINAL in names:
        raise ConfigError(
            f"models are named after the runs' folders, which must differ, got {', '.join(names)}"
        )
    for folder, name in zip(folders, names, strict=True):
        config = current.config if folder == folders[0] else read_config(folder)
        theirs, ours = (
            c.model_dump(exclude={"data": NOT_LEARNT_FROM})["data"] for c in (config, current.config)
        )
        if theirs != ours:
            raise ConfigError(
                f"{folder} has other data than {folders[0]}: {config.data!r}, not {current.config.data!r}; evaluate it apart"
            )
        check_same_run(config)
        opened = replace(current, config=config)
        trained = config.method.name if len(folders) == 1 else name
        original = opened.finished_model(ORIGINAL)
        weights = fingerprint(original)
        if weights not in originals:
            originals[weights] = ORIGINAL if not originals else f"{name}/{ORIGINAL}"
            models[originals[weights]] = original
            trained_on[originals[weights]] = []
            sources[originals[weights]] = f"{folder}, undefended"
        models[trained] = opened.finished_model(config.method.name)
        trained_on[trained] = list(config.method.trained_on())
        sources[trained] = f"{folder}, method {config.method.name}"
        seeds.add(config.seed)
    facts: dict[str, Any] = {
        "trained_on": trained_on,
        "models": sources,
        "seeds": {"training": sorted(seeds), "evaluation": current.config.evaluation.seed},
    }
    return models, facts


def judge_together(
    current: Run, models: Mapping[str, nn.Module], out: Path, facts: Mapping[str, Any], command: str
) -> Path:
    """Records, pictures and page of these models under the evaluation of `current`, in a folder of their own or of a run.

    Args:
        current: whose data, generator, oracle and evaluation settings are used.
        facts: entries of the provenance, instead of what `write_provenance` says about one run; see `models_of`. With `runs`, the
            folders that the models came from, `out` is a folder of its own.
        command: that judges so again, for the provenance.

    Returns:
        Path of the page.
    """
    config, tools, accelerator = current.config, current.tools, current.accelerator
    write_provenance(replace(current, config=config.model_copy(update={"out": out})))
    if accelerator.is_main_process:
        path = out / "provenance.json"
        told = json.loads(path.read_text()) | {"command": command} | dict(facts)
        write_json(path, told)
        if "runs" in facts:  # nothing is trained here, so this is no --config of a training
            judged = {"runs": facts["runs"], "evaluation": config.evaluation.model_dump(mode="json")}
            (out / "config.yaml").write_text(yaml.safe_dump(judged, sort_keys=False))
    settings = config.evaluation
    evaluate(models, current.test_data, tools, settings, accelerator, out)
    if accelerator.is_main_process:
        items = []
        if config.gallery is not None and "runs" not in facts:
            items += make_gallery(models, tools, config.gallery)
        if settings.suite:
            wanted = cells(models, current.test_data, tools, settings, out)
            items += pictures_of([c for c in wanted if control(c.name) is None], settings.num_pictures)
        if items:
            seed = settings.seed if settings.suite or config.gallery is None else config.gallery.seed
            write_gallery(out, items, current.test_data.classes, seed)
        write_report(out)
    accelerator.wait_for_everyone()
    return out / "report.html"


def _rows(folder: RunFolder) -> list[dict[str, str | int | float]]:
    """A row per model and attack, and of pictures one per union and mean; of scenes the numbers are the task's."""
    if folder.scene_metrics is not None:
        return [_scene_row(row, folder.scene_metrics.names) for row in folder.scene_metrics.rows]
    results = compute(folder)
    return [_row(summary) for summary in results.summaries] + [_joined_row(a) for a in results.aggregates]


def _scene_row(row: MetricRow, metrics: Sequence[str]) -> dict[str, str | int | float]:
    headline, *others = metrics
    value = row.metrics[headline]
    return {
        "model": row.key.model,
        "attack": row.key.column.attack,
        "protocol": row.key.column.protocol or "-",
        "images": row.key.column.source,
        "n": row.n,
        headline: round(value.value, 4),
        "low": round(value.low, 4),
        "high": round(value.high, 4),
        **{name: round(row.metrics[name].value, 4) for name in others},
        "oracle": "-" if row.oracle is None else round(row.oracle.after, 4),
    }


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


def _joined_row(joined: Aggregate) -> dict[str, str | int | float]:
    return {
        "model": joined.model,
        "attack": joined.name,
        "protocol": "over " + " + ".join(column.attack for column in joined.columns),
        "images": " + ".join(dict.fromkeys(column.source for column in joined.columns)),
        "n": joined.share.n,
        "accuracy": round(joined.share.value, 4),
        "low": round(joined.share.low, 4),
        "high": round(joined.share.high, 4),
        "iterations": "-",
        "oracle": "-",
    }
