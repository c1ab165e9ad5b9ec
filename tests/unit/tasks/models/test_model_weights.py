"""Starting from a file."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from tasks.models.small_resnet import SmallResNetConfig
from tasks.models.weights import read_weights

SMALL = {"widths": (8, 16), "blocks": (1, 1)}


@pytest.fixture
def model():
    """A model whose batch statistics are not those of a new one."""
    model = SmallResNetConfig(**SMALL).build(3, 16)
    model(torch.rand(4, 3, 16, 16))
    return model.eval()


def loaded(path, num_classes=3, **settings):
    return SmallResNetConfig(weights=path, **SMALL, **settings).build(num_classes, 16).eval()


def assert_same(model, other):
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(images), other(images))


def test_a_model_comes_back_bit_equal_from_safetensors(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    assert_same(loaded(tmp_path / "a.safetensors"), model)


@pytest.mark.parametrize(
    "pack",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": {f"module._orig_mod.{name}": w for name, w in weights.items()}},
        lambda weights: {f"_orig_mod.module.{name}": w for name, w in weights.items()},
    ],
)
def test_a_model_comes_back_from_the_usual_torch_checkpoints(model, tmp_path, pack):
    torch.save(pack(model.state_dict()), tmp_path / "a.pt")
    assert_same(loaded(tmp_path / "a.pt"), model)


def test_weights_of_the_bare_network_are_accepted(model, tmp_path):
    save_file(model.network.state_dict(), tmp_path / "a.safetensors")
    assert_same(loaded(tmp_path / "a.safetensors"), model)


def test_half_precision_weights_are_read_into_a_float32_model(model, tmp_path):
    half = {name: w.half() if w.is_floating_point() else w for name, w in model.network.state_dict().items()}
    save_file(half, tmp_path / "a.safetensors")
    other = loaded(tmp_path / "a.safetensors")
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    assert torch.equal(other.network.head.weight, model.network.head.weight.half().float())


def test_another_number_of_classes_is_named(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="tells 3 classes apart, this task has 7"):
        loaded(tmp_path / "a.safetensors", num_classes=7)


def test_another_normalisation_is_named(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"trained with std \[0.5, 0.5, 0.5\].*built with \[0.5, 0.5, 0.2\]"):
        loaded(tmp_path / "a.safetensors", std=(0.5, 0.5, 0.2))


def test_missing_and_unknown_names_are_listed(model, tmp_path):
    weights = model.state_dict()
    weights["network.tail"] = weights.pop("network.head.bias")
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"lacks network.head.bias and has network.tail more"):
        loaded(tmp_path / "a.safetensors")


def test_a_model_of_another_size_is_named(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"another size: network.stem.weight is \[8, 3, 4, 4\], wanted \[16"):
        SmallResNetConfig(weights=tmp_path / "a.safetensors", widths=(16, 32), blocks=(1, 1)).build(3, 16)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", ["zip", "bare"])
def test_a_hostile_torch_file_is_refused_and_not_executed(tmp_path, protocol):
    path, mark = tmp_path / "a.pt", tmp_path / "executed"
    if protocol == "zip":
        torch.save({"state_dict": Payload(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(mark), protocol=2))
    with pytest.raises(ValueError, match="cannot be read without executing what is in it"):
        read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_truncated_file_is_refused(model, tmp_path, name):
    path = tmp_path / name
    (save_file if name.endswith("s") else torch.save)(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"not a complete safetensors|damaged"):
        read_weights(path)


def test_a_file_without_weights_is_refused_with_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"no state dict: .* got keys \['epoch', 'optimizer'\]"):
        read_weights(tmp_path / "a.pt")
    torch.save(torch.zeros(2), tmp_path / "b.pt")
    with pytest.raises(ValueError, match="got Tensor"):
        read_weights(tmp_path / "b.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.pt does not exist"):
        loaded(tmp_path / "nowhere.pt")
