"""Segmenters: what is particular to each family. What all share is in test_small_networks.py."""

import sys
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torchvision.models import segmentation

from tasks.models.deeplab_v2 import CAFFE_MEAN, CAFFE_STD, DeepLabV2, DeepLabV2Config
from tasks.models.normalized import Segmenter
from tasks.models.small_segnet import SmallSegNetConfig
from tasks.models.smp import SMPConfig
from tasks.models.torchvision_segmentation import TorchvisionSegmentationConfig


def test_a_segmenter_returns_the_main_logits_at_the_size_of_the_images():
    class Two(nn.Module):
        def forward(self, x):
            return {"out": F.avg_pool2d(x, 2), "aux": -x}

    images = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
    found = Segmenter(Two(), [0.0], [1.0])(images)
    wanted = F.interpolate(F.avg_pool2d(images, 2), (4, 4), mode="bilinear", align_corners=False)
    assert torch.equal(found, wanted)


def test_a_segmenter_that_sees_resized_images_answers_for_the_whole_ones():
    class Half(nn.Module):
        def forward(self, x):
            assert x.shape[2:] == (8, 8)
            return x

    images = torch.rand(2, 3, 16, 16)
    found = Segmenter(Half(), [0.0] * 3, [1.0] * 3, resize=8)(images)
    assert found.shape == images.shape


@pytest.mark.parametrize("patch_px", [1, 2, 4])
def test_every_pixel_gets_the_logits_of_its_own_place(patch_px):
    """With an identity for a network, patches that go in come out where they were."""
    network = SmallSegNetConfig(widths=(8,), blocks=(1,), patch_px=patch_px).build(3, 8).network
    network.stem = nn.Identity()
    network.down, network.up = nn.ModuleList([nn.Identity()]), nn.ModuleList()
    network.norm = network.activation = network.head = nn.Identity()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(network(images), images)


def test_small_segnet_sees_far_and_near_and_is_as_large_as_documented():
    model = SmallSegNetConfig().build(16, 64).eval()
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images)[0, 3, 32, 32], images)
    reach = gradient[0].abs().sum(0).nonzero()
    assert reach.amin(0).max() <= 8
    assert reach.amax(0).min() >= 56
    strongest = gradient[0].abs().sum(0).flatten().argmax()
    assert abs(int(strongest) // 64 - 32) <= 8
    assert abs(int(strongest) % 64 - 32) <= 8


def test_small_segnet_refuses_sides_that_cannot_be_halved_and_stages_that_disagree():
    with pytest.raises(ValueError, match="multiple of 4 px, got 30"):
        SmallSegNetConfig(widths=(8, 8), blocks=(1, 1), patch_px=2).build(3, 30)
    with pytest.raises(ValidationError, match="one number per stage"):
        SmallSegNetConfig(widths=(8, 16), blocks=(1,))


def test_small_segnet_learns_where_a_bright_square_is():
    torch.manual_seed(0)
    model = SmallSegNetConfig(widths=(8, 16), blocks=(1, 1)).build(2, 16)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)

    def scenes(n):
        labels = torch.zeros(n, 16, 16, dtype=torch.long)
        for label, (y, x) in zip(
            labels, torch.randint(0, 9, (n, 2), generator=generator).tolist(), strict=True
        ):
            label[y : y + 7, x : x + 7] = 1
        noise = torch.rand(n, 3, 16, 16, generator=generator)
        return 0.6 * noise + 0.4 * labels[:, None], labels

    for _ in range(40):
        images, labels = scenes(16)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = scenes(32)
    assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.95


def test_deeplab_v2_reads_bgr_bytes_without_their_mean():
    model = DeepLabV2Config(blocks=(1, 1, 1, 1), width=4).build(3, 32)
    seen = []
    model.network.base.layer1.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 32, 32)
    model.eval()(images)
    wanted = images.flip(1) * 255 - torch.tensor([104.008, 116.669, 122.675]).reshape(3, 1, 1)
    torch.testing.assert_close(seen[0], wanted, atol=1e-3, rtol=0)
    assert max(CAFFE_MEAN) < 1
    assert CAFFE_STD[0] == 1 / 255


