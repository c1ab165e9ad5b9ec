"""Models of timm and torchvision, none of them downloaded."""

from urllib.error import URLError

import pytest
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file

from tasks.models.timm import TimmConfig
from tasks.models.torchvision import TorchvisionConfig


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32)


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_convnext"])
def test_small_timm_models_are_built_for_small_images(arch, images):
    assert TimmConfig(arch=arch).build(5, 32)(images).shape == (2, 5)


def test_timm_normalises_as_the_weights_want():
    model = TimmConfig(arch="test_efficientnet").build(2, 32)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    model = TimmConfig(arch="test_efficientnet", mean=(0.1, 0.2, 0.3)).build(2, 32)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_a_stem_stride_of_one_doubles_the_resolution_and_keeps_the_weights():
    torch.manual_seed(0)
    strided = TimmConfig(arch="lcnet_035").build(2, 32)
    torch.manual_seed(0)
    dense = TimmConfig(arch="lcnet_035", stem_stride=1).build(2, 32)
    x = torch.rand(1, 3, 32, 32)
    assert strided.network.conv_stem(x).shape[-1] == 16
    assert dense.network.conv_stem(x).shape[-1] == 32
    assert all(torch.equal(a, b) for a, b in zip(strided.parameters(), dense.parameters(), strict=True))


def test_timm_options_reach_the_network():
    model = TimmConfig(arch="test_vit", drop_rate=0.25, options={"patch_size": 4}).build(2, 32)
    assert model.network.patch_embed.proj.stride == (4, 4)
    assert model.network.head_drop.p == 0.25


def test_timm_weights_pretrained_on_other_classes_get_a_new_last_layer(tmp_path):
    trained = TimmConfig(arch="test_efficientnet").build(1000, 32).network
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "a.safetensors")}}
    model = TimmConfig(arch="test_efficientnet", pretrained=True, options=overlay).build(3, 32)
    assert torch.equal(model.network.conv_stem.weight, trained.conv_stem.weight)
    assert model.network.classifier.weight.shape == (3, trained.num_features)


def test_inception_v3_of_torchvision_returns_logits_in_train_and_eval_mode():
    model = TorchvisionConfig(arch="inception_v3").build(4, 75)
    images = torch.rand(2, 3, 75, 75, requires_grad=True)
    for mode in (True, False):
        logits = model.train(mode)(images)
        assert logits.shape == (2, 4)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images)
        assert gradient.flatten(1).abs().amax(1).min() > 0


def test_weights_from_tensorflow_are_normalised_as_torchvision_does():
    """torchvision takes ImageNet-normalised images there and turns them into [-1, 1] inside."""
    ours = TorchvisionConfig(arch="googlenet").build(3, 32).eval()
    theirs = torchvision.models.googlenet(
        num_classes=3, aux_logits=False, init_weights=False, transform_input=True
    ).eval()
    theirs.load_state_dict(ours.network.state_dict())
    images = torch.rand(2, 3, 32, 32)
    usual = torchvision.models.GoogLeNet_Weights.DEFAULT.transforms()
    with torch.no_grad():
        wanted = theirs(torchvision.transforms.functional.normalize(images, usual.mean, usual.std))
        torch.testing.assert_close(ours(images), wanted, atol=1e-4, rtol=1e-4)


def test_a_model_made_for_larger_images_reads_small_ones_if_they_are_resized(images):
    config = TorchvisionConfig(arch="squeezenet1_1", resize=48)
    assert config.build(3, 32)(images).shape == (2, 3)
    assert config.build(3, 16)(images[..., ::2, ::2]).shape == (2, 3)


def test_torchvision_options_reach_the_network():
    model = TorchvisionConfig(arch="squeezenet1_1", options={"dropout": 0.125}).build(3, 32)
    assert model.network.classifier[0].p == 0.125


@pytest.fixture
def serve(monkeypatch):
    """Makes torchvision's downloads return something, or raise it."""

    def serve(result):
        def download(*args, **kwargs):
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)

    return serve


def test_torchvision_weights_pretrained_on_other_classes_get_a_new_last_layer(serve):
    trained = torchvision.models.shufflenet_v2_x0_5()
    serve(trained.state_dict())
    model = TorchvisionConfig(arch="shufflenet_v2_x0_5", pretrained=True).build(3, 32)
    own = dict(model.network.named_parameters())
    for name, parameter in trained.named_parameters():
        assert name.startswith("fc.") or torch.equal(own[name], parameter)
    assert own["fc.weight"].shape == (3, 1024)


