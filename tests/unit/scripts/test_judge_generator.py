"""Distances between Gaussians that are known, and the real command on the generators that ship."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

WEIGHTS = Path(__file__).parents[3] / "generators" / "weights"


def test_frechet_distance_between_gaussians_that_are_known(script: ModuleType) -> None:
    x = torch.randn(500, 3, dtype=torch.float64)
    offset = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    spread = float((x - x.mean(0)).square().sum() / (len(x) - 1))
    assert script.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert script.frechet_distance(x, x + offset) == pytest.approx(25)
    centred = x - x.mean(0)
    assert script.frechet_distance(centred, 3 * centred) == pytest.approx((3 - 1) ** 2 * spread)


def test_features_are_what_goes_into_the_layers_averaged_over_places(script: ModuleType) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten(), torch.nn.Linear(2 * 16, 5))
    images = torch.rand(script.CHUNK + 3, 3, 4, 4)
    features, answers = script.read(model, [model[0], model[2]], images)
    flat = model[0](images).flatten(1)
    assert torch.allclose(features, torch.cat([images.mean((2, 3)), flat], dim=1))
    assert torch.equal(answers, model(images).argmax(1))


@pytest.mark.parametrize(
    ("weights", "fields"),
    [
        (
            "fashion_mnist_32.safetensors",
            {"label_agreement", "classifier_accuracy_on_real_test_images", "label_agreement_per_class"},
        ),
        ("fashion_scenes_64.safetensors", {"real_test_scenes", "renderings_of_their_layouts"}),
    ],
)
def test_the_command_judges_both_kinds_of_generator(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    weights: str,
    fields: set[str],
) -> None:
    words = [WEIGHTS / weights, "--n", 40, "--steps", 2, "--source", "subset", "--work", tmp_path]
    monkeypatch.setattr("sys.argv", ["judge_generator.py", *map(str, words)])
    script.main()
    report = json.loads(capsys.readouterr().out)
    assert report.keys() == fields | {"n", "frechet_distance", "frechet_floor_train_vs_test"}
    assert report["n"] == 40 and report["frechet_distance"] > 0
