"""The real command on a tiny network: what it writes, what learns, that it goes on after a kill as if nothing had been, and that it
stops on NaN and refuses what it cannot use."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from gat.training.loop import DivergedError
from generators.stylegan2.checkpoints import read_safetensors
from generators.stylegan2.settings import StyleGAN2SpaceConfig
from tasks.datasets.fashion_mnist import FashionMNISTConfig
from tests.training_states import assert_same_state, killed_while_saving, state_of, tensors

BATCH = 4
SCRIPT = Path(__file__).parents[3] / "scripts" / "train_stylegan2.py"


def words(out: Path, steps: int, **others: object) -> list[str]:
    tiny: dict[str, object] = {
        "out": out, "kimg": steps * BATCH / 1000, "batch-size": BATCH, "dataset-options": "{source: subset}", "z-dim": 4,
        "w-dim": 4, "channel-base": 64, "channel-max": 4, "discriminator-channel-base": 64, "dtype": "fp32",
        "tick-kimg": BATCH / 1000, "snapshot-kimg": BATCH / 1000, "r1-interval": 2,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in (tiny | others).items()]


@pytest.fixture(scope="module")
def finished(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps that nobody disturbed."""
    out = tmp_path_factory.mktemp("finished")
    script.main(words(out, 3))
    return out


def test_a_run_writes_what_it_promises(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"loss_D", "loss_G", "loss_C", "loss_read", "r1", "sign", "p"} <= rows[0].keys()
    assert "r1" not in rows[1] and "r1" in rows[2]  # lazy: every second step
    assert state_of(finished)["step"] == 3
    with Image.open(sorted((finished / "samples").iterdir())[-1]) as grid:
        assert grid.size == (10 * 33 + 1, 10 * 33 + 1)
    assert not list(finished.rglob("*.tmp"))


def test_the_file_is_the_averaged_generator_and_makes_a_space(finished: Path) -> None:
    classes = FashionMNISTConfig(source="subset").build("test").classes
    space = StyleGAN2SpaceConfig(checkpoint=finished / "generator.safetensors").build(classes)
    assert space.classes == classes
    checkpoint = read_safetensors(finished / "generator.safetensors")
    average = state_of(finished)["ema"]
    assert all(torch.equal(value, average[name]) for name, value in checkpoint.generator.items())
    assert checkpoint.metadata["license"] == "Apache-2.0" and checkpoint.metadata["data"] == "fashion_mnist"
    assert json.loads(checkpoint.metadata["recipe"])["channel_max"] == 4


def test_every_network_learns_and_noise_keeps_its_strength(
    finished: Path, script: ModuleType, tmp_path: Path
) -> None:
    script.main(words(tmp_path, 0))
    before, after = state_of(tmp_path), state_of(finished)
    assert before["step"] == 0
    for part in ("G", "D", "ema", "C"):
        changed = [
            not torch.equal(value, after[part][name])
            for name, value in before[part].items()
            if name.endswith("weight")
        ]
        assert len(changed) > 3 and all(changed), part
    strengths = [value for name, value in after["G"].items() if name.endswith("noise_strength")]
    assert strengths and all(float(strength.abs()) >= 0.00999 for strength in strengths)


@pytest.mark.parametrize("moment", [1, 3])
def test_a_killed_run_goes_on_to_the_same_end(
    script: ModuleType, finished: Path, tmp_path: Path, moment: int
) -> None:
    with killed_while_saving(tmp_path, moment):
        script.main(words(tmp_path, 3))
    assert state_of(tmp_path)["step"] == moment - 1
    script.main(words(tmp_path, 3))
    assert_same_state(tmp_path, finished)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_adaptive_augmentation_goes_on_as_if_it_had_never_stopped(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ticks of two steps, a state after each of them: what is measured within a tick is never half saved."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ticks = {"tick-kimg": 2 * BATCH / 1000, "ada-target": 2}  # a target nobody reaches: p must fall, from 0.5
    start = script.AdaptiveProbability
    monkeypatch.setattr(script, "AdaptiveProbability", lambda target: start(target, kimg=0.1, p=0.5))
    script.main(words(whole, 5, **ticks))
    with monkeypatch.context() as patch:
        patch.setattr(
            script, "hold_noise_up", fail_at(script.hold_noise_up, 5)
        )  # the first call is before step 1
        with pytest.raises(KeyboardInterrupt):
            script.main(words(parts, 5, **ticks))
    assert state_of(parts)["step"] == 2 and state_of(parts)["p"] == pytest.approx(0.5 - 2 * BATCH / 100)
    script.main(words(parts, 5, **ticks))
    assert_same_state(parts, whole)
    assert state_of(whole)["p"] == pytest.approx(0.5 - 5 * BATCH / 100)


def fail_at(function: Any, call: int) -> Any:
    """`function`, which at that call is Ctrl-C."""
    calls = 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return function(*arguments)

    return counted


def test_a_loss_that_is_not_a_number_stops_the_run_and_leaves_the_last_good_state(
    script: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=r"state\.pt"):
        script.main(words(tmp_path, 3, **{"lr-generator": "inf"}))
    assert state_of(tmp_path)["step"] == 0
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(state_of(tmp_path)))


def test_the_other_loss_without_a_classifier(script: ModuleType, tmp_path: Path) -> None:
    script.main(words(tmp_path, 1, loss="relativistic", **{"classifier-weight": 0}))
    assert json.loads((tmp_path / "log.jsonl").read_text()).keys().isdisjoint({"loss_C", "loss_read"})


def test_a_state_of_another_run_is_refused(script: ModuleType, finished: Path) -> None:
    with pytest.raises(ValueError, match="another run"):
        script.main(words(finished, 3, **{"channel-max": 8}))


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"dataset": "fashion_mnst"}, "fashion_mnist"),
        ({"dataset": "fashion_scenes"}, "fashion_scenes is for segmentation"),
        ({"dataset-options": "{sauce: subset}"}, "did you mean 'source'?"),
        ({"dataset-options": "{source:"}, "not a YAML value"),
        ({"loss": "hinge"}, "non_saturating"),
        ({"flip": "perhaps"}, "wanted true or false"),
    ],
)
def test_what_it_cannot_use_is_refused_by_name(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], others: dict[str, str], says: str
) -> None:
    with pytest.raises((ValueError, SystemExit)) as caught:
        script.main(words(tmp_path, 1, **others))
    assert says in f"{caught.value} {capsys.readouterr().err}"
    assert not list(tmp_path.rglob("*.pt"))


def test_on_the_command_line_a_mistake_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *words(tmp_path, 1, dataset="lsun")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("train_stylegan2.py: ")
    assert "Traceback" not in result.stderr