def test_auxiliary_heads_in_weights_are_left_out(serve, tmp_path):
    trained = torchvision.models.googlenet(num_classes=1000, aux_logits=True, init_weights=False)
    serve(trained.state_dict())
    model = TorchvisionConfig(arch="googlenet", pretrained=True).build(2, 32)
    assert torch.equal(model.network.conv1.conv.weight, trained.conv1.conv.weight)
    torch.save({k: v for k, v in trained.state_dict().items() if k != "fc.bias"}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"lacks fc.bias and has nothing more"):
        TorchvisionConfig(arch="googlenet", weights=tmp_path / "a.pt").build(1000, 32)


def test_pretrained_weights_that_cannot_be_had_are_named(serve):
    serve(URLError("no route to host"))
    message = (
        "torchvision shufflenet_v2_x0_5 could not be had from https.*no route to host.*pretrained: false"
    )
    with pytest.raises(ValueError, match=message):
        TorchvisionConfig(arch="shufflenet_v2_x0_5", pretrained=True).build(2, 32)
    with pytest.raises(ValueError, match=r"timm lcnet_035 could not be had \(No pretrained weights"):
        TimmConfig(arch="lcnet_035", pretrained=True).build(2, 32)


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(
        ValidationError, match=r"torchvision has no classifier 'ResNet18'; did you mean resnet18,"
    ):
        TorchvisionConfig(arch="ResNet18")
    with pytest.raises(ValidationError, match=r"no classifier 'qqqqq'; on offer: alexnet, .*wide_resnet50_2"):
        TorchvisionConfig(arch="qqqqq")
    with pytest.raises(ValidationError, match="timm has no model 'test_resnext'; did you mean test_resnet,"):
        TimmConfig(arch="test_resnext")
    with pytest.raises(ValidationError, match="timm has no weights 'zzz' of test_vit; on offer: r160_in1k"):
        TimmConfig(arch="test_vit.zzz")
    with pytest.raises(ValidationError, match="timm has no model 'hf-hub:some/thing'"):
        TimmConfig(arch="hf-hub:some/thing")


@pytest.mark.parametrize("config", [TimmConfig(arch="inception_v3"), TorchvisionConfig(arch="inception_v3")])
def test_inception_v3_says_that_it_needs_larger_images(config):
    with pytest.raises(ValueError, match=r"inception_v3 cannot read images of 32 px .* set resize: 299"):
        config.build(2, 32)


def test_the_smallest_size_that_torchvision_knows_of_is_named():
    with pytest.raises(ValueError, match=r"alexnet cannot read .* it wants at least 63 px"):
        TorchvisionConfig(arch="alexnet").build(2, 32)


def test_options_that_the_constructor_does_not_know_are_named():
    with pytest.raises(ValueError, match=r"timm test_resnet does not take \{'widht': 2\}.*'widht'"):
        TimmConfig(arch="test_resnet", options={"widht": 2}).build(2, 32)
    with pytest.raises(ValueError, match=r"torchvision squeezenet1_1 cannot be built with \{'widht': 2\}"):
        TorchvisionConfig(arch="squeezenet1_1", options={"widht": 2}).build(2, 32)


def test_options_that_contradict_are_refused(tmp_path):
    for config, arch in ((TimmConfig, "test_vit"), (TorchvisionConfig, "resnet18")):
        with pytest.raises(ValidationError, match="set one of them"):
            config(arch=arch, pretrained=True, weights=tmp_path / "a.pt")
    with pytest.raises(ValidationError, match=r"cannot set aux_logits: it is built without auxiliary heads"):
        TorchvisionConfig(arch="inception_v3", options={"aux_logits": True})


def test_a_timm_model_that_returns_a_tuple_is_refused():
    config = TimmConfig(arch="inception_v3", options={"aux_logits": True})
    with pytest.raises(ValueError, match=r"timm inception_v3: .* got tuple of 2; wrap it"):
        config.build(2, 299)


def test_the_stride_of_a_stem_that_is_no_single_convolution_cannot_be_set():
    with pytest.raises(ValueError, match="leave stem_stride out"):
        TimmConfig(arch="crossvit_9_240", stem_stride=1).build(2, 240)
