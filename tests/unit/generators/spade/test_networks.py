"""The generator as a network: shapes, encoding, training."""

import pytest
import torch
from pydantic import ValidationError

from generators.spade.config import SPADEConfig
from generators.spade.networks import Generator, encode_layouts
from tests.toys import tiny_layouts, tiny_spade_generator


@pytest.mark.parametrize(
    ("upsampling", "crop_size", "aspect_ratio", "size", "num_norms"),
    [
        ("normal", 32, 1.0, (32, 32), 18),
        ("more", 64, 1.0, (64, 64), 18),
        ("normal", 64, 2.0, (32, 64), 18),
        ("most", 128, 1.0, (128, 128), 21),
    ],
)
def test_images_have_the_size_that_the_config_says(upsampling, crop_size, aspect_ratio, size, num_norms):
    generator = tiny_spade_generator(
        num_upsampling_layers=upsampling, crop_size=crop_size, aspect_ratio=aspect_ratio
    )
    config = generator.config
    assert config.image_size == size
    modulation = generator.modulation(encode_layouts(tiny_layouts(1, size), config))
    assert len(modulation) == 2 * num_norms
    assert {name: tuple(value.shape[1:]) for name, value in modulation.items()} == generator.site_shapes()
    assert generator(encode_layouts(tiny_layouts(1, size), config)).shape == (1, 3, *size)


def test_the_published_sizes_of_the_coco_model_come_out():
    """97.5 million parameters and 81 002 496 values of gamma and beta, as measured on the official code."""
    with torch.device("meta"):
        generator = Generator(SPADEConfig(label_nc=182))
    assert generator.config.semantic_nc == 184
    assert sum(p.numel() for p in generator.parameters()) / 1e6 == pytest.approx(97.5, abs=0.05)
    assert sum(torch.Size(shape).numel() for shape in generator.site_shapes().values()) == 81_002_496


def test_layouts_become_channels_of_classes_unknown_and_edges():
    config = SPADEConfig(label_nc=3, crop_size=32)
    layouts = torch.zeros(1, 2, 32, 32, dtype=torch.long)
    layouts[0, 0, :, 16:] = 2
    layouts[0, 0, 3, 4] = 255
    layouts[0, 1, 10:, :] = -7
    semantics = encode_layouts(layouts, config)
    assert semantics.shape == (1, 5, 32, 32)
    assert torch.equal(semantics[:, :4].sum(1), torch.ones(1, 32, 32))
    assert semantics[0, :, 3, 4].tolist() == [0, 0, 0, 1, 0]
    assert semantics[0, :, 3, 5].tolist() == [1, 0, 0, 0, 0]
    assert semantics[0, :, 3, 16].tolist() == [0, 0, 1, 0, 0]
    assert semantics[0, 4].nonzero()[:, 0].unique().tolist() == [
        9,
        10,
    ]  # both sides of the edge, and nothing else
    assert semantics[0, 4, 9:11].min() == 1


def test_the_channel_of_the_unknown_may_be_the_first():
    config = SPADEConfig(label_nc=3, crop_size=32, use_instance=False, dontcare_first=True)
    layouts = torch.full([1, 2, 32, 32], 2)
    layouts[0, 0, 0, 0] = 255
    semantics = encode_layouts(layouts, config)
    assert semantics[0, :, 0, 0].tolist() == [1, 0, 0, 0]
    assert semantics[0, :, 0, 1].tolist() == [0, 0, 0, 1]


def test_layouts_that_the_generator_has_no_channel_for_are_refused():
    config = SPADEConfig(label_nc=3, crop_size=32, contain_dontcare=False)
    good = torch.zeros(2, 2, 32, 32, dtype=torch.long)
    with pytest.raises(ValueError, match=r"layouts of 32x32 px \(height x width\), got 32x64"):
        encode_layouts(good.repeat(1, 1, 1, 2), config)
    for value, says in ((3, "got 3"), (-1, "got -1"), (300, "got 300"), (255, "no channel for unknown")):
        bad = good.clone()
        bad[1, 0, 5, 6] = value
        with pytest.raises(ValueError, match=says):
            encode_layouts(bad, config)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"crop_size": 48}, "multiple of 32"),
        ({"crop_size": 32, "num_upsampling_layers": "more"}, "multiple of 64"),
        ({"crop_size": 32, "aspect_ratio": 4.0}, "too flat"),
        ({"classes": ("a", "b")}, "3 semantic classes, but 2 names"),
        ({"contain_dontcare": False, "dontcare_first": True}, "needs contain_dontcare"),
        ({"kernel_size": 2}, "odd"),
        ({"colour": 1}, "colour"),
    ],
)
def test_impossible_configs_are_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        SPADEConfig.model_validate({"label_nc": 3} | settings)


def test_z_is_wanted_exactly_with_the_vae_branch(generator, layouts):
    semantics = encode_layouts(layouts, generator.config)
    with pytest.raises(ValueError, match="no use for z"):
        generator(semantics, torch.zeros(4, 8))
    vae = tiny_spade_generator(use_vae=True, z_dim=8)
    with pytest.raises(ValueError, match=r"starts from z \[b, 8\]"):
        vae(semantics)
    one, other = vae(semantics, torch.zeros(4, 8)), vae(semantics, torch.ones(4, 8))
    assert (one - other).abs().flatten(1).amax(1).min() > 1e-3


def test_training_uses_the_batch_and_records_its_statistics():
    generator = tiny_spade_generator().train()
    norm = generator.up_0.norm_0.param_free_norm
    before = norm.running_mean.clone()
    semantics = encode_layouts(tiny_layouts(4), generator.config)
    alone = generator(semantics[:2])
    together = generator(semantics)
    assert not torch.equal(norm.running_mean, before)
    assert (alone[0] - together[0]).abs().max() > 1e-3
    together.square().mean().backward()
    without = [name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_spectrally_normalised_generator_folds_into_a_plain_one():
    torch.manual_seed(0)
    config = tiny_spade_generator().config
    trained = Generator(config, spectral=True).train()
    semantics = encode_layouts(tiny_layouts(4), config)
    for _ in range(8):
        trained(semantics)
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    folded = trained.folded_state_dict()
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())
    assert trained.head_0.conv_0.parametrizations.weight[0].training
    plain = Generator(config)
    plain.load_state_dict(folded, strict=True)
    torch.testing.assert_close(plain.eval()(semantics), trained.eval()(semantics), rtol=0, atol=1e-6)
    for block in ("head_0", "up_3"):
        for conv in plain.get_submodule(block).named_children():
            if conv[0].startswith("conv_"):
                assert torch.linalg.matrix_norm(conv[1].weight.detach().flatten(1), 2) == pytest.approx(
                    1, abs=0.1
                )
    folded["conv_img.weight"].zero_()
    assert trained.conv_img.weight.abs().max() > 0  # copies
