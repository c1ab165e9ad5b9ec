"""A run folder, read as far as it can be read. What is missing or damaged is kept as a problem for the page to show."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from gat.evaluation.records import Record, read_records
from gat.report.gallery import JSON_NAME, Gallery, read_gallery
from gat.report.metrics import METRICS_JSON, Metrics, read_metrics
from gat.report.statistics import BASELINE, Column
from gat.report.strips import STRIPS_JSON, SceneTask, Strips, read_strips

T = TypeVar("T")

FILES = {
    "records.jsonl": "no accuracies, tables or curves can be shown",
    "gallery.json": "no pictures can be shown",
    "metrics.jsonl": "no training curves can be shown",
    "config.yaml": "what was run is not known",
    "provenance.json": "versions, commit, seeds and hardware are not known",
}
"""What a run folder should hold, and what the page lacks without it."""

SCENE_FILES = {
    METRICS_JSON: "no accuracies or precisions can be shown",
    STRIPS_JSON: "no pictures can be shown",
}
"""What a run on scenes holds besides; it needs no gallery."""


@dataclass(frozen=True)
class Problem:
    """A file that is missing or cannot be read."""

    file: str
    text: str
    missing: bool


@dataclass(frozen=True)
class RunFolder:
    """All that a report is made from.

    Attributes:
        name: of the folder.
        config_text: config.yaml as it is; '' if missing.
        config: the same, parsed.
        provenance: see `write_report` for the entries that are used.
        metrics: rows of metrics.jsonl, or of training/*/metrics.jsonl, stage after stage.
        records: in the order of the file.
        gallery: None if missing.
        scene_metrics: of scenes, else None.
        strips: of scenes, else None.
        probes: model -> what `gat.evaluation.probe` found; {} if nobody asked.
        problems: files that are missing or damaged.
    """

    name: str
    config_text: str = ""
    config: Any = None
    provenance: dict[str, Any] | None = None
    metrics: tuple[dict[str, Any], ...] = ()
    records: tuple[Record, ...] = ()
    gallery: Gallery | None = None
    scene_metrics: Metrics | None = None
    strips: Strips | None = None
    probes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, from the provenance or the gallery; () if neither knows."""
        named = (self.provenance or {}).get("classes")
        if isinstance(named, list):
            return tuple(map(str, named))
        pictures = self.strips or self.gallery
        return pictures.classes if pictures else ()

    @property
    def scene_task(self) -> SceneTask | None:
        """Segmentation or detection, where scenes were answered; None for classification."""
        told = [
            (self.provenance or {}).get("task"),
            self.scene_metrics and self.scene_metrics.task,
            self.strips and self.strips.task,
        ]
        return next((task for task in get_args(SceneTask) if task in told), None)

    @property
    def task(self) -> str:
        """Name of the data in the provenance, else of the task in the config; '' if neither says."""
        for source, key in ((self.provenance, "data"), (self.config, "task")):
            entry = source.get(key) if isinstance(source, dict) else None
            if name := entry.get("name") if isinstance(entry, dict) else entry:
                return str(name)
        return ""

    @property
    def protocols(self) -> dict[str, Any]:
        """Protocol id -> its settings, from the provenance."""
        found = (self.provenance or {}).get("protocols")
        return found if isinstance(found, dict) else {}

    @property
    def suite(self) -> tuple[str, ...]:
        """Names of the attacks that means and unions are over, from the provenance; () if it names none."""
        suite = (self.provenance or {}).get("suite")
        attacks = suite.get("attacks") if isinstance(suite, dict) else None
        return tuple(map(str, attacks)) if isinstance(attacks, list) else ()

    def seen(self, model: str, column: Column) -> bool:
        """Whether the model was trained on an attack of one of this one's kinds, as far as the provenance tells."""
        trained_on = (self.provenance or {}).get("trained_on")
        known = trained_on.get(model) if isinstance(trained_on, dict) else None
        settings = self.protocols.get(column.protocol)
        settings = settings if isinstance(settings, dict) else {}
        kinds = settings.get("kinds", [settings.get("name", column.attack)])
        return isinstance(known, list) and isinstance(kinds, list) and any(kind in known for kind in kinds)

    def bounded(self, column: Column) -> bool:
        """Whether the attack stays within a norm of the pixels, so that its pictures need no oracle."""
        settings = self.protocols.get(column.protocol)
        bounds = settings.get("bounds") if isinstance(settings, dict) else None
        return isinstance(bounds, dict) and any(str(name).endswith("_pixels") for name in bounds)

    @property
    def seeds(self) -> list[int]:
        """Of the training, from the provenance, else the config; [] if neither says."""
        for source in (self.provenance, self.config):
            if isinstance(source, dict):
                seeds = source.get("seeds", source.get("seed"))
                if isinstance(seeds, dict):
                    seeds = seeds.get("training", list(seeds.values()))
                if isinstance(seeds, int):
                    seeds = [seeds]
                if isinstance(seeds, list):
                    return sorted({seed for seed in seeds if isinstance(seed, int)})
        return []


def _read_config(path: Path) -> tuple[str, Any]:
    text = path.read_text()
    try:
        return text, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({error})") from error


def _read_provenance(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"should be a JSON object, got a {type(content).__name__}")
    return content


def _read_probes(path: Path) -> dict[str, dict[str, float]]:
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    try:
        return {str(model): {str(k): float(v) for k, v in found.items()} for model, found in content.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"should be {{model: {{question: share}}}} ({error})") from error


def _read_metrics(path: Path) -> tuple[dict[str, Any], ...]:
    rows = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # the run was stopped, or is still going, in the middle of this line
                break
            raise ValueError(f"line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} should be a JSON object, got a {type(row).__name__}")
        rows.append(row)
    return tuple(rows)


def _read_all_metrics(run: Path) -> tuple[dict[str, Any], ...]:
    """Of the run itself, or of its stages of training the undefended model's first."""
    stages = [
        _read_metrics(path)
        for path in sorted(
            run.glob("training/*/metrics.jsonl"), key=lambda p: (p.parent.name != BASELINE, p.parent.name)
        )
    ]
    if stages and not (run / "metrics.jsonl").exists():
        return tuple(row for rows in stages for row in rows)
    return _read_metrics(run / "metrics.jsonl")


