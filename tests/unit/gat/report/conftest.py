"""A small run folder with everything in it, drawn from a seed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gat.evaluation.records import Record, write_records
from gat.report import write_report
from gat.report.gallery import GalleryItem, Panel, write_gallery
from gat.report.strips import Frame, Strip, write_strips

CLASSES = ("hat", "left & right <boot>", "glove")


def _draw_records(
    model: str, attack: str, protocol: str, source: str, fooled: float, n: int = 60
) -> list[Record]:
    """The same examples for every model; the share `fooled` of those that were right falls."""
    rng = np.random.default_rng(5)
    records = []
    for example in range(n):
        label, right, falls = example % 3, rng.random() < 0.9, rng.random() < fooled
        step = int(rng.integers(1, 10))
        before = label if right else (label + 1) % 3
        success = bool(right and falls)
        records.append(
            Record(
                model=model,
                attack=attack,
                protocol=protocol,
                source=source,
                id=example,
                label=label,
                clean_prediction=before,
                prediction=(label + 2) % 3 if success else before,
                success=success,
                iterations=step if success else 10 if right and attack != "none" else 0,
                distances={"linf_pixels": 0.03} if attack.startswith("pgd") else {},
                oracle_clean=label,
                oracle=label if example % 20 else (label + 1) % 3,
            )
        )
    return records


def _draw_items(seed: int = 0) -> list[GalleryItem]:
    rng = np.random.default_rng(seed)
    items = []
    for group, examples in (("fine", 7), ("coarse", 2)):
        for model in ("original", "gat"):
            for example in range(examples):
                image = rng.random((3, 8, 8), dtype=np.float32)
                panels = tuple(
                    Panel(
                        kind,
                        np.clip(image + 0.05, 0, 1),
                        (example + 1) % 3 if fooled else example % 3,
                        fooled,
                        3,
                        example % 3,
                    )
                    for kind, fooled in (("noise", example % 2 == 0), ("style", True))
                )
                items.append(
                    GalleryItem(model, group, example, example % 3, image, example % 3, panels, example % 3)
                )
    return items


@pytest.fixture(scope="session")
def draw_records() -> Callable[..., list[Record]]:
    return _draw_records


@pytest.fixture(scope="session")
def draw_items() -> Callable[..., list[GalleryItem]]:
    return _draw_items


@pytest.fixture(scope="session")
def classes() -> tuple[str, ...]:
    return CLASSES


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A complete, healthy, small run folder."""
    return _build(tmp_path / "run-7")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger one with its report; only to be read."""
    folder = _build(tmp_path_factory.mktemp("finished") / "run-7", small=False)
    write_report(folder)
    return folder


def _build(folder: Path, small: bool = True) -> Path:
    folder.mkdir()
    records = []
    for model, gat, pgd in (("original", 1.0, 1.0), ("gat", 0.2, 0.4)):
        records += _draw_records(model, "none", "test-split", "real", 0.0)
        records += _draw_records(model, "gat", "paper-10", "generated", gat)
        if not small:
            records += _draw_records(model, "gat-noise", "paper-10", "generated", gat * 0.8)
        records += _draw_records(model, "pgd-linf-8/255", "strict-20", "real", pgd)
    write_records(folder / "records.jsonl", records)
    write_gallery(folder, _draw_items(), CLASSES, seed=11)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(20):
            row = {
                "step": step,
                "loss": {"clean": 1 / (step + 1), "adversarial": 2.0},
                "fooled": 0.5,
            }
            file.write(json.dumps(row) + "\n")
    (folder / "config.yaml").write_text("task:\n  name: hats\nseed: 3\n")
    (folder / "provenance.json").write_text(
        json.dumps(
            {
                "command": ["gat", "train", "--config", "configs/a b.yaml"],
                "seeds": [3],
                "versions": {"torch": "2.9"},
                "protocols": {"paper-10": {"max_steps": 10}},
            }
        )
    )
    return folder


SCENE_CLASSES = ("sky", "left & right <boot>", "floor")
SCENE_HEADLINES = {"segmentation": ("pixel_accuracy", "miou"), "detection": ("ap", "ap50")}


def _draw_metrics(task: str, values: dict[tuple[str, str], float], n: int = 40, half: float = 0.02) -> dict:
    """What an evaluation of scenes leaves in metrics.json.

    Args:
        values: (model, attack) -> headline metric; the second metric is half of it.
        half: of the width of the intervals.
    """
    headline, second = SCENE_HEADLINES[task]
    rows = []
    for (model, attack), value in values.items():
        rows.append(
            {
                "model": model,
                "attack": attack,
                "protocol": "" if attack == "none" else f"strict-{attack}",
                "source": "generated" if attack == "gat" else "real",
                "n": n,
                "metrics": {
                    name: {"value": v, "low": max(0, v - half), "high": min(1, v + half)}
                    for name, v in ((headline, value), (second, value / 2))
                },
                "score": {"before": value if attack == "none" else 0.93, "after": value},
                "oracle": {"before": 0.88, "after": 0.88 if attack == "none" else 0.84},
            }
        )
    return {"task": task, "headline": headline, "rows": rows}


def _draw_scene_records(values: dict[tuple[str, str], float], n: int = 40) -> list[Record]:
    """So many images as the metric says are not fooled; confusions of three classes."""
    records = []
    for (model, attack), value in values.items():
        for example in range(n):
            success = attack != "none" and example >= value * n
            records.append(
                Record(
                    model=model,
                    attack=attack,
                    protocol="" if attack == "none" else f"strict-{attack}",
                    source="generated" if attack == "gat" else "real",
                    id=example,
                    label=1,
                    clean_prediction=1,
                    prediction=0 if success else 1,
                    success=success,
                    iterations=1 + example % 5 if success else 0 if attack == "none" else 10,
                    backwards=0 if attack == "none" else 10,
                    clean_score=0.93,
                    score=value,
                    evidence=[[0, 0, 30], [1, 1, 10], [1, 2, 10], [2, 2, 14]],
                )
            )
    return records


def _draw_strips(task: str, scenes: int = 5, side: int = 16) -> list[Strip]:
    """The undefended model falls apart step by step, the trained one does not."""
    rng = np.random.default_rng(4)
    strips = []
    for scene in range(scenes):
        start = rng.random((3, side, side), dtype=np.float32)
        truth_map = np.kron(rng.integers(0, 3, (4, 4)), np.ones((side // 4, side // 4))).astype(np.uint8)
        truth_map[0, 0] = 255
        objects = np.array([[1, 1, 8, 8, 1, 0], [6, 4, 15, 15, 2, 0]], np.float32)
        for model, lost in (("original", 1.0), ("gat", 0.0)):
            frames = []
            for i, t in enumerate((0, 1, 10)):
                image = np.clip(start + 0.02 * i, 0, 1)
                if task == "segmentation":
                    answer = truth_map % 3
                    if lost:
                        answer[: 8 * i] = 0
                    score = float((answer == truth_map)[truth_map != 255].mean())
                else:
                    answer = np.array([[1, 1, 8, 8, 0.9, 1], [6, 4, 15, 15, 0.6, 2]], np.float32)
                    if lost and i:
                        answer[:i, 5] = 0
                    score = 1 - i / 2 if lost else 1.0
                frames.append(Frame(t, image, answer, score))
            strips.append(
                Strip(
                    model=model,
                    attack="gat",
                    settings="both all; loss; 10 steps",
                    id=scene,
                    truth=truth_map if task == "segmentation" else objects,
                    frames=tuple(frames),
                    state="fooled" if lost else "held",
                    iterations=7 if lost else 10,
                    threshold=0.3 if task == "detection" else None,
                    overlap=0.5 if task == "detection" else None,
                )
            )
    return strips


SCENE_VALUES = {
    ("original", "none"): 0.91,
    ("original", "gat"): 0.04,
    ("original", "pgd-linf"): 0.21,
    ("gat", "none"): 0.92,
    ("gat", "gat"): 0.83,
    ("gat", "pgd-linf"): 0.55,
}


def _build_scenes(folder: Path, task: str, seed: int = 3, shift: float = 0.0) -> Path:
    folder.mkdir(parents=True)
    values = {cell: value + shift for cell, value in SCENE_VALUES.items()}
    write_records(folder / "records.jsonl", _draw_scene_records(values))
    (folder / "metrics.json").write_text(json.dumps(_draw_metrics(task, values)))
    write_strips(folder, _draw_strips(task), task, SCENE_CLASSES, seed=11)  # type: ignore[arg-type]
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(20):
            file.write(json.dumps({"step": step, "loss": {"clean": 1 / (step + 1)}, "fooled": 0.5}) + "\n")
    (folder / "config.yaml").write_text(f"seed: {seed}\n")
    told = {
        "task": task,
        "classes": list(SCENE_CLASSES),
        "data": {"name": "fashion_scenes"},
        "seeds": [seed],
        "trained_on": {"original": [], "gat": ["latent"]},
        "protocols": {"strict-gat": {"name": "latent"}, "strict-pgd-linf": {"name": "pgd"}},
    }
    (folder / "provenance.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="session")
def draw_metrics() -> Callable[..., dict]:
    return _draw_metrics


@pytest.fixture(scope="session")
def draw_strips() -> Callable[..., list[Strip]]:
    return _draw_strips


@pytest.fixture(scope="session")
def scene_values() -> dict[tuple[str, str], float]:
    return dict(SCENE_VALUES)


@pytest.fixture(scope="session")
def build_scenes() -> Callable[..., Path]:
    """Writes a complete run on scenes."""
    return _build_scenes
