"""Our own networks, and what every registered model must satisfy."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from gat.outputs import check_classifier_outputs, check_segmenter_outputs
from tasks.models import MODELS, ModelConfig, Normalized
from tasks.models.small_convnet import SmallConvNetConfig
from tasks.models.small_resnet import ResidualBlock, SmallResNetConfig

# One small member of each family, by the settings that a user would write.
MEMBERS = {
    "small_resnet": {"widths": [8, 16], "blocks": [1, 2]},
    "small_resnet full resolution": {"widths": [8, 16], "blocks": [1, 1], "stem_stride": 1},
    "small_resnet group": {"widths": [8, 16], "blocks": [1, 1], "norm": "group", "activation": "silu"},
    "small_convnet": {"width": 8, "depth": 1, "dropout": 0.2},
    "efficientnet_lite0": {"pretrained": False},
    "timm": {"arch": "test_efficientnet"},
    "torchvision": {"arch": "shufflenet_v2_x0_5"},
    "small_segnet": {"widths": [8, 16], "blocks": [1, 2]},
    "small_segnet single pixels": {
        "widths": [8, 16], "blocks": [1, 1], "patch_px": 1, "norm": "group", "activation": "silu",
    },
    "deeplab_v2": {"blocks": [1, 2, 1, 1], "width": 4, "rates": [1, 2], "scales": [0.5]},
    "torchvision_segmentation": {"arch": "lraspp_mobilenet_v3_large"},
    "smp": {"arch": "unet", "encoder": "tu-test_resnet", "options": {"decoder_channels": [8] * 5}},
}  # fmt: skip


def build(member, num_classes=4, image_size=32):
    settings = {"name": member.split()[0], **MEMBERS[member]}
    return TypeAdapter(ModelConfig).validate_python(settings).build(num_classes, image_size)


def check(member, outputs, num_classes):
    if MODELS[member.split()[0]].task == "segmentation":
        check_segmenter_outputs(outputs, num_classes, (32, 32))
    else:
        check_classifier_outputs(outputs, num_classes)


def with_statistics(model):
    """In eval mode, with batch statistics and a last layer that make the logits depend on the image."""
    model.train()
    for _ in range(3):
        model(torch.rand(8, 3, 32, 32))
    return model.eval()


def test_every_registered_family_has_a_member_here():
    """Detectors have tests of their own: they return no logits."""
    answering_logits = {name for name, config in MODELS.items() if config.task != "detection"}
    assert {member.split()[0] for member in MEMBERS} == answering_logits
    for name, config in MODELS.items():
        assert config.model_fields["name"].default == name


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("num_classes", [2, 10])
def test_logits_have_one_entry_per_class_in_train_and_eval_mode(member, num_classes):
    model = build(member, num_classes)
    assert isinstance(model, Normalized)
    assert model.training
    for mode in (True, False):
        check(member, model.train(mode)(torch.rand(3, 3, 32, 32)), num_classes)


@pytest.mark.parametrize("member", MEMBERS)
def test_in_eval_mode_an_example_is_answered_alone(member):
    model, images = with_statistics(build(member)), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(images[i : i + 1]) for i in range(3)])
    assert together.std(0).max() > 0
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("member", MEMBERS)
def test_gradients_reach_every_image_and_only_its_own(member):
    model, images = with_statistics(build(member)), torch.rand(3, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images)[1].logsumexp(0).sum(), images)
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2]].abs().max() == 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("member", MEMBERS)
def test_bf16_autocast_gives_about_the_same_logits(member):
    model, images = with_statistics(build(member)), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, atol=0.05 * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("member", MEMBERS)
def test_channels_last_changes_nothing_but_the_layout(member):
    model, images = with_statistics(build(member)), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model(images)
        got = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("member", MEMBERS)
def test_one_class_is_refused(member):
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        build(member, num_classes=1)


@pytest.mark.parametrize(("config", "kilo"), [(SmallResNetConfig(), 152), (SmallConvNetConfig(), 279)])
def test_default_sizes_are_as_documented(config, kilo):
    assert sum(p.numel() for p in config.build(10, 32).parameters()) // 1000 == kilo


def test_group_norm_makes_training_answers_independent_of_the_batch():
    images = torch.rand(3, 3, 32, 32)
    for config in (SmallResNetConfig(norm="group"), SmallConvNetConfig(width=8)):
        model = config.build(4, 32).train()
        torch.testing.assert_close(model(images)[:1], model(images[:1]), atol=1e-5, rtol=1e-5)
    model = SmallResNetConfig(norm="batch").build(4, 32).train()
    assert (model(images)[:1] - model(images[:1])).abs().max() > 1e-2


@pytest.mark.parametrize("halve", [False, True])
def test_a_residual_block_whose_last_convolution_is_zero_passes_its_input_on(halve):
    block = ResidualBlock(8, 8, halve, "batch", "relu")
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 8, 6, 6)
    wanted = x.reshape(2, 8, 3, 2, 3, 2).mean((3, 5)) if halve else x
    torch.testing.assert_close(block(x), wanted)


def test_a_strided_stem_looks_at_every_pixel_equally_often():
    model = SmallResNetConfig(widths=(8,), blocks=(1,)).build(2, 8)
    nn.init.ones_(model.network.stem.weight)
    images = torch.zeros(1, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.network.stem(images).sum(), images)
    assert (gradient[:, :, 1:-1, 1:-1] == gradient[0, 0, 3, 3]).all()


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match=r"one number per stage each, got \(8,\) and \(1, 1, 1\)"):
        SmallResNetConfig(widths=(8,))
    with pytest.raises(ValidationError, match="multiple of 8"):
        SmallResNetConfig(widths=(12,), blocks=(1,))
    with pytest.raises(ValidationError, match="multiple of 8"):
        SmallConvNetConfig(width=20)
    with pytest.raises(ValidationError, match="Extra inputs"):
        SmallConvNetConfig(widht=16)
    with pytest.raises(ValidationError, match="greater than 0"):
        SmallConvNetConfig(std=(0.5, 0.0, 0.5))
    with pytest.raises(ValueError, match=r"small_resnet .* at least 8 px, got 4"):
        SmallResNetConfig().build(2, 4)
    with pytest.raises(ValueError, match=r"small_convnet .* at least 4 px, got 2"):
        SmallConvNetConfig().build(2, 2)


def test_settings_survive_a_round_trip_through_json():
    adapter = TypeAdapter(ModelConfig)
    for member, settings in MEMBERS.items():
        config = adapter.validate_python({"name": member.split()[0], **settings})
        assert adapter.validate_json(adapter.dump_json(config)) == config
