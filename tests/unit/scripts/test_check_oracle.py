"""Sheets of pictures whose answers are known: the model that is fooled is the oracle itself, so it misreads every attacked picture and
none of the controls."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from tests.toys import SCENES_ORACLE

ORACLE = Path(__file__).parents[3] / "tasks/models/shipped/fashion_mnist_oracle.safetensors"
CONFIG = f"""
data: {{name: fashion_mnist, source: subset}}
model: {{name: small_convnet, width: 24}}
generator: {{name: stylegan2}}
oracle: {{name: small_convnet, width: 24, weights: {ORACLE}}}
evaluation: {{attacks: {{gat: {{name: latent, group: fine}}}}}}
"""
SCENES_CONFIG = f"""
data: {{name: fashion_scenes, source: subset, num_train: 60}}
model: {SCENES_ORACLE}
generator: {{name: spade}}
oracle: {SCENES_ORACLE}
evaluation: {{attacks: {{gat: {{name: latent, group: fine, stop_when_fooled: false, step_size: {{gamma/*: 0.07, beta/*: 0.07}}}}}}}}
"""


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["check_oracle.py", *map(str, words)])
    script.main()


@pytest.fixture
def sheets(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder, out = tmp_path / "run", tmp_path / "sheets"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    shutil.copy(ORACLE, folder / "original.safetensors")
    run(script, monkeypatch, "draw", folder, "--n", 8, "--starts", 40, "--out", out)
    return out


def key_of(sheets: Path) -> list[dict[str, Any]]:
    return json.loads((sheets / "key.json").read_text())["images"]


def test_a_sheet_has_attacked_pictures_and_controls_and_does_not_say_which(sheets: Path) -> None:
    images = key_of(sheets)
    assert sorted(image["attacked"] for image in images) == [False] * 2 + [True] * 8
    assert all((image["oracle"] != image["label"]) == image["attacked"] for image in images)
    with Image.open(sheets / "sheet_0.png") as sheet:
        assert sheet.size == (10 * 100, 10 * 112) and len(sheet.getcolors(1 << 24) or []) > 50


def test_the_score_is_what_was_seen(
    sheets: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Seen: every label of attacked pictures but one, which is unclear, and no label of a control, but the next; for one of the two
    that one is alike."""
    images, words, unclear = key_of(sheets), [], True
    for image in images:
        words.append(
            "?" if image["attacked"] and unclear else str((image["label"] + (not image["attacked"])) % 10)
        )
        unclear = unclear and not image["attacked"]
    labels, out = tmp_path / "labels.txt", tmp_path / "check.json"
    labels.write_text(" ".join(words))
    first, other = (image["label"] for image in images if not image["attacked"])
    assert other not in (first, (first + 1) % 10)
    run(script, monkeypatch, "score", sheets, labels, "--alike", first, (first + 1) % 10, "--out", out)
    result = json.loads(out.read_text())
    found = {name: row["value"] for name, row in result.items() if isinstance(row, dict)}
    assert found == {
        "adversarial/eye_reads_label": 0.875,
        "adversarial/eye_reads_label_or_alike": 0.875,
        "adversarial/oracle_reads_label": 0,
        "adversarial/oracle_agrees_with_eye": 0,
        "adversarial/eye_unclear": 0.125,
        "starting/eye_reads_label": 0,
        "starting/eye_reads_label_or_alike": 0.5,
        "starting/oracle_reads_label": 1,
        "starting/oracle_agrees_with_eye": 0,
        "starting/eye_unclear": 0,
    }
    assert result["labels_seen"].split() == words


def test_without_fooled_pictures_there_is_nothing_to_draw(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.replace("group: fine", "group: fine, max_steps: 0"))
    shutil.copy(ORACLE, tmp_path / "original.safetensors")
    with pytest.raises(ValueError, match="fools original nowhere"):
        run(script, monkeypatch, "draw", tmp_path, "--n", 4, "--out", tmp_path / "sheets")


def test_a_label_too_few_is_refused(
    sheets: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match="has 3 labels, the sheets have 10 images"):
        run(script, monkeypatch, "score", sheets, tmp_path / "labels.txt")


def test_of_scenes_a_spot_is_asked_about(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The oracle is fooled at every spot of an attacked scene and right at every spot of a control, and spots lie within one thing."""
    out = tmp_path / "sheets"
    (tmp_path / "config.yaml").write_text(SCENES_CONFIG)
    shutil.copy(ORACLE.with_name("fashion_scenes_oracle.safetensors"), tmp_path / "original.safetensors")
    asked: list[Any] = []
    fooled_spots = script.fooled_spots
    monkeypatch.setattr(script, "fooled_spots", lambda *given: asked.append(fooled_spots(*given)) or asked[0])
    run(script, monkeypatch, "draw", tmp_path, "--n", 8, "--starts", 16, "--out", out)
    images = key_of(out)
    assert sorted(image["attacked"] for image in images) == [False] * 2 + [True] * 8
    assert all((image["oracle"] != image["label"]) == image["attacked"] for image in images)
    data = script.load(script.RunConfig, [tmp_path / "config.yaml"], []).data.build("val")
    scenes = [data[i]["layouts"] for i in range(16)]
    for (y, x), label in zip(asked[0].spots.tolist(), asked[0].labels.tolist(), strict=True):
        y_near, x_near = slice(max(y - 2, 0), y + 3), slice(max(x - 2, 0), x + 3)
        assert any((scene[0, y_near, x_near] == label).all() for scene in scenes)
    assert any(label < 10 for label in asked[0].labels) and any(label >= 10 for label in asked[0].labels)
    for name in ("sheet_0.png", "legend.png"):
        with Image.open(out / name) as sheet:
            assert sheet.size == (6 * 260, 6 * 272)


def test_a_pixel_near_another_value_is_near_an_edge(script: ModuleType) -> None:
    maps = torch.zeros(1, 8, 8, dtype=torch.long)
    maps[0, :, 5:] = 3
    assert script.near_an_edge(maps)[0, 0].tolist() == [False, False, False, True, True, True, True, False]


def test_a_detectors_run_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(
        SCENES_CONFIG.replace("source:", "labels: boxes, source:").replace(
            SCENES_ORACLE, "{name: small_fcos}", 1
        )
    )
    with pytest.raises(ValueError, match="wanted a classifier's run or a segmenter's"):
        run(script, monkeypatch, "draw", tmp_path, "--out", tmp_path / "sheets")