def _read_all_records(path: Path) -> tuple[Record, ...]:
    records = tuple(read_records(path))
    if not records:
        raise ValueError("there is no record in it")
    return records


def read_run(run: Path) -> RunFolder:
    """Read all files of a run folder; a missing or damaged one becomes a problem, not an error.

    Raises:
        ValueError: if `run` is not a folder, or holds none of the files.
    """
    if not run.is_dir():
        raise ValueError(f"{run} is not a run folder: there is no such folder")
    if not any((run / name).exists() for name in (*FILES, *SCENE_FILES)):
        raise ValueError(f"{run} is not a run folder: it holds none of {', '.join(FILES)}")
    problems = []
    optional: set[str] = set()
    files = FILES | SCENE_FILES

    def attempt(name: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except FileNotFoundError as error:
            missing = Path(error.filename or name).name
            if name not in optional:
                problems.append(Problem(missing, f"{missing} is missing: {files[name]}.", missing=True))
        except (ValueError, OSError) as error:
            lost = files.get(name, "what was asked of the models is not known")
            problems.append(Problem(name, f"{name} cannot be read, so {lost}: {error}", missing=False))
        return None

    provenance = attempt("provenance.json", lambda: _read_provenance(run / "provenance.json"))
    if provenance and provenance.get("runs"):  # an evaluation of several runs trains nothing
        optional |= {"metrics.jsonl", JSON_NAME, STRIPS_JSON}
    probes = attempt("probes.json", lambda: _read_probes(run / "probes.json"))
    records = attempt("records.jsonl", lambda: _read_all_records(run / "records.jsonl"))
    gallery = scene_metrics = strips = None
    if (provenance or {}).get("task") in get_args(SceneTask) or (run / METRICS_JSON).exists():
        scene_metrics = attempt(METRICS_JSON, lambda: read_metrics(run / METRICS_JSON))
        strips = attempt(STRIPS_JSON, lambda: read_strips(run))
    else:
        gallery = attempt(JSON_NAME, lambda: read_gallery(run))
    metrics = attempt("metrics.jsonl", lambda: _read_all_metrics(run))
    config = attempt("config.yaml", lambda: _read_config(run / "config.yaml"))
    text, parsed = config or ("", None)
    return RunFolder(
        name=run.resolve().name,
        config_text=text,
        config=parsed,
        provenance=provenance,
        metrics=metrics or (),
        records=records or (),
        gallery=gallery,
        scene_metrics=scene_metrics,
        strips=strips,
        probes=probes or {},
        problems=tuple(problems),
    )
