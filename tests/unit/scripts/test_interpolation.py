"""The curve between a run's start and its end goes through the run itself."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gat.cli.compose import RunConfig, open_run
from gat.cli.train import train_models
from gat.config import load
from gat.training.loop import interpolate
from tests.toys import tiny_garments

CONFIG = """
name: tiny
data: {name: fashion_mnist, limit: 6, pad: 32}
model: {name: small_resnet, widths: [8], blocks: [1]}
generator: {name: stylegan2, checkpoint: GENERATOR}
oracle: {name: small_convnet, width: 24, weights: tasks/models/shipped/fashion_mnist_oracle.safetensors}
base: {steps: 1, batch_size: 8}
method: {name: gat, only_fooling: false, attack: {max_steps: 1, stop_when_fooled: false}}
train: {steps: 2, batch_size: 8, interpolate: 0.75}
evaluation:
  num_clean: 10
  num_real: 4
  num_generated: 4
  width: 30
  attacks: {gat: {name: latent, max_steps: 1}, pgd: {name: pgd, steps: 1}}
gallery: {num_examples: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    place = tmp_path_factory.mktemp("interpolation")
    (place / "config.yaml").write_text(CONFIG.replace("GENERATOR", str(tiny_garments(place))))
    run = open_run(load(RunConfig, [place / "config.yaml"], [f"out={place}"]))
    train_models(run)
    return place


def measured(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> list[dict]:
    words = ["interpolation.py", str(folder), "--n", "4", "--out", str(folder / "curve.json"), *more]
    monkeypatch.setattr("sys.argv", words)
    script.main()
    content = json.loads((folder / "curve.json").read_text())
    assert content["command"].startswith("python interpolation.py")
    return content["rows"]


def test_the_runs_own_share_has_the_runs_own_numbers(script, monkeypatch, folder):
    run = open_run(load(RunConfig, [folder / "config.yaml"], [f"out={folder}"]))
    plot = folder / "curve.png"
    rows = measured(script, monkeypatch, folder, "--share", "0", "0.75", "1", "--plot", str(plot))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [(row["model"], row["share"]) for row in rows] == [
        (model, share) for model in ("original", "gat") for share in (0, 0.75, 1)
    ]
    for row in rows:
        name = {0: "base", 0.75: row["model"]}.get(row["share"])
        if name:
            expected = script.clean(run, run.finished_model(name))
            assert row["clean_accuracy"] == expected["clean_accuracy"]


def test_the_ends_are_the_start_and_what_training_led_to(script, folder):
    run = open_run(load(RunConfig, [folder / "config.yaml"], [f"out={folder}"]))
    start, trained = script.both_ends(run, "gat")
    base, returned = run.finished_model("base").state_dict(), run.finished_model("gat").state_dict()
    for name, value in start.state_dict().items():
        torch.testing.assert_close(value, base[name], rtol=0, atol=0)
    assert any(not torch.equal(value, base[name]) for name, value in trained.state_dict().items())
    interpolate(trained, start, 0.75)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, returned[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        ({"train": {"interpolate": 1.0}}, (), "below 1"),
        ({"train": {"steps": 3}}, (), "step 2 of 3"),
        ({}, ("--attack", "pgd"), "on offer: gat"),
        ({}, ("--seed", "1"), "judged on these latents"),
    ],
)
def test_what_has_no_curve_is_refused(script, monkeypatch, folder, tmp_path, change, words, says):
    config = load(RunConfig, [folder / "config.yaml"], [f"out={tmp_path}"])
    values = config.model_dump(mode="json")
    for part, settings in change.items():
        values[part] |= settings
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    (tmp_path / "training").symlink_to(folder / "training")
    if change.get("train", {}).get("interpolate"):
        state = torch.load(folder / "training" / "original" / "state.pt", weights_only=True)
        del state["start"]
        (tmp_path / "training").unlink()
        (tmp_path / "training" / "original").mkdir(parents=True)
        torch.save(state, tmp_path / "training" / "original" / "state.pt")
    with pytest.raises(ValueError, match=says):
        measured(script, monkeypatch, tmp_path, *words)


def test_a_run_that_was_not_trained_here_is_named(script, monkeypatch, folder, tmp_path):
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(ValueError, match=r"state\.pt is missing"):
        measured(script, monkeypatch, tmp_path)