def test_deeplab_v2_answers_at_an_eighth_of_the_resolution_and_takes_the_largest_of_all_scales():
    torch.manual_seed(0)
    network = DeepLabV2(3, (1, 1, 1, 1), (2, 4), (0.5,), width=4).eval()
    images = torch.randn(1, 3, 65, 48) * 50
    with torch.no_grad():
        both = network(images)
        network.scales = ()
        whole, half = network(images), network(F.interpolate(images, scale_factor=0.5, mode="bilinear"))
    assert whole.shape == (1, 3, 9, 7)  # rounded up: the pooling of the stem keeps the border
    half = F.interpolate(half, (9, 7), mode="bilinear")
    assert torch.equal(both, torch.where(whole > half, whole, half))
    assert 0 < float((half > whole).float().mean()) < 1


def test_weights_without_counters_of_batches_load_as_those_of_old_pytorch(tmp_path):
    config = DeepLabV2Config(blocks=(1, 1, 1, 1), width=4)
    state = config.build(3, 32).network.state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    save_file(old, tmp_path / "old.safetensors")
    loaded = config.model_copy(update={"weights": tmp_path / "old.safetensors"}).build(3, 32).network
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    old.pop("base.layer1.conv1.bn.running_mean")
    save_file(old, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"lacks base\.layer1\.conv1\.bn\.running_mean"):
        config.model_copy(update={"weights": tmp_path / "less.safetensors"}).build(3, 32)


def test_torchvision_logits_are_those_of_its_own_network_for_normalised_images():
    ours = TorchvisionSegmentationConfig(arch="lraspp_mobilenet_v3_large").build(4, 32).eval()
    theirs = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    theirs.load_state_dict(ours.network.state_dict())
    images = torch.rand(2, 3, 32, 32)
    normalised = torchvision.transforms.functional.normalize(
        images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(normalised)["out"])


def test_a_batch_of_one_is_explained_where_a_network_cannot_be_trained_on_it():
    model = TorchvisionSegmentationConfig(arch="deeplabv3_mobilenet_v3_large").build(2, 32)
    model.train()(torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="at least 2 images per process"):
        model(torch.rand(1, 3, 32, 32))
    assert model.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 2, 32, 32)


def test_torchvision_weights_of_other_classes_get_new_last_layers(monkeypatch):
    trained = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    kind = segmentation.LRASPP_MobileNet_V3_Large_Weights
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: trained.state_dict())
    config = TorchvisionSegmentationConfig(arch="lraspp_mobilenet_v3_large", pretrained=True)
    network = config.build(4, 32).network
    assert torch.equal(network.backbone["0"][0].weight, trained.backbone["0"][0].weight)
    assert network.classifier.high_classifier.weight.shape[0] == 4


def test_torchvision_names_and_downloads_that_fail_are_explained(monkeypatch):
    with pytest.raises(ValidationError, match="did you mean deeplabv3_resnet"):
        TorchvisionSegmentationConfig(arch="deeplabv3_resnet5")
    with pytest.raises(ValidationError, match="both say where"):
        TorchvisionSegmentationConfig(arch="fcn_resnet50", pretrained=True, weights="a.pth")

    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(segmentation.LRASPP_MobileNet_V3_Large_Weights, "get_state_dict", no_network)
    with pytest.raises(ValueError, match="could not be had"):
        TorchvisionSegmentationConfig(arch="lraspp_mobilenet_v3_large", pretrained=True).build(2, 32)


def test_smp_options_reach_the_network_and_unknown_names_are_explained():
    smp = pytest.importorskip("segmentation_models_pytorch")
    config = SMPConfig(
        arch="unet", encoder="tu-test_resnet", options={"encoder_depth": 3, "decoder_channels": [8, 8, 8]}
    )
    network = config.build(5, 32).network
    assert isinstance(network, smp.Unet)
    assert len(network.decoder.blocks) == 3
    with pytest.raises(ValidationError, match="did you mean unet"):
        SMPConfig(arch="u-net")
    with pytest.raises(ValidationError, match="did you mean resnet18"):
        SMPConfig(arch="unet", encoder="resnet-18")
    with pytest.raises(ValidationError, match="did you mean tu-resnet18"):
        SMPConfig(arch="unet", encoder="tu-resnet-18")
    with pytest.raises(ValueError, match="cannot be built with"):
        SMPConfig(arch="unet", encoder="tu-test_resnet", options={"no_such": 3}).build(5, 32)


def test_smp_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ValidationError, match=r"pip install \"gat-robust\[seg\]\""):
        SMPConfig(arch="unet")
