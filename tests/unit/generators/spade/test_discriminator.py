"""The patch discriminators: shapes, what each patch sees, norms, and the losses in closed form."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from generators.spade.config import SPADEConfig
from generators.spade.discriminator import (
    MultiscaleDiscriminator,
    feature_matching_loss,
    hinge_loss_D,
    hinge_loss_G,
)
from generators.spade.encoder import Posterior, StyleEncoder


def inputs(b: int = 2, side: int = 64) -> tuple[Tensor, Tensor]:
    return torch.randn(b, 5, side, side), torch.randn(b, 3, side, side)


def test_sizes_and_widths_are_those_of_the_published_network() -> None:
    """At 64 px: 4x4 kernels with padding 2, so n -> n // 2 + 1 at stride 2 and n -> n + 1 at stride 1."""
    outputs = MultiscaleDiscriminator(5, num_D=2, n_layers=3, ndf=8)(*inputs())
    shapes = [[tuple(layer.shape[1:]) for layer in scale] for scale in outputs]
    assert shapes == [
        [(8, 33, 33), (16, 17, 17), (32, 18, 18), (1, 19, 19)],
        [(8, 17, 17), (16, 9, 9), (32, 10, 10), (1, 11, 11)],
    ]


def test_widths_stop_at_eight_times_the_first() -> None:
    outputs = MultiscaleDiscriminator(5, num_D=1, n_layers=6, ndf=2)(*inputs())
    assert [layer.shape[1] for layer in outputs[0]] == [2, 4, 8, 16, 16, 16, 1]


def test_the_second_scale_sees_halved_images() -> None:
    discriminator = MultiscaleDiscriminator(5, num_D=2, n_layers=2, ndf=4)
    semantics, images = inputs(side=32)
    fine, coarse = discriminator(semantics, images)
    averaged = nn.functional.avg_pool2d(torch.cat([semantics, images], 1), 3, 2, 1, count_include_pad=False)
    discriminator.eval()  # where reading a spectral norm does not change it
    fine, coarse = discriminator(semantics, images)
    torch.testing.assert_close(coarse[-1], discriminator.scales[1](averaged)[-1])
    torch.testing.assert_close(fine[-1], discriminator.scales[0](torch.cat([semantics, images], 1))[-1])


def test_both_layout_and_image_reach_the_logits() -> None:
    discriminator = MultiscaleDiscriminator(5, ndf=4)
    semantics, images = (x.requires_grad_() for x in inputs())
    logits = torch.stack([scale[-1].square().sum() for scale in discriminator(semantics, images)])
    for gradient in torch.autograd.grad(logits.sum(), [semantics, images]):
        assert (gradient.abs().sum((0, 2, 3)) > 0).all()


def test_an_answer_depends_on_its_example_alone() -> None:
    discriminator = MultiscaleDiscriminator(5, ndf=4).eval()
    semantics, images = inputs(b=3)
    together = discriminator(semantics, images)[0][-1]
    alone = discriminator(semantics[1:2], images[1:2])[0][-1]
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_middle_layers_have_spectral_and_instance_norm() -> None:
    discriminator = MultiscaleDiscriminator(5, num_D=2, n_layers=4, ndf=8)
    for _ in range(50):
        discriminator(*inputs(1))  # power iterations
    discriminator.eval()
    for scale in discriminator.scales:
        first, *middle, last = scale.layers
        assert not parametrize.is_parametrized(first[0]) and not parametrize.is_parametrized(last)
        for layer in middle:
            assert parametrize.is_parametrized(layer[0], "weight") and layer[0].bias is None
            largest = torch.linalg.matrix_norm(layer[0].weight.detach().flatten(1), ord=2)
            assert float(largest) == pytest.approx(1, abs=0.02)
    features = discriminator(*inputs())[0]
    pre = discriminator.scales[0].layers[1][:2](features[0])
    torch.testing.assert_close(pre.mean((2, 3)), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(pre.var((2, 3), unbiased=False), torch.ones(2, 16), atol=1e-2, rtol=0)


@pytest.mark.parametrize("wrong", [{"num_D": 0}, {"n_layers": 0}])
def test_no_scales_or_layers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="one scale and one layer"):
        MultiscaleDiscriminator(5, **wrong)


