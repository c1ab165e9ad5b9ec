"""A small run folder with everything in it, drawn from a seed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gat.evaluation.records import Record, write_records
from gat.report import write_report
from gat.report.gallery import GalleryItem, Panel, write_gallery

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
