"""A trade-off's row is what one attack makes of one model, and what the oracle makes of the pictures."""

import json
import shutil

import pytest
import torch

from gat.attacks import LatentAttack
from gat.cli.compose import RunConfig, open_run
from gat.config import load
from tasks.detection import average_precision
from tests.toys import SCENES_ORACLE

CONFIG = f"""
data: {{name: fashion_scenes, labels: masks, num_train: 4, num_test: 6}}
model: {SCENES_ORACLE}
generator: {{name: spade}}
oracle: {SCENES_ORACLE}
evaluation: {{width: 4}}
"""
STEPS = {"gamma/*": 0.1, "beta/*": 0.1}


def test_of_the_oracle_itself_both_columns_are_one_and_the_attack_lowers_them(script, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    run = open_run(load(RunConfig, [tmp_path / "config.yaml"], [f"out={tmp_path}"]))
    oracle = run.tools.oracle
    attacks = [LatentAttack(step_size=STEPS, max_steps=n, stop_when_fooled=False) for n in (0, 2)]
    still, moved = script.scenes(run, oracle, attacks, n=5, seed=1)
    assert still["n"] == moved["n"] == 5
    for row in (still, moved):
        assert row["oracle_before"] == row["pixel_accuracy_before"] == still["pixel_accuracy_before"]
        assert row["oracle_after"] == pytest.approx(row["pixel_accuracy_after"], abs=1e-4)
    assert still["oracle_after"] == still["oracle_before"] > 0.7
    assert still["mean_change_of_pixels"] == 0 < moved["mean_change_of_pixels"]
    assert moved["oracle_after"] < 0.7 * still["oracle_after"]
    assert torch.is_grad_enabled()


def test_of_several_runs_every_setting_has_a_row_each(script, tmp_path, monkeypatch):
    """The cosine's weights are about pixels that are still right, so one small step leaves fewer of them."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"name: {name}\n{CONFIG}")
        shutil.copy(
            "tasks/models/shipped/fashion_scenes_oracle.safetensors", tmp_path / name / "original.safetensors"
        )
    out = tmp_path / "rows.json"
    words = f"{tmp_path}/a {tmp_path}/b --group fine --pixels alike cospgd --step 0.05 --budget 0.05 --n 4 --out {out}"
    monkeypatch.setattr("sys.argv", ["tradeoff.py", *words.split()])
    script.main()
    rows = json.loads(out.read_text())["rows"]
    assert [(row["run"], row["pixels"]) for row in rows] == [
        (run, pixels) for run in "ab" for pixels in ("alike", "cospgd")
    ]
    assert (
        rows[1]["pixel_accuracy_after"] < rows[0]["pixel_accuracy_after"] < rows[0]["pixel_accuracy_before"]
    )
    assert [row | {"run": "b"} for row in rows[:2]] == rows[2:]


def test_boxes_alone_are_judged_without_their_classes(script):
    boxes = [[0.0, 0, 10, 10, 2, 0], [20.0, 20, 40, 30, 1, 0]]
    found = [[0.0, 0, 10, 10, 0.9, 1], [20.0, 20, 40, 30, 0.8, 0]]  # each in its place, of another class
    evidence = [{"boxes": boxes, "detections": found}]
    assert average_precision(evidence, 3)["ap"] == 0
    assert average_precision(script.boxes_alone(evidence), 1)["ap"] == pytest.approx(1)


def test_of_a_detector_the_boxes_are_judged_too(script, tmp_path):
    model = "model: {name: small_fcos, widths: [8, 8, 8], blocks: [0, 1, 1], levels: 1, norm: group}"
    text = CONFIG.replace("labels: masks", "labels: boxes").replace(f"model: {SCENES_ORACLE}", model)
    (tmp_path / "config.yaml").write_text(text)
    run = open_run(load(RunConfig, [tmp_path / "config.yaml"], [f"out={tmp_path}"]))
    setting = {"group": "fine", "goal": "least_likely", "contrast": True, "step": 0.05, "budget": 0.05}
    attack = script.attack_of(setting, True)
    assert attack.contrast and attack.eps == {"gamma/*": 0.05, "beta/*": 0.05}
    row = next(script.scenes(run, run.new_model(), [attack], n=3, seed=1))
    assert {"ap_before", "ap_of_boxes_before", "ap_after", "ap_of_boxes_after"} <= row.keys()
    assert all(0 <= row[name] <= 1 for name in row if name.startswith("ap_"))


def test_pictures_and_scenes_are_not_compared(script, tmp_path, monkeypatch):
    pictures = "data: {name: fashion_mnist}\ngenerator: {name: stylegan2}\n"
    for name, text in (("a", CONFIG), ("b", pictures)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    monkeypatch.setattr("sys.argv", ["tradeoff.py", str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(ValueError, match="all of pictures or all of scenes"):
        script.main()
