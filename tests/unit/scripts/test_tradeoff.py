"""A trade-off's row is what one attack makes of one model, and what the oracle makes of the pictures."""

import pytest
import torch

from gat.attacks import LatentAttack
from gat.cli.compose import RunConfig, open_run
from gat.config import load
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