def maps(*values: float) -> list[Tensor]:
    return [torch.full((1, 1, 2, 2), float(value)) for value in values]


def test_hinge_losses_by_hand() -> None:
    fake, real = [maps(9, -3), maps(9, 0.5)], [maps(9, 0.25), maps(9, 2)]
    # Scale 1: relu(1 - 3) + relu(1 - 0.25) = 0.75; scale 2: relu(1 + 0.5) + relu(1 - 2) = 1.5.
    assert float(hinge_loss_D(fake, real)) == pytest.approx((0.75 + 1.5) / 2)
    assert float(hinge_loss_G(fake)) == pytest.approx((3 - 0.5) / 2)


def test_feature_matching_by_hand_leaves_out_logits_and_real_gradients() -> None:
    fake, real = [maps(1, 2, 100), maps(0, 0, 0)], [maps(3, 5, -100), maps(1, 0, 7)]
    real[0][0].requires_grad_()
    fake[0][0].requires_grad_()
    loss = feature_matching_loss(fake, real)
    assert float(loss.detach()) == pytest.approx((2 + 3 + 1 + 0) / 2)
    loss.backward()
    assert real[0][0].grad is None
    assert fake[0][0].grad is not None and (fake[0][0].grad == -1 / 4 / 2).all()


def test_the_style_encoder_hears_colours() -> None:
    """Brightness of a flat image reaches z: a norm of each channel by itself would take it out."""
    config = SPADEConfig(label_nc=3, contain_dontcare=False, crop_size=32, use_vae=True, z_dim=6, ngf=2)
    encoder = StyleEncoder(config, nef=4)
    semantics = torch.zeros(2, config.semantic_nc, 32, 32)
    semantics[:, 0] = 1
    images = torch.tensor([-0.5, 0.5])[:, None, None, None].expand(2, 3, 32, 32)
    posterior = encoder(semantics, images)
    assert posterior.mean.shape == posterior.logvar.shape == (2, 6)
    assert (posterior.mean[0] - posterior.mean[1]).abs().max() > 1e-3


def test_style_encoder_hands_on_the_mean_colour_of_every_class() -> None:
    config = SPADEConfig(
        label_nc=2, contain_dontcare=False, use_instance=False, crop_size=32, use_vae=True, z_dim=6, ngf=2
    )
    encoder = StyleEncoder(config, nef=4)
    with torch.no_grad():  # z reads nothing but the colours: red, green, blue of class 0, then of class 1
        encoder.head.weight.zero_()
        encoder.head.bias.zero_()
        encoder.head.weight[:6, -6:] = torch.eye(6)
    semantics = torch.zeros(1, 2, 32, 32)
    semantics[:, 0, :8], semantics[:, 1, 8:] = 1, 1
    images = torch.randn(1, 3, 32, 32)
    expected = torch.cat([images[0, :, :8].mean((1, 2)), images[0, :, 8:].mean((1, 2))])
    torch.testing.assert_close(encoder(semantics, images).mean[0], expected, atol=1e-5, rtol=1e-4)


def test_posteriors_start_narrow_and_an_absent_class_has_no_colour() -> None:
    config = SPADEConfig(label_nc=3, contain_dontcare=False, crop_size=32, use_vae=True, z_dim=6, ngf=2)
    semantics = torch.zeros(2, config.semantic_nc, 32, 32)
    posterior = StyleEncoder(config, nef=4)(semantics, torch.randn(2, 3, 32, 32))
    assert posterior.mean.isfinite().all()
    assert (posterior.logvar < -2).all()


def test_posterior_against_torch_distributions() -> None:
    posterior = Posterior(torch.randn(4, 3), torch.randn(4, 3))
    normal = torch.distributions.Normal(posterior.mean, (0.5 * posterior.logvar).exp())
    standard = torch.distributions.Normal(torch.zeros(4, 3), torch.ones(4, 3))
    expected = torch.distributions.kl_divergence(normal, standard).sum(1)
    torch.testing.assert_close(posterior.divergence(), expected)
    noise = torch.randn(4, 3)
    torch.testing.assert_close(posterior.sample(noise), normal.loc + normal.scale * noise)
